"""Checkpoints as safetensors: the same model in half the bytes, which describes itself and does no harm."""

import json
import os

import numpy as np
import pytest
import safetensors.torch
import torch
from shipped_nuclei import write_checkpoint
from torchvision.ops import box_iou

from maskrcnn_plus.checkpoints import WeightsError, read_classes
from maskrcnn_plus.checkpoints.description import DESCRIPTION, described_config, read_description
from maskrcnn_plus.checkpoints.safetensors_file import write_safetensors
from maskrcnn_plus.data.synthetic_nuclei import render_nuclei
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.weights.files import ABOUT, read_file, read_weights


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint with a training's states, and what is written of it."""
    folder = tmp_path_factory.mktemp("written")
    source = write_checkpoint(folder, optimizer={"state": {0: torch.ones(1000)}}, trainer={"iteration": 5})
    write_safetensors(source, folder / "model.safetensors")
    return source, str(folder / "model.safetensors")


def test_kernels_are_halved_and_vectors_kept(files):
    source, written = files
    before, after = read_weights(source).tensors, read_weights(written).tensors
    assert before.keys() == after.keys()
    kinds = {(tensor.dim() > 1, after[name].dtype) for name, tensor in before.items() if tensor.is_floating_point()}
    assert kinds == {(True, torch.float16), (False, torch.float32)}
    for name, tensor in before.items():
        exact = after[name].dtype == tensor.dtype
        assert torch.equal(after[name], tensor) if exact else torch.equal(after[name], tensor.half()), name
    assert os.path.getsize(written) < 0.51 * os.path.getsize(source)
    assert "optimizer" not in read_file(written)


def test_averaged_weights_are_taken(tmp_path):
    averaged = {"module.last.weight": torch.full((2, 2), 3.0), "n_averaged": torch.tensor(4)}
    content = read_file(write_checkpoint(tmp_path)) | {"ema": averaged}
    torch.save(content, tmp_path / "ema.pth")
    write_safetensors(str(tmp_path / "ema.pth"), tmp_path / "ema.safetensors")
    (tensor,) = read_weights(str(tmp_path / "ema.safetensors")).tensors.values()
    assert torch.equal(tensor, torch.full((2, 2), 3.0).half())


def test_it_describes_itself_without_places_of_the_machine(files):
    source, written = files
    before, after = read_description(source), read_description(written)
    assert before["config"]["dataset"]["root"] in json.dumps(before)
    assert "somebody" not in json.dumps(after)
    assert after["config"]["model"] == before["config"]["model"]
    assert after["config"]["dataset"]["thing_classes"] == ["nucleus"]
    assert after["metrics"] == {"segm/AP": 12.5}
    assert read_classes(written) == read_classes(source) == (["nucleus"], [1])
    assert described_config(written).model.roi_heads.box_predictor.test_topk_per_image == 30


def test_detections_of_both_are_the_same(files):
    """Each detection has its partner within 1 px and a score of 0.01, but for a few in a close race of NMS."""
    full, half = (Predictor(path, device="cpu") for path in files)
    matched = total = 0
    for stain in ("fluorescence", "tissue"):
        image = render_nuclei(stain, 0, 0, 96, 96)[0]
        one, two = full.predict(image), half.predict(image)
        best = box_iou(one.pred_boxes.tensor, two.pred_boxes.tensor).argmax(dim=1)
        near = (one.pred_boxes.tensor - two.pred_boxes.tensor[best]).abs().amax(dim=1) < 1
        matched += int((near & ((one.scores - two.scores[best]).abs() < 0.01)).sum())
        total += len(one)
    assert total > 20
    assert matched >= 0.95 * total


def test_numbers_that_float16_has_not_are_refused(tmp_path):
    content = read_file(write_checkpoint(tmp_path))
    for value in (1e6, float("nan")):
        content["model"]["roi_heads.box_predictor.cls_score.weight"][0, 0] = value
        torch.save(content, tmp_path / "large.pth")
        with pytest.raises(WeightsError, match=r"large\.pth.*cls_score\.weight.*float16"):
            write_safetensors(str(tmp_path / "large.pth"), tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_checkpoint_that_does_not_know_itself_is_refused(tmp_path):
    torch.save({"model": {"fc.weight": torch.ones(2, 2)}}, tmp_path / "plain.pth")
    with pytest.raises(WeightsError, match=r"plain\.pth does not say which config"):
        write_safetensors(str(tmp_path / "plain.pth"), tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda config: config["model"].update(_target_="os.system"), r"not built from a checkpoint: os\.system"),
        (lambda config: config["model"]["backbone"].update(out_channels=10**6), "describes a model of"),
        (lambda config: config["dataset"].update(scale="${oc.env:HOME}"), "interpolation"),
        (lambda config: config.update(model="x"), "refused|not built"),
    ],
    ids=["code", "memory", "environment", "no model"],
)
def test_a_hostile_description_is_refused(files, tmp_path, change, reason):
    about = {key: value for key, value in read_file(files[1]).items() if key in ("class_names", DESCRIPTION)}
    change(about[DESCRIPTION]["config"])
    path = tmp_path / "forged.safetensors"
    tensors = {"a": torch.zeros(1)}
    safetensors.torch.save_file(tensors, path, {ABOUT: json.dumps(about)})
    with pytest.raises((WeightsError, ValueError), match=reason):
        Predictor(str(path), device="cpu")


def test_any_image_is_predicted_from_the_file_alone(files):
    found = Predictor(files[1], device="cpu", score_threshold=0.5).predict(np.zeros((40, 50), np.uint16))
    assert found.image_size == (40, 50)
    assert found.class_names == ["nucleus"]
