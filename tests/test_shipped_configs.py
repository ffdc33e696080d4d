"""Every shipped config builds, survives saving and loading, and follows its `dataset`; those named after models of
Detectron2's zoo are those models. Models are built on PyTorch's "meta" device: shapes without memory."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.modeling import build_model
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.solver import LRMultiplier
from detectron2.utils.registry import locate
from omegaconf import OmegaConf

from maskrcnn_plus.config import detectron2_config, get_config, list_configs, skip_pretrained
from maskrcnn_plus.config_rules import check_config
from maskrcnn_plus.necks import PAFPN
from maskrcnn_plus.overrides import apply_overrides
from maskrcnn_plus.roi import PyramidROIAlign
from maskrcnn_plus.rpn import BatchedRPN

CONFIGS = list_configs()
STOCK = "coco/mask_rcnn_r50_fpn"  # the anchor, of Detectron2's own parts
ZOO = {
    STOCK: "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "coco/mask_rcnn_r50_fpn_3x": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml",
    "coco/mask_rcnn_r101_fpn_3x": "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml",
    "coco/mask_rcnn_x101_32x8d_fpn_3x": "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x.yaml",
}
MASK_ROWS = {  # layers with a row a class, where it is not the predictor alone
    "nuclei/variants/boundary": ["mask_head.predictor", "mask_head.boundary_predictor"],
    "nuclei/variants/mask_scoring": ["mask_head.mask_head.predictor", "mask_head.mask_iou_head.fc_mask_iou"],
}
# Tested in test_variants_heads.py and mask_heads/test_point_rend.py.
OTHER_LAYERS = (
    "nuclei/variants/cascade_box_head",
    "nuclei/variants/point_rend",
    "nuclei/mask_rcnn_plus",
    "nuclei/generalist",
    "nuclei/generalist_finish",
)
ZOO_LSJ = "new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py"


def load(name, *overrides):
    cfg = get_config(name)
    skip_pretrained(cfg)
    return apply_overrides(cfg, list(overrides))


def build(cfg, key="model"):
    with torch.device("meta"):
        return instantiate(OmegaConf.select(cfg, key))


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def optimizer_of(cfg, model):
    cfg.optimizer.params.model = model
    return instantiate(cfg.optimizer)


def decay_of(model, optimizer):
    """Name of each trained parameter -> its weight decay."""
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    return {name: decay[id(p)] for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture
def record(tmp_path):
    """A dataset dict of an image of 90 x 60 pixels with one triangle."""
    path = str(tmp_path / "image.png")
    cv2.imwrite(path, np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    triangle = {"bbox": [20, 10, 60, 50], "bbox_mode": 0, "category_id": 0, "segmentation": [[20, 10, 60, 10, 40, 50]]}
    return {"file_name": path, "image_id": 1, "height": 60, "width": 90, "annotations": [triangle]}


@pytest.mark.parametrize("name", CONFIGS)
def test_builds_and_survives_saving_and_loading(name, tmp_path):
    cfg = load(name)
    written = OmegaConf.to_container(cfg, resolve=False)
    check_config(cfg)
    assert OmegaConf.to_container(cfg, resolve=False) == written
    model = build(cfg)
    path = tmp_path / "config.yaml"
    LazyConfig.save(cfg, str(path))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]  # what yaml cannot hold would become a pickle
    reloaded = LazyConfig.load(str(path))
    assert sorted(reloaded) == sorted(cfg)
    again = build(reloaded)
    assert shapes(again) == shapes(model)
    assert str(again) == str(model)

    for each, network in ((cfg, model), (reloaded, again)):
        optimizer = optimizer_of(each, network)
        trained = [p for p in network.parameters() if p.requires_grad]
        assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in trained}
        schedule = instantiate(each.lr_multiplier)
        end = each.train.max_iter
        assert 0 < schedule(0.0) < schedule(0.5)
        assert schedule(0.5) > 0.4
        assert 0 < schedule((end - 1) / end) < 0.02
        LRMultiplier(optimizer, schedule, end)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(each.optimizer.lr * schedule(0.0))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in OTHER_LAYERS])
def test_classes_and_limit_of_detections_follow_the_dataset(name):
    heads = {}
    for number in (7, 8):
        cfg = load(name, f"dataset.num_classes={number}", "dataset.max_objects=33")
        heads[number] = build(cfg, "model.roi_heads")
    unused = cfg.model.roi_heads.box_predictor.get("num_unused_classes", 0)
    assert heads[7].num_classes == 7
    assert heads[7].box_predictor.test_topk_per_image == 33
    rows = {number: shapes(head) for number, head in heads.items()}
    assert rows[7]["box_predictor.cls_score.weight"][0] == 7 + 1 + unused
    assert {key: rows[8][key][0] - rows[7][key][0] for key in rows[7] if rows[8][key] != rows[7][key]} == {
        f"{layer}.{kind}": 4 if "bbox" in layer else 1
        for layer in (
            "box_predictor.cls_score",
            "box_predictor.bbox_pred",
            *MASK_ROWS.get(name, ["mask_head.predictor"]),
        )
        for kind in ("weight", "bias")
    }
    evaluators = cfg.dataloader.evaluator
    limits = [
        each.max_detections
        for each in ([evaluators] if "_target_" in evaluators else evaluators)
        if "max_detections" in each
    ]
    assert limits == [33]


@pytest.mark.parametrize("name", CONFIGS)
def test_mappers_read_what_the_model_takes(name, record):
    cfg = load(name)
    np.random.seed(0)  # noqa: NPY002 - Detectron2's augmentations draw from the global generator
    mapper = cfg.dataloader.train.mapper
    mapper = mapper.get("mapper", mapper)  # copy-paste wraps one, and reads the data set
    train, test = instantiate(mapper), instantiate(cfg.dataloader.test.mapper)
    assert getattr(test, "image_format", "RGB") == getattr(train, "image_format", "RGB") == cfg.model.input_format
    example = train(record)
    mean, std = instantiate(cfg.model.pixel_mean), instantiate(cfg.model.pixel_std)
    assert example["image"].shape[0] == len(mean) == len(std) == 3
    assert example["instances"].image_size == example["image"].shape[1:]
    assert "instances" not in test({key: record[key] for key in ("file_name", "height", "width")})


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("coco/")])
def test_only_the_anchor_has_stock_parts(name):
    cfg = get_config(name)
    parts = (cfg.model.proposal_generator, cfg.model.roi_heads.box_pooler, cfg.model.roi_heads.mask_pooler)
    targets = [locate(part._target_) if isinstance(part._target_, str) else part._target_ for part in parts]
    assert targets == ([RPN, ROIPooler, ROIPooler] if name == STOCK else [BatchedRPN, PyramidROIAlign, PyramidROIAlign])


def test_every_config_has_its_own_output_folder():
    folders = [get_config(name).train.output_dir for name in CONFIGS]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("name", ZOO)
def test_is_the_model_of_the_zoo(name):
    cfg, zoo_cfg = load(name), detectron2_config(ZOO[name])
    zoo_cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        zoo = build_model(zoo_cfg)
    ours = build(cfg)
    assert shapes(ours) == shapes(zoo)
    assert str(ours.backbone) == str(zoo.backbone)  # strides, groups, norms
    assert {n: p.requires_grad for n, p in ours.named_parameters()} == {
        n: p.requires_grad for n, p in zoo.named_parameters()
    }
    for part in ("proposal_generator", "roi_heads", "roi_heads.box_predictor"):
        values, expected = vars(ours.get_submodule(part)), vars(zoo.get_submodule(part))
        plain = {key for key, value in expected.items() if isinstance(value, int | float | str) and key[0] != "_"}
        assert len(plain) > 4
        assert {key: values[key] for key in plain} == {key: expected[key] for key in plain}
    assert ours.roi_heads.box_predictor.box2box_transform.weights == (10, 10, 5, 5)
    assert set(ours.roi_heads.box_predictor.loss_weight.values()) == {1.0}
    assert (list(cfg.model.pixel_mean), list(cfg.model.pixel_std)) == (
        zoo_cfg.MODEL.PIXEL_MEAN,
        zoo_cfg.MODEL.PIXEL_STD,
    )
    assert (cfg.model.input_format, cfg.train.init_checkpoint) == (zoo_cfg.INPUT.FORMAT, zoo_cfg.MODEL.WEIGHTS)

    solver = zoo_cfg.SOLVER
    assert (cfg.train.max_iter, cfg.dataloader.train.total_batch_size) == (solver.MAX_ITER, solver.IMS_PER_BATCH)
    assert (cfg.optimizer.lr, cfg.optimizer.momentum) == (solver.BASE_LR, solver.MOMENTUM)
    assert cfg.optimizer.weight_decay == solver.WEIGHT_DECAY
    schedule = instantiate(cfg.lr_multiplier)
    assert schedule(0.0) == pytest.approx(solver.WARMUP_FACTOR)
    assert schedule(solver.WARMUP_ITERS / solver.MAX_ITER) == pytest.approx(1)
    for index, step in enumerate(solver.STEPS):
        assert schedule((step - 1) / solver.MAX_ITER) == pytest.approx(solver.GAMMA**index)
        assert schedule((step + 1) / solver.MAX_ITER) == pytest.approx(solver.GAMMA ** (index + 1))


def test_large_scale_jitter_is_that_of_the_zoo(record):
    cfg, zoo_cfg = load("coco/mask_rcnn_r50_fpn_100ep_lsj"), detectron2_config(ZOO_LSJ)
    ours, zoo = build(cfg), build(zoo_cfg)
    assert shapes(ours) == shapes(zoo)
    for part in ("backbone", "proposal_generator.rpn_head", "roi_heads.box_head", "roi_heads.mask_head"):
        assert str(ours.get_submodule(part)) == str(zoo.get_submodule(part))
    assert all(p.requires_grad for p in ours.parameters())
    modes = [m._stats_mode for m in ours.roi_heads.modules() if isinstance(m, NaiveSyncBatchNorm)]
    assert modes == ["N"] * 8
    for key in ("train.max_iter", "train.init_checkpoint", "train.amp.enabled", "train.ddp.fp16_compression"):
        assert OmegaConf.select(cfg, key) == OmegaConf.select(zoo_cfg, key)
    for key in ("optimizer.lr", "optimizer.momentum", "optimizer.weight_decay", "dataloader.train.total_batch_size"):
        assert OmegaConf.select(cfg, key) == OmegaConf.select(zoo_cfg, key)
    for key in ("lr_multiplier", "dataloader.train.mapper.augmentations", "dataloader.test.mapper.augmentations"):
        assert OmegaConf.select(cfg, key) == OmegaConf.select(zoo_cfg, key)

    mapper = instantiate(cfg.dataloader.train.mapper)
    np.random.seed(1)  # noqa: NPY002
    sides = []
    for _ in range(12):
        example = mapper(record)
        assert example["image"].shape == (3, 1024, 1024)
        instances = example["instances"]
        assert torch.equal(instances.gt_boxes.tensor, instances.gt_masks.get_bounding_boxes().tensor)
        sides += (instances.gt_boxes.tensor[:, 2] - instances.gt_boxes.tensor[:, 0]).tolist()
    assert min(sides) < 455 < max(sides)  # 40 of 90 pixels at the scale 1 of 1024 / 90


@pytest.mark.parametrize(
    ("name", "without_decay"),
    [
        ("coco/mask_rcnn_swin_t_fpn", ("relative_position_bias_table",)),
        ("coco/mask_rcnn_convnext_t_fpn", (".gamma", ".bias")),
    ],
)
def test_decay_spares_norms_and_what_the_paper_names(name, without_decay):
    cfg = load(name)
    model = build(cfg)
    decay = decay_of(model, optimizer_of(cfg, model))
    norms = {n for n, m in model.named_modules() if isinstance(m, torch.nn.LayerNorm)}
    assert len(norms) > 10
    for parameter, value in decay.items():
        spared = parameter.endswith(without_decay) or parameter.rpartition(".")[0] in norms
        assert value == (0.0 if spared else 0.05), parameter
    assert all(any(parameter.endswith(end) for parameter in decay) for end in without_decay)
    assert cfg.optimizer.lr == 1e-4
    schedule = instantiate(cfg.lr_multiplier)
    assert [schedule(epoch / 36) for epoch in (26.9, 27.1, 32.9, 33.1)] == pytest.approx([1, 0.1, 0.1, 0.01])
    sizes = cfg.dataloader.train.mapper.augmentations[0].short_edge_length
    assert (min(sizes), max(sizes), len(sizes)) == (480, 800, 11)


def test_pafpn_differs_from_the_r50_in_the_neck_alone():
    pafpn, fpn = build(load("coco/mask_rcnn_r50_pafpn_3x")), build(load("coco/mask_rcnn_r50_fpn_3x"))
    assert type(pafpn.backbone) is PAFPN
    difference = set(shapes(pafpn).items()) ^ set(shapes(fpn).items())
    assert len(difference) == 12  # weight and bias of two convolutions at each of three levels
    assert all(name.startswith("backbone.pafpn_") for name, _ in difference)
