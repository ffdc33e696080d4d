"""Numbers of classes as interpolations of configs, so that a config alone is complete.

num_classes="${maskrcnn_plus.num_classes:${dataset.thing_classes}}"
"""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import OmegaConf

_COCO_CLASSES, _UNUSED_IDS = 80, 10


def num_classes(names: Sequence[str] | str | None) -> int:
    """The number of `dataset.thing_classes`.

    Raises:
        ValueError: there are none.
    """
    if names is None:
        raise ValueError("dataset.thing_classes names no classes, from which their number follows: set it.")
    return 1 if isinstance(names, str) else len(names)


def num_unused_coco_ids(number: int) -> int:
    """How many ids between 1 and 90 stand for no class, which torchvision's models of COCO have rows for.

    Args:
        number: of classes. For others than COCO's 80 there are none.
    """
    return _UNUSED_IDS if number == _COCO_CLASSES else 0


OmegaConf.register_new_resolver("maskrcnn_plus.num_classes", num_classes, replace=True)
OmegaConf.register_new_resolver("maskrcnn_plus.num_unused_coco_ids", num_unused_coco_ids, replace=True)
