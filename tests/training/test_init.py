"""train.init_checkpoint: class heads by name, the written report, and a refusal that names the cause."""

import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from fork_server import ROOT, Script
from omegaconf import OmegaConf

from maskrcnn_plus.checkpoints import Checkpointer
from maskrcnn_plus.config import get_config
from maskrcnn_plus.data import resolve_classes
from maskrcnn_plus.overrides import apply_overrides

CONFIG = "configs/demo/mask_rcnn_lite0_fpn.py"
TINY = [
    "model.backbone.bottom_up.name=mobilenetv3_small_050",
    "model.backbone.bottom_up.weights=''",
    "model.backbone.out_channels=16",
    "model.roi_heads.box_head.fc_dims=[32]",
    "model.roi_heads.box_predictor.input_shape.channels=32",
    "model.roi_heads.mask_head.conv_dims=[16,16]",
    "dataloader.train.mapper.augmentations.0.size=96",
    "dataloader.train.total_batch_size=2",
    "dataset.num_train=2",
    "dataset.num_val=1",
    "train.ema.enabled=false",
    "train.max_iter=1",
]


def _run(output, *overrides):
    """The exit code of a training, and what it printed."""
    script = Script(
        ROOT / "tools/train_net.py", "--config-file", CONFIG, *TINY, f"train.output_dir={output}", *overrides
    )
    text = script.communicate()
    return script.returncode, text


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model of the same layers with other classes, of which two are the demo's."""
    torch.manual_seed(1)
    model = instantiate(apply_overrides(get_config("demo/mask_rcnn_lite0_fpn"), TINY).model)
    folder = tmp_path_factory.mktemp("init")
    Checkpointer(model, str(folder), class_names=["Lobed", "star", "round"]).save("w")
    return folder / "w.pth"


def test_a_training_starts_from_a_checkpoint_and_reports_every_tensor(checkpoint, tmp_path):
    # A step of no length leaves the weights as they were loaded.
    code, text = _run(tmp_path, f"train.init_checkpoint={checkpoint}", "optimizer.lr=0.0")
    assert code == 0, text[-3000:]
    log = (tmp_path / "log.txt").read_text()
    assert "loaded in part, by the names of the classes" in log
    report = (tmp_path / "init_report.txt").read_text()
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)
    stored = torch.load(checkpoint, weights_only=True)["model"]
    for name in stored:
        assert any(line.startswith(f"  {name} ") for line in report.splitlines()), name
    assert saved["class_names"] == ["round", "spindle", "lobed"]
    name = "roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(saved["model"][name][[0, 2, 3]], stored[name][[2, 0, 3]])
    assert not torch.equal(saved["model"][name][1], stored[name][1])
    name = "backbone.fpn_lateral2.weight"
    assert torch.equal(saved["model"][name], stored[name])


def test_a_checkpoint_of_another_pyramid_is_refused_in_a_line(checkpoint, tmp_path):
    code, text = _run(tmp_path, f"train.init_checkpoint={checkpoint}", "model.backbone.out_channels=24")
    assert code == 1
    assert "train_net: " in text
    assert "other channels" in text
    assert "train.init_allow_partial=true" in text
    assert "Traceback" not in text
    assert not (tmp_path / "init_report.txt").exists()


def test_class_names_come_from_the_config_or_the_training_data(monkeypatch):
    DatasetCatalog.register("init_test_late", lambda: MetadataCatalog.get("init_test_late").set(thing_classes=["a"]))
    try:
        names = {"dataloader": {"train": {"dataset": {"dataset": {"names": "init_test_late"}}}}}
        assert resolve_classes(OmegaConf.create(names)).names == ["a"]
        given = OmegaConf.create({**names, "dataset": {"thing_classes": ["A", "c"]}})
        assert resolve_classes(given).names == ["A", "c"]
        names["dataloader"]["train"]["dataset"]["dataset"]["names"] = ["init_test_late", "init_test_other"]
        assert resolve_classes(OmegaConf.create(names)).names == ["a"]
    finally:
        DatasetCatalog.remove("init_test_late")
        MetadataCatalog.remove("init_test_late")
    assert resolve_classes(OmegaConf.create({"model": {}})) is None
    config = get_config("demo/mask_rcnn_lite0_fpn")
    del config.dataset["thing_classes"]
    assert resolve_classes(config).names == ["round", "spindle", "lobed"]
