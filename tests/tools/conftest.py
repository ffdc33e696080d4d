"""A model whose objects are known beforehand, for the configs of the tools' tests, and tools/predict.py with it."""

import importlib

import pytest
import torch
from grey_values import SOURCE

GREY_VALUES = (
    SOURCE
    + """
model = L(GreyValues)(ignored=0)
train = dict(device="cpu")
"""
)


@pytest.fixture(scope="session")
def grey_values():
    """Start of a config with the model of `grey_values.py`."""
    return GREY_VALUES


PREDICT_CONFIG = """
dataloader = dict(test=dict(mapper=L(InstanceMapper)(is_train=False, augmentations=[], percentiles=None)))
dataset = dict(thing_classes=["cell"], score_threshold=0.5)
"""


@pytest.fixture(scope="session")
def predict():
    return importlib.import_module("predict")


@pytest.fixture
def run(predict, grey_values, tmp_path, monkeypatch):
    """Run the tool in tmp_path with the planted model; arguments as on the command line."""
    (tmp_path / "config.py").write_text(grey_values + PREDICT_CONFIG)
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "weights.pth")
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        fixed = ["--config-file", "config.py", "--weights", "weights.pth", "--output", "out"]
        return predict.main([*fixed, *arguments])

    return run
