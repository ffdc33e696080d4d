"""Fingerprints of predictors: equal where the results are, different where anything that they depend on is."""

import inspect

import numpy as np
import pytest
import torch
from fork_server import Script

from maskrcnn_plus.apps.predict_files.fingerprint import predictor_fingerprint
from maskrcnn_plus.config import get_config
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.overrides import apply_overrides

IMPORTS = """
import torch
from maskrcnn_plus.config import get_config
from maskrcnn_plus.apps.predict_files.fingerprint import predictor_fingerprint
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.overrides import apply_overrides
"""


def predictor_of(*overrides):
    torch.manual_seed(0)
    fixed = ["model.backbone.bottom_up.weights=''", "train.device=cpu"]
    return Predictor(apply_overrides(get_config("nuclei/mask_rcnn_lite0_fpn"), [*fixed, *overrides]), "random")


@pytest.fixture(scope="module")
def fingerprint():
    return predictor_fingerprint(predictor_of())


def test_the_same_in_another_process_and_after_use(fingerprint, tmp_path):
    code = f"{IMPORTS}{inspect.getsource(predictor_of)}print(predictor_fingerprint(predictor_of()))"
    (tmp_path / "script.py").write_text(code)
    assert Script(tmp_path / "script.py").communicate().split()[-1] == fingerprint
    predictor = predictor_of()
    predictor.predict(np.zeros((40, 50), dtype=np.uint8))
    assert predictor_fingerprint(predictor) == fingerprint


@pytest.mark.parametrize(
    "override",
    [
        "dataset.percentiles=[1.0,99.0]",
        "dataset.scale=1.25",
        "dataset.max_objects=499",
        "model.roi_heads.box_predictor.test_score_thresh=0.07",
        "model.roi_heads.box_predictor.box2box_transform.weights=[10,10,5,6]",
        "model.proposal_generator.nms_thresh=0.71",
    ],
)
def test_every_setting_counts(fingerprint, override):
    assert predictor_fingerprint(predictor_of(override)) != fingerprint


def test_every_weight_counts(fingerprint):
    predictor = predictor_of()
    with torch.no_grad():
        weight = list(predictor.model.parameters())[-1]
        weight.view(-1)[0] += 1e-6
    assert predictor_fingerprint(predictor) != fingerprint
