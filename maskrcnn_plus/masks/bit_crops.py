"""Bitmaps of an image's instances that many RoIs share: indexing and cropping never copy a whole mask.

`BitMasks` [N, H, W] indexed by R RoIs is R x H x W bytes, and its crops take four times that as floats. Here R RoIs
take R numbers, and crops one float image.

Shorthand: N masks, R RoIs, M mask side, [H, W] image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.layers import ROIAlign
from detectron2.structures import BitMasks, Boxes
from torch import Tensor

from maskrcnn_plus.masks.ground_truth import PixelMasks


class IndexedBitMasks(PixelMasks, BitMasks):
    """Drop-in for `BitMasks` that keeps the bitmaps once and an index into them.

    Attributes:
        bitmaps: bool [N, H, W].
        index: int64 [R], the bitmap of each RoI.
        image_size: torch.Size (H, W).
    """

    def __init__(self, bitmaps: Tensor, index: Tensor | None = None) -> None:
        """Keep references to both.

        Args:
            bitmaps: bool [N, H, W].
            index: int64 [R] in [0, N); None takes each bitmap once.
        """
        # Not the base class's attribute `tensor`, which is a property here.
        self.bitmaps = BitMasks(bitmaps).tensor
        self.image_size = self.bitmaps.shape[1:]
        self.index = torch.arange(len(self.bitmaps), device=self.bitmaps.device) if index is None else index

    @property
    def tensor(self) -> Tensor:
        """All masks as bool [R, H, W], a copy: for what cannot do without."""
        return self.bitmaps[self.index]

    @property
    def device(self) -> torch.device:
        """The device of the bitmaps."""
        return self.bitmaps.device

    def to(self, *args: Any, **kwargs: Any) -> IndexedBitMasks:
        """Move to a device; takes the arguments of `torch.Tensor.to`."""
        bitmaps = self.bitmaps.to(*args, **kwargs)
        return IndexedBitMasks(bitmaps, self.index.to(bitmaps.device))

    def __len__(self) -> int:
        """Return the number of RoIs R."""
        return len(self.index)

    def __getitem__(self, item: int | slice | Tensor) -> IndexedBitMasks:
        """Select by an int (gives one mask), a slice, a bool tensor [R] or an integer tensor [K]."""
        index = self.index[item.to(self.index.device) if isinstance(item, Tensor) else item]
        return IndexedBitMasks(self.bitmaps, index.reshape(1) if isinstance(item, int) else index)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield one bool mask [H, W] after the other, views of the bitmaps."""
        for index in self.index.tolist():
            yield self.bitmaps[index]

    @staticmethod
    def cat(masks_list: Sequence[BitMasks]) -> BitMasks:
        """Join masks of one image; those of the same bitmaps stay an index."""
        first = masks_list[0]
        if all(getattr(masks, "bitmaps", None) is first.bitmaps for masks in masks_list):
            return IndexedBitMasks(first.bitmaps, torch.cat([masks.index for masks in masks_list]))
        return BitMasks.cat(masks_list)

    def __repr__(self) -> str:
        """Tell the numbers of RoIs and bitmaps."""
        return f"IndexedBitMasks(num_instances={len(self)}, num_bitmaps={len(self.bitmaps)})"

    def area(self) -> Tensor:
        """Return the number of pixels of each mask, int64 [R]; a bitmap that RoIs share is counted once."""
        used, places = self.index.unique(return_inverse=True)
        counts = [int(self.bitmaps[k].count_nonzero()) for k in used.tolist()]
        return torch.tensor(counts, dtype=torch.int64, device=self.device)[places]

    def get_bitmaps(self, chosen: slice) -> Tensor:
        """Return the chosen k masks as bool [k, H, W]."""
        return self.bitmaps[self.index[chosen]]

    def to_bitmasks(self) -> BitMasks:
        """Return itself, which is a `BitMasks`."""
        return self

    def get_bounding_boxes(self) -> Boxes:
        """Return the tight boxes, xyxy [R, 4] with the far corner one beyond the last pixel; 0 if empty."""
        return BitMasks(self.bitmaps).get_bounding_boxes()[self.index.cpu()]

    def _crop(self, boxes: Tensor, result: Tensor) -> None:
        mask_size = result.shape[-1]
        align = ROIAlign((mask_size, mask_size), 1.0, 0, aligned=True)
        rois = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], dim=1)  # [R, 5], all of image 0
        windows = self._windows(boxes)
        # RoIAlign runs in the image's own coordinates, or its rounding would differ. It reads a RoI's window only.
        canvas = torch.zeros(1, 1, *self.image_size, device=self.device)
        order = self.index.argsort(stable=True)
        used, counts = self.index[order].unique_consecutive(return_counts=True)
        for bitmap, chosen in zip(used.tolist(), order.split(counts.tolist()), strict=True):
            top, bottom, left, right = windows[bitmap]
            canvas[0, 0, top:bottom, left:right] = self.bitmaps[bitmap, top:bottom, left:right]
            result[chosen] = align(canvas, rois[chosen])[:, 0] >= 0.5  # [k, 1, M, M] -> [k, M, M]
            canvas[0, 0, top:bottom, left:right] = 0

    def _count_inside(self, windows: list[list[int]]) -> list[Tensor]:
        pairs = zip(self.index.tolist(), windows, strict=True)
        return [self.bitmaps[k, y0:y1, x0:x1].count_nonzero() for k, (x0, y0, x1, y1) in pairs]

    def _windows(self, boxes: Tensor) -> list[list[int]]:
        """(top, bottom, left, right) of the pixels that the RoIs of each bitmap may read."""
        height, width = self.image_size
        # Samples lie within the box, half a pixel up and left, and are interpolated between two pixels.
        low = (boxes[:, :2] - 0.5).floor() - 1  # [R, 2], x then y
        high = (boxes[:, 2:] - 0.5).ceil() + 2
        index = self.index[:, None].expand(-1, 2)
        low = low.new_zeros(len(self.bitmaps), 2).scatter_reduce(0, index, low, "amin", include_self=False)
        high = high.new_zeros(len(self.bitmaps), 2).scatter_reduce(0, index, high, "amax", include_self=False)
        # Samples up to one pixel outside the image take its border.
        limit = low.new_tensor([width, height])
        low, high = torch.minimum(low.clamp(min=0), limit), torch.minimum(high.clamp(min=0), limit)
        return torch.stack([low[:, 1], high[:, 1], low[:, 0], high[:, 0]], dim=1).long().tolist()
