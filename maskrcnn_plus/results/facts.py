"""What results know of their image beside their fields: names of classes, size of a pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detectron2.structures import Instances


def known_class_names(instances: Instances, chosen: Sequence[str] | None = None) -> Sequence[str] | None:
    """`chosen`, else the names that the instances know."""
    return chosen if chosen is not None else getattr(instances, "class_names", None)


def known_pixel_size(instances: Instances, chosen: float | None = None) -> float | None:
    """`chosen`, else micrometres a pixel as the instances know them."""
    return chosen if chosen is not None else getattr(instances, "pixel_size", None)
