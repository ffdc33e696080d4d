"""Results as matplotlib figures, for notebooks.

show("street.jpg", predictor("street.jpg"))
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from detectron2.structures import Instances

from maskrcnn_plus.data.channels import ChannelRule
from maskrcnn_plus.data.windows import open_windows
from maskrcnn_plus.masks.rle_masks import encode_masks
from maskrcnn_plus.results.facts import count_channels, rule_of
from maskrcnn_plus.results.overlay import class_label, class_shades, display_image, draw_overlay, make_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(
    image: np.ndarray | str | os.PathLike,
    instances: Instances,
    class_names: Sequence[str] | None = None,
    colour_by: str | None = None,
) -> np.ndarray:
    """The image with its instances drawn in, [h, w, 3] uint8 RGB; a huge one reduced, see `make_picture`.

    Args:
        image: array [H, W] or [H, W, C] in RGB order, or its file.
        instances: with `scores`, `pred_classes` and masks.
        class_names, colour_by: as of `draw_overlay`.

    Raises:
        ValueError: image and instances differ in size, or the image cannot be used.
    """
    rule = rule_of(image, instances)
    with open_windows(image, rule=rule) as windows:
        if windows.shape[:2] != tuple(instances.image_size):
            raise ValueError(
                f"the image has size {windows.shape[:2]} (H, W) but its instances {tuple(instances.image_size)}"
            )
        picture, reduced = make_picture(windows, encode_masks(instances), count_channels(rule))
    return draw_overlay(picture, reduced, class_names, colour_by)


def picture(image: np.ndarray | str | os.PathLike, rule: ChannelRule | None = None) -> np.ndarray:
    """An image, or the channels of it that a rule picks, as it is shown, [H, W, 3] uint8 RGB."""
    with open_windows(image, rule=rule) as windows:
        height, width = windows.shape[:2]
        return display_image(windows.read(0, 0, width, height), count_channels(rule), windows.name)


def plot(
    image: np.ndarray | str | os.PathLike,
    instances: Instances,
    ax: Axes | None = None,
    class_names: Sequence[str] | None = None,
    colour_by: str | None = None,
) -> Axes:
    """Show the image with its instances in axes of matplotlib, with a legend of classes where there are several.

    Args:
        image, instances, class_names, colour_by: as of `draw`.
        ax: the axes; None makes a figure as large as the image at 100 pixels an inch, within limits.

    Returns:
        The axes.
    """
    from matplotlib import pyplot

    picture = draw(image, instances, class_names, colour_by)
    if ax is None:
        height, width = picture.shape[:2]
        scale = min(max(max(height, width) / 100, 5), 12) / max(height, width)
        ax = pyplot.figure(figsize=(width * scale, height * scale), layout="constrained").add_subplot()
    ax.imshow(picture)
    ax.set_axis_off()
    names = class_names or getattr(instances, "class_names", None)
    found = np.unique(instances.pred_classes.numpy())
    if colour_by != "instance" and len(names if names else found) > 1:
        handles: list[Any] = [
            pyplot.Line2D([], [], marker="s", linestyle="", color=class_shades(k)[0], label=class_label(names, k))
            for k in found.tolist()
        ]
        if handles:
            ax.legend(handles=handles, loc="upper right", fontsize="small")
    return ax


def show(image: np.ndarray | str | os.PathLike, instances: Instances, **options: Any) -> None:
    """`plot` and show the figure; arguments as there."""
    from matplotlib import pyplot

    plot(image, instances, **options)
    pyplot.show()
