"""Importing the package, making a predictor and using it change nothing of the process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import ctypes, json, os, sys, warnings
import cv2, detectron2.engine, detectron2.projects.point_rend, numpy, supervision, tifffile, timm, torch
from PIL import Image

calls = []
class Library(ctypes.CDLL):
    def __getattr__(self, name):
        calls.append(name)
        return super().__getattr__(name)
ctypes.CDLL = Library

def state():
    return {
        "environment": dict(os.environ),
        "pixels": Image.MAX_IMAGE_PIXELS,
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads(), cv2.getNumThreads()],
        "warnings": [str(each) for each in warnings.filters],
        "types": str(torch.get_default_dtype()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "allocator": [name for name in calls if name == "mallopt"],
    }

before = state()
import maskrcnn_plus
from maskrcnn_plus.inference.predictor import Predictor
after_import = state()
predictor = Predictor("demo/mask_rcnn_lite0_fpn", "random", device="cpu")
Image.fromarray(numpy.zeros((40, 50), numpy.uint8)).save(sys.argv[1])
predictor.predict(sys.argv[1])
print(json.dumps([before, after_import, state()]))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "import maskrcnn_plus.inference.predictor, maskrcnn_plus.training"],
        [str(Path(__file__).parents[1] / "tools" / "train_net.py"), "--help"],
    ],
    ids=["import", "train_net"],
)
def test_the_start_says_nothing_of_other_packages(arguments: list[str]):
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_importing_and_predicting_leave_the_process_as_it_is(tmp_path: Path):
    command = [sys.executable, "-W", "ignore::FutureWarning", "-c", CODE, str(tmp_path / "a.png")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    before, after_import, after = json.loads(result.stdout.splitlines()[-1])
    assert after_import == before
    assert after == before
