"""Each source fix of the installed Detectron2, by what failed without it."""

import io
import json
import pickle
import re
from pathlib import Path

import detectron2
import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from torch import nn

PATCHED = "+patched" in detectron2.__version__
needs_patched = pytest.mark.skipif(not PATCHED, reason="a user's own build of Detectron2 is installed")


@needs_patched
def test_no_removed_numpy_alias_is_left():
    root = Path(detectron2.__path__[0])
    pattern = re.compile(r"\bnp\.(bool|int|float|object|str)\b(?!_)")
    left = [str(p.relative_to(root)) for p in root.rglob("*.py") if pattern.search(p.read_text())]
    assert left == []


def test_extent_transform_has_an_interpolation_default():
    image = np.arange(48, dtype=np.uint8).reshape(6, 8)
    cropped = T.ExtentTransform(src_rect=(2, 1, 6, 5), output_size=(4, 4)).apply_image(image)
    assert np.array_equal(cropped, image[1:5, 2:6])


def test_masks_without_polygons_and_their_emptiness():
    from detectron2.structures import PolygonMasks
    from detectron2.structures.masks import polygons_to_bitmask

    assert polygons_to_bitmask([], 3, 4).dtype == bool
    masks = PolygonMasks([[np.array([0, 0, 2, 0, 2, 2.0])], []])
    assert masks.nonempty().tolist() == [True, False]


def test_class_histogram_counts(caplog):
    from detectron2.data.build import print_instances_class_histogram

    entries = [{"annotations": [{"category_id": 0}, {"category_id": 1}, {"category_id": 1}]}]
    with caplog.at_level("INFO"):
        print_instances_class_histogram(entries, ["a", "b"])
    assert re.search(r"b\s*\|\s*2", re.sub("\x1b\\[[0-9;]*m", "", caplog.text))


def test_polygons_are_cropped():
    polygon = np.array([[0.0, 0], [10, 0], [10, 10], [0, 10]])
    (cropped,) = T.CropTransform(2, 3, 4, 5).apply_polygons([polygon])
    assert cropped.min(axis=0).tolist() == [0, 0]
    assert cropped.max(axis=0).tolist() == [4, 5]


def test_compiled_module_is_optional_and_its_lack_is_named():
    from detectron2.layers import nms_rotated
    from detectron2.layers.rotated_boxes import pairwise_iou_rotated

    boxes = torch.tensor([[5.0, 5, 4, 4, 0]])
    try:
        from detectron2 import _C  # noqa: F401
    except ImportError:
        with pytest.raises(RuntimeError, match="compiled extension"):
            pairwise_iou_rotated(boxes, boxes)
        with pytest.raises(RuntimeError, match="compiled extension"):
            nms_rotated(boxes, torch.ones(1), 0.5)
    else:
        assert pairwise_iou_rotated(boxes, boxes).item() == pytest.approx(1)


def test_coco_evaluator_runs_with_its_defaults(tmp_path):
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances
    from detectron2.evaluation import COCOEvaluator
    from detectron2.structures import Boxes, Instances

    annotation = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 100.0, "bbox": [2, 2, 10, 10]}
    annotation["segmentation"] = [[2, 2, 12, 2, 12, 12, 2, 12]]
    images = [{"id": 1, "file_name": "a.png", "height": 20, "width": 20}]
    content = {"info": {}, "images": images, "annotations": [annotation], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    register_coco_instances("fixes_coco", {}, str(tmp_path / "a.json"), str(tmp_path))
    try:
        DatasetCatalog.get("fixes_coco")
        evaluator = COCOEvaluator("fixes_coco", tasks=("bbox",), output_dir=str(tmp_path))
        instances = Instances((20, 20), pred_boxes=Boxes(torch.tensor([[2.0, 2, 12, 12]])))
        instances.scores, instances.pred_classes = torch.ones(1), torch.zeros(1, dtype=torch.int64)
        evaluator.reset()
        evaluator.process([{"image_id": 1}], [{"instances": instances}])
        assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
    finally:
        DatasetCatalog.remove("fixes_coco")
        MetadataCatalog.remove("fixes_coco")


def test_model_zoo_finds_its_configs():
    if not PATCHED:
        pytest.importorskip("pkg_resources", reason="Detectron2's own model_zoo needs it; newer setuptools have none")
    from detectron2 import model_zoo

    name = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
    assert Path(model_zoo.get_config_file(name)).is_file()
    assert model_zoo.get_config(name).MODEL.MASK_ON is True
    assert model_zoo.get_config("common/models/mask_rcnn_fpn.py").model.backbone.out_channels == 256
    with pytest.raises(RuntimeError, match="not available"):
        model_zoo.get_config_file("nothing.yaml")


def test_export_and_point_rend_import():
    from detectron2.export import scripting_with_instances
    from detectron2.projects import point_rend

    assert callable(scripting_with_instances)
    assert point_rend.PointRendMaskHead is not None


def test_mapper_that_returns_none_falls_back_to_another_image():
    from detectron2.data import MapDataset

    mapped = MapDataset([0, 1, 2], lambda x: None if x == 1 else x)
    assert mapped[1] in (0, 2)


def _trainer(trainer_class):
    class Model(nn.Linear):
        def forward(self, batch):
            return {"loss": super().forward(batch).square().mean()}

    model = Model(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    return trainer_class(model, [torch.ones(2, 3)] * 100, optimizer)


@needs_patched
def test_torch_scheduler_continues_on_resume():
    from detectron2.engine import SimpleTrainer, hooks

    def build():
        trainer = _trainer(SimpleTrainer)
        scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, step_size=4, gamma=0.1)
        trainer.register_hooks([hooks.LRScheduler(trainer.optimizer, scheduler)])
        return trainer

    whole = build()
    whole.train(0, 6)
    first = build()
    first.train(0, 3)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second = build()
    second.load_state_dict(torch.load(buffer))
    second.train(3, 6)
    rates = [trainer.optimizer.param_groups[0]["lr"] for trainer in (whole, second)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[1] == rates[0]


@needs_patched
def test_amp_trainer_runs_on_a_cpu():
    from detectron2.engine import AMPTrainer

    trainer = _trainer(AMPTrainer)
    before = trainer.model.weight.clone()
    trainer.train(0, 1)
    assert not torch.equal(before, trainer.model.weight)


@needs_patched
def test_config_prints_without_black(monkeypatch):
    import sys

    from detectron2.config import LazyConfig
    from omegaconf import OmegaConf

    monkeypatch.setitem(sys.modules, "black", None)
    text = LazyConfig.to_py(OmegaConf.create({"train": {"lr": 0.5, "steps": [1, 2]}}))
    assert text.splitlines() == ["cfg.train.lr=0.5", "cfg.train.steps=[1,2]"]


class _Runs:
    def __reduce__(self):
        return (print, ("code ran",))


def test_torch_checkpoints_are_read_as_data(tmp_path, capsys):
    from detectron2.checkpoint import DetectionCheckpointer

    model = nn.Linear(2, 2)
    for name in ("a.pth", "a.pyth"):
        torch.save({"model_state": _Runs(), "model": _Runs()}, tmp_path / name)
        with pytest.raises(pickle.UnpicklingError):
            DetectionCheckpointer(model).load(str(tmp_path / name))
    assert "code ran" not in capsys.readouterr().out


@needs_patched
def test_anchors_are_made_without_a_warning(recwarn):
    from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

    generator = DefaultAnchorGenerator(sizes=[[8]], aspect_ratios=[1.0], strides=[4], offset=0.0)
    (anchors,) = generator([torch.zeros(1, 1, 2, 3)])
    centres = [[0, 0], [4, 0], [8, 0], [0, 4], [4, 4], [8, 4]]  # row by row
    assert anchors.get_centers().tolist() == centres
    assert not [warning for warning in recwarn if "meshgrid" in str(warning.message)]
