"""Detectron2's trainer, predictor, evaluator, visualiser, augmentation at test time and tracing with our parts by name.

Three names change in a yacs config, nothing else: no `add_config`, no option.
"""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.export import TracingAdapter
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng
from detectron2.utils.visualizer import Visualizer
from PIL import Image

import maskrcnn_plus  # noqa: F401 - registers the names
from maskrcnn_plus.config import detectron2_config
from maskrcnn_plus.mask_rcnn import MaskRCNNPlus
from maskrcnn_plus.roi import DenseROIHeads, PyramidROIAlign
from maskrcnn_plus.rpn import BatchedRPN

SIDE = 96
NAMES = ["MODEL.META_ARCHITECTURE", "MaskRCNNPlus", "MODEL.PROPOSAL_GENERATOR.NAME", "BatchedRPN"]
NAMES += ["MODEL.ROI_HEADS.NAME", "DenseROIHeads"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Registered images of two classes of bright rectangles."""
    folder, name = tmp_path_factory.mktemp("rectangles"), "rectangles_of_a_detectron2_project"
    random = np.random.default_rng(0)
    entries = []
    for index in range(4):
        image, annotations = random.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8), []
        for x0, y0 in ((8, 8), (52, 12), (20, 56)):
            x1, y1 = (int(v) for v in np.array([x0, y0]) + random.integers(18, 36, 2))
            category = int(random.integers(0, 2))
            image[y0:y1, x0:x1, category] = 230
            box = {"bbox": [x0, y0, x1, y1], "bbox_mode": BoxMode.XYXY_ABS, "category_id": category, "iscrowd": 0}
            annotations.append({**box, "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]})
        path = folder / f"{index}.png"
        Image.fromarray(image).save(path)
        entry = {"file_name": str(path), "image_id": index, "height": SIDE, "width": SIDE}
        entries.append({**entry, "annotations": annotations})
    DatasetCatalog.register(name, lambda: entries)
    MetadataCatalog.get(name).thing_classes = ["red", "green"]
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def config(dataset, output_dir, ours):
    """Mask R-CNN on ResNet-18, small enough for a test; every detection counts, as nothing is trained."""
    cfg = detectron2_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    cfg.merge_from_list(NAMES if ours else [])
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (dataset,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.OUTPUT_DIR = str(output_dir)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (SIDE,), SIDE
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.BACKBONE.FREEZE_AT = "BN", 0
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 2, 0.0
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 32
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    cfg.TEST.DETECTIONS_PER_IMAGE = 20
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.BASE_LR = 2, 3, 0, 1e-3
    return cfg


class Trainer(DefaultTrainer):
    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR, use_fast_impl=False)


@pytest.fixture(scope="module")
def runs(dataset, tmp_path_factory):
    """Configs of a training with Detectron2's names and of one with ours, whose weights are what it ended with."""
    made = []
    for ours in (False, True):
        cfg = config(dataset, tmp_path_factory.mktemp("run"), ours)
        seed_all_rng(1)
        trainer = Trainer(cfg)
        trainer.resume_or_load()
        trainer.train()
        made.append(cfg)
        # Of the first for both: the trained ones agree, but not to the last bit, on which the order of equals depends.
        cfg.MODEL.WEIGHTS = f"{made[0].OUTPUT_DIR}/model_final.pth"
    return made


def metrics_of(cfg):
    with open(f"{cfg.OUTPUT_DIR}/metrics.json") as file:
        return {key: value for line in file for key, value in json.loads(line).items()}


def test_the_default_trainer_learns_what_it_learns_with_detectron2s_parts(runs):
    stock_cfg, cfg = runs
    metrics, expected = metrics_of(cfg), metrics_of(stock_cfg)
    assert metrics.keys() == expected.keys() >= {"total_loss", "bbox/AP", "segm/AP"}
    assert metrics["total_loss"] == pytest.approx(expected["total_loss"], rel=1e-4)
    weights, expected = (torch.load(f"{each.OUTPUT_DIR}/model_final.pth")["model"] for each in (cfg, stock_cfg))
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-3, rtol=1e-3)


def test_the_predictor_gives_masks_and_the_visualizer_draws_them(runs, dataset):
    image = np.asarray(Image.open(DatasetCatalog.get(dataset)[0]["file_name"]))[:, :, ::-1]
    found = []
    for cfg in runs:
        instances = DefaultPredictor(cfg)(image)["instances"]
        assert len(instances) == cfg.TEST.DETECTIONS_PER_IMAGE
        found.append(instances)
    stock, ours = found
    assert ours.pred_masks.dtype == stock.pred_masks.dtype == torch.bool
    assert stock.pred_masks.any()
    torch.testing.assert_close(ours.pred_boxes.tensor, stock.pred_boxes.tensor, atol=0.05, rtol=0)
    assert (ours.pred_masks == stock.pred_masks).float().mean() > 0.999
    without = ours[:]
    without.remove("pred_masks")
    drawings = []
    for each in (ours, without):
        canvas = Visualizer(np.zeros_like(image), MetadataCatalog.get(dataset))
        drawings.append(canvas.draw_instance_predictions(each).get_image())
    assert not np.array_equal(*drawings)


def test_the_evaluator_sees_the_masks(runs, dataset, tmp_path):
    figures = []
    for each in runs:
        model = DefaultPredictor(each).model
        for head in (model.roi_heads.box_predictor.cls_score, model.roi_heads.mask_head.predictor):
            torch.nn.init.normal_(head.weight, std=10, generator=torch.Generator().manual_seed(0))
        evaluator = COCOEvaluator(dataset, output_dir=str(tmp_path), use_fast_impl=False)
        figures.append(inference_on_dataset(model, build_detection_test_loader(each, dataset), evaluator))
    stock, ours = figures
    assert set(ours) == set(stock) == {"bbox", "segm"}
    with open(tmp_path / "coco_instances_results.json") as file:
        assert all("segmentation" in detection for detection in json.load(file))
    for task in ours:
        assert np.nan_to_num([*ours[task].values()]) == pytest.approx(np.nan_to_num([*stock[task].values()]), abs=0.5)


def test_test_time_augmentation(runs, dataset):
    example = {**DatasetCatalog.get(dataset)[0]}
    example["image"] = torch.from_numpy(np.asarray(Image.open(example["file_name"])).transpose(2, 0, 1).copy())
    found = []
    for cfg in runs:
        cfg = cfg.clone()
        cfg.TEST.AUG.MIN_SIZES = (SIDE, 128)
        model = GeneralizedRCNNWithTTA(cfg, DefaultPredictor(cfg).model)
        with torch.no_grad():
            (output,) = model([dict(example)])
        found.append(output["instances"])
    stock, ours = found
    assert len(ours) == len(stock) > 0
    torch.testing.assert_close(ours.pred_boxes.tensor, stock.pred_boxes.tensor, atol=0.05, rtol=0)
    assert (ours.pred_masks == stock.pred_masks).float().mean() > 0.999


def test_a_traced_model_equals_the_eager_one_at_other_sizes(runs):
    """As `export_model.py --export-method tracing` of Detectron2's tools does."""
    cfg = runs[1]
    model = build_model(cfg).eval()

    def inference(model, inputs):
        return [{"instances": model.inference(inputs, do_postprocess=False)[0]}]

    image = torch.rand(3, SIDE, SIDE) * 255
    with torch.no_grad():
        adapter = TracingAdapter(model, [{"image": image}], inference)
        traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
        for height, width in ((SIDE, SIDE), (64, 160), (200, 96)):
            image = torch.rand(3, height, width) * 255
            found = adapter.outputs_schema(traced(image))[0]["instances"]
            expected = inference(model, [{"image": image}])[0]["instances"]
            assert len(found) == len(expected) == cfg.TEST.DETECTIONS_PER_IMAGE
            torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-3, rtol=0)
            torch.testing.assert_close(found.pred_masks, expected.pred_masks, atol=1e-5, rtol=0)


def test_the_parts_are_ours(runs):
    model = build_model(runs[1])
    assert type(model) is MaskRCNNPlus
    assert type(model.proposal_generator) is BatchedRPN
    assert type(model.roi_heads) is DenseROIHeads
    assert type(model.roi_heads.box_pooler) is type(model.roi_heads.mask_pooler) is PyramidROIAlign
