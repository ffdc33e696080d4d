"""Instance masks of one image kept as a label image: H*W + N numbers of memory where bitmaps take N*H*W.

`crop_and_resize` is the RoIAlign of Mask R-CNN (He et al. 2017, Sec. 3) on binary masks: aligned, as many samples a
bin as the bin has pixels, threshold 0.5. RoIAlign is separable, so a bin of a RoI is one entry of
`weights_y @ crop @ weights_x.T`; only bins whose coverage lies next to the threshold are summed sample by sample.

Shape shorthand: N instances or RoIs, K RoIs of a chunk, M mask side, G samples a bin and axis, F bins of a chunk that
lie next to the threshold, [H, W] image, [h, w] crop of a RoI.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes
from torch import Tensor

from maskrcnn_plus.masks.ground_truth import PixelMasks

# Numbers held by the largest temporary of a chunk. Small enough for a CPU's cache, large enough to hide call overhead.
_CHUNK_NUMEL = 1 << 18
# Matrix products may run in reduced precision (TF32, bfloat16), whose error stays below this.
_TIE_MARGIN = 0.01


class LabelMapMasks(PixelMasks):
    """N masks of one image: mask i is `label_map == label_ids[i]`.

    It takes the place of `detectron2.structures.BitMasks` in training: the same indexing, `to`, `crop_and_resize`,
    `get_bounding_boxes`, `nonempty` and `cat`. Indexing never copies the label image. Masks cannot overlap unless the
    same id is listed twice.

    Attributes:
        label_map: int32 tensor [H, W].
        label_ids: int32 tensor [N] on the device of `label_map`.
        image_size: torch.Size (H, W).
    """

    def __init__(self, label_map: Tensor, label_ids: Tensor) -> None:
        """Keep references to both tensors, converted to int32.

        Args:
            label_map: integer tensor [H, W].
            label_ids: integer tensor [N].

        Raises:
            ValueError: wrong number of dimensions, not integers, or values beyond int32.
        """
        if label_map.dim() != 2 or label_ids.dim() != 1:
            raise ValueError(
                f"label_map must be [H, W] and label_ids [N], got shapes {tuple(label_map.shape)} and "
                f"{tuple(label_ids.shape)}."
            )
        self.label_map = _to_int32(label_map, "label_map")
        self.label_ids = _to_int32(label_ids, "label_ids").to(label_map.device)
        self.image_size = self.label_map.shape

    def __len__(self) -> int:
        """Return the number of instances N."""
        return self.label_ids.shape[0]

    def __getitem__(self, item: int | slice | Tensor) -> LabelMapMasks:
        """Select instances by an int (gives one mask), a slice, a bool tensor [N] or an integer tensor [K]."""
        label_ids = self.label_ids[item]
        return LabelMapMasks(self.label_map, label_ids.reshape(1) if isinstance(item, int) else label_ids)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield one bool mask [H, W] after the other."""
        for label_id in self.label_ids:
            yield self.label_map == label_id

    def __repr__(self) -> str:
        """Tell the number of instances and the image size."""
        height, width = self.image_size
        return f"LabelMapMasks(num_instances={len(self)}, image_height={height}, image_width={width})"

    @property
    def device(self) -> torch.device:
        """The device of the label image."""
        return self.label_map.device

    def to(self, *args: Any, **kwargs: Any) -> LabelMapMasks:
        """Move to a device; takes the arguments of `torch.Tensor.to`."""
        return LabelMapMasks(self.label_map.to(*args, **kwargs), self.label_ids.to(*args, **kwargs))

    def get_bitmaps(self, chosen: slice) -> Tensor:
        """Return the chosen K masks as bool [K, H, W]."""
        return self.label_map[None] == self.label_ids[chosen, None, None]

    @staticmethod
    def cat(masks_list: Sequence[LabelMapMasks]) -> LabelMapMasks | BitMasks:
        """Concatenate masks of one image.

        Masks over the same label image stay label-map masks. Different label images may overlap, which no single label
        image can hold, so their concatenation is a BitMasks.

        Raises:
            ValueError: empty list or different image sizes.
        """
        if not masks_list:
            raise ValueError("cat needs at least one LabelMapMasks.")
        first = masks_list[0]
        if any(masks.image_size != first.image_size for masks in masks_list):
            sizes = sorted({tuple(masks.image_size) for masks in masks_list})
            raise ValueError(f"cat needs masks of images of one size, got sizes {sizes}.")
        label_maps = [masks.label_map for masks in masks_list]
        if all(label_map is first.label_map or torch.equal(label_map, first.label_map) for label_map in label_maps):
            return LabelMapMasks(first.label_map, torch.cat([masks.label_ids for masks in masks_list]))
        return BitMasks.cat([masks.to_bitmasks() for masks in masks_list])

    def area(self) -> Tensor:
        """Return the number of pixels of each mask, int64 [N]."""
        return self._measure()[0]

    def get_bounding_boxes(self) -> Boxes:
        """Return the tight boxes, float32 xyxy [N, 4] with the far corner one beyond the last pixel; 0 if empty."""
        return Boxes(self._measure()[1])

    def _measure(self) -> tuple[Tensor, Tensor]:
        """Return areas int64 [N] and boxes float32 [N, 4] from the horizontal runs of equal labels."""
        height, width = self.image_size
        ids, slot = torch.unique(self.label_ids, return_inverse=True)  # [U], [N]
        if len(ids) == 0 or height * width == 0:
            boxes = torch.zeros(len(self), 4, device=self.device)
            return torch.zeros(len(self), dtype=torch.int64, device=self.device), boxes
        starts_run = torch.ones(height, width, dtype=torch.bool, device=self.device)
        torch.ne(self.label_map[:, 1:], self.label_map[:, :-1], out=starts_run[:, 1:])
        starts = starts_run.flatten().nonzero()[:, 0]  # [runs]
        ends = torch.cat([starts[1:], starts.new_tensor([height * width])])
        labels = self.label_map.flatten()[starts]
        run_slot = torch.searchsorted(ids, labels).clamp_(max=len(ids) - 1)
        wanted = ids[run_slot] == labels
        starts, ends, run_slot = starts[wanted], ends[wanted], run_slot[wanted]

        lengths = ends - starts
        areas = torch.zeros(len(ids), dtype=torch.int64, device=self.device).scatter_add_(0, run_slot, lengths)
        rows, left = starts // width, starts % width
        low = torch.stack([left, rows])  # [2, runs], x then y
        high = torch.stack([left + lengths, rows + 1])
        index = run_slot.expand(2, -1)
        corners = torch.zeros(2, len(ids), dtype=torch.int64, device=self.device)
        top_left = corners.scatter_reduce(1, index, low, "amin", include_self=False)
        bottom_right = corners.scatter_reduce(1, index, high, "amax", include_self=False)
        boxes = torch.cat([top_left, bottom_right]).T.float()  # [U, 4]
        return areas[slot], boxes[slot]

    def _crop(self, boxes: Tensor, result: Tensor) -> None:
        sides, mask_size = boxes[:, 2:] - boxes[:, :2], result.shape[-1]  # [N, 2], x then y
        ties = []
        with torch.autocast(self.device.type, enabled=False):
            for index in _chunks_of_similar_size(sides, self.image_size, mask_size):
                coverage = self._coverage(boxes[index], self.label_ids[index], mask_size)  # [K, M, M]
                result[index] = coverage >= 0.5
                roi, row, column = ((coverage - 0.5).abs_() < _TIE_MARGIN).nonzero(as_tuple=True)
                ties.append(torch.stack([index[roi], row, column]))  # [3, F]
        self._settle_ties(result, torch.cat(ties, dim=1), boxes)

    def _count_inside(self, windows: list[list[int]]) -> list[Tensor]:
        labels = zip(self.label_ids, windows, strict=True)
        return [(self.label_map[y0:y1, x0:x1] == label).sum() for label, (x0, y0, x1, y1) in labels]

    def _coverage(self, boxes: Tensor, label_ids: Tensor, mask_size: int) -> Tensor:
        """Return the part [K, M, M] of each bin that the RoI's mask covers, up to the precision of a matrix product."""
        height, width = self.image_size
        left, weights_x = _axis_matrix(_sample_axis(boxes[:, 0::2], width, mask_size), width)  # [K], [K, M, w]
        top, weights_y = _axis_matrix(_sample_axis(boxes[:, 1::2], height, mask_size), height)  # [K], [K, M, h]
        windows = self.label_map.unfold(0, weights_y.shape[2], 1).unfold(1, weights_x.shape[2], 1)
        labels = windows[top, left]  # [K, h, w]
        # Comparing straight into floats takes a fifth of the time of a bool mask converted later.
        crops = torch.eq(labels, label_ids[:, None, None], out=weights_y.new_empty(labels.shape))
        return weights_y @ crops @ weights_x.mT

    def _settle_ties(self, result: Tensor, ties: Tensor, boxes: Tensor) -> None:
        """Decide the bins `ties` [3, F] (RoI, row, column) of `result` in the exact order of RoIAlign's additions."""
        height, width = self.image_size
        mask_size = result.shape[2]
        if ties.shape[1] == 0:
            return
        tied_boxes = boxes[ties[0]]
        samples_per_bin = (((tied_boxes[:, 2:] - tied_boxes[:, :2]).amax(0) / mask_size) + 1).prod()
        for roi, row, column in ties.split(max(int(_CHUNK_NUMEL / samples_per_bin), 1), dim=1):
            x = _sample_axis(boxes[roi, 0::2], width, mask_size, column[:, None])
            y = _sample_axis(boxes[roi, 1::2], height, mask_size, row[:, None])
            result[roi, row, column] = self._mean_of_samples(y, x, self.label_ids[roi]) >= 0.5

    def _mean_of_samples(self, y: AxisSamples, x: AxisSamples, label_ids: Tensor) -> Tensor:
        """Return the mean [F] of the samples of F bins, added up one by one in float32 as the kernel does."""
        label_ids = label_ids[:, None, None]
        samples = torch.zeros((), device=label_ids.device)
        for rows, weight_y in ((y.low, y.weight_low), (y.high, y.weight_high)):
            for columns, weight_x in ((x.low, x.weight_low), (x.high, x.weight_high)):
                mask = self.label_map[rows.mT, columns] == label_ids  # [F, Gy, Gx]
                samples = samples + weight_y.mT * weight_x * mask
        # torch.cumsum adds in double precision and torch.sum in pairs.
        total = np.add.accumulate(samples.flatten(1).cpu().numpy(), axis=1)[:, -1]
        return torch.from_numpy(total).to(label_ids.device) / (y.grid * x.grid).clamp(min=1)


@dataclass(frozen=True)
class AxisSamples:
    """Where RoIAlign samples along one axis. Samples outside the image or beyond a RoI's grid have weight 0.

    Attributes:
        low, high: int64 [K, bins, G] pixel indices left and right of each sample.
        weight_low, weight_high: float32 [K, bins, G] linear interpolation weights.
        grid: float32 [K] samples a bin, a whole number; 0 or less for a RoI without extent.
    """

    low: Tensor
    high: Tensor
    weight_low: Tensor
    weight_high: Tensor
    grid: Tensor


def _sample_axis(intervals: Tensor, size: int, num_bins: int, bins: Tensor | None = None) -> AxisSamples:
    """Place RoIAlign's samples along an axis of `size` pixels with the kernel's order of float32 operations.

    `intervals` [K, 2] are the RoIs' start and end, each cut into `num_bins`, of which `bins` [K, 1] picks one a RoI.
    """
    start, end = (intervals - 0.5).unbind(1)
    bin_size = ((end - start) / num_bins)[:, None]  # [K, 1]
    grid = bin_size.ceil()  # [K, 1]
    steps = torch.arange(max(int(grid.max()), 1), dtype=torch.float32, device=start.device)  # [G]
    if bins is None:
        bins = torch.arange(num_bins, dtype=torch.float32, device=start.device)  # [M]
    bin_start = start[:, None] + bins * bin_size  # [K, bins]
    offset = (steps + 0.5) * bin_size / grid.clamp(min=1)  # [K, G]
    position = bin_start[:, :, None] + offset[:, None, :]  # [K, bins, G]
    counted = ((position >= -1) & (position <= size) & (steps < grid)[:, None, :]).float()
    position.clamp_(0, size - 1)
    low = position.floor()
    weight_high = (position - low) * counted
    weight_low = (1 - (position - low)) * counted
    low = low.long()
    return AxisSamples(low, (low + 1).clamp_(max=size - 1), weight_low, weight_high, grid[:, 0])


def _axis_matrix(samples: AxisSamples, size: int) -> tuple[Tensor, Tensor]:
    """Return the first pixel [K] of each RoI's crop and the matrices [K, M, length] from crops to means of samples."""
    # Samples of a RoI are in ascending order; those without weight may stand at either end or in the padding of G.
    used = samples.weight_low + samples.weight_high > 0
    first = torch.where(used, samples.low, size).flatten(1).amin(1)  # [K]
    last = torch.where(used, samples.high, -1).flatten(1).amax(1)
    length = min(max(int((last - first).max()) + 1, 1), size)
    first.clamp_(max=size - length)
    scale = 1 / samples.grid.clamp(min=1)[:, None, None]
    matrix = torch.zeros(*samples.low.shape[:2], length, device=first.device)
    for pixel, weight in ((samples.low, samples.weight_low), (samples.high, samples.weight_high)):
        matrix.scatter_add_(2, (pixel - first[:, None, None]).clamp_(0, length - 1), weight * scale)
    return first, matrix


def _chunks_of_similar_size(sides: Tensor, image_size: Sequence[int], mask_size: int) -> Iterator[Tensor]:
    """Split RoIs with `sides` [N, 2] (x, y) into index tensors whose temporaries stay within `_CHUNK_NUMEL` numbers.

    A single RoI makes a chunk of its own however large it is.
    """
    limits = sides.new_tensor([image_size[1], image_size[0]])
    crops = torch.minimum(sides.clamp(min=0) + 2, limits)  # [N, 2]
    order = crops.amax(1).argsort()
    crops_list, sides_list = crops[order].tolist(), sides[order].tolist()
    begin, largest = 0, (0.0, 0.0, 0.0)
    for end, ((crop_x, crop_y), (side_x, side_y)) in enumerate(zip(crops_list, sides_list, strict=True)):
        grown = (max(largest[0], crop_x), max(largest[1], crop_y), max(largest[2], side_x, side_y))
        numel = max(grown[0] * grown[1], mask_size * (max(grown[:2]) + mask_size), grown[2] + mask_size)
        if end > begin and (end + 1 - begin) * numel > _CHUNK_NUMEL:
            yield order[begin:end]
            begin, grown = end, (crop_x, crop_y, max(side_x, side_y))
        largest = grown
    yield order[begin:]


def _to_int32(values: Tensor, name: str) -> Tensor:
    if values.dtype == torch.int32:
        return values
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"{name} must hold integers, got {values.dtype}.")
    converted = values.to(torch.int32)
    if not torch.equal(converted.to(torch.int64), values.to(torch.int64)):
        raise ValueError(f"{name} holds values beyond the range of int32: renumber the labels.")
    return converted
