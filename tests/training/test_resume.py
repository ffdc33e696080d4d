"""--resume: equal to an uninterrupted run, with changed settings, and of another model."""

import pytest
import tiny
import torch
from tiny import edit, entries, equal, load, old_format, resume, without_config

from maskrcnn_plus.checkpoints import WeightsError


@pytest.mark.parametrize("old", [False, True])
def test_a_resumed_run_repeats_an_uninterrupted_one_without_a_word(finished, stopped, old):
    if old:
        edit(stopped / "model_0000003.pth", old_format)
    log = resume(stopped)
    assert "Cannot find the hook" not in log
    assert "not those of the checkpoint" not in log
    ours, whole = load(stopped / "model_final.pth"), load(finished / "model_final.pth")
    assert equal(without_config(ours), without_config(whole))
    assert ours["trainer"]["hooks"]["LRScheduler"]["last_epoch"] == 6
    assert entries(stopped) == entries(finished)
    assert equal(without_config(load(stopped / "model_best.pth")), without_config(load(finished / "model_best.pth")))
    assert (stopped / "best.json").read_text() == (finished / "best.json").read_text()


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("lr", 0.001, "optimizer.lr 0.01 -> 0.001"),
        ("weight_decay", 0.2, "optimizer.weight_decay 0.05 -> 0.2 (of 4 of 6 parameters)"),
        ("betas", [0.8, 0.9], "optimizer.betas (0.9, 0.999) -> (0.8, 0.9)"),
        ("eps", 1e-4, "optimizer.eps 1e-08 -> 0.0001"),
    ],
)
def test_changed_settings_win_and_are_said(finished, stopped, key, value, said, old):
    if old:
        edit(stopped / "model_0000003.pth", old_format)
    log = resume(stopped, lambda cfg: cfg.optimizer.update({key: value}))
    assert said in log
    before = load(finished / "model_final.pth")["trainer"]["optimizer"]["param_groups"]
    after = load(stopped / "model_final.pth")["trainer"]["optimizer"]["param_groups"]
    for old_group, group in zip(before, after, strict=True):
        ratio = 0.1 if key == "lr" else 1.0
        assert group["lr"] == pytest.approx(old_group["lr"] * ratio)
        if key != "lr" and old_group[key] != 0:  # norms have no weight decay
            assert list(torch.tensor(group[key]).flatten()) == list(torch.tensor(value).flatten())
    rates = [[e["lr"] for e in entries(output) if "lr" in e] for output in (finished, stopped)]
    assert rates[1][:4] == rates[0][:4]
    assert rates[1][4:] == pytest.approx([rate * ratio for rate in rates[0][4:]])


def test_other_groups_keep_each_parameter_its_moments(stopped):
    before = load(stopped / "model_0000003.pth")["trainer"]

    def change(cfg):
        cfg.optimizer.params.weight_decay_norm = None  # one group instead of two, in another order
        cfg.optimizer.lr = 0.0
        cfg.optimizer.betas = [1 - 1e-9, 1 - 1e-9]  # the moments stay as they are

    resume(stopped, change, ema={"enabled": True, "decay": 0.9})
    after = load(stopped / "model_final.pth")["trainer"]
    assert len(before["optimizer"]["param_groups"]) == 2 != len(after["optimizer"]["param_groups"])
    assert list(before["parameters"]) != list(after["parameters"])
    moments = [
        {name: t["optimizer"]["state"][index]["exp_avg"] for index, name in enumerate(t["parameters"])}
        for t in (before, after)
    ]
    for name, moment in moments[0].items():
        torch.testing.assert_close(moments[1][name], moment, msg=name)


def test_a_changed_batch_changes_the_learning_rate_and_both_say_so(stopped):
    def change(cfg):
        cfg.dataloader.train.total_batch_size = 2
        cfg.optimizer.lr = "${linear_lr:0.01,4}"

    log = resume(stopped, change)
    assert "Learning rate 0.005 with 2 images an optimizer step" in log
    assert "dataloader.train.total_batch_size 4 -> 2" in log
    assert "optimizer.lr 0.01 -> 0.005" in log


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("change", "key", "what"),
    [
        (
            lambda cfg: cfg.dataset.update(num_classes=2),
            "dataset.num_classes",
            r"last\.weight \[1, 4\] there, \[2, 4\]",
        ),
        (lambda cfg: cfg.model.update(freeze_at=1), "freeze_at", r"first\.bias|groups of \[4, 2\]"),
        (lambda cfg: cfg.optimizer.update(_target_="torch.optim.SGD", momentum=0.9), "optimizer._target_", "betas"),
    ],
)
def test_another_model_or_optimizer_is_refused_by_name(stopped, change, key, what, old):
    if old:
        edit(stopped / "model_0000003.pth", old_format)
    with pytest.raises(WeightsError, match=what) as caught:
        resume(stopped, change)
    assert key in str(caught.value)
    assert "model_0000003.pth" in str(caught.value)
    if not old:
        assert f"{key} " in str(caught.value) or f".{key} " in str(caught.value)


def test_other_classes_of_the_same_number_are_refused(finished, tmp_path):
    def config(names):
        cfg = tiny.config(tmp_path / "run")
        cfg.dataset.update(num_classes=2, thing_classes=names)
        return cfg

    tiny.execute(config(["a", "b"]))
    with pytest.raises(WeightsError, match=r"classes a, b, in this order, and dataset\.thing_classes has b, a"):
        tiny.execute(config(["b", "a"]), resume=True)
