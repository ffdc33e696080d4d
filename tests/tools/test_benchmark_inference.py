"""The report of tools/benchmark.py inference, at a small size."""

import re

import cv2
import numpy as np
from fork_server import ROOT, Script

TOOL = ROOT / "tools" / "benchmark.py"


def run(*arguments):
    """The exit code of the benchmark, and what it printed."""
    script = Script(TOOL, "inference", *arguments, "--size", 96, 128, "--rounds", 1, "--threads", 1)
    text = script.communicate()
    return script.returncode, text


def test_three_sides_agree_and_are_timed(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "photograph.jpg"), cv2.resize(noise, (320, 240), interpolation=cv2.INTER_CUBIC))
    code, report = run("--images", str(tmp_path))
    assert code == 0, report
    pattern = r"- (\w+) and torchvision: (\d+) of \2 objects paired, boxes to ([\d.]+) px, scores to ([\de.-]+), median"
    agreements = re.findall(pattern, report)
    assert [side for side, *_ in agreements] == ["ours", "Detectron2"]
    for _, objects, boxes, scores in agreements:
        assert int(objects) >= 20
        assert float(boxes) < 0.01
        assert float(scores) < 1e-4
    times = re.findall(r"\| (ours|torchvision|Detectron2) \| [\d.]+ \[[^\]]+\] \| ([\d.]+) \|", report)
    assert [side for side, _ in times] == ["ours", "torchvision", "Detectron2"]
    assert float(times[0][1]) == 1
    assert re.search(r"image, done directly: \d{2,3} GFLOP", report)


def test_folder_without_photographs_is_named(tmp_path):
    code, report = run("--images", str(tmp_path))
    assert code != 0
    assert f"{tmp_path}: no photograph" in report
