"""A model that learned objects of one diameter brings every image to it, wherever images are predicted."""

import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from benchmarks.auto_scale import measure
from detectron2.config import LazyCall as L
from disc_finder import LEARNED, DiscFinder, draw_discs
from omegaconf import OmegaConf

from maskrcnn_plus.apps.evaluate import EvaluationData, evaluate_records
from maskrcnn_plus.apps.predict_files.run import predict_files
from maskrcnn_plus.checkpoints.sources import local_path
from maskrcnn_plus.config import get_config
from maskrcnn_plus.data import InstanceMapper, ScaleImage
from maskrcnn_plus.data.diameter import ScaleToDiameter
from maskrcnn_plus.data.registration import label_map_annotations
from maskrcnn_plus.data.windows import open_windows
from maskrcnn_plus.inference import auto_scale
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.inference.tile_choice import TileChoice
from maskrcnn_plus.inference.tiling import predict_tiled

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"


def predictor_of(augmentation=None, **options):
    augmentation = augmentation or L(ScaleToDiameter)(diameter=LEARNED)
    mapper = L(InstanceMapper)(is_train=False, augmentations=[augmentation])
    config = {"model": L(DiscFinder)(), "dataloader": {"test": {"mapper": mapper}}}
    return Predictor(OmegaConf.create(config, flags={"allow_objects": True}), "random", optimize=False, **options)


@pytest.fixture
def predictor():
    return predictor_of()


@pytest.mark.parametrize("diameter", [10, 40, 90])
def test_an_image_is_seen_at_the_scale_of_its_objects(predictor, diameter):
    image = draw_discs(400, 500, [diameter] * 8)
    found = predictor.predict(image)
    assert found.object_diameter == pytest.approx(diameter, rel=0.1, abs=1.5)  # boxes are of whole pixels
    assert predictor.model.seen[-1][1] == pytest.approx(500 * LEARNED / diameter, rel=0.18)
    assert len(found) == 8
    assert found[:3].object_diameter == found.object_diameter


def test_what_is_given_is_not_estimated():
    image = draw_discs(400, 500, [20] * 8)
    for predictor, options in ((predictor_of(), {"diameter": 40.0}), (predictor_of(diameter=40.0), {})):
        found = predictor.predict(image, **options)
        assert found.object_diameter == 40.0
        assert predictor.model.seen == [(220, 275)]


@pytest.mark.parametrize(("factor", "times"), [(1.6, 2), (0.7, 2), (1.05, 1)])
def test_an_estimate_that_what_is_found_contradicts_is_corrected(predictor, monkeypatch, factor, times):
    image = draw_discs(400, 500, [40] * 8)
    estimate = auto_scale.EstimatedDiameter(40 * factor)
    monkeypatch.setattr(predictor.auto_scale, "_estimate", lambda _: estimate)
    found = predictor.predict([image, image], batch_size=2)
    assert len(predictor.model.seen) == 2 * times
    for each in found:
        assert each.object_diameter == pytest.approx(40 if times == 2 else estimate, rel=0.05)
    predictor.model.seen.clear()
    assert predictor.predict(image, diameter=40.0 * factor).object_diameter == 40.0 * factor  # a person knows better
    assert len(predictor.model.seen) == 1


def test_a_file_is_seen_as_its_pixels(predictor, tmp_path):
    image = draw_discs(300, 300, [15] * 10)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    alone = predictor.predict(image).object_diameter
    assert predictor.predict(str(tmp_path / "a.png")).object_diameter == alone
    with open_windows(str(tmp_path / "a.png")) as windows:
        assert predictor.find_diameter(windows) == alone


def test_each_image_of_a_batch_has_a_scale_of_its_own(predictor):
    images = [draw_discs(300, 300, [diameter] * 6) for diameter in (12, 50, 12)] + [np.zeros((300, 300, 3), np.uint8)]
    together = predictor.predict(images, batch_size=4)
    assert [each.object_diameter for each in together] == [predictor.predict(each).object_diameter for each in images]
    assert [len(each) for each in together] == [6, 6, 6, 0]
    assert together[3].object_diameter == LEARNED  # nothing was found: the scale of unknown objects, 1


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (5, 2)])
def test_tiny_images(predictor, size):
    assert len(predictor.predict(np.zeros(size, np.uint8))) == 0


@pytest.mark.parametrize("diameter", [0.0, -3.0, float("nan"), float("inf")])
def test_bad_diameters_are_refused(predictor, diameter):
    with pytest.raises(ValueError, match="diameter is"):
        predictor_of(diameter=diameter)
    with pytest.raises(ValueError, match="diameter is"):
        predictor.predict(np.zeros((9, 9), np.uint8), diameter=diameter)


def test_a_model_with_one_scale_for_all_images_takes_no_diameter():
    fixed = predictor_of(L(ScaleImage)(scale=1.0))
    assert fixed.auto_scale is None
    assert fixed.predict(np.zeros((9, 9), np.uint8)).object_diameter is None
    with pytest.raises(ValueError, match=r"diameter is 9\.0, but this model .* set dataset\.scale"):
        fixed.predict(np.zeros((9, 9), np.uint8), diameter=9.0)
    with pytest.raises(ValueError, match=r"set dataset\.scale"):
        predictor_of(L(ScaleImage)(scale=1.0), diameter=9.0)


def test_tiles_have_one_scale(predictor):
    image = np.zeros((600, 600, 3), np.uint8)  # in whose upper tiles nothing says how large objects are
    image[300:] = draw_discs(300, 600, [16] * 40)
    found = predict_tiled(predictor, image, tile_size=256, progress=False)
    assert found.object_diameter == predictor.predict(image).object_diameter
    predictor.model.seen.clear()
    again = predict_tiled(predictor, image, tile_size=256, diameter=16.0, progress=False)
    assert {max(seen) for seen in predictor.model.seen} == {352}  # 256 * 22 / 16
    assert again.object_diameter == 16.0
    assert len(found) == len(again) == 40


def test_what_is_large_in_the_network_is_tiled(predictor):
    choice = TileChoice(predictor, "auto")
    assert choice.options(1000, 1000, 22.0) is None
    assert choice.options(1000, 1000, 6.0) == {"tile_size": None}  # 3700 x 3700
    assert choice.options(4000, 4000, 220.0) is None
    assert choice.options(50, 4000, 11.0) == {"tile_size": None}  # 8000 long, above the limit of a side
    assert TileChoice(predictor, "off").options(1000, 1000, 6.0) is None


def test_of_a_huge_image_only_parts_are_read(predictor, monkeypatch):
    monkeypatch.setattr(auto_scale, "WHOLE_PIXELS", 500 * 500)
    monkeypatch.setattr(auto_scale, "PART_SIDE", 300)
    image = np.zeros((1200, 900, 3), np.uint8)
    image[900:, 600:] = draw_discs(300, 300, [12] * 40)
    with open_windows(image) as windows:
        found = predictor.find_diameter(windows)
    assert found == pytest.approx(12, rel=0.15)
    assert predictor.predict(image).object_diameter == pytest.approx(found, rel=0.05)


def test_files_are_predicted_and_recorded_with_their_diameters(predictor, tmp_path):
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in/small.png"), draw_discs(200, 200, [10] * 9))
    cv2.imwrite(str(tmp_path / "in/large.png"), draw_discs(1100, 1100, [9] * 50))
    summary = predict_files(predictor, str(tmp_path / "in"), tmp_path / "out", formats=["coco"], report={})
    assert (summary.num_objects, summary.failures) == (59, [])
    assert "scaled for a diameter of" in (tmp_path / "out/report.html").read_text()
    assert max(max(seen) for seen in predictor.model.seen) <= 1056  # the large one in tiles
    settings = json.loads((tmp_path / "out/.records/settings.json").read_text())
    assert settings["diameter"] == "estimated for each image"
    with pytest.raises(ValueError, match=r"diameter \(estimated for each image before, 30 px, as given now\)"):
        predict_files(predictor_of(diameter=30.0), str(tmp_path / "in"), tmp_path / "out", formats=["coco"])


def test_an_evaluation_is_of_the_estimate_and_not_of_the_annotations(predictor, tmp_path):
    image = draw_discs(300, 300, [40] * 5)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    labels = np.kron(np.arange(1, 101).reshape(10, 10), np.ones((30, 30))).astype(np.uint16)
    labels[:, ::2] = 0  # annotated objects of another size
    record = {"file_name": str(tmp_path / "a.png"), "height": 300, "width": 300, "image_id": 1}
    cv2.imwrite(str(tmp_path / "labels.png"), labels)
    record |= {"label_file_name": str(tmp_path / "labels.png"), "annotations": label_map_annotations(labels)}
    data = EvaluationData([record], ["cell"])
    evaluate_records(predictor, data, progress=False)
    assert predictor.model.seen[-1][0] == pytest.approx(300 * LEARNED / 40, rel=0.15)
    assert any("estimated" in note for note in data.notes)
    stored = SimpleNamespace(predict=predictor.predict, class_names=["cell"], auto_scale=None)  # tables of a job
    data = EvaluationData([record], ["cell"])
    evaluate_records(stored, data, progress=False)
    assert data.notes[0].endswith("px).")


CONFIG = """
from detectron2.config import LazyCall as L
from disc_finder import DiscFinder
from maskrcnn_plus.data import InstanceMapper
from maskrcnn_plus.data.diameter import ScaleToDiameter

model = L(DiscFinder)()
augmentations = [L(ScaleToDiameter)(diameter=22.0)]
dataloader = dict(test=dict(mapper=L(InstanceMapper)(is_train=False, augmentations=augmentations)))
dataset = dict(thing_classes=["cell"], score_threshold=0.5)
train = dict(device="cpu")
"""


def test_the_command_line_takes_a_diameter(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("predict_tool", ROOT / "tools" / "predict.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    (tmp_path / "config.py").write_text(CONFIG)
    torch.save({"model": DiscFinder().state_dict()}, tmp_path / "weights.pth")
    cv2.imwrite(str(tmp_path / "a.png"), draw_discs(200, 200, [20] * 9))
    fixed = ["--config-file", str(tmp_path / "config.py"), "--weights", str(tmp_path / "weights.pth"), "--report"]
    fixed += ["--format", "coco", "--input", str(tmp_path / "a.png"), "--output", str(tmp_path / "out")]
    assert tool.main([*fixed, "--diameter", "30"]) == 0
    assert json.loads((tmp_path / "out/.records/settings.json").read_text())["diameter"] == "30 px, as given"
    assert "scaled for a diameter of 30 px" in (tmp_path / "out/report.html").read_text()
    assert tool.main([*fixed, "--overwrite"]) == 0
    assert re.search("scaled for a diameter of 2[0-2] px", (tmp_path / "out/report.html").read_text())
    assert tool.main([*fixed, "--overwrite", "--diameter", "-1"]) == 2
    assert "diameter is -1" in capsys.readouterr().err


def test_a_look_is_of_boxes_and_leaves_the_model_as_it_is():
    predictor = Predictor(get_config("nuclei/generalist"), "random", device="cpu", score_threshold=0.0)
    heads, generator = predictor.model.roi_heads, predictor.model.proposal_generator
    before = dict(generator.post_nms_topk)
    found = predictor.auto_scale.detect(np.full((64, 96, 3), 90, np.float32))
    assert found.image_size == (64, 96)
    assert len(found) <= 32  # proposals of such a small input
    assert not found.has("pred_masks")
    assert not found.has("pred_masks_rle")
    assert (generator.post_nms_topk, heads.mask_on) == (before, True)
    assert predictor.predict(np.zeros((40, 50), np.uint8)).has("pred_masks_rle")


@pytest.mark.parametrize(("kind", "images"), [("nuclei_16bit", 2), ("nuclei_he", 4)])  # some 300 objects each
def test_the_shipped_model_sees_an_image_at_half_to_three_times_its_size_alike(kind, images):
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not there")
    try:
        weights = local_path("maskrcnn_plus://nuclei")
    except ValueError as error:
        pytest.skip(f"the shipped model is not there: {error}")
    figures = measure(Predictor(weights, device="cpu"), DATA / kind, (1.0, 0.5, 3.0), images=images)
    native, *others = (each.average_precision["AP50"] for each in figures.values())
    assert native > 0.6
    assert others == pytest.approx([native] * 2, abs=0.03)
