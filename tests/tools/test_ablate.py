"""tools/ablate.py: equal time, order, and what is killed or fails.

Most tests train with a stand-in for tools/train_net.py that takes 20 ms an iteration; one trains for real.
"""

import contextlib
import functools
import importlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate

from maskrcnn_plus.config import get_config, skip_pretrained
from maskrcnn_plus.overrides import apply_overrides

ROOT = Path(__file__).resolve().parents[2]
SECONDS = {"a": 0.1, "b": 0.15, "c": 0.4}  # of an iteration
FIGURES = ("AP50", "AP75", "AP90", "mAP", "AR@300")
TINY = [
    "model.backbone.bottom_up.name=mobilenetv3_small_050",
    "model.backbone.bottom_up.weights=''",
    "model.backbone.out_channels=16",
    "model.proposal_generator.post_nms_topk=[50,20]",
    "model.roi_heads.batch_size_per_image=32",
    "model.roi_heads.box_head.fc_dims=[32]",
    "model.roi_heads.box_predictor.input_shape.channels=32",
    "model.roi_heads.mask_head.conv_dims=[16,16]",
    "dataloader.train.mapper.augmentations.0.size=96",
    "dataloader.train.total_batch_size=2",
    "dataset.num_train=5",
    "dataset.num_val=1",
]

CONFIG = """
from maskrcnn_plus.config import get_config

cfg = get_config("demo/mask_rcnn_lite0_fpn")
dataloader, dataset, lr_multiplier = cfg.dataloader, cfg.dataset, cfg.lr_multiplier
model, optimizer, train = cfg.model, cfg.optimizer, cfg.train
"""

# Does what tools/train_net.py does, without PyTorch: one line an iteration, goes on where it was, ends on a signal.
STAND_IN = """
import json, os, signal, sys, time
options = dict(entry.split("=", 1) for entry in sys.argv[4:])
assert sys.argv[1:3] == ["--resume", "--config-file"]
folder = options["train.output_dir"].strip("'")
root = os.path.dirname(os.path.dirname(folder))
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
with open(root + "/pid", "w") as file:
    file.write(f"{os.getpid()} {os.getppid()}")
os.close(os.open(root + "/busy", os.O_CREAT | os.O_EXCL))  # fails where another training runs
record = folder + "/iterations"
done = len(open(record).readlines()) if os.path.exists(record) else 0
for k in range(done, int(options["train.max_iter"])):
    time.sleep(0.02)
    with open(record, "a") as file:
        file.write(f"{k}\\n")
    if stopped:
        os.remove(root + "/busy")
        sys.exit(143)
with open(folder + "/matching_results.json", "w") as file:
    json.dump(int(options["train.seed"]), file)
os.remove(root + "/busy")
if os.path.exists(root + "/fail_" + os.path.basename(os.path.dirname(folder))):
    print("the reason")
    sys.exit(3)
"""

# Imports everything once. Runs the ablation of each line "ARGUMENTS" in a new process with the stand-in.
SERVER = f"""
import functools, json, os, pathlib, signal, sys
sys.path.insert(0, {str(ROOT / "tools")!r})
import ablate
from ablation.plan import write_json
from ablation.runs import train_net

def speeds(plan, rounds):
    measured = json.load(open("seconds.json"))
    speed = {{"machine": "", "inference": {{}}, "failed": {{}}}}
    speed["training"] = {{name: {{"seconds": measured[name], "parameters": 1}} for name in plan.variants}}
    write_json(plan.output / "speed.json", speed)
    return speed

def figures(cfg, folder):
    seed = json.loads((folder / "matching_results.json").read_text())
    return {{name: 0.1 * seed for name in {FIGURES!r}}}

ablate.measure_training, ablate.measure_inference = speeds, lambda *_: []
train = functools.partial(train_net, tool=pathlib.Path("stand_in.py"))
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os._exit(ablate.main(line.split(), train, figures))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def tool():
    """The parts of the tool, as it sees them itself."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        modules = {name: importlib.import_module(f"ablation.{name}") for name in ("plan", "runs", "speed", "table")}
        yield {"ablate": importlib.import_module("ablate"), **modules}
    finally:
        sys.path.remove(str(ROOT / "tools"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    for name in "abc":
        (folder / f"{name}.py").write_text(CONFIG)
    (folder / "stand_in.py").write_text(STAND_IN)
    (folder / "seconds.json").write_text(json.dumps(SECONDS))
    with (
        open(folder / "console", "w") as console,
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=console,
            text=True,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        ) as process,
    ):
        yield process, folder
        process.stdin.close()


@pytest.fixture
def ablate(server, tmp_path):
    """Run an ablation in tmp_path; `stop(pid)` is called where it is given. Gives its exit code."""
    process, _ = server

    def run(*arguments, stop=None):
        line = f"--base a.py --variants b.py c.py --seeds 0 1 --minutes 0.02 --output {tmp_path}/out"
        process.stdin.write(" ".join([line, *arguments]) + "\n")
        process.stdin.flush()
        pid = int(process.stdout.readline())
        if stop:
            stop(pid)
        return int(process.stdout.readline())

    return run


def trained(output):
    """Variant and seed -> the iterations it ran, in order; the stand-in ran each once if they are 0, 1, 2, ..."""
    records = sorted(output.glob("*/seed_*/iterations"), key=lambda path: path.stat().st_mtime_ns)
    return {(path.parts[-3], path.parts[-2]): [int(k) for k in path.read_text().split()] for path in records}


def expected():
    """What 0.02 minutes at each variant's speed give, in the order of the trainings."""
    return {(name, f"seed_{seed}"): list(range(round(1.2 / SECONDS[name]))) for seed in (0, 1) for name in "abc"}


def test_every_variant_gets_the_same_time_seed_by_seed(ablate, tmp_path):
    assert ablate() == 0
    runs = trained(tmp_path / "out")
    assert list(runs.items()) == list(expected().items())
    assert [len(runs[name, "seed_0"]) for name in "abc"] == [12, 8, 3]
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*/*")}
    assert ablate() == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*/*")} == stamps


def test_killed_and_interrupted_at_random_moments(ablate, server, tmp_path):
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    output = tmp_path / "out"

    def trains(pid):
        return (output / "busy").exists() and (output / "pid").read_text().endswith(f" {pid}")

    def stop(pid, number, training_too):
        deadline = time.monotonic() + 30
        # Killed also while it waits for the training of an earlier one.
        while not (trains(pid) or (number == signal.SIGKILL and (output / "busy").exists())):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        if training_too and (output / "busy").exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int((output / "pid").read_text().split()[0]), signal.SIGKILL)
            (output / "busy").unlink(missing_ok=True)

    codes = []
    # A training that lives on holds the lock; one that was killed too goes on from its last iteration.
    for number, training_too in (
        (signal.SIGINT, False),
        (signal.SIGKILL, False),
        (signal.SIGKILL, True),
        (signal.SIGTERM, False),
    ):
        codes.append(ablate(stop=functools.partial(stop, number=number, training_too=training_too)))
    partial = sum(len(run) for run in trained(output).values())
    assert ablate() == 0, (seed, codes)
    assert codes == [130, -signal.SIGKILL, -signal.SIGKILL, 130], (seed, (server[1] / "console").read_text()[-3000:])
    assert 0 < partial < sum(len(run) for run in expected().values()), seed
    assert trained(output) == expected(), (seed, codes)
    assert len(list(output.glob("*/*/result.json"))) == 6
    assert "Traceback" not in "".join(path.read_text() for path in output.glob("*/*/console.txt"))
    assert "Traceback" not in (server[1] / "console").read_text()


def test_a_failed_run_is_recorded_and_tried_again(ablate, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "fail_b").touch()
    document = tmp_path / "table.md"
    assert ablate("--table", str(document)) == 1
    assert [path.parts[-3] for path in sorted(output.glob("*/*/result.json"))] == ["a", "a", "c", "c"]
    failure = json.loads((output / "b/seed_0/failed.json").read_text())
    assert failure["error"].startswith("exit code 3")
    assert failure["error"].endswith("the reason")
    text = document.read_text()
    assert "| b | - | - |" in text
    assert text.count("failed: `the reason`") == 2
    (output / "fail_b").unlink()
    assert ablate("--table", str(document)) == 0
    assert "the reason" not in document.read_text()
    assert not list(output.rglob("failed.json"))
    assert trained(output) == expected()


@pytest.fixture
def one_thread(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_trains_measures_and_evaluates_for_real(tool, tmp_path, one_thread):
    (tmp_path / "base.py").write_text(CONFIG)
    (tmp_path / "broken.py").write_text(CONFIG + 'model.roi_heads.mask_in_features = ["p9"]\n')
    document = tmp_path / "table.md"
    arguments = ["--base", tmp_path / "base.py", "--variants", tmp_path / "broken.py", "--seeds", "3", "--rounds", "2"]
    arguments += ["--minutes", "0.02", "--output", tmp_path / "out", "--table", document, *TINY]
    arguments = list(map(str, arguments))
    ablate = tool["ablate"]
    assert ablate.main(arguments) == 1  # because of the broken one
    speed = json.loads((tmp_path / "out/speed.json").read_text())
    assert list(speed["training"]) == list(speed["inference"]) == ["base"]
    assert list(speed["failed"]) == ["broken"]
    cfg = apply_overrides(get_config("demo/mask_rcnn_lite0_fpn"), TINY)
    parameters = sum(p.numel() for p in instantiate(cfg.model).parameters())
    assert speed["training"]["base"]["parameters"] == parameters
    folder = tmp_path / "out/base/seed_3"
    result = json.loads((folder / "result.json").read_text())
    seconds = speed["training"]["base"]["seconds"]
    assert abs(result["iterations"] * seconds - 1.2) <= max(seconds / 2, seconds - 1.2)
    last = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()][-1]
    assert [result[key] for key in FIGURES[:4]] == [last[f"matching/{key}"] for key in FIGURES[:4]]
    assert 0 <= result["AR@300"] <= 1
    assert last["iteration"] == result["iterations"]
    assert sorted(path.name for path in folder.glob("*.pth")) == ["weights.pth"]
    skip_pretrained(cfg)
    missing = instantiate(cfg.model).load_state_dict(torch.load(folder / "weights.pth", weights_only=True)["model"])
    assert not missing.missing_keys
    text = document.read_text()
    assert f"{statistics.fmean([result['mAP']]):.4f}" in text
    assert "- broken: cannot be trained" in text

    def nothing(*_):
        raise AssertionError("a finished run was trained again")

    assert (
        ablate.main(
            [argument for argument in arguments if "broken" not in argument and argument != "--variants"], nothing
        )
        == 0
    )
    assert "broken" not in document.read_text()
