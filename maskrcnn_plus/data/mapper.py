"""Dataset dict -> training or inference example of Detectron2's models, with masks from label images or COCO.

A label image is transformed once for all its objects and stays one image (`LabelMapMasks`). COCO polygons and RLEs take
Detectron2's own path. Boxes are drawn tight around what is visible after the augmentations.

Shape shorthand: [H, W] image as read, [h, w] image after the augmentations, C channels, N instances.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances
from fvcore.transforms.transform import Transform, TransformList

from maskrcnn_plus.arguments import check_arguments
from maskrcnn_plus.data.annotations import has_mask
from maskrcnn_plus.data.channels import ChannelRule
from maskrcnn_plus.data.diameter import MeasuredInput
from maskrcnn_plus.data.images import read_image
from maskrcnn_plus.data.pixels import prepare_image
from maskrcnn_plus.data.stream import SKIPPED
from maskrcnn_plus.data.transformed import (
    transform_box,
    transform_disjoint,
    transform_label_map,
    transform_segmentations,
)

_SMALLEST_SIDE = 1e-5  # pixels of a box that is not empty, as in Detectron2


class InstanceMapper:
    """Callable that reads, augments and packs one image, for `build_detection_train_loader` and the test loader."""

    def __init__(
        self,
        is_train: bool,
        augmentations: Sequence[T.Augmentation | Transform],
        *,
        channels: int = 3,
        percentiles: tuple[float, float] | None = None,
        image_format: str = "RGB",
        select: Sequence[int | str] | None = None,
        projection: str | None = None,
        on_error: str = "raise",
        min_area: float = 4,
        use_masks: bool = True,
        recompute_boxes: bool = True,
        label_maps: bool = False,
    ) -> None:
        """Set up the mapper.

        Args:
            is_train: whether annotations are read and packed.
            augmentations: applied in this order.
            channels: C, see `read_image`.
            percentiles: see `read_image`.
            image_format: order of three channels that are not selected, "RGB" or "BGR": `model.input_format`.
            select, projection: which channels of an image go into the network, see `ChannelRule`.
            on_error: what an image does that cannot be used: "raise", or "skip". Then the reason stands under
                `SKIPPED`: in training in the given dict, with None as the result, for which `TrainingStream` takes
                another image; else in the example, whose image is black, which our evaluators leave out.
            min_area: instances with fewer visible pixels after the augmentations are dropped, empty ones always.
            use_masks: whether to pack `gt_masks`.
            recompute_boxes: draw boxes around what is visible of the masks; False transforms those of the annotations,
                as Detectron2's `DatasetMapper` does by default.
            label_maps: RLEs of an image that do not overlap become one label image (`LabelMapMasks` instead of
                `BitMasks`): the same masks, ten times as fast where there are many.

        Raises:
            ValueError: an argument is out of range.
        """
        formats = ("RGB", "BGR", "L")
        check_arguments(
            image_format=(image_format, image_format in formats, "'RGB' or 'BGR' ('L' for one channel)"),
            on_error=(on_error, on_error in ("raise", "skip"), "'raise' or 'skip'"),
            min_area=(min_area, min_area >= 0, "at least 0 pixels"),
        )
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.rule = ChannelRule(1 if image_format == "L" else channels, select, projection)
        self.channels = self.rule.count
        self.percentiles = percentiles
        self.image_format = image_format
        self.on_error = on_error
        self.min_area = min_area
        self.use_masks = use_masks
        self.recompute_boxes = recompute_boxes
        self.label_maps = label_maps

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any] | None:
        """Map a dataset dict, which stays as it is unless it is skipped, to an example.

        Args:
            dataset_dict: Detectron2's format, with `label_file_name` and a `label_id` an annotation where masks come
                from a label image. For inference {"file_name": path} is enough.

        Returns:
            The dict without its annotations, plus `image` (uint8 or float32 [C, h, w]), `height` and `width` of the
            image as read, and in training `instances` with `gt_boxes` (xyxy pixels, far corner one beyond the last
            pixel), `gt_classes` (int64 [N]) and `gt_masks`. None for an image that training skips.

        Raises:
            ImageReadError: a file cannot be read.
            ValueError: sizes disagree or an annotation is malformed; the message names file and annotation.
        """
        try:
            return self._map(dataset_dict)
        except ValueError as error:
            if self.on_error != "skip":
                raise
            if self.is_train:
                dataset_dict[SKIPPED] = str(error)
                return None
            size = (dataset_dict.get("height", 64), dataset_dict.get("width", 64))
            example = {key: value for key, value in dataset_dict.items() if key != "annotations"}
            black = self.make_example(np.zeros((*size, self.channels), dtype=np.uint8))
            return {**example, **black, SKIPPED: str(error)}

    def _map(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        name = dataset_dict["file_name"]
        image = self.read(name)
        size = image.shape[:2]
        recorded = (dataset_dict.get("height", size[0]), dataset_dict.get("width", size[1]))
        if recorded != size:
            raise ValueError(
                f"{name} is {size[1]}x{size[0]} pixels but its entry {dataset_dict.get('image_id', '')!r} says "
                f"{recorded[1]}x{recorded[0]}: correct the annotation file."
            )
        aug_input = MeasuredInput(image, dataset_dict.get("annotations", []))
        transforms = self.augmentations(aug_input)
        example = {key: value for key, value in dataset_dict.items() if key != "annotations"}
        example.update(image=to_tensor(aug_input.image), height=size[0], width=size[1])
        if self.is_train:
            example["instances"] = self._instances(dataset_dict, size, transforms, aug_input.image.shape[:2])
        return example

    def read(self, path: str) -> np.ndarray:
        """Read a file as the augmentations take it: [H, W, C] in 0..255, see `read_image`."""
        return self._ordered(read_image(path, self.rule, self.percentiles))

    def prepare(
        self,
        pixels: np.ndarray,
        name: str = "the image",
        limits: tuple[float, float] | None = None,
        picked: bool = False,
    ) -> np.ndarray:
        """Make of an image in memory what `read` makes of its file; arguments as of `prepare_image`."""
        return self._ordered(
            prepare_image(pixels, self.rule, self.percentiles, name=name, limits=limits, picked=picked)
        )

    def make_example(self, image: np.ndarray, object_diameter: float | None = None) -> dict[str, Any]:
        """Make an example for inference of what `read` or `prepare` gave.

        Args:
            image: [H, W, C] in 0..255.
            object_diameter: median of the image's objects in its pixels, where it is known; see `ScaleToDiameter`.

        Returns:
            `image` (uint8 or float32 [C, h, w]), `height` and `width` of the image as given.
        """
        aug_input = MeasuredInput(image, object_diameter=object_diameter)
        self.augmentations(aug_input)
        return {"image": to_tensor(aug_input.image), "height": image.shape[0], "width": image.shape[1]}

    def _ordered(self, image: np.ndarray) -> np.ndarray:
        """Return an image [H, W, C], of three channels in the order that the network takes."""
        swapped = self.image_format == "BGR" and image.shape[2] == 3 and self.rule.select is None
        return image[:, :, ::-1] if swapped else image

    def _instances(
        self, dataset_dict: dict[str, Any], size: tuple[int, int], transforms: TransformList, out_size: tuple[int, int]
    ) -> Instances:
        """Return the instances visible in the augmented image of size `out_size`."""
        name = dataset_dict["file_name"]
        if "annotations" not in dataset_dict:
            raise ValueError(f"{name} has no annotations: a training entry needs the key 'annotations', if only [].")
        annotations = [
            (f"{name}: annotation {i}", annotation)
            for i, annotation in enumerate(dataset_dict["annotations"])
            if not annotation.get("iscrowd", 0)
        ]
        for where, annotation in annotations:
            if "category_id" not in annotation:
                raise ValueError(f"{where} has no 'category_id': give it the number of its class.")
        classes = torch.tensor([annotation["category_id"] for _, annotation in annotations], dtype=torch.int64)
        masks = None
        if "label_file_name" in dataset_dict:
            masks = transform_label_map(dataset_dict["label_file_name"], name, annotations, size, transforms, out_size)
        elif self.label_maps and self.use_masks:
            masks = transform_disjoint(annotations, name, size, transforms, out_size)
        if masks is None and (self.use_masks or all(has_mask(annotation) for _, annotation in annotations)):
            masks = transform_segmentations(annotations, size, transforms, out_size)
        if masks is not None:
            areas = masks.tensor.flatten(1).sum(1) if isinstance(masks, BitMasks) else masks.area()

        if masks is not None and (self.recompute_boxes or "label_file_name" in dataset_dict):
            boxes = masks.get_bounding_boxes()
        else:
            boxes = [transform_box(*each, size, transforms, out_size) for each in annotations]
            boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
            areas = boxes.area() if masks is None else torch.where(boxes.nonempty(_SMALLEST_SIDE), areas, 0)
        visible = (areas >= self.min_area) & (areas > 0)
        instances = Instances(out_size)
        instances.gt_boxes = boxes[visible]
        instances.gt_classes = classes[visible]
        if self.use_masks:
            instances.gt_masks = masks[visible]
        return instances


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """Return an image [h, w] or [h, w, C] as a contiguous uint8 or float32 tensor [C, h, w]."""
    if image.ndim == 2:
        image = image[:, :, None]
    dtype = np.uint8 if image.dtype == np.uint8 else np.float32
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), dtype=dtype))  # [C, h, w]
