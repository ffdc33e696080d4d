"""What results know of their image beside their fields: names of classes, size of a pixel, its channels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from detectron2.structures import Instances

    from maskrcnn_plus.data.channels import ChannelRule


def rule_of(image: np.ndarray | str | os.PathLike, instances: Instances) -> ChannelRule | None:
    """Which channels of an image were predicted, where it is the one that the instances know."""
    known = getattr(instances, "image", None)
    is_file = isinstance(known, str) and isinstance(image, str | os.PathLike)
    is_known = image is known or (is_file and os.fspath(image) == known)
    return getattr(instances, "channel_rule", None) if is_known else None


def count_channels(rule: ChannelRule | None, otherwise: int = 3) -> int:
    """Channels of an image that is opened by a rule, where it is neither grey nor colour."""
    return (rule and rule.count) or otherwise


def known_class_names(instances: Instances, chosen: Sequence[str] | None = None) -> Sequence[str] | None:
    """`chosen`, else the names that the instances know."""
    return chosen if chosen is not None else getattr(instances, "class_names", None)


def known_pixel_size(instances: Instances, chosen: float | None = None) -> float | None:
    """`chosen`, else micrometres a pixel as the instances know them."""
    return chosen if chosen is not None else getattr(instances, "pixel_size", None)
