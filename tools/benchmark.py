#!/usr/bin/env python3
"""Speed, side by side in one process: each pair is run in turn, and the ratio is that of the medians.

Examples:
    python tools/benchmark.py roi_align
    python tools/benchmark.py cost --output cost.png
    python tools/benchmark.py training_step --config-file nuclei/mask_rcnn_lite0_fpn dataset.root=datasets/nuclei
    python tools/benchmark.py inference --config-file demo/mask_rcnn_lite0_fpn
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from detectron2.config import instantiate
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import Tensor, nn
from torchvision.ops import roi_align as torchvision_roi_align

from maskrcnn_plus.allocator import keep_freed_memory
from maskrcnn_plus.config import get_config
from maskrcnn_plus.masks.label_masks import LabelMapMasks
from maskrcnn_plus.overrides import apply_overrides
from maskrcnn_plus.roi import PyramidROIAlign, roi_align
from maskrcnn_plus.rpn import BatchedRPN

# RoIs, bins a side, sampling_ratio, box sides in pixels
ROI_ALIGN_CASES = (
    (1000, 7, 0, (16, 112)),
    (1000, 7, 0, (16, 216)),
    (100, 14, 0, (16, 216)),
    (1000, 7, 2, (16, 112)),
    (512, 7, 0, (16, 112)),
    (128, 14, 0, (16, 112)),
)
IMAGE = (800, 1344)  # pixels
SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)


def time_in_turn(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int
) -> tuple[list[float], list[float]]:
    """Milliseconds of the runs of both, one after the other, the first of each left out."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for function, record in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            function()
            record.append((time.perf_counter() - start) * 1e3)
    return times[0][1:], times[1][1:]


def compare(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> str:
    """Run both in turn; their medians with the spread (quartiles), and the ratio."""
    ours_ms, theirs_ms = time_in_turn(ours, theirs, rounds)
    ratio = statistics.median(theirs_ms) / statistics.median(ours_ms)
    return f"{_median(ours_ms)} vs {_median(theirs_ms)} ms  {ratio:5.1f} x"


def _median(times: list[float]) -> str:
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return f"{middle:8.1f} [{low:.1f}-{high:.1f}]"


def random_boxes(count: int, sides: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Boxes [K, 4] with sides uniform in a range, centred anywhere in the image."""
    side = torch.rand(count, 2, generator=generator) * (sides[1] - sides[0]) + sides[0]
    centre = torch.rand(count, 2, generator=generator) * torch.tensor([IMAGE[1], IMAGE[0]])
    return torch.cat([centre - side / 2, centre + side / 2], dim=1)


def benchmark_roi_align(rounds: int) -> None:
    """The operator against torchvision's on a stride-4 map of 256 channels, the pooler against Detectron2's."""
    generator = torch.Generator().manual_seed(0)
    map_ = torch.randn(1, 256, IMAGE[0] // 4, IMAGE[1] // 4, generator=generator)
    for count, bins, ratio, sides in ROI_ALIGN_CASES:
        boxes = random_boxes(count, sides, generator)
        rois = torch.cat([torch.zeros(count, 1), boxes], dim=1)
        cotangent = torch.randn(count, 256, bins, bins, generator=generator)
        print(f"{count} RoIs {bins}x{bins}, sampling {ratio or 'adaptive'}, sides {sides[0]}-{sides[1]} px")
        for layout in (torch.channels_last, torch.contiguous_format):
            input = map_.to(memory_format=layout, copy=True).requires_grad_()
            plain = map_.clone().requires_grad_()
            output = roi_align(input, rois, bins, 0.25, ratio)
            expected = torchvision_roi_align(plain, rois, bins, 0.25, ratio, True)
            ours_cotangent = cotangent.to(memory_format=layout)
            gradients = [
                torch.autograd.grad(o, i, c, retain_graph=True)[0]
                for o, i, c in ((output, input, ours_cotangent), (expected, plain, cotangent))
            ]
            errors = [(output - expected).abs().max().item(), (gradients[0] - gradients[1]).abs().max().item()]
            name = "channels_last" if layout == torch.channels_last else "NCHW"
            forward = compare(
                lambda i=input, r=rois, b=bins, s=ratio: roi_align(i.detach(), r, b, 0.25, s),
                lambda p=plain, r=rois, b=bins, s=ratio: torchvision_roi_align(p.detach(), r, b, 0.25, s, True),
                rounds,
            )
            backward = compare(
                lambda o=output, i=input, c=ours_cotangent: torch.autograd.grad(o, i, c, retain_graph=True),
                lambda o=expected, i=plain, c=cotangent: torch.autograd.grad(o, i, c, retain_graph=True),
                rounds,
            )
            print(f"  {name:13s} forward  {forward}  largest difference {errors[0]:.1e}")
            print(f"  {name:13s} backward {backward}  largest difference {errors[1]:.1e}")
    _benchmark_pooler(rounds, generator)


def _benchmark_pooler(rounds: int, generator: torch.Generator) -> None:
    """1000 boxes over p2 to p5, sides log-uniform from 16 to 640 px as an RPN's proposals are on photographs."""
    side = 2 ** (torch.rand(1000, 2, generator=generator) * 5.3 + 4)
    centre = torch.rand(1000, 2, generator=generator) * torch.tensor([IMAGE[1], IMAGE[0]])
    boxes = Boxes(torch.cat([centre - side / 2, centre + side / 2], dim=1))
    boxes.clip(IMAGE)
    maps = [torch.randn(1, 256, int(IMAGE[0] * s), int(IMAGE[1] * s), generator=generator) for s in SCALES]
    ours, theirs = PyramidROIAlign(7, SCALES, 0), ROIPooler(7, SCALES, 0, "ROIAlignV2")
    last = [m.to(memory_format=torch.channels_last).requires_grad_() for m in maps]
    plain = [m.clone().requires_grad_() for m in maps]
    output, expected = ours(last, [boxes]), theirs(plain, [boxes])
    print("PyramidROIAlign and ROIPooler, 1000 boxes over p2 to p5, 7x7")
    forward = compare(
        lambda: ours([m.detach() for m in last], [boxes]), lambda: theirs([m.detach() for m in plain], [boxes]), rounds
    )
    cotangent = torch.randn(output.shape, generator=generator)
    backward = compare(
        lambda: torch.autograd.grad(output, last, cotangent, retain_graph=True),
        lambda: torch.autograd.grad(expected, plain, cotangent, retain_graph=True),
        rounds,
    )
    print(f"  channels_last forward  {forward}  largest difference {(output - expected).abs().max():.1e}")
    print(f"  channels_last backward {backward}")


def benchmark_cost(rounds: int, output: str) -> None:
    """Milliseconds a box against the side of the boxes, drawn: 200 boxes on a stride-4 map of 256 channels, 7x7."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(1, 256, IMAGE[0] // 4, IMAGE[1] // 4, generator=generator)
    last = plain.to(memory_format=torch.channels_last)
    sides = (8, 16, 32, 64, 128, 256, 512)
    times: dict[str, list[float]] = {"torchvision": [], "maskrcnn_plus": []}
    for side in sides:
        rois = torch.cat([torch.zeros(200, 1), random_boxes(200, (side, side), generator)], dim=1)
        ours, theirs = time_in_turn(
            lambda r=rois: roi_align(last, r, 7, 0.25),
            lambda r=rois: torchvision_roi_align(plain, r, 7, 0.25, 0, True),
            rounds,
        )
        for name, record in zip(times, (theirs, ours), strict=True):
            times[name].append(statistics.median(record) / len(rois))
        print(f"{side:4d} px  {times['maskrcnn_plus'][-1]:.4f} vs {times['torchvision'][-1]:.4f} ms a box")
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for name, values in times.items():
        axes.loglog(sides, values, marker="o", label=name)
    axes.set(xlabel="side of the box, pixels", ylabel="ms a box (forward, 256 channels)", xticks=sides)
    axes.set_xticklabels([str(side) for side in sides])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(output, dpi=110)
    print(output)


def stock(cfg: DictConfig) -> DictConfig:
    """The same model of Detectron2's own RPN and RoI poolers."""
    cfg = copy.deepcopy(cfg)
    if cfg.model.proposal_generator._target_ is BatchedRPN:
        cfg.model.proposal_generator._target_ = RPN
    for name in ("box_pooler", "mask_pooler"):
        pooler = cfg.model.roi_heads[name]
        if pooler._target_ is PyramidROIAlign:
            pooler._target_ = ROIPooler
            pooler.pooler_type = pooler.get("pooler_type", "ROIAlignV2")
    return cfg


def build_pair(cfg: DictConfig) -> tuple[nn.Module, nn.Module]:
    """Our model in channels_last memory and the stock one in contiguous memory, with equal weights."""
    torch.manual_seed(0)
    ours = instantiate(cfg.model)
    theirs = instantiate(stock(cfg).model)
    theirs.load_state_dict(ours.state_dict())
    return ours.to(memory_format=torch.channels_last), theirs


def benchmark_training_step(cfg: DictConfig, rounds: int) -> None:
    """Forward, backward and optimizer step of one batch: our parts against Detectron2's."""
    cfg.dataloader.train.num_workers = 0
    batch = next(iter(instantiate(cfg.dataloader.train)))
    stock_batch = [{**entry, "instances": copy.deepcopy(entry["instances"])} for entry in batch]
    for entry in stock_batch:
        masks = entry["instances"].gt_masks
        if isinstance(masks, LabelMapMasks):
            entry["instances"].gt_masks = masks.to_bitmasks()
    steps = []
    pair = build_pair(cfg)
    losses = [losses_of(model, examples) for model, examples in zip(pair, (batch, stock_batch), strict=True)]
    for model, examples in zip(pair, (batch, stock_batch), strict=True):
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

        def step(model: nn.Module = model, examples: list = examples, optimizer=optimizer) -> dict[str, Tensor]:
            torch.manual_seed(0)
            results = model(examples)
            optimizer.zero_grad()
            sum(results.values()).backward()
            optimizer.step()
            return results

        steps.append(step)
    with EventStorage(0):
        result = compare(*steps, rounds)
    print(f"Training step, {len(batch)} images of {tuple(batch[0]['image'].shape[1:])}: ours vs stock {result}")
    for name in losses[0]:
        print(f"  {name:14s} {losses[0][name]:.8f} vs {losses[1][name]:.8f}")


def losses_of(model: nn.Module, examples: list[dict]) -> dict[str, float]:
    """Losses of a batch in contiguous memory, where both models' convolutions round alike.

    In channels_last memory they differ in the last digit, which may swap two proposals of nearly equal score and with
    them the boxes that are sampled.
    """
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format).train()
    torch.manual_seed(0)
    with EventStorage(0), torch.no_grad():
        return {name: value.item() for name, value in model(examples).items()}


def benchmark_inference(cfg: DictConfig, rounds: int) -> None:
    """Prediction of single images: our parts against Detectron2's, the same detections."""
    cfg.dataloader.test.num_workers = 0
    example = next(iter(instantiate(cfg.dataloader.test)))
    ours, theirs = (model.eval() for model in build_pair(cfg))
    with torch.inference_mode():
        found = [model(example)[0]["instances"] for model in (ours, theirs)]
        result = compare(lambda: ours(example), lambda: theirs(example), rounds)
    shape = tuple(example[0]["image"].shape[1:])
    print(f"Inference, {shape}, {len(found[0])} and {len(found[1])} objects: ours vs stock {result}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("roi_align", "cost", "training_step", "inference"))
    parser.add_argument("--output", default="roi_align_cost.png", help="picture that cost draws")
    parser.add_argument("--config-file", default="demo/mask_rcnn_lite0_fpn", help="for training_step and inference")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each of a pair (default 7)")
    parser.add_argument("--threads", type=int, help="of PyTorch (default: its own choice)")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="changes to the config")
    args = parser.parse_intermixed_args()
    keep_freed_memory()  # as the training does; here for both sides
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    if args.what == "roi_align":
        benchmark_roi_align(args.rounds)
        return
    if args.what == "cost":
        benchmark_cost(args.rounds, args.output)
        return
    cfg = apply_overrides(get_config(args.config_file), args.opts)
    (benchmark_training_step if args.what == "training_step" else benchmark_inference)(cfg, args.rounds)


if __name__ == "__main__":
    main()
