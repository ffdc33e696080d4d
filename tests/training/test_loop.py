"""The training step against hand-written loops, its hooks, and its stop before bad numbers do harm."""

import json
import math
import os

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from maskrcnn_plus.checkpoints import Checkpointer
from maskrcnn_plus.training.hooks import BestWeights, PeriodicCheckpoint, WeightAveraging
from maskrcnn_plus.training.loop import Trainer


class _Regression(nn.Module):
    """Returns two losses of a batch of {"x", "y"} and has randomness like a proposal sampler."""

    def __init__(self, noise=0.0):
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.noise = noise

    def forward(self, batch):
        x = torch.stack([entry["x"] for entry in batch])
        y = torch.stack([entry["y"] for entry in batch])
        error = self.linear(x)[:, 0] - y
        return {"loss_a": error.square().mean() + self.noise * torch.rand(()), "loss_b": error.abs().mean()}


def _batches(count=20, size=2):
    generator = torch.Generator().manual_seed(0)
    return [
        [
            {
                "x": torch.randn(3, generator=generator),
                "y": torch.randn((), generator=generator),
                "file_name": f"{i}.png",
            }
            for _ in range(size)
        ]
        for i in range(count)
    ]


def _trainer(batches=None, lr=0.1, noise=0.0, **options):
    torch.manual_seed(0)
    model = _Regression(noise)
    return Trainer(model, batches or _batches(), torch.optim.SGD(model.parameters(), lr=lr), **options)


def _weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_steps_equal_a_written_out_loop(accumulate, clip):
    trainer = _trainer(accumulate=accumulate, clip_grad_norm=clip)
    trainer.train(0, 4)
    torch.manual_seed(0)
    model = _Regression()
    batches = iter(_batches())
    for _ in range(4):
        model.zero_grad()
        for _ in range(accumulate):
            losses = model(next(batches))
            ((losses["loss_a"] + losses["loss_b"]) / accumulate).backward()
        gradients = [p.grad for p in model.parameters()]
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
        scale = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * scale * parameter.grad
    expected = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(_weights(trainer), expected)


def test_recorded_losses_are_those_of_the_iteration():
    trainer = _trainer(lr=0.0)
    trainer.train(0, 3)
    model = trainer.model
    expected = {name: value.item() for name, value in model(_batches()[2]).items()}
    latest = trainer.storage.latest()
    for name, value in expected.items():
        assert latest[name][0] == pytest.approx(value)
    assert latest["total_loss"][0] == pytest.approx(sum(expected.values()))


def test_randomness_depends_on_seed_and_iteration_alone():
    def losses(first, last, seed):
        trainer = _trainer(lr=0.0, noise=1.0, seed=seed, batches=_batches(1) * 10)
        trainer.train(first, last)
        return [value for value, _ in trainer.storage.history("loss_a").values()]

    whole = losses(0, 6, seed=3)
    assert len(set(whole)) == 6
    assert losses(4, 6, seed=3) == whole[4:]
    assert losses(0, 6, seed=4) != whole


def test_a_nan_loss_stops_before_the_weights_change():
    batches = _batches(5)
    batches[2][1]["x"][0] = math.nan
    trainer = _trainer(batches)
    with pytest.raises(FloatingPointError, match=r"iteration 2.*2\.png"):
        trainer.train(0, 5)
    expected = _trainer(_batches(2))
    expected.train(0, 2)
    assert torch.equal(_weights(trainer), _weights(expected))


def test_an_infinite_gradient_stops_before_the_weights_change():
    trainer = _trainer()
    trainer.model.linear.weight.register_hook(lambda gradient: gradient * math.inf)
    before = _weights(trainer)
    with pytest.raises(FloatingPointError, match="gradient norm"):
        trainer.train(0, 1)
    assert torch.equal(before, _weights(trainer))


def test_bfloat16_on_a_cpu_is_close_to_full_precision():
    full, mixed = _trainer(), _trainer(amp_dtype="bfloat16")
    full.train(0, 5)
    mixed.train(0, 5)
    assert not torch.equal(_weights(full), _weights(mixed))
    torch.testing.assert_close(_weights(full), _weights(mixed), atol=0.02, rtol=0.05)


@pytest.mark.parametrize(
    ("machine", "avx512", "amx", "warned"),
    [
        ("x86_64", False, False, True),
        ("x86_64", True, False, False),
        ("AMD64", False, True, False),
        ("arm64", False, False, False),
    ],
)
def test_a_cpu_without_bfloat16_is_told_so(monkeypatch, caplog, machine, avx512, amx, warned):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    _trainer(amp_dtype="bfloat16")
    assert ("train.amp.enabled=false is faster" in caplog.text) == warned
    caplog.clear()
    _trainer()
    assert not caplog.text


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"accumulate": 0}, "train.accumulate"),
        ({"clip_grad_norm": -1}, "train.clip_grad_norm"),
        ({"amp_dtype": "float8"}, "train.amp.dtype"),
        ({"amp_dtype": "float16"}, "train.amp.dtype=bfloat16"),
    ],
)
def test_bad_options_name_their_config_key(options, key):
    with pytest.raises(ValueError, match=key):
        _trainer(**options)


def test_averaged_weights_follow_the_formula():
    trainer = _trainer()
    averaging = WeightAveraging(trainer.model, decay=0.7)
    seen = []
    trainer.register_hooks([averaging])
    step = averaging.after_step
    averaging.after_step = lambda: (step(), seen.append(_weights(trainer)))
    trainer.train(0, 6)
    expected = seen[0]
    for n, weights in enumerate(seen[1:], start=1):
        decay = min(0.7, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weights
    average = torch.cat([p.flatten() for p in averaging.average.module.parameters()])
    torch.testing.assert_close(average, expected)
    with pytest.raises(ValueError, match=r"train\.ema\.decay"):
        WeightAveraging(trainer.model, decay=1.0)


def test_old_checkpoints_are_removed_and_foreign_ones_kept(tmp_path):
    (tmp_path / "model_0000099.pth").write_bytes(b"of another run")
    trainer = _trainer()
    trainer.register_hooks([PeriodicCheckpoint(Checkpointer(trainer.model, str(tmp_path)), period=2, max_to_keep=2)])
    trainer.train(0, 9)
    found = sorted(name for name in os.listdir(tmp_path) if name.endswith(".pth"))
    assert found == ["model_0000005.pth", "model_0000007.pth", "model_0000099.pth", "model_final.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_best_weights_survive_a_resume(tmp_path):
    model = nn.Linear(1, 1)
    checkpointer = Checkpointer(model, str(tmp_path))

    def update(best, value, iteration):
        with torch.no_grad():
            model.weight.fill_(value)
        best.update({"segm/AP": value, "bbox/AP": 0.0}, iteration, model)
        return torch.load(tmp_path / "model_best.pth", weights_only=True)["model"]["weight"].item()

    best = BestWeights(checkpointer, "segm/AP", "max", start_iter=0)
    assert [update(best, v, i) for i, v in enumerate([1.0, 3.0, 2.0, math.nan])] == [1, 3, 3, 3]
    assert json.loads((tmp_path / "best.json").read_text()) == {"metric": "segm/AP", "value": 3.0, "iteration": 1}
    resumed = BestWeights(checkpointer, "segm/AP", "max", start_iter=3)
    assert update(resumed, 2.5, 5) == 3
    anew = BestWeights(checkpointer, "segm/AP", "min", start_iter=0)
    assert update(anew, 2.5, 5) == 2.5
    with pytest.raises(KeyError, match=r"segm/ap is not among.*bbox/AP, segm/AP"):
        BestWeights(checkpointer, "segm/ap", "max", 0).update({"segm/AP": 1.0, "bbox/AP": 1.0}, 0, model)


def test_state_survives_a_round_trip():
    first = _trainer()
    first.optimizer = torch.optim.Adam(first.model.parameters())
    first.train(0, 3)
    second = _trainer()
    second.optimizer = torch.optim.Adam(second.model.parameters())
    with EventStorage(0):
        second.load_state_dict(first.state_dict())
    moments = [t.optimizer.state_dict()["state"][0]["exp_avg"] for t in (first, second)]
    assert torch.equal(*moments)
