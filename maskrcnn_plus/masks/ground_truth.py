"""The one interface of ground-truth masks, and how Detectron2's own types come to have it.

Shorthand: R masks of an image, as many as RoIs where RoIs index them; M mask side, [H, W] image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from detectron2.structures import BitMasks, Boxes
from torch import Tensor

from maskrcnn_plus.masks import chunks


class GroundTruthMasks(ABC):
    """R masks of one image as mask heads, RoI heads, mask scoring, PointRend and copy-paste see them.

    `maskrcnn_plus.masks.adapters.adapt_masks` gives Detectron2's types this interface; `SoftMasks` gives the same masks
    with crops that say how much of each cell is covered.

    Attributes:
        image_size: (H, W).
        device: where the masks are.
    """

    image_size: tuple[int, int]
    device: torch.device

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of masks R."""

    @abstractmethod
    def __getitem__(self, item: int | slice | Tensor) -> GroundTruthMasks:
        """Select by an int (gives one mask), a slice, a bool tensor [R] or an integer tensor [K]."""

    @abstractmethod
    def to(self, *args: Any, **kwargs: Any) -> GroundTruthMasks:
        """Move to a device; takes the arguments of `torch.Tensor.to`."""

    @abstractmethod
    def area(self) -> Tensor:
        """Return the number of pixels of each mask, int64 [R]."""

    @abstractmethod
    def areas_in_boxes(self, boxes: Tensor) -> Tensor:
        """Count the pixels of each mask and those of them whose centres lie in its box.

        Args:
            boxes: [R, 4] xyxy in pixels.

        Returns:
            float32 [2, R] on the device of the boxes: of the whole mask, of its part in the box.
        """

    @abstractmethod
    def get_bounding_boxes(self) -> Boxes:
        """Return the tight boxes, float32 xyxy [R, 4] with the far corner one beyond the last pixel; 0 if empty."""

    @abstractmethod
    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Cut mask i by box i and resize it to mask_size x mask_size, as `BitMasks.crop_and_resize` does.

        Args:
            boxes: [R, 4] xyxy in absolute pixels; may be sub-pixel, empty or reach outside the image.
            mask_size: side M of the result.

        Returns:
            [R, M, M], bool or, of soft masks, float32 in [0, 1].
        """

    @abstractmethod
    def to_bitmasks(self) -> BitMasks:
        """Return the same masks as Detectron2's `BitMasks`, which take R x H x W bytes."""

    def nonempty(self) -> Tensor:
        """Return which masks have a pixel, bool [R]."""
        return self.area() > 0


class PixelMasks(GroundTruthMasks):
    """What masks that are kept as pixels, in whatever form, have in common."""

    @abstractmethod
    def get_bitmaps(self, chosen: slice) -> Tensor:
        """Return the chosen k masks as bool [k, H, W]."""

    @abstractmethod
    def _crop(self, boxes: Tensor, result: Tensor) -> None:
        """Fill `result`, bool [R, M, M] of zeros, with the crops of float32 boxes [R, 4] that are finite."""

    @abstractmethod
    def _count_inside(self, windows: list[list[int]]) -> list[Tensor]:
        """Count the pixels of each mask in its window, [x0, y0, x1, y1) in whole pixels, none negative."""

    def to_bitmasks(self) -> BitMasks:
        """Return the same masks as Detectron2's `BitMasks`, which take R x H x W bytes."""
        return BitMasks(self.get_bitmaps(slice(None)))

    @torch.no_grad()
    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Cut mask i by box i and resize it to mask_size x mask_size, as `BitMasks.crop_and_resize` does.

        On a CPU whose torchvision rounds after every operation (x86-64) the result is equal bit for bit. Where the
        compiler fuses multiplications and additions, bins whose coverage is 0.5 up to rounding may differ.

        Args:
            boxes: [R, 4] xyxy in absolute pixels; may be sub-pixel, empty or reach outside the image.
            mask_size: side M of the result.

        Returns:
            bool [R, M, M] on the device of the masks.

        Raises:
            ValueError: the number of boxes is not R, or a box is not finite or has a side above 2**20 pixels.
        """
        if boxes.shape != (len(self), 4):
            raise ValueError(f"Expected boxes of shape ({len(self)}, 4), one a mask, got {tuple(boxes.shape)}.")
        boxes = boxes.to(self.device, torch.float32)
        result = torch.zeros(len(self), mask_size, mask_size, dtype=torch.bool, device=self.device)
        if result.numel() == 0 or 0 in self.image_size:
            return result
        if chunks.prefers_chunks(self.device):
            return chunks.crop_bitmaps(self.get_bitmaps, self.image_size, boxes, mask_size)
        sides = boxes[:, 2:] - boxes[:, :2]  # [R, 2], x then y
        limit = chunks.MAX_BOX_SIDE
        if not bool((sides.abs() <= limit).all()) or not bool(boxes.isfinite().all()):
            raise ValueError(f"Boxes must be finite and at most {limit} pixels a side: clip them to the image.")
        self._crop(boxes, result)
        return result

    @torch.no_grad()
    def areas_in_boxes(self, boxes: Tensor) -> Tensor:
        """Count the pixels of each mask and those of them whose centres lie in its box; see `GroundTruthMasks`."""
        windows = get_pixel_windows(boxes)
        if chunks.prefers_chunks(self.device):
            return chunks.count_pixels(self.get_bitmaps, self.image_size, windows).float()
        inside = [int(count) for count in self._count_inside(windows.tolist())]
        return torch.stack([self.area().float(), torch.tensor(inside, dtype=torch.float32)]).to(boxes.device)


def get_pixel_windows(boxes: Tensor) -> Tensor:
    """The pixels whose centres lie in boxes [R, 4] xyxy: int64 [R, 4], none negative, the far corner beyond the last.

    A pixel whose centre is on an edge belongs to the box that begins there.
    """
    return (boxes - 0.5).ceil().clamp(min=0).long()
