"""A run reads and checks all of its data, and the metric that chooses the best weights, before the model is built."""

import argparse
import importlib
import json
import logging

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Boxes, Instances
from PIL import Image

from maskrcnn_plus.config import get_config
from maskrcnn_plus.evaluation import COCOMaskEvaluator, MatchingEvaluator, ProposalRecallEvaluator
from maskrcnn_plus.overrides import apply_overrides

RUN = importlib.import_module("maskrcnn_plus.training.run")  # the package has a function of that name


class ModelWasBuiltError(Exception):
    pass


def _model(input_format):
    raise ModelWasBuiltError


@pytest.fixture
def root(tmp_path):
    """A folder of two images with an object each, one for training and one for validation."""
    for folder, pixels in (("images", np.full((8, 9), 50)), ("labels", np.eye(8, 9) > 0)):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / folder / f"{name}.png")
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["a"], "val": ["b"]}))
    yield tmp_path
    for name in ("nuclei_train", "nuclei_val"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.fixture
def run(root, tmp_path, monkeypatch):
    """Runs the nuclei config on that folder, with a model that says that it was built."""
    for name in ("default_setup", "setup_logger"):  # they change the logging of the whole process
        monkeypatch.setattr(RUN, name, lambda *args, **kwargs: None)

    weights = tmp_path / "weights.pth"
    torch.save({"model": {"a": torch.zeros(1)}}, weights)

    def start(*overrides, eval_only=False):
        cfg = get_config("nuclei/mask_rcnn_lite0_fpn")
        cfg.model = L(_model)(input_format="RGB")
        options = [f"dataset.root={root}", f"train.output_dir={tmp_path / 'run'}", "dataloader.train.num_workers=0"]
        options += [f"train.init_checkpoint={weights}"] if eval_only else []
        args = argparse.Namespace(resume=False, eval_only=eval_only, config_file="")
        RUN.run(args, apply_overrides(cfg, [*options, *overrides]))

    return start


@pytest.mark.parametrize("eval_only", [False, True])
def test_good_data_comes_to_the_model(run, eval_only):
    with pytest.raises((ModelWasBuiltError, ValueError)) as caught:
        run(eval_only=eval_only)
    assert isinstance(caught.value, ModelWasBuiltError) or isinstance(caught.value.__cause__, ModelWasBuiltError)


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_damaged_file_of_either_split_is_named_before_the_model_is_built(run, root, name):
    (root / "images" / f"{name}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=f"{name}.png"):
        run()


def test_an_evaluation_alone_needs_no_training_data(run, root):
    (root / "images" / "a.png").write_bytes(b"no image")
    with pytest.raises((ModelWasBuiltError, ValueError)) as caught:
        run(eval_only=True)
    assert "a.png" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.best.metric=matching/mAPP", "matching/mAP"),
        ("train.best.metric=mAP", "matching/mAP"),
        ("train.best.metric=box_proposals/AR@100", "segm/AP"),
        ("dataloader.evaluator.0.thresholds=[1.5]", r"dataloader\.evaluator\.0.*thresholds"),
        ("dataloader.evaluator.1.tasks=[keypoints]", r"dataloader\.evaluator\.1.*tasks"),
        ("dataloader.train.mapper.augmentations.0.size=-4", r"dataloader\.train\.mapper\.augmentations\.0"),
    ],
)
def test_what_an_evaluation_or_the_first_batch_would_stumble_over_is_refused_first(run, override, message):
    with pytest.raises(ValueError, match=message):
        run(override)


def test_the_recall_of_proposals_may_choose_where_it_is_evaluated(run):
    with pytest.raises((ModelWasBuiltError, ValueError)) as caught:
        run("train.best.metric=box_proposals/AR@100", "train.eval_proposals=true")
    assert "metric" not in str(caught.value)


class SilentEvaluator:
    """As Detectron2's own, it does not tell beforehand what it gives."""

    def process(self, inputs, outputs):
        pass


def test_other_evaluators_are_believed_with_a_warning(caplog):
    check_metric = importlib.import_module("maskrcnn_plus.training.data").check_metric
    known = MatchingEvaluator.__new__(MatchingEvaluator)
    known._thresholds = (0.5,)
    with caplog.at_level(logging.WARNING):
        check_metric("sem_seg/mIoU", [SilentEvaluator(), known])
    assert "sem_seg/mIoU" in caplog.text
    assert "SilentEvaluator" in caplog.text
    caplog.clear()
    check_metric("matching/AP50", [SilentEvaluator(), known])
    check_metric("", [known])
    assert not caplog.text


@pytest.mark.parametrize("classes", [["cell"], ["round", "long"], None])
def test_evaluators_give_the_figures_that_they_announce(classes):
    name = f"figures of {classes}"
    square = {"counts": [0, 4, 12], "size": [4, 4]}
    entry = {"image_id": 7, "height": 4, "width": 4, "file_name": "x.png"}
    annotation = {"bbox": [0, 0, 1, 4], "bbox_mode": 0, "category_id": 0, "segmentation": square}
    DatasetCatalog.register(name, lambda: [{**entry, "annotations": [annotation]}])
    try:
        if classes:
            MetadataCatalog.get(name).thing_classes = classes
        evaluators = [
            COCOMaskEvaluator(name),
            COCOMaskEvaluator(name, tasks=["segm"]),
            MatchingEvaluator(name, thresholds=(0.5, 0.8)),
            ProposalRecallEvaluator(name, limits=(1, 10)),
        ]
        instances = Instances((4, 4), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
        instances.pred_classes = torch.zeros(0, dtype=torch.int64)
        instances.pred_masks = torch.zeros(0, 4, 4, dtype=torch.bool)
        proposals = Instances((4, 4), proposal_boxes=Boxes(torch.zeros(0, 4)), objectness_logits=torch.zeros(0))
        for evaluator in evaluators:
            evaluator.reset()
            evaluator.process([entry], [{"instances": instances, "proposals": proposals}])
            assert evaluator.metric_names() == list(flatten_results_dict(evaluator.evaluate()))
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
