"""Prediction with one set of weights: ours against torchvision's Mask R-CNN R50-FPN and stock Detectron2.

Each side is timed from the image in memory to its masks: ours to RLE, torchvision's and Detectron2's to bool masks.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision
from detectron2.config import instantiate
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Instances
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms.functional import to_tensor

from benchmarks.exported import build_predictors
from benchmarks.random_weights import THING_IDS, randomise
from benchmarks.timing import tabulate_predictions, time_in_turn
from maskrcnn_plus.checkpoints import load_weights
from maskrcnn_plus.config import get_config
from maskrcnn_plus.data.pillow_files import FORMATS
from maskrcnn_plus.inference.predictor import Predictor

IMAGES = 3
CONFIG = "zoo/torchvision_mask_rcnn_r50_fpn"


def read_photographs(folder: str, size: tuple[int, int]) -> list[np.ndarray]:
    """The first photographs of a folder, resized to [height, width, 3] uint8.

    Raises:
        ValueError: there is none.
    """
    paths = sorted(path for path in Path(folder).glob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not paths:
        raise ValueError(f"--images {folder}: no photograph (.jpg .png) there")
    height, width = size
    return [
        np.array(Image.open(p, formats=FORMATS).convert("RGB").resize((width, height), Image.BILINEAR))
        for p in paths[:IMAGES]
    ]


class Sides:
    """The three models with the same weights; each method predicts one image [H, W, 3]."""

    def __init__(self, photograph: np.ndarray, device: torch.device, precisions: Sequence[str] = ()) -> None:
        self.device = device
        short, long = sorted(photograph.shape[:2])
        build = torchvision.models.detection.maskrcnn_resnet50_fpn
        self.torchvision_model = build(weights=None, weights_backbone=None, min_size=short, max_size=long).eval()
        randomise(self.torchvision_model, to_tensor(photograph))
        self.torchvision_model.to(device)
        config = get_config(CONFIG)
        resize = config.dataloader.test.mapper.augmentations[0]
        resize.short_edge_length, resize.max_size = short, long
        with tempfile.TemporaryDirectory() as folder:
            weights = str(Path(folder) / "model.pth")
            torch.save(self.torchvision_model.state_dict(), weights)
            self.predictor = Predictor(config, weights, device=str(device), score_threshold=0.0)
            self.others = build_predictors(config, weights, folder, [photograph], precisions, score_threshold=0.0)
            self.stock_model = instantiate(_stock(config)).eval().to(device)
            load_weights(self.stock_model, weights, class_names=config.dataset.thing_classes, strict=True)

    def ours(self, image: np.ndarray) -> Instances:
        return self.predictor.predict(image).to("cpu")

    @torch.inference_mode()
    def torchvision(self, image: np.ndarray) -> dict[str, Tensor]:
        (result,) = self.torchvision_model([to_tensor(image).to(self.device)])
        result["masks"] = result["masks"][:, 0] >= 0.5  # [N, H, W]
        return result

    @torch.inference_mode()
    def detectron2(self, image: np.ndarray) -> Instances:
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))  # [3, H, W]
        return self.stock_model([{"image": pixels, "height": image.shape[0], "width": image.shape[1]}])[0]["instances"]


def _stock(config: DictConfig) -> DictConfig:
    """Detectron2's own RPN, poolers and pasting; its anchors and thresholds stay, for the same detections."""
    model = config.model.copy()
    model._target_ = GeneralizedRCNN
    model.pop("mask_pasting")
    model.proposal_generator._target_ = RPN
    for name in ("box_pooler", "mask_pooler"):
        model.roi_heads[name]._target_ = ROIPooler
    model.roi_heads.num_classes = config.dataset.num_classes
    model.roi_heads.box_predictor.test_topk_per_image = config.dataset.max_objects
    return model


def agreement(found: Instances, masks: Tensor, expected: dict[str, Tensor]) -> str:
    """How far detections are from torchvision's of the same class."""
    if len(found) != len(expected["boxes"]) or len(found) == 0:
        return f"{len(found)} objects, {len(expected['boxes'])} of torchvision"
    distances = (found.pred_boxes.tensor[None] - expected["boxes"][:, None]).abs().amax(dim=2)  # [theirs, ours]
    distances[THING_IDS[found.pred_classes][None] != expected["labels"][:, None]] = torch.inf
    distance, partner = distances.min(dim=1)
    paired = len(partner.unique())
    score = (found.scores[partner] - expected["scores"]).abs().max()
    a, b = masks[partner].flatten(1), expected["masks"].flatten(1)  # [N, H * W]
    union = (a | b).sum(1)
    iou = torch.where(union > 0, (a & b).sum(1) / union, 1.0)  # [N]
    return (
        f"{paired} of {len(found)} objects paired, boxes to {distance.max():.4f} px, scores to {score:.1e}, "
        f"median IoU of masks {iou.median():.4f}, lowest {iou.min():.4f}"
    )


def clock() -> float:
    """Seconds, when all that was given to a GPU is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def time_stages(model: nn.Module, predict) -> dict[str, float]:
    """Milliseconds of the stages of one prediction."""
    heads = model.roi_heads
    parts = {
        "bottom_up": model.backbone.bottom_up,
        "backbone": model.backbone,
        "rpn": model.proposal_generator,
        "heads": heads,
        "mask_pooler": heads.mask_pooler,
        "mask_head": heads.mask_head,
    }
    starts, spent = {}, {}
    hooks = []
    for name, module in parts.items():
        hooks += [
            module.register_forward_pre_hook(lambda *_, n=name: starts.update({n: clock()})),
            module.register_forward_hook(lambda *_, n=name: spent.update({n: clock() - starts[n]})),
        ]
    start = clock()
    predict()
    total = clock() - start
    for hook in hooks:
        hook.remove()
    mask = spent["mask_pooler"] + spent["mask_head"]
    stages = {
        "ResNet": spent["bottom_up"],
        "FPN": spent["backbone"] - spent["bottom_up"],
        "RPN": spent["rpn"],
        "boxes": spent["heads"] - mask,
        "masks": mask,
        "input and pasting": total - spent["backbone"] - spent["rpn"] - spent["heads"],
    }
    return {name: seconds * 1e3 for name, seconds in stages.items()}


@torch.inference_mode()
def convolution_rate(device: torch.device) -> float:
    """GFLOP/s of a large convolution, the best of five runs."""
    x = torch.randn(1, 256, 100, 152, device=device).to(memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3, device=device).to(memory_format=torch.channels_last)
    (times,) = time_in_turn([lambda: F.conv2d(x, weight, padding=1)], 5)
    return 2 * weight.numel() * 100 * 152 / min(times) / 1e6


def benchmark_inference(
    folder: str,
    size: tuple[int, int],
    rounds: int,
    device: torch.device,
    precisions: Sequence[str] = (),
    processor_time: bool = False,
) -> None:
    """Print the agreement, a table of times, the distance to the arithmetic, and the stages.

    Args:
        folder: of photographs.
        size: (height, width) that they are brought to.
        rounds: runs of each side.
        device: for all sides.
        precisions: further ones of ours, of `exported.PRECISIONS`.
        processor_time: count the time of the processor, of all threads, instead of the clock's.
    """
    images = read_photographs(folder, size)
    sides = Sides(images[0], device, precisions)
    print(f"{len(images)} photographs of {size[0]} x {size[1]}, Mask R-CNN R50-FPN, float32, {rounds} rounds\n")
    for image in images:
        expected = {name: value.cpu() for name, value in sides.torchvision(image).items()}
        ours, stock = sides.ours(image).to("cpu"), sides.detectron2(image).to("cpu")
        print(f"- ours and torchvision: {agreement(ours, ours.pred_masks_rle.to_dense(), expected)}")
        print(f"- Detectron2 and torchvision: {agreement(stock, stock.pred_masks, expected)}")
        for name, predictor in sides.others.items():
            found = predictor.predict(image)
            print(f"- {name} and torchvision: {agreement(found, found.pred_masks_rle.to_dense(), expected)}")
    print(
        "\nDetectron2 samples masks at the centres of pixels; torchvision, and ours here, resizes them to whole pixels."
    )

    predicts = {"ours": sides.ours, "torchvision": sides.torchvision, "Detectron2": sides.detectron2}
    predicts |= {name: predictor.predict for name, predictor in sides.others.items()}
    of_ours = tabulate_predictions(predicts, images, rounds, processor_time)

    with FlopCounterMode(display=False) as counter:
        sides.detectron2(images[0])
    work, rate = counter.get_total_flops() / 1e9, convolution_rate(device)
    floor = work / rate * 1e3
    print(
        f"\nConvolutions and matrix products of an image, done directly: {work:.0f} GFLOP; at the {rate:.0f} GFLOP/s "
        f"of a large convolution {floor:.0f} ms, of which ours takes {of_ours / floor:.2f} times."
    )
    rows = {
        "ours": [time_stages(sides.predictor.model, lambda: sides.ours(images[0])) for _ in range(rounds)],
        "Detectron2": [time_stages(sides.stock_model, lambda: sides.detectron2(images[0])) for _ in range(rounds)],
    }
    stages = list(rows["ours"][0])
    print(f"\n| stage, ms | {' | '.join(stages)} |\n|---|{'---|' * len(stages)}")
    for name, records in rows.items():
        print(f"| {name} | {' | '.join(f'{statistics.median(r[s] for r in records):.0f}' for s in stages)} |")
