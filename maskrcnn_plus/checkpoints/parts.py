"""Which parts of a config may be built from what a checkpoint says of itself, and finding them by name.

A checkpoint may come from anybody. What its config names is therefore looked up here and nowhere else: classes of
networks, transforms and mappers of this package, Detectron2, PyTorch and timm, and a few functions. None of them opens
a file or a connection, or runs what its arguments name, once the arguments in `FORBIDDEN` and `weights` are gone.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from detectron2.data import DatasetMapper
from detectron2.data.transforms import Augmentation
from detectron2.layers import ShapeSpec
from detectron2.modeling import ResNet
from detectron2.modeling.box_regression import Box2BoxTransform, Box2BoxTransformRotated
from detectron2.modeling.matcher import Matcher
from fvcore.transforms.transform import Transform
from torch import nn

from maskrcnn_plus.backbones.timm import pixel_mean, pixel_std
from maskrcnn_plus.data.mapper import InstanceMapper
from maskrcnn_plus.errors import ConfigError
from maskrcnn_plus.rpn import square_anchors

__all__ = ["FORBIDDEN", "find_part"]

FORBIDDEN = {
    *(
        "cfg",
        "init_cfg",
    ),  # a whole config, by which Detectron2's `configurable` and MMDetection build whatever it names
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_file", "checkpoint_path", "cache_dir"),
}
"""Names of arguments that no part may have: they load files, or build what their values name."""

_MODULES = (
    *(f"maskrcnn_plus.{name}" for name in ("backbones", "necks", "rpn", "roi", "mask_heads", "mask_rcnn")),
    *("maskrcnn_plus.data", "detectron2.modeling", "detectron2.layers", "detectron2.data"),
    *("detectron2.projects.point_rend", "fvcore.transforms", "torch.nn", "timm.layers", "timm.models"),
)
"""A part is defined in one of these modules, or in a module below one of them."""

_NOT = (
    "detectron2.modeling.mmdet_wrapper",  # builds what MMDetection's registries have
    "torch.nn.parallel",  # talks to other processes
)
_KINDS = (nn.Module, Augmentation, Transform)
_OTHERS = (
    *(DatasetMapper, InstanceMapper, ShapeSpec, Matcher, Box2BoxTransform, Box2BoxTransformRotated, dict),
    *(ResNet.make_stage, ResNet.make_default_stages, pixel_mean, pixel_std, square_anchors),
)


def find_part(name: Any, trusted: Sequence[str] = ()) -> Callable[..., Any]:
    """The class or function that a config of a checkpoint names.

    Args:
        name: dotted, as LazyConfigs have it under `_target_`. No module is imported but those that parts are in.
        trusted: modules of the user's, whose classes and functions are parts too.

    Raises:
        ConfigError: it is no part.
    """
    if isinstance(name, str) and re.fullmatch(r"\w+(\.\w+)+", name):
        found = _locate(name, trusted)
        if found is not None and _is_part(found, trusted):
            return found
    raise ConfigError(
        f"{str(name)[:100]!r} is none of the parts that are built from a checkpoint: networks, transforms and mappers "
        "of maskrcnn_plus, detectron2, torch.nn and timm"
    )


def _locate(name: str, trusted: Sequence[str]) -> Any:
    """What has the name, reached through modules of parts and their classes alone; None where there is nothing."""
    if name == "builtins.dict":
        return dict
    path = name.split(".")
    for length in range(len(path) - 1, 0, -1):
        module_name = ".".join(path[:length])
        if not _is_below(module_name, (*_MODULES, *trusted)):
            return None
        try:
            found = importlib.import_module(module_name)
        except ModuleNotFoundError:
            continue
        for step in path[length:]:
            if not isinstance(found, ModuleType | type) or step.startswith("__"):
                return None
            if isinstance(found, ModuleType) and not _is_below(found.__name__, (*_MODULES, *trusted)):
                return None
            found = vars(found).get(step) if isinstance(found, ModuleType) else getattr(found, step, None)
        return found
    return None


def _is_part(found: Any, trusted: Sequence[str]) -> bool:
    if any(found is other for other in _OTHERS):
        return True
    module = getattr(found, "__module__", None) or ""
    if _is_below(module, trusted):
        return callable(found)
    known = _is_below(module, _MODULES) and not _is_below(module, _NOT)
    return known and inspect.isclass(found) and issubclass(found, _KINDS)


def _is_below(module: str, names: Sequence[str]) -> bool:
    return any(f"{module}.".startswith(f"{name}.") for name in names)
