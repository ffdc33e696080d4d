"""Ground-truth masks whose crops say how much of each cell is covered, instead of 0 or 1.

Shorthand: R masks, M mask side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.structures import BitMasks, Boxes
from torch import Tensor
from torch.nn import functional as F

from maskrcnn_plus.masks.ground_truth import GroundTruthMasks

_SUBSAMPLES = 4  # a cell and axis


class SoftMasks(GroundTruthMasks):
    """Masks of another type with soft crops; everything else is theirs.

    Detectron2's mask loss takes targets in [0, 1]: its cross-entropy as they are, its accuracy above 0.5.

    Attributes:
        masks: the R masks behind it.
    """

    def __init__(self, masks: GroundTruthMasks) -> None:
        """Keep a reference.

        Args:
            masks: R masks. Of another type, one with `crop_and_resize`, it has what that type has.
        """
        self.masks = masks

    def __len__(self) -> int:
        """Return the number of masks R."""
        return len(self.masks)

    def __getitem__(self, item: int | slice | Tensor) -> SoftMasks:
        """Select as the masks behind it do."""
        return SoftMasks(self.masks[item])

    def __iter__(self) -> Iterator[Any]:
        """Yield what the masks behind it yield, without anything soft."""
        return iter(self.masks)

    @staticmethod
    def cat(masks_list: Sequence[SoftMasks]) -> SoftMasks:
        """Join as the type of the masks behind the first does."""
        return SoftMasks(type(masks_list[0].masks).cat([each.masks for each in masks_list]))

    def __repr__(self) -> str:
        """Tell the masks behind it."""
        return f"SoftMasks({self.masks!r})"

    @property
    def device(self) -> torch.device:
        """The device of the masks."""
        return self.masks.device

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.masks.image_size

    def to(self, *args: Any, **kwargs: Any) -> SoftMasks:
        """Move to a device; takes the arguments of `torch.Tensor.to`."""
        return SoftMasks(self.masks.to(*args, **kwargs))

    def area(self) -> Tensor:
        """Return the number of pixels of each mask, int64 [R]."""
        return self.masks.area()

    def areas_in_boxes(self, boxes: Tensor) -> Tensor:
        """Count the pixels of each mask and those in its box, float32 [2, R]."""
        return self.masks.areas_in_boxes(boxes)

    def get_bounding_boxes(self) -> Boxes:
        """Return the tight boxes, xyxy [R, 4]."""
        return self.masks.get_bounding_boxes()

    def to_bitmasks(self) -> BitMasks:
        """Return the masks as bitmaps, without anything soft."""
        return self.masks.to_bitmasks()

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Cut mask i by box i: the mean of a crop of four times the side.

        Args:
            boxes: [R, 4] xyxy in absolute pixels.
            mask_size: side M of the result.

        Returns:
            float32 [R, M, M] in [0, 1].
        """
        crops = self.masks.crop_and_resize(boxes, mask_size * _SUBSAMPLES).float()  # [R, 4 M, 4 M]
        return F.avg_pool2d(crops[:, None], _SUBSAMPLES)[:, 0]
