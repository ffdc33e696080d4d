"""Masks into the image and to RLE: ours against Detectron2's and torchvision's paste and pycocotools' encode."""

from __future__ import annotations

import resource
import statistics
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from torch import Tensor
from torchvision.models.detection import roi_heads as torchvision_heads

from benchmarks.timing import median, time_in_turn
from maskrcnn_plus.ops.paste_masks_rle import paste_masks_rle

# objects, height and width of the image, sides of the boxes in pixels, whose rule; torchvision holds N x H x W float32
COMPARED = (
    (100, 800, 1216, (16, 640), "detectron2"),
    (1000, 2000, 2000, (40, 90), "detectron2"),
    (100, 800, 1216, (16, 640), "torchvision"),
)
ALONE = (2000, 8000, 8000, (40, 90))
GROWING = (1000, 2000, 4000, 8000, 16000, 32000)  # sides of images with the same objects
SLOW_ROUNDS = 3  # of Detectron2 where it takes many seconds


def random_objects(count: int, height: int, width: int, sides: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Blobs [N, 28, 28] with uneven outlines and boxes [N, 4] of log-uniform sides, clipped to the image."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.linspace(-1, 1, 28)
    radius = 0.6 + 0.5 * torch.rand(count, 1, 1, generator=generator)
    noise = 0.5 * torch.randn(count, 28, 28, generator=generator)
    probs = torch.sigmoid(6 * (radius - axis[:, None] ** 2 - axis**2) + noise)  # [N, 28, 28]
    side = sides[0] * (sides[1] / sides[0]) ** torch.rand(count, 2, generator=generator)
    centre = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    boxes = torch.cat([centre - side / 2, centre + side / 2], dim=1)
    return probs, boxes.clamp(min=0).minimum(boxes.new_tensor([width, height] * 2))


def pasted_rles(probs: Tensor, boxes: Tensor, height: int, width: int, rule: str) -> list[dict[str, Any]]:
    """As Detectron2's post-processing and its COCO evaluator do, or with torchvision's paste."""
    if rule == "detectron2":
        masks = paste_masks_in_image(probs, boxes, (height, width))
    else:
        masks = torchvision_heads.paste_masks_in_image(probs[:, None], boxes, (height, width))[:, 0] >= 0.5
    rles = [coco_mask.encode(np.array(mask[:, :, None], order="F", dtype="uint8"))[0] for mask in masks]
    return [{**rle, "counts": rle["counts"].decode("utf-8")} for rle in rles]


def peak_memory() -> float:
    """Largest resident memory of the process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def benchmark_masks(rounds: int) -> None:
    """Print three Markdown tables: memory, ours against the rule's own project, and time over the image's area."""
    count, height, width, _ = ALONE
    run, _ = functions(*ALONE)
    paste_masks_rle(*random_objects(8, 100, 100, (20, 40)), 100, 100)  # loads what the first call loads
    before = peak_memory()  # measured first, as it never falls
    (times,) = time_in_turn([run], rounds)
    growth = peak_memory() - before
    print("\n| objects | image | time, ms | peak memory growth, MB | dense masks, MB |\n|---|---|---|---|---|")
    print(f"| {count} | {height} x {width} | {median(times)} | {growth:.1f} | {count * height * width / 1e6:.0f} |")

    print("\n| rule | objects | image | ours, ms | its own, ms | ratio | equal RLEs |\n|---|---|---|---|---|---|---|")
    for count, height, width, sides, rule in COMPARED:
        ours, theirs = functions(count, height, width, sides, rule)
        equal = sum(a == b for a, b in zip(ours(), theirs(), strict=True))
        number = rounds if count < 1000 else min(rounds, SLOW_ROUNDS)
        ours_ms, theirs_ms = time_in_turn((ours, theirs), number)
        ratio = f"{statistics.median(theirs_ms) / statistics.median(ours_ms):.0f} x"
        cells = (rule, count, f"{height} x {width}", median(ours_ms), median(theirs_ms), ratio, f"{equal}/{count}")
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)

    print("\nThe same 1000 objects in images of different sizes:\n")
    print("| image | ours, ms |\n|---|---|")
    probs, boxes = random_objects(1000, GROWING[0], GROWING[0], (40, 90))
    runs = [lambda side=side: paste_masks_rle(probs, boxes, side, side) for side in GROWING]
    for side, times in zip(GROWING, time_in_turn(runs, rounds), strict=True):
        print(f"| {side} x {side} | {median(times)} |")


def functions(
    count: int, height: int, width: int, sides: tuple[int, int], rule: str = "detectron2"
) -> tuple[Callable[[], list[dict[str, Any]]], Callable[[], list[dict[str, Any]]]]:
    """Our run and that of the rule's own project on the same objects."""
    probs, boxes = random_objects(count, height, width, sides)
    return (
        lambda: paste_masks_rle(probs, boxes, height, width, rule=rule),
        lambda: pasted_rles(probs, boxes, height, width, rule),
    )
