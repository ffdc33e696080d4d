"""tools/train_net.py from the outside: killed and resumed runs, signals, several processes, evaluation, bad keys."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from fork_server import ROOT, Script

ITERATIONS = 14
TINY = [
    "model.backbone.bottom_up.name=mobilenetv3_small_050",
    "model.backbone.bottom_up.weights=''",
    "model.pixel_mean=[127.5,127.5,127.5]",  # so that the model of a few iterations finds something
    "model.pixel_std=[127.5,127.5,127.5]",
    "model.backbone.out_channels=16",
    "model.proposal_generator.post_nms_topk=[50,20]",
    "model.roi_heads.batch_size_per_image=32",
    "model.roi_heads.box_head.fc_dims=[32]",
    "model.roi_heads.box_predictor.input_shape.channels=32",
    "model.roi_heads.mask_head.conv_dims=[16,16]",
    "dataloader.train.mapper.augmentations.0.size=96",
    "dataloader.train.total_batch_size=2",
    "optimizer.lr=4e-4",
    "dataset.num_train=5",
    "dataset.num_val=1",
    f"train.max_iter={ITERATIONS}",
    "train.checkpointer.period=3",
    "train.log_period=1",
]


def _arguments(output, *arguments):
    flags = [argument for argument in arguments if "=" not in argument]
    overrides = [argument for argument in arguments if "=" in argument]
    config = ["--config-file", "configs/demo/mask_rcnn_lite0_fpn.py"]
    return [*config, *flags, *TINY, f"train.output_dir={output}", *overrides]


def _start(output, *arguments, **options):
    return Script(ROOT / "tools/train_net.py", *_arguments(output, *arguments), **options)


def _finish(process, returncode=0):
    text = process.communicate()
    assert process.returncode == returncode, text[-4000:]
    return text


def _losses(output):
    """Iteration -> its losses, of metrics.json; each iteration must stand there once."""
    path = output / "metrics.json"
    entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    entries = [entry for entry in entries if "total_loss" in entry]
    losses = {entry["iteration"]: [entry[k] for k in sorted(entry) if "loss" in k] for entry in entries}
    assert len(losses) == len(entries)
    return losses


def _wait_for(process, output, iteration):
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        text = (output / "metrics.json").read_text() if (output / "metrics.json").exists() else ""
        if f'"iteration": {iteration},' in text:
            return
        time.sleep(0.02)
    pytest.fail(f"iteration {iteration} was not reached: {process.text()[-3000:]}")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    text = _finish(_start(output))
    return output, text


def test_run_leaves_checkpoint_metrics_events_and_best_weights(uninterrupted):
    output, text = uninterrupted
    names = os.listdir(output)
    assert {"model_final.pth", "model_best.pth", "metrics.json", "config.yaml", "log.txt"} <= set(names)
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert sorted(_losses(output)) == list(range(ITERATIONS))
    assert "eta:" in text
    assert "data_time:" in text
    last = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()][-1]
    assert {"segm/AP50", "matching/mAP"} <= set(last)


def test_killed_runs_end_with_the_losses_of_an_uninterrupted_one(uninterrupted, tmp_path):
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    moments = sorted(rng.sample(range(1, ITERATIONS - 1), 3))
    for moment in moments:
        process = _start(tmp_path, "--resume", new_session=True)
        _wait_for(process, tmp_path, moment)
        time.sleep(rng.random() * 0.2)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    _finish(_start(tmp_path, "--resume"))
    metrics = (tmp_path / "metrics.json").read_bytes()
    assert "is finished" in _finish(_start(tmp_path, "--resume"))
    assert (tmp_path / "metrics.json").read_bytes() == metrics
    whole, _ = uninterrupted
    assert _losses(tmp_path) == _losses(whole), f"killed at {moments}, seed {seed}"
    final = [torch.load(folder / "model_final.pth", weights_only=True) for folder in (whole, tmp_path)]
    for key in ("model", "ema"):
        for name, value in final[0][key].items():
            assert torch.equal(value, final[1][key][name]), (key, name)
    for number, state in final[0]["trainer"]["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, final[1]["trainer"]["optimizer"]["state"][number][name]), (number, name)
    assert not [name for name in os.listdir(tmp_path) if ".tmp" in name]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends(tmp_path, number):
    process = _start(tmp_path)
    _wait_for(process, tmp_path, 4)
    process.send_signal(number)
    text = _finish(process, returncode=128 + number)
    assert "--resume continues" in text
    assert "Traceback" not in text
    last = max(_losses(tmp_path))
    assert (tmp_path / "last_checkpoint").read_text() == f"model_{last:07d}.pth"
    saved = torch.load(tmp_path / f"model_{last:07d}.pth", weights_only=True)
    assert saved["trainer"]["iteration"] == last


def test_evaluation_alone_repeats_the_final_result(uninterrupted, tmp_path):
    whole, _ = uninterrupted
    options = [f"train.init_checkpoint={whole}/model_final.pth", "train.eval_proposals=true"]
    text = _finish(_start(tmp_path, "--eval-only", *options))
    last = [json.loads(line) for line in (whole / "metrics.json").read_text().splitlines()][-1]
    figures = text.rsplit("copypaste: Task: segm", 1)[1].splitlines()[2].split("copypaste: ")[1].split(",")
    assert float(figures[1]) == pytest.approx(last["segm/AP50"], abs=1e-4)
    names, recall = text.rsplit("copypaste: Task: box_proposals", 1)[1].splitlines()[1:3]
    recall = dict(zip(names.split("copypaste: ")[1].split(","), recall.split("copypaste: ")[1].split(","), strict=True))
    assert 0 < float(recall["AR@100"]) == float(recall["AR@1000"]) < 100  # the model gives 20
    missing = _finish(_start(tmp_path, "--eval-only", "train.init_checkpoint=nowhere.pth"), returncode=1)
    assert "nowhere.pth does not exist" in missing
    assert "Traceback" not in missing


def test_resume_without_a_checkpoint_says_so_and_torchrun_trains(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["train.max_iter=2", "train.accumulate=2", "train.amp.enabled=true"]
    result = subprocess.run(
        [*launcher, "tools/train_net.py", *_arguments(tmp_path, "--resume", *options)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    text = result.stdout
    assert result.returncode == 0, text[-4000:]
    assert "holds no checkpoint" in text
    assert "World size: 2" in text
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert saved["trainer"]["iteration"] == 1
    assert all(torch.isfinite(value).all() for value in saved["model"].values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.max_itre=3"], "train.max_iter"),
        (["--num-gpus", "3"], "torchrun"),
    ],
)
def test_bad_arguments_are_refused_before_anything_starts(tmp_path, arguments, message):
    process = _start(tmp_path / "new", *arguments)
    text = _finish(process, returncode=1)
    assert message in text
    assert "Traceback" not in text
    assert not (tmp_path / "new").exists()
