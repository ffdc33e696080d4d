"""RoIAlign against torchvision's, and PyramidROIAlign against Detectron2's ROIPooler."""

from __future__ import annotations

import statistics

import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor
from torchvision.ops import roi_align as torchvision_roi_align

from benchmarks.timing import compare, time_in_turn
from maskrcnn_plus.roi import PyramidROIAlign, roi_align

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


def random_boxes(count: int, sides: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Boxes [K, 4] with sides uniform in a range, centred anywhere in the image."""
    side = torch.rand(count, 2, generator=generator) * (sides[1] - sides[0]) + sides[0]
    centre = torch.rand(count, 2, generator=generator) * torch.tensor([IMAGE[1], IMAGE[0]])
    return torch.cat([centre - side / 2, centre + side / 2], dim=1)


def photograph_boxes(count: int, image: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Boxes [K, 4] within an image (height, width), sides log-uniform from 16 to 640 px as proposals on photographs."""
    side = 2 ** (torch.rand(count, 2, generator=generator) * 5.3 + 4)
    centre = torch.rand(count, 2, generator=generator) * torch.tensor([image[1], image[0]])
    boxes = Boxes(torch.cat([centre - side / 2, centre + side / 2], dim=1))
    boxes.clip(image)
    return boxes.tensor


def benchmark_roi_align(rounds: int, device: torch.device) -> None:
    """The operator against torchvision's on a stride-4 map of 256 channels, the pooler against Detectron2's."""
    generator = torch.Generator().manual_seed(0)
    map_ = torch.randn(1, 256, IMAGE[0] // 4, IMAGE[1] // 4, generator=generator).to(device)
    for count, bins, ratio, sides in ROI_ALIGN_CASES:
        boxes = random_boxes(count, sides, generator)
        rois = torch.cat([torch.zeros(count, 1), boxes], dim=1).to(device)
        cotangent = torch.randn(count, 256, bins, bins, generator=generator).to(device)
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
    for dtype in (torch.float32,) if device.type == "cpu" else (torch.float32, torch.bfloat16):
        for count, images, bins in ((1000, 1, 7), (512, 2, 7), (128, 2, 14)):
            _benchmark_pooler(rounds, generator, device, dtype, count, images, bins)


def _benchmark_pooler(
    rounds: int,
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
    count: int,
    images: int,
    bins: int,
) -> None:
    """Boxes of each image over p2 to p5."""
    boxes = [Boxes(photograph_boxes(count, IMAGE, generator).to(device)) for _ in range(images)]
    maps = [torch.randn(images, 256, int(IMAGE[0] * s), int(IMAGE[1] * s), generator=generator) for s in SCALES]
    ours, theirs = PyramidROIAlign(bins, SCALES, 0), ROIPooler(bins, SCALES, 0, "ROIAlignV2")
    last = [m.to(device, dtype).contiguous(memory_format=torch.channels_last).requires_grad_() for m in maps]
    plain = [m.to(device, dtype).requires_grad_() for m in maps]
    narrow = dtype != torch.float32

    def stock(maps: list[Tensor]) -> Tensor:
        """As in training with mixed precision: torchvision's operator has no bfloat16 of its own."""
        with torch.autocast(device.type, dtype, enabled=narrow):
            return theirs(maps, boxes)

    output, expected = ours(last, boxes), stock(plain)
    type_ = str(dtype).removeprefix("torch.")
    print(f"PyramidROIAlign and ROIPooler, {images} x {count} boxes over p2 to p5, {bins}x{bins}, {type_}")
    forward = compare(
        lambda: ours([m.detach() for m in last], boxes), lambda: stock([m.detach() for m in plain]), rounds
    )
    cotangent = torch.randn(output.shape, generator=generator).to(expected)
    ours_cotangent = cotangent.to(dtype).contiguous(memory_format=torch.channels_last)
    backward = compare(
        lambda: torch.autograd.grad(output, last, ours_cotangent, retain_graph=True),
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
            (
                lambda r=rois: roi_align(last, r, 7, 0.25),
                lambda r=rois: torchvision_roi_align(plain, r, 7, 0.25, 0, True),
            ),
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
