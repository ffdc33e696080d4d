"""Kills actors, Ray's other processes and the driver of a job at random moments; nothing may be lost or there twice.

Run by hand, from the root of the repository, as it takes minutes: `python tests/apps/cluster/chaos.py [ROUNDS [SEED]]`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools")]

import merge_predictions  # noqa: E402
import predict  # noqa: E402
import psutil  # noqa: E402
import torch  # noqa: E402
from cluster_images import CONFIG, MODEL, draw  # noqa: E402
from fork_server import Script  # noqa: E402

IMAGES = 240
TARGETS = ("actor", "worker", "driver")


def find(script: Script, target: str) -> psutil.Process | None:
    """A process of the job that is to be killed."""
    driver = psutil.Process(script.pid)
    if target == "driver":
        return driver
    names = [(each, " ".join(each.cmdline())) for each in driver.children(recursive=True)]
    found = [each for each, name in names if name.startswith("ray::") and ("MapWorker" in name) == (target == "actor")]
    return random.choice(found) if found else None


def run_job(kills: Counter) -> int:
    """Start the job, kill something at a random moment, and start it again until it ends by itself."""
    for start in range(1, 20):
        arguments = [*MODEL, "--input", "in", "--output", "tables", "--shard-size", "3", "--actors", "2"]
        environment = {"RAY_worker_niceness": "0", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        script = Script(ROOT / "tools/predict_cluster.py", *arguments, cwd=os.getcwd(), environment=environment)
        while script.poll() is None and not list(Path("tables").glob("attempt-*")):
            time.sleep(0.05)  # from here on shards are predicted
        time.sleep(random.uniform(0, 3))
        target = TARGETS[sum(kills.values()) % len(TARGETS)]
        victim = None
        try:
            victim = find(script, target) if start < 6 else None
            if victim is not None:
                victim.kill()
                kills[target] += 1
        except psutil.NoSuchProcess:
            pass
        text = script.communicate(timeout=900)
        print(f"  start {start}: killed {target if victim else 'nothing'}, exit code {script.returncode}", flush=True)
        if script.returncode in (0, 1) and "; tables in tables" in text:
            return start
        # A node whose own processes end takes its driver along, which exits with 1 and says nothing.
        if script.returncode not in (1, -signal.SIGKILL):
            print(text[-2000:], flush=True)
    raise AssertionError("the job did not end")


def main() -> None:
    """Run the rounds."""
    rounds, seed = (int(sys.argv[k]) if len(sys.argv) > k else default for k, default in ((1, 3), (2, 0)))
    random.seed(seed)
    kills: Counter = Counter()
    os.chdir(tempfile.mkdtemp())
    Path("config.py").write_text(CONFIG)
    torch.save({"model": {"weight": torch.zeros(1)}}, "weights.pth")
    for k in range(IMAGES):
        draw(Path(f"in/{k}.png"), *range(140, 141 + k % 10))
    Path("in/bad.png").write_text("no image")
    predict.main([*MODEL, "--input", "in", "--output", "whole", "--format", "coco"])
    expected = Path("whole/predictions.json").read_bytes()
    for number in range(1, rounds + 1):
        os.system("rm -rf tables merged")
        print(f"round {number}:", flush=True)
        starts = run_job(kills)
        assert merge_predictions.main(["--input", "tables", "--output", "merged"]) == 0
        assert Path("merged/predictions.json").read_bytes() == expected
        assert len(json.loads(Path("merged/failures.json").read_text())) == 1
        print(f"round {number}: all there once after {starts} starts", flush=True)
    print(f"{rounds} rounds, killed: {dict(kills)}")


if __name__ == "__main__":
    main()
