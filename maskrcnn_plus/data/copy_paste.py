"""Copy-paste augmentation: objects of a second image of the data set, pasted with their masks.

Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation" (2021), Sec. 3. Both
images are augmented independently; a random subset of the second one's objects is pasted where it stands. Occlusion is
exact: an object loses the pixels that are covered, its box is redrawn, and what vanishes is dropped. Objects of the
second image that overlap each other in their annotations stay as annotated.

Shape shorthand: [h, w] augmented image, C channels, N objects of the image, K objects that may be pasted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances, PolygonMasks
from torch import Tensor
from torch.nn.functional import pad

from maskrcnn_plus.arguments import check_arguments
from maskrcnn_plus.data.stream import SKIPPED
from maskrcnn_plus.masks.adapters import adapt_masks
from maskrcnn_plus.masks.label_masks import LabelMapMasks

_FIELDS = {"gt_boxes", "gt_classes", "gt_masks"}


class CopyPasteMapper:
    """A training mapper around another one, for `build_detection_train_loader`.

    All random numbers come from numpy's global generator, and are drawn after the entry's own: below `TrainingStream`
    an example is a function of (seed, position), and one without paste equals that of the inner mapper.
    """

    def __init__(
        self,
        mapper: Callable[[dict[str, Any]], dict[str, Any]],
        dataset: Sequence[dict[str, Any]],
        *,
        probability: float = 0.5,
        max_objects: int | None = None,
        max_overlap: float = 1.0,
        min_visible: float = 0.0,
        min_area: float = 4,
        blend_sigma: float = 0.0,
        within: str | None = None,
        augmentations: Sequence[T.Augmentation] = (),
    ) -> None:
        """Keep a packed copy of the data set, which data loading workers share.

        Args:
            mapper: maps an entry to a training example with masks: `InstanceMapper` or Detectron2's `DatasetMapper`.
            dataset: the entries whose objects are pasted, usually those of the training stream.
            probability: of pasting into an image.
            max_objects: the number of pasted objects is drawn from 1..max_objects; None: up to all of the second image.
            max_overlap: largest part, 0..1, that an object of the image may lose. Objects that would cover more are not
                pasted; 0 never covers anything, for objects that do not lie on top of each other.
            min_visible: covered objects with less than this part left, 0..1, are dropped. What is left of them stays
                in the image as background.
            min_area: covered objects with fewer pixels left are dropped in the same way, and smaller ones not pasted.
            blend_sigma: standard deviation in pixels of the Gaussian that smooths the pasted edges, 0 for hard edges.
                Masks stay as they are.
            within: key of the entries, such as "kind"; objects come from entries with the same value alone.
            augmentations: of the pixels alone, after the pasting, so that what is pasted looks like the rest.

        Raises:
            KeyError: an entry without `within`.
            ValueError: an empty data set or a name of one, or a number out of range.
        """
        if isinstance(dataset, str) or len(dataset) == 0:
            raise ValueError(f"dataset must be a list of dataset dicts, as checked_dataset returns; got {dataset!r}.")
        shares = {"probability": probability, "max_overlap": max_overlap, "min_visible": min_visible}
        sizes = {"min_area": min_area, "blend_sigma": blend_sigma}
        is_count = max_objects is None or (int(max_objects) == max_objects and max_objects >= 1)
        check_arguments(
            **{name: (value, 0 <= value <= 1, "in 0..1") for name, value in shares.items()},
            max_objects=(max_objects, is_count, "None or a whole number of at least 1"),
            **{name: (each, 0 <= each < float("inf"), "a finite number of at least 0") for name, each in sizes.items()},
        )
        self.mapper = mapper
        self.dataset = DatasetFromList(list(dataset))
        self.probability = probability
        self.max_objects = max_objects
        self.max_overlap = max_overlap
        self.min_visible = min_visible
        self.min_area = min_area
        self.blend_sigma = blend_sigma
        self.within = within
        self.augmentations = T.AugmentationList(augmentations)
        self._alike: dict[Any, np.ndarray] = {}
        if within is not None:
            values = [entry[within] for entry in dataset]
            self._alike = {value: np.flatnonzero([each == value for each in values]) for value in set(values)}

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any] | None:
        """Map a dataset dict, which stays as it is, to an example.

        Args:
            dataset_dict: as the inner mapper takes it.

        Returns:
            The inner mapper's example. Where something was pasted, the image objects come first in `instances`, the
            pasted ones after them, and `gt_masks` is a `LabelMapMasks` if both images' are, else a `BitMasks`.

        Raises:
            ValueError: the inner mapper's example has no masks, or more than boxes, classes and masks.
        """
        example = self._paste(dataset_dict)
        if example is not None and self.augmentations.augs:
            aug_input = T.AugInput(np.ascontiguousarray(example["image"].numpy().transpose(1, 2, 0)))  # [h, w, C]
            self.augmentations(aug_input)
            example["image"] = torch.from_numpy(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        return example

    def _paste(self, dataset_dict: dict[str, Any]) -> dict[str, Any] | None:
        """Return the example before `augmentations`; None of an image that is skipped."""
        example = self.mapper(dataset_dict)
        if example is None:
            return None
        _check_example(example)
        if np.random.uniform() >= self.probability:  # noqa: NPY002 - the generator that the stream seeds
            return example
        entry = dict(self.dataset[self._draw(dataset_dict)])
        source = self.mapper(entry)
        if source is None:
            example[SKIPPED] = (*example.get(SKIPPED, ()), (str(entry.get("file_name")), entry[SKIPPED]))
            return example
        _check_example(source)

        size = tuple(example["image"].shape[-2:])
        masks, pasted = _match_types(_fit(example["instances"], size), _fit(source["instances"], size))
        chosen = self._choose(masks, pasted)
        if len(chosen) == 0:
            return example
        below = adapt_masks(masks).area()
        combined, covering = _cover(masks, pasted[chosen])
        visible = adapt_masks(combined).area()[: len(masks)]
        kept = (visible == below) | ((visible >= self.min_area) & (visible >= self.min_visible * below))
        kept = torch.cat([kept & (visible > 0), torch.ones(len(chosen), dtype=torch.bool)])  # [N + K]
        combined = combined[kept]

        instances = Instances(size)
        instances.gt_boxes = combined.get_bounding_boxes()
        classes = [example["instances"].gt_classes, source["instances"].gt_classes[chosen]]
        instances.gt_classes = torch.cat(classes)[kept]
        instances.gt_masks = combined
        example["instances"] = instances
        above = pad(source["image"], _padding(source["image"], size))
        example["image"] = composite(example["image"], above, covering, self.blend_sigma)
        return example

    def _draw(self, dataset_dict: dict[str, Any]) -> int:
        """Return the index of the entry whose objects are pasted."""
        if self.within is None:
            return np.random.randint(len(self.dataset))  # noqa: NPY002
        alike = self._alike[dataset_dict[self.within]]
        return int(alike[np.random.randint(len(alike))])  # noqa: NPY002

    def _choose(self, masks: LabelMapMasks | BitMasks, pasted: LabelMapMasks | BitMasks) -> Tensor:
        """Return which of the K masks to paste, int64, in random order."""
        areas = adapt_masks(pasted).area()
        candidates = ((areas >= self.min_area) & (areas > 0)).nonzero()[:, 0].numpy()
        if len(candidates) == 0:
            return torch.zeros(0, dtype=torch.int64)
        limit = len(candidates) if self.max_objects is None else min(len(candidates), self.max_objects)
        number = np.random.randint(1, limit + 1)  # noqa: NPY002
        order = np.random.permutation(candidates)  # noqa: NPY002
        if self.max_overlap == 1:
            return torch.from_numpy(order[:number])
        free = self.max_overlap * adapt_masks(masks).area().double()  # [N] pixels that each object may still lose
        boxes = pasted.get_bounding_boxes().tensor.int().tolist()
        chosen = []
        for index in order.tolist():
            if len(chosen) == number:
                break
            lost = _lost_pixels(masks, pasted, index, boxes[index])
            if (lost <= free).all():
                free = free - lost
                chosen.append(index)
        return torch.tensor(chosen, dtype=torch.int64)


def composite(below: Tensor, above: Tensor, covering: Tensor, blend_sigma: float = 0.0) -> Tensor:
    """Lay one image over another.

    Args:
        below, above: [C, h, w] with values in 0..255.
        covering: bool [h, w], where `above` is seen.
        blend_sigma: standard deviation in pixels of the Gaussian that smooths `covering`; 0 for hard edges.

    Returns:
        [C, h, w] of the type of `below`.
    """
    weight = covering.float()
    if blend_sigma > 0:
        weight = torch.from_numpy(cv2.GaussianBlur(weight.numpy(), (0, 0), blend_sigma))
    mixed = weight * above.float() + (1 - weight) * below.float()
    return mixed if below.is_floating_point() else mixed.round_().clamp_(0, 255).to(below.dtype)


def _check_example(example: dict[str, Any]) -> None:
    """Raise a ValueError if an example has no masks, or something that pasting would leave behind."""
    instances = example.get("instances")
    fields = set() if instances is None else set(instances.get_fields())
    without_objects = instances is not None and len(instances) == 0  # DatasetMapper packs no masks then
    if "sem_seg" in example or fields not in ((_FIELDS, _FIELDS - {"gt_masks"}) if without_objects else (_FIELDS,)):
        raise ValueError(
            f"{example.get('file_name', 'An image')}: copy-paste needs gt_boxes, gt_classes and gt_masks and knows "
            f"nothing else, got {sorted(fields)}{' and sem_seg' if 'sem_seg' in example else ''}: set up the inner "
            "mapper for training with instance masks alone."
        )


def _padding(pixels: Tensor, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the arguments of `pad` that cut or fill [..., H, W] right and below to `size`."""
    return 0, size[1] - pixels.shape[-1], 0, size[0] - pixels.shape[-2]


def _fit(instances: Instances, size: tuple[int, int]) -> LabelMapMasks | BitMasks:
    """Return the masks as pixels, cut or filled right and below to `size`."""
    masks = instances.gt_masks if instances.has("gt_masks") else PolygonMasks([])
    if isinstance(masks, LabelMapMasks):
        return LabelMapMasks(pad(masks.label_map, _padding(masks.label_map, size)), masks.label_ids)
    bitmaps = adapt_masks(masks, instances.image_size).to_bitmasks().tensor
    return BitMasks(pad(bitmaps, _padding(bitmaps, size)))


def _match_types(
    first: LabelMapMasks | BitMasks, second: LabelMapMasks | BitMasks
) -> tuple[LabelMapMasks, LabelMapMasks] | tuple[BitMasks, BitMasks]:
    """Return both as label-map masks, the first with ids 1, 2, ..., or both as bit masks."""
    if isinstance(first, LabelMapMasks) and isinstance(second, LabelMapMasks):
        return _renumbered(first, start=1), second
    first, second = (m.to_bitmasks() if isinstance(m, LabelMapMasks) else m for m in (first, second))
    return first, second


def _renumbered(masks: LabelMapMasks, start: int) -> LabelMapMasks:
    """Return the masks with ids start, start + 1, ... over a label image that is 0 elsewhere."""
    ids = torch.unique(masks.label_ids)
    if len(ids) == 0:
        return LabelMapMasks(torch.zeros_like(masks.label_map), masks.label_ids)
    slot = torch.searchsorted(ids, masks.label_map).clamp_(max=len(ids) - 1)  # [h, w]
    label_map = torch.where(ids[slot] == masks.label_map, slot + start, 0)
    return LabelMapMasks(label_map, torch.searchsorted(ids, masks.label_ids) + start)


def _lost_pixels(
    masks: LabelMapMasks | BitMasks, pasted: LabelMapMasks | BitMasks, index: int, box: Sequence[int]
) -> Tensor:
    """Return how many pixels of each mask `pasted[index]`, which lies within `box` (xyxy), covers: int64 [N]."""
    x0, y0, x1, y1 = box
    if isinstance(masks, BitMasks):
        return masks.tensor[:, y0:y1, x0:x1][:, pasted.tensor[index, y0:y1, x0:x1]].sum(1)
    inside = pasted.label_map[y0:y1, x0:x1] == pasted.label_ids[index]
    counts = torch.bincount(masks.label_map[y0:y1, x0:x1][inside], minlength=_next_id(masks))
    return counts[masks.label_ids.long()]


def _next_id(masks: LabelMapMasks) -> int:
    """Return the first id that no mask of a renumbered label image has."""
    return int(masks.label_ids.max()) + 1 if len(masks) else 1


def _cover(
    masks: LabelMapMasks | BitMasks, pasted: LabelMapMasks | BitMasks
) -> tuple[LabelMapMasks | BitMasks, Tensor]:
    """Return the N masks without what is covered, followed by the pasted ones, and the covered pixels, bool [h, w]."""
    if isinstance(masks, BitMasks):
        covering = pasted.tensor.any(0)
        return BitMasks(torch.cat([masks.tensor & ~covering, pasted.tensor])), covering
    pasted = _renumbered(pasted, start=_next_id(masks))
    covering = pasted.label_map > 0
    label_map = torch.where(covering, pasted.label_map, masks.label_map)
    return LabelMapMasks(label_map, torch.cat([masks.label_ids, pasted.label_ids])), covering
