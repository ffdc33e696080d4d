"""Masks of an image as run-length codes: the value of the field `pred_masks_rle` of Detectron2's `Instances`.

Shorthand: N objects of an image of H x W pixels; an RLE is COCO's `{"size": [H, W], "counts": str}`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from maskrcnn_plus.arrays import as_array
from maskrcnn_plus.masks.label_map import masks_to_rles
from maskrcnn_plus.masks.measure import rle_areas, rle_boxes
from maskrcnn_plus.rle import decode_runs, encode_runs

if TYPE_CHECKING:
    from detectron2.structures import Instances
    from torch import Tensor


class RLEMasks(Sequence[dict[str, Any]]):
    """An immutable sequence of sound RLEs of one image size, which pycocotools and JSON take as they are.

    Indexed by an int it gives the RLE; by a slice, a bool tensor [N], integers in a tensor or a list it gives RLEMasks,
    as `Instances` needs. Memory is that of the runs. It lives on the CPU, whatever the device of the other fields.

    Attributes:
        image_size: (H, W).
    """

    def __init__(self, rles: Iterable[dict[str, Any]], image_size: tuple[int, int], *, check: bool = True) -> None:
        """Check and keep masks.

        Args:
            rles: N RLEs; `counts` compressed (str or bytes) or a list of run lengths.
            image_size: height and width of the image in pixels.
            check: False to trust RLEs of that size that this package has just made.

        Raises:
            ValueError: an RLE is corrupt or of another size; the message has its index.
        """
        rles = list(rles)
        self.image_size = height, width = int(image_size[0]), int(image_size[1])
        if check:
            runs = decode_runs(rles)
            sizes = runs.sizes
            others = (sizes != (height, width)).any(axis=1)
            if others.any():
                index = int(others.argmax())
                size = sizes[index].tolist()
                raise ValueError(f"RLE {index} has size {size} (height, width), its image {[height, width]}.")
            rles = encode_runs(runs)  # a sound RLE may still be written in a way that pycocotools cannot take
        self._counts = tuple(rle["counts"] for rle in rles)

    @classmethod
    def from_dense(cls, masks: Tensor | np.ndarray) -> RLEMasks:
        """Encode masks.

        Args:
            masks: [N, H, W] bool, or integers of which non-zero is foreground.

        Raises:
            TypeError: masks of a floating type, such as probabilities that were not thresholded.
            ValueError: `masks` is not [N, H, W].
        """
        return cls(masks_to_rles(masks), tuple(masks.shape[1:]), check=False)

    @staticmethod
    def cat(masks_list: Sequence[RLEMasks]) -> RLEMasks:
        """Join masks of one image, or of images of one size.

        Raises:
            ValueError: nothing to join, or different image sizes.
        """
        sizes = sorted({masks.image_size for masks in masks_list})
        if len(sizes) != 1:
            raise ValueError(f"cat needs RLEMasks of one image size (height, width), got sizes {sizes}.")
        return masks_list[0]._with_counts(counts for masks in masks_list for counts in masks._counts)

    def __len__(self) -> int:
        return len(self._counts)

    def __getitem__(self, item: int | slice | Tensor | np.ndarray | Sequence[int]) -> Any:
        """The RLE at an int, or the RLEMasks at a slice, a bool tensor [N] or integers [M]."""
        if isinstance(item, slice):
            return self._with_counts(self._counts[item])
        if not hasattr(item, "__array__") and not isinstance(item, Sequence):
            return self._rle(self._counts[operator.index(item)])
        index = as_array(item)
        if index.ndim == 0 and index.dtype != bool:
            return self._rle(self._counts[operator.index(index.item())])
        if index.dtype == bool:
            if index.shape != (len(self),):
                raise IndexError(f"A bool index of {len(self)} masks must be [{len(self)}], got {list(index.shape)}.")
            index = np.flatnonzero(index)  # [N] -> [M]
        if index.ndim != 1 or (index.size and index.dtype.kind == "f"):
            raise IndexError(f"Masks are indexed by integers [M], got {list(index.shape)} of {index.dtype}.")
        return self._with_counts(self._counts[int(k)] for k in index.tolist())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self._rle, self._counts)

    def __repr__(self) -> str:
        height, width = self.image_size
        return f"RLEMasks(num_instances={len(self)}, image_height={height}, image_width={width})"

    def to(self, *args: Any, **kwargs: Any) -> RLEMasks:
        """Itself: the runs stay on the CPU."""
        return self

    def areas(self) -> Tensor:
        """Pixels of each mask, int64 [N]."""
        import torch

        return torch.from_numpy(rle_areas(self))

    def to_dense(self) -> Tensor:
        """The masks as bool [N, H, W], which takes N * H * W bytes."""
        import torch

        return torch.from_numpy(self.to_array())

    def to_array(self) -> np.ndarray:
        """`to_dense` as an array."""
        height, width = self.image_size
        masks = np.zeros((len(self), height, width), dtype=bool)
        runs = decode_runs(self)
        first = np.searchsorted(runs.owners, np.arange(len(self) + 1)).tolist()
        # Writing no more than the boxes spares most pages of the array.
        boxes = rle_boxes(self).astype(np.int64).tolist()
        for mask, (x0, y0, x1, y1), begin, end in zip(masks, boxes, first[:-1], first[1:], strict=True):
            columns = np.zeros((x1 - x0) * height, dtype=bool)
            offset = x0 * height
            starts, ends = runs.starts[begin:end] - offset, runs.ends[begin:end] - offset
            for start, stop in zip(starts.tolist(), ends.tolist(), strict=True):
                columns[start:stop] = True
            mask[y0:y1, x0:x1] = columns.reshape(x1 - x0, height)[:, y0:y1].T  # [w * H] -> [h, w]
        return masks

    def _rle(self, counts: str) -> dict[str, Any]:
        return {"size": list(self.image_size), "counts": counts}

    def _with_counts(self, counts: Iterable[str]) -> RLEMasks:
        """Masks of the same image size from counts that were checked before."""
        masks = object.__new__(RLEMasks)
        masks.image_size, masks._counts = self.image_size, tuple(counts)
        return masks


def instance_masks(instances: Instances, indices: Sequence[int] | None = None) -> RLEMasks:
    """The masks of an image's instances, whichever of the two fields holds them.

    Args:
        instances: N detections with `pred_masks_rle` (RLEMasks or a list of N RLEs) or, where it is absent,
            `pred_masks` (bool [N, H, W]).
        indices: the instances whose masks are wanted; None for all.

    Raises:
        ValueError: there are no masks, one is malformed, or they are not of the image's size.
        TypeError: dense masks of a floating type.
    """
    size = tuple(int(side) for side in instances.image_size)
    if instances.has("pred_masks_rle"):
        masks = instances.pred_masks_rle
        try:
            masks = masks if isinstance(masks, RLEMasks) else RLEMasks(masks, size)
        except ValueError as error:
            raise ValueError(f"pred_masks_rle: {error}") from error
        masks = masks if indices is None else masks[list(indices)]
    elif instances.has("pred_masks"):
        dense = instances.pred_masks
        masks = RLEMasks.from_dense(dense if indices is None else dense[list(indices)])
    else:
        raise ValueError(
            "the model predicts no masks (pred_masks_rle or pred_masks); is its mask head switched off "
            "(config key model.roi_heads)?"
        )
    if masks.image_size != size:
        raise ValueError(f"predicted masks have size {[*masks.image_size]} (height, width), their image {[*size]}.")
    return masks


def encode_masks(instances: Instances) -> Instances:
    """The same instances with `pred_masks_rle` (RLEMasks) in place of `pred_masks`.

    Raises:
        ValueError, TypeError: as `instance_masks`.
    """
    masks = instance_masks(instances)
    encoded = instances[:]  # of the same class, with what that knows besides the fields
    if "pred_masks" in encoded.get_fields():
        encoded.remove("pred_masks")
    encoded.pred_masks_rle = masks
    return encoded


def add_dense_masks(instances: Instances) -> Instances:
    """The same instances with `pred_masks` (bool [N, H, W]) too, for code that knows only dense masks.

    Detectron2's evaluators and visualiser are such. Takes N * H * W bytes, on the device of the scores.

    Raises:
        ValueError, TypeError: as `instance_masks`.
    """
    dense = instance_masks(instances).to_dense()
    both = instances[:]
    both.pred_masks = dense.to(both.scores.device if both.has("scores") else dense.device)
    return both
