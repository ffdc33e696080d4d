"""The scale of an image from the diameter of its objects, given or estimated, for models that learned one diameter.

Cellpose (Stringer et al., Nature Methods 18:100, 2021) trains and predicts at a common diameter too, and estimates it
by a network of its own; here the detector does it (`maskrcnn_plus.inference.object_diameter`). Of images that are too
large to look at as a whole, those parts are looked at that have the fullest texture.

Shape shorthand: [h, w, C] an image or a part of one in 0..255.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from torch import nn

from maskrcnn_plus.data.diameter import ScaleToDiameter, disc_diameter
from maskrcnn_plus.data.image_windows import ImageWindows
from maskrcnn_plus.data.mapper import InstanceMapper, to_tensor
from maskrcnn_plus.inference.object_diameter import estimate_diameter
from maskrcnn_plus.inference.texture import choose_parts, cut_window
from maskrcnn_plus.masks.measure import rle_areas

WHOLE_PIXELS = 2**24
"""Of larger images, parts are looked at."""

PART_SIDE = 2048
"""Pixels of a side of such a part."""

_LARGEST = 128  # diameter that is looked for in parts: from afar, a round piece of tissue looks like one object
_LEAST_SCORE = 0.5  # of objects whose diameter corrects the estimate
_FAR = 0.3  # octaves
_PROPOSALS, _PIXELS_EACH = (32, 256), 256  # of a look: their limits, and pixels for one


class EstimatedDiameter(float):
    """A diameter that was estimated before a prediction, which may show that it is wrong; a given one is as it is."""


class AutoScale:
    """Finds the diameter of the objects of an image, and the scale that follows from it."""

    def __init__(
        self, mapper: InstanceMapper, scaling: ScaleToDiameter, model: nn.Module, diameter: float | None = None
    ) -> None:
        """Take what a predictor has.

        Args:
            mapper: makes the network's inputs.
            scaling: of the mapper.
            model: of Detectron2's kind, in evaluation mode.
            diameter: of the objects of all images, pixels, which are not estimated then.

        Raises:
            ValueError: the diameter is out of range.
        """
        if diameter is not None and not 0 < diameter < math.inf:
            raise ValueError(f"diameter is {diameter}, it must be a finite number of pixels above 0")
        self.mapper, self.scaling, self.model, self.diameter = mapper, scaling, model, diameter

    @classmethod
    def for_mapper(cls, mapper: Any, model: nn.Module, diameter: float | None = None) -> AutoScale | None:
        """Build one for a mapper with a `ScaleToDiameter`; None for others.

        Raises:
            ValueError: the diameter is out of range, or is given for another mapper.
        """
        augmentations = getattr(getattr(mapper, "augmentations", None), "augs", [])
        scaling = next((each for each in augmentations if isinstance(each, ScaleToDiameter)), None)
        if scaling is not None and isinstance(mapper, InstanceMapper):
            return cls(mapper, scaling, model, diameter)
        return choose_diameter(None, diameter)

    def describe(self) -> str:
        """Where diameters come from, for people."""
        return "estimated for each image" if self.diameter is None else f"{self.diameter:g} px, as given"

    def scale(self, diameter: float | None) -> float:
        """Pixels of the network's input for one of an image whose objects have this diameter."""
        return self.scaling.scale(diameter)

    def find(self, image: np.ndarray) -> float:
        """The diameter for an image [h, w, C] as the mapper reads it, pixels.

        That which the mapper's scale of unknown objects is for, where none is found.
        """
        if self.diameter is not None:
            return self.diameter
        height, width = image.shape[:2]
        if height * width <= WHOLE_PIXELS:
            return self._estimate([image])
        parts = choose_parts(image, height, width, PART_SIDE)
        return self._estimate([cut_window(image, part) for part in parts], _LARGEST)

    def find_in_windows(self, windows: ImageWindows, limits: Callable[[], tuple[float, float] | None]) -> float:
        """As `find`, for an image of any size, of which parts are read.

        Args:
            windows: of the channels that the network takes.
            limits: gives the grey values that become black and white in an image that is not read as a whole.

        Raises:
            ImageReadError: the image cannot be used.
        """
        if self.diameter is not None:
            return self.diameter
        height, width = windows.shape[:2]
        if height * width <= WHOLE_PIXELS:
            return self.find(self.mapper.prepare(windows.read(0, 0, width, height), windows.name, picked=True))
        small = windows.reduced(-(-max(height, width) // PART_SIDE))
        parts = choose_parts(small, height, width, PART_SIDE)
        grey_values = limits()
        pixels = [self.mapper.prepare(windows.read(*part), windows.name, grey_values, True) for part in parts]
        return self._estimate(pixels, _LARGEST)

    @torch.inference_mode()
    def detect(self, image: np.ndarray) -> Instances:
        """Boxes and scores, without masks, of the objects in an image [h, w, C] as the network is to see it."""
        height, width = image.shape[:2]
        example = {"image": to_tensor(image), "height": height, "width": width}
        return _boxes_only(self.model, height * width)([example])[0]["instances"].to("cpu")

    def _estimate(self, parts: Sequence[np.ndarray], largest: float = math.inf) -> float:
        least, most = self.scaling.limits
        limits = min(max(least, self.scaling.diameter / largest), most), most
        found = estimate_diameter(parts, self.detect, self.scaling.diameter, limits)
        return EstimatedDiameter(self.scaling.diameter / self.scaling.factor if found is None else found)


def correct_diameter(found: Instances) -> float | None:
    """The median diameter of what was found in an image, where the estimate that its scale follows from is far from it.

    An estimate comes from boxes in parts of an image; what was found by it are masks in all of the image.

    Args:
        found: with `object_diameter`; `pred_masks_rle` where the model has masks.

    Returns:
        Pixels of the image, for another prediction; None where the diameter was given, or fits.
    """
    estimate = found.object_diameter
    if not isinstance(estimate, EstimatedDiameter):
        return None
    sure = (found.scores > _LEAST_SCORE).numpy()
    if not sure.any():
        return None
    if found.has("pred_masks_rle"):
        areas = rle_areas(found.pred_masks_rle)[sure]
    else:
        areas = found.pred_boxes.area().numpy()[sure] * (math.pi / 4)
    diameter = float(disc_diameter(np.median(areas)))
    return diameter if diameter > 0 and abs(math.log2(diameter / estimate)) > _FAR else None


def choose_diameter(auto_scale: AutoScale | None, diameter: float | None) -> AutoScale | None:
    """The same with a diameter that is given; as it is without.

    Raises:
        ValueError: the diameter is out of range, or is given where no scale depends on it.
    """
    if diameter is None:
        return auto_scale
    if auto_scale is None:
        raise ValueError(
            f"diameter is {diameter}, but this model sees all images at the scale of its config: set dataset.scale"
        )
    return AutoScale(auto_scale.mapper, auto_scale.scaling, auto_scale.model, diameter)


def _boxes_only(model: nn.Module, pixels: int) -> nn.Module:
    """A view of a model of Detectron2's kind that finds boxes without masks, among as few proposals as an input needs.

    It has the same weights. The model stays as it is: other threads may be using it.
    """
    view = copy.copy(model)
    view._modules = dict(model._modules)
    heads, generator = getattr(model, "roi_heads", None), getattr(model, "proposal_generator", None)
    if getattr(heads, "mask_on", False):
        view.roi_heads = copy.copy(heads)
        view.roi_heads.mask_on = False
    limits = getattr(generator, "post_nms_topk", None)
    if isinstance(limits, dict) and False in limits:
        most = min(max(pixels // _PIXELS_EACH, _PROPOSALS[0]), _PROPOSALS[1])
        view.proposal_generator = copy.copy(generator)
        view.proposal_generator.post_nms_topk = {**limits, False: min(limits[False], most)}
    return view
