"""Weights of MMDetection give MMDetection's results, compared with MMDetection itself.

The reference runs in another process (`mmdet_reference.py`) on packages that this test puts into a folder of their own
below `build/`; nothing of them is needed or seen by the package.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, instantiate
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform

from maskrcnn_plus.checkpoints import load_weights, mmdet
from maskrcnn_plus.config import detectron2_config, get_config
from maskrcnn_plus.data.resize_mmcv import MMCVResize
from maskrcnn_plus.masks.rle_masks import instance_masks
from maskrcnn_plus.weights.conversion import WeightsFile
from maskrcnn_plus.weights.files import read_weights

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = ROOT.parent / "shared" / "data" / "coco_tiny" / "images"
PACKAGES = [
    "mmdet==3.3.0",
    "mmcv-lite==2.1.0",
    "mmengine==0.10.7",
    # What they import and this project does not have.
    "addict==2.4.0",
    "markdown-it-py==4.3.0",
    "mdurl==0.1.2",
    "platformdirs==4.14.8",
    "rich==15.0.0",
    "six==1.17.0",
    "terminaltables==3.1.10",
    "yapf==0.43.0",
]
SCALE = (256, 160)  # long and short edge; instead of 1333 and 800, to be quick

R50 = "mask_rcnn/mask-rcnn_r50_fpn_1x_coco"
CAFFE = "mask_rcnn/mask-rcnn_r50-caffe_fpn_1x_coco"
R101 = "mask_rcnn/mask-rcnn_r101_fpn_1x_coco"
X101_32X4D = "mask_rcnn/mask-rcnn_x101-32x4d_fpn_1x_coco"
X101_64X4D = "mask_rcnn/mask-rcnn_x101-64x4d_fpn_1x_coco"
C4 = "mask_rcnn/mask-rcnn_r50-caffe-c4_1x_coco"
FASTER = "faster_rcnn/faster-rcnn_r50_fpn_1x_coco"
FEW = 40  # detections an image where time is to be saved, instead of 100
FEWER = {"model.test_cfg.rcnn.max_per_img": FEW}
# Name of a run -> config, changes of it, number of images.
RUNS = {
    "r50": (R50, {}, 2),
    "r50_caffe": (CAFFE, FEWER, 1),
    "x50_32x4d": (X101_32X4D, {"model.backbone.depth": 50, **FEWER}, 1),
}


@pytest.fixture(scope="module")
def environment() -> Path:
    """A folder with MMDetection's packages, made once."""
    folder = ROOT / "build" / "mmdet_environment"
    if folder.is_dir():
        return folder
    making = folder.with_name(f"{folder.name}.{os.getpid()}")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1"]
    try:
        done = subprocess.run(
            [*command, "--no-deps", "--no-compile", "--target", str(making), *PACKAGES],
            capture_output=True,
            text=True,
            timeout=300,
        )
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
        failed = done.returncode != 0
    except subprocess.TimeoutExpired:
        failed, reason = True, "pip took more than 300 s"
    if failed:
        shutil.rmtree(making, ignore_errors=True)
        pytest.skip(f"MMDetection's packages cannot be installed into {folder}: {reason}")
    try:
        making.rename(folder)
    except OSError:  # another process of the suite was first
        if not folder.is_dir():
            raise
        shutil.rmtree(making)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Files: a tall grey photograph, where it is at hand, and coloured spots on an image of odd size."""
    generator = np.random.default_rng(0)
    spots = cv2.GaussianBlur(generator.normal(size=(247, 331, 3)), (0, 0), 9)
    spots = np.clip(128 + 60 * spots / spots.std(), 0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("images") / "spots.png"
    assert cv2.imwrite(str(path), spots)
    photo = PHOTOS / "000000000086.jpg"
    return [*([str(photo)] if photo.is_file() else []), str(path)]


@pytest.fixture(scope="module")
def reference(environment: Path, images: list[str], tmp_path_factory: pytest.TempPathFactory):
    """The folder with the reference's results."""
    folder = tmp_path_factory.mktemp("mmdet")
    job = {
        "folder": str(folder),
        "seed": 0,
        "names": [R50, CAFFE, R101, X101_32X4D, X101_64X4D, C4, FASTER],
        "runs": [
            {"name": name, "config": config, "options": options, "scale": SCALE, "images": images[:count]}
            for name, (config, options, count) in RUNS.items()
        ],
    }
    (folder / "job.json").write_text(json.dumps(job))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("mmdet_reference.py")), str(folder / "job.json")],
        env={**os.environ, "PYTHONPATH": str(environment)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    yield folder
    shutil.rmtree(folder)  # a few hundred MB


def build(run: str) -> tuple[torch.nn.Module, object]:
    """The model of a run, and the test mapper at its scale."""
    cfg = get_config({"r50_caffe": "zoo/mmdet_mask_rcnn_r50_caffe_fpn"}.get(run, "zoo/mmdet_mask_rcnn_r50_fpn"))
    cfg.dataset.max_objects = 100 if run == "r50" else FEW
    resize = cfg.dataloader.test.mapper.augmentations[0]
    resize.max_size, resize.short_edge_length = SCALE
    model = build_resnext(50, 4) if run == "x50_32x4d" else instantiate(cfg.model)
    return model.eval(), instantiate(cfg.dataloader.test.mapper)


def build_resnext(depth: int, width_per_group: int, groups: int = 32) -> torch.nn.Module:
    """Detectron2's own parts, from its own config, with MMDetection's statistics of pixels."""
    cfg = detectron2_config("COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x.yaml")
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.NUM_GROUPS = groups
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = width_per_group
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    cfg.TEST.DETECTIONS_PER_IMAGE = FEW
    return build_there(cfg)


def build_there(cfg: CfgNode) -> torch.nn.Module:
    """Detectron2's model of a config, on the device that torch now builds on."""
    cfg.MODEL.DEVICE = str(torch.get_default_device())
    return build_model(cfg)


def record(model: torch.nn.Module, example: dict) -> dict:
    """The outputs of every stage, under the reference's names."""
    found, heads = {}, model.roi_heads

    def keep(name, pick):
        def hook(_module, inputs, output):
            found[name] = pick(inputs, output)

        return hook

    hooks = [
        module.register_forward_hook(keep(name, pick))
        for name, module, pick in (
            ("image", model.backbone, lambda i, o: i[0]),
            ("backbone", model.backbone.bottom_up, lambda i, o: list(o.values())),
            ("pyramid", model.backbone, lambda i, o: list(o.values())),
            ("objectness", model.proposal_generator.rpn_head, lambda i, o: o[0]),
            ("anchor_deltas", model.proposal_generator.rpn_head, lambda i, o: o[1]),
            ("proposals", model.proposal_generator, lambda i, o: o[0][0].proposal_boxes.tensor),
            ("class_scores", heads.box_predictor, lambda i, o: o[0]),
            ("box_deltas", heads.box_predictor, lambda i, o: o[1]),
            ("mask_logits", heads.mask_head.predictor, lambda i, o: o),
        )
    ]
    with torch.no_grad():
        instances = model([example])[0]["instances"]
    for hook in hooks:
        hook.remove()
    found.update(bboxes=instances.pred_boxes.tensor, scores=instances.scores, labels=instances.pred_classes)
    return {**found, "masks": instance_masks(instances).to_dense()}


@pytest.mark.parametrize("run", RUNS)
def test_every_stage_gives_what_mmdetection_gives(run: str, reference: Path, images: list[str]):
    model, mapper = build(run)
    thing_classes = list(get_config("zoo/mmdet_mask_rcnn_r50_fpn").dataset.thing_classes)
    weights = reference / f"{run}.pth"
    load_weights(model, str(weights), strict=True)
    assert mmdet.class_names(read_weights(str(weights))) == thing_classes
    expected = torch.load(reference / f"{run}.out.pt", weights_only=True)
    for path, theirs in zip(images[: RUNS[run][2]], expected, strict=True):
        ours = record(model, mapper({"file_name": path}))
        assert len(theirs["scores"]) >= 30
        masks, their_masks = ours.pop("masks"), theirs.pop("masks")
        assert ours.keys() == theirs.keys()
        # MMDetection ranks proposals by probabilities, whose ties are no ties of logits: the order may be another.
        same = torch.cdist(theirs["proposals"], ours["proposals"], p=math.inf).argmin(dim=1)
        ours.update({name: ours[name][same] for name in ("proposals", "class_scores", "box_deltas")})
        assert len(set(same.tolist())) >= 0.99 * len(same)  # different levels may have the same box
        for name, value in theirs.items():
            # Values are of the order of 10: 1e-4 is absolute where they are small and relative where they are not.
            torch.testing.assert_close(
                ours[name], value, rtol=1e-4, atol=1e-4, msg=lambda text, at=(run, path, name): f"{at}: {text}"
            )
        assert masks.shape == their_masks.shape
        # The two differ where a probability is 0.5 up to rounding.
        assert (masks != their_masks).sum() <= 1e-4 * their_masks.sum()


@pytest.mark.parametrize(
    ("config", "build_meta"),
    [
        (R50, lambda: instantiate(get_config("zoo/mmdet_mask_rcnn_r50_fpn").model)),
        (CAFFE, lambda: instantiate(get_config("zoo/mmdet_mask_rcnn_r50_caffe_fpn").model)),
        (R101, lambda: build_there(detectron2_config("COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml"))),
        (X101_32X4D, lambda: build_resnext(101, 4)),
        (X101_64X4D, lambda: build_resnext(101, 4, groups=64)),
        (C4, lambda: build_there(detectron2_config("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml"))),
        (FASTER, lambda: build_there(detectron2_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"))),
    ],
)
def test_every_tensor_has_its_place_and_shape(config: str, build_meta, reference: Path):
    shapes = torch.load(reference / "names.pt", weights_only=True)[config]
    with torch.device("meta"):
        model = build_meta()
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    converted = mmdet.convert(WeightsFile("x.pth", tensors), model)
    own = model.state_dict()
    # Buffers that are no weights.
    assert set(own) - set(converted) <= {"pixel_mean", "pixel_std"}
    assert {name: item.tensor.shape for name, item in converted.items()} == {
        name: own[name].shape for name in converted
    }
    sources = [source for item in converted.values() for source in item.sources]
    assert len(sources) == len(set(sources))
    assert {name for name in shapes if not name.endswith("num_batches_tracked")} == set(sources)


def test_anchors_are_mmdetections(reference: Path):
    theirs = torch.load(reference / "conventions.pt", weights_only=True)
    generator = instantiate(get_config("zoo/mmdet_mask_rcnn_r50_fpn").model.proposal_generator.anchor_generator)
    maps = [torch.zeros(1, 1, *grid) for grid in theirs["grids"]]
    ours = [boxes.tensor for boxes in generator(maps)]
    assert len(ours) == len(theirs["anchors"])
    for anchors, expected in zip(ours, theirs["anchors"], strict=True):
        torch.testing.assert_close(anchors, expected, rtol=0, atol=1e-4)


def test_box_deltas_are_mmdetections(reference: Path):
    theirs = torch.load(reference / "conventions.pt", weights_only=True)
    decoded = Box2BoxTransform(weights=(10, 10, 5, 5)).apply_deltas(theirs["deltas"], theirs["boxes"])
    torch.testing.assert_close(decoded, theirs["decoded"], rtol=1e-5, atol=1e-3)


def test_resizing_is_mmcvs_to_the_bit(reference: Path):
    cases = torch.load(reference / "conventions.pt", weights_only=True)["resized"]
    assert len(cases) > 5
    for image, long_edge, short_edge, expected in cases:
        transform = MMCVResize(short_edge, long_edge).get_transform(image.numpy())
        assert np.array_equal(transform.apply_image(image.numpy()), expected.numpy()), tuple(image.shape)
