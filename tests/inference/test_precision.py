"""Networks in bfloat16, coordinates and scores in float32."""

import logging

import numpy as np
import pytest
import torch
from hybrid_models import save_checkpoint, tiny_config

from maskrcnn_plus.inference import precision
from maskrcnn_plus.inference.predictor import Predictor


def blobs():
    small = np.random.default_rng(1).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return np.kron(small, np.ones((8, 8, 1), np.uint8))


KINDS = ("mask_rcnn_plus", "variants/mask_scoring", "variants/cascade_rpn", "variants/point_rend")


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_are_close_to_those_of_float32(kind, tmp_path):
    weights = save_checkpoint(tmp_path / "model.pth", tiny_config(kind))
    expected = Predictor(weights, device="cpu", score_threshold=0.0).predict(blobs())
    predictor = Predictor(weights, device="cpu", score_threshold=0.0, precision="bfloat16")
    seen = {}
    model = predictor.model
    model.backbone.register_forward_hook(lambda _, __, maps: seen.update(maps=maps["p2"].dtype))
    last = model.roi_heads.box_predictor
    last = last[-1] if isinstance(last, torch.nn.ModuleList) else last
    last.register_forward_hook(lambda _, __, outputs: seen.update(box=outputs[1].dtype, score=outputs[0].dtype))
    found = predictor.predict(blobs())
    assert seen == {"maps": torch.bfloat16, "box": torch.float32, "score": torch.float32}
    assert found.scores.dtype == found.pred_boxes.tensor.dtype == torch.float32
    assert next(model.backbone.parameters()).dtype == torch.bfloat16
    # Random weights: some of the detections change places, the others must not move by more than 2 % of the image.
    distance = (found.pred_boxes.tensor[:, None] - expected.pred_boxes.tensor[None]).abs().amax(2)  # [found, expected]
    nearest, partner = distance.min(1)
    assert len(expected) > 8
    assert (nearest < 0.02 * 128).float().mean() > 0.8
    close = nearest < 0.02 * 128
    assert (found.scores - expected.scores[partner])[close].abs().median() < 0.05
    # A float32 box has digits that bfloat16 has not.
    assert not torch.equal(found.pred_boxes.tensor.bfloat16().float(), found.pred_boxes.tensor)


def test_a_cpu_that_emulates_it_is_told(monkeypatch, caplog):
    monkeypatch.setattr(precision, "emulates_bfloat16", lambda kind: True)
    with caplog.at_level(logging.WARNING):
        precision.check_precision("bfloat16", torch.device("cpu"))
    assert "slower than in float32" in caplog.text
    with pytest.raises(ValueError, match="one of float32, bfloat16"):
        precision.check_precision("float16", torch.device("cpu"))
