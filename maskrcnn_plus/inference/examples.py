"""An image in whatever form -> the input of the network, through the mapper of a config's evaluation.

Shape shorthand: H, W image height and width, C channels; [h, w] the image as the network sees it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import Image

from maskrcnn_plus.data.channels import ChannelRule, get_rule
from maskrcnn_plus.data.images import read_image
from maskrcnn_plus.data.mapper import InstanceMapper
from maskrcnn_plus.data.pixels import ImageReadError, intensity_range, match_channels, prepare_image
from maskrcnn_plus.data.windows import ImageWindows, open_windows
from maskrcnn_plus.inference.auto_scale import PART_SIDE, WHOLE_PIXELS
from maskrcnn_plus.inference.texture import find_full

AnyImage = str | os.PathLike | np.ndarray | ImageWindows
"""A path, an array [H, W] or [H, W, C] in RGB order, or an image of `open_windows`, which is read as a whole."""


def in_rgb_order(image: AnyImage, input_format: str) -> AnyImage:
    """An image whose channels are in RGB order, where it is an array of three or, with alpha, four.

    Raises:
        ValueError: `input_format` is neither "RGB" nor "BGR".
    """
    if input_format not in ("RGB", "BGR"):
        raise ValueError(f"input_format is {input_format!r}, it must be 'RGB' or 'BGR'")
    is_colour = isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] in (3, 4)
    return image[:, :, [2, 1, 0, 3][: image.shape[2]]] if input_format == "BGR" and is_colour else image


def choose_channels(
    mapper: Callable[[dict[str, Any]], dict[str, Any]],
    channels: Sequence[int | str] | None = None,
    projection: str | None = None,
) -> None:
    """Let a mapper take other channels of images, or project z stacks, in place of what its config says.

    Args:
        mapper: `dataloader.test.mapper` of a config, changed in place.
        channels: `dataset.channels`: index (from 0) or name of the file's channel for each channel of the network; one
            is taken as a grey image. None leaves what the config says.
        projection: "max" or "mean" over the planes of a z stack; None leaves what the config says.

    Raises:
        ValueError: a value out of range, or a mapper that is not this package's.
    """
    if channels is None and projection is None:
        return
    if not isinstance(mapper, InstanceMapper):
        raise ValueError(f"the config's mapper ({type(mapper).__name__}) picks no channels: use an InstanceMapper")
    select = mapper.rule.select if channels is None else tuple(channels)
    mapper.rule = replace(mapper.rule, select=select, projection=projection or mapper.rule.projection)


def find_intensity_range(
    mapper: Callable[[dict[str, Any]], dict[str, Any]], image: np.ndarray | ImageWindows
) -> tuple[float, float] | None:
    """See `Predictor.intensity_range`; `mapper` is the config's."""
    percentiles = getattr(mapper, "percentiles", None)
    if percentiles is None:
        return None
    with contextlib.ExitStack() as stack:
        windows = stack.enter_context(open_windows(image)) if isinstance(image, np.ndarray) else image
        rule = get_rule(mapper)
        picked = windows.pick(rule)
        height, width = picked.shape[:2]
        is_huge = height * width > WHOLE_PIXELS
        sample = picked.sample() if is_huge or windows is image else picked.read(0, 0, width, height)
    if sample.dtype.kind == "f" and not np.isfinite(sample).all():
        raise ImageReadError(
            f"{windows.name}: some pixel values are NaN or infinite. Replace them before saving the file."
        )
    pixels = match_channels(windows.name, sample, rule.count)
    if is_huge:  # a slide may have less tissue than the percentiles cut off
        pixels = pixels[find_full(sample, height, width, PART_SIDE)]
    return intensity_range(pixels, percentiles)


def make_example(
    mapper: Callable[[dict[str, Any]], dict[str, Any]],
    image: AnyImage,
    name: str,
    limits: tuple[float, float] | None = None,
    find_diameter: Callable[[np.ndarray], float] | None = None,
) -> dict[str, Any]:
    """Make the model's input for an image.

    Args:
        mapper: `dataloader.test.mapper` of a config.
        image: a path, an array or windows.
        name: of an array in errors; others have one.
        limits: grey values that become black and white, of an array or windows; None takes the image's own.
        find_diameter: gives the median diameter of the objects of an image [H, W, C] in 0..255, for an
            `InstanceMapper` with a `ScaleToDiameter`.

    Returns:
        `image` [C, h, w], `height` and `width` of the image as given; with `find_diameter` also `object_diameter`.

    Raises:
        ValueError, OSError: the image cannot be used; the message names it.
        TypeError: something else than an image.
    """
    if isinstance(image, (str, os.PathLike, ImageWindows)):
        name = image.name if isinstance(image, ImageWindows) else os.fspath(image)
    try:
        return _map(mapper, image, name, limits, find_diameter)
    except (ValueError, RuntimeError) as error:  # such as augmentations that shrink a narrow image to nothing
        if name in str(error):
            raise
        raise ValueError(f"{name} cannot be made an input of the network: {error}") from error


def warn_if_shrunk(example: dict[str, Any], name: str, usual: float | Callable[[int, int], float]) -> None:
    """Say that objects are seen at less than half of their usual size, where a limit of the longer side does it.

    Args:
        example: of `make_example`.
        name: of the image.
        usual: the usual scale, or a function of height and width that gives it.
    """
    size = example.get("height", 0), example.get("width", 0)
    if max(size) <= 1024:
        return
    scale = max(example["image"].shape[1:]) / max(size)
    usual = usual(*size) if callable(usual) else usual
    if scale < usual / 2:
        logging.getLogger(__name__).warning(
            f"{name}: the limit of the longer side shrinks this image of {size[0]} x {size[1]} pixels (height x "
            f"width) to {scale:.2g} times its size, where others are seen at {usual:.2g}: small objects may be "
            "missed. Predict it by tiles (predict_tiled, or --tile auto)."
        )


def measure_scale(mapper: Callable[[dict[str, Any]], dict[str, Any]], height: int, width: int) -> float:
    """Pixels of the network's input for one of an image (of the longer side), as a mapper resizes a black one."""
    channels = get_rule(mapper).count or 3
    blank = ImageWindows("the image", np.zeros((height, width, channels), dtype=np.uint8)).pick(ChannelRule(None))
    return max(make_example(mapper, blank, "the image")["image"].shape[1:]) / max(height, width)


def find_fixed_scale(get_scale: Callable[[int, int], float]) -> float | None:
    """The scale of every image but huge ones; None where images of all sizes are brought to one."""
    large, small = (get_scale(side, side) for side in (1024, 512))
    return small if math.isclose(large, small, rel_tol=0.01) else None


def _map(
    mapper: Callable,
    image: AnyImage,
    name: str,
    limits: tuple[float, float] | None,
    find_diameter: Callable[[np.ndarray], float] | None,
) -> dict[str, Any]:
    if isinstance(image, np.ndarray | ImageWindows):
        if isinstance(image, ImageWindows):
            image = image.pick(get_rule(mapper))
            array, picked = image.reduced(1), True
        else:
            array, picked = image, False
        if isinstance(mapper, InstanceMapper):
            return _scaled(mapper, mapper.prepare(array, name, limits, picked), find_diameter)
        if isinstance(mapper, DatasetMapper):
            return _map_8_bit(mapper, prepare_image(array, name=name, picked=picked))
        raise TypeError(
            f"{name} is an array, but the config's mapper ({type(mapper).__name__}) reads files only: give a "
            "path, or set `dataloader.test.mapper` to an InstanceMapper"
        )
    if not isinstance(image, (str, os.PathLike)):
        raise TypeError(f"{name} is a {type(image).__name__}: give a path or an array [H, W] or [H, W, C]")
    if limits is not None:
        raise ValueError(f"{name}: intensity_range is for arrays, a file is normalised as a whole")
    if isinstance(mapper, DatasetMapper):
        return _map_8_bit(mapper, read_image(name))
    if find_diameter is not None:
        return _scaled(mapper, mapper.read(name), find_diameter)
    return mapper({"file_name": name})


def _scaled(
    mapper: InstanceMapper, image: np.ndarray, find_diameter: Callable[[np.ndarray], float] | None
) -> dict[str, Any]:
    """The example of a prepared image, at the scale that follows from its objects."""
    if find_diameter is None:
        return mapper.make_example(image)
    diameter = find_diameter(image)
    return {**mapper.make_example(image, diameter), "object_diameter": diameter}


def _map_8_bit(mapper: DatasetMapper, image: np.ndarray) -> dict[str, Any]:
    """Detectron2's mapper for RGB [H, W, 3] in 0..255: 8 bits, in its order of channels, augmented."""
    image = image if image.dtype == np.uint8 else np.rint(image).astype(np.uint8)
    aug_input = T.AugInput(convert_PIL_to_numpy(Image.fromarray(image), mapper.image_format))
    mapper.augmentations(aug_input)
    tensor = torch.from_numpy(np.array(aug_input.image.transpose(2, 0, 1), order="C"))  # [C, h, w]
    return {"image": tensor, "height": image.shape[0], "width": image.shape[1]}
