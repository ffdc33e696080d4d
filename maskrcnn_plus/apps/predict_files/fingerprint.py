"""Short texts that tell whether two predictors, or two runs, give the same results."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from maskrcnn_plus.apps.predict_files.prediction_loop import FileOptions
from maskrcnn_plus.data.channels import get_rule
from maskrcnn_plus.inference.predictor import Predictor

FORMAT_SETTINGS = ("classes", "category ids", "background", "soft", "geojson's objects")
"""Settings that change how some formats are written, not what is found: those of `describe_settings` and `run`."""

_CACHED = "input_args"  # of Detectron2's augmentations: the names of their arguments, noted at first use


def predictor_fingerprint(predictor: Predictor) -> str:
    """Hash of what a predictor's results depend on: weights, settings of all parts of the model, and the mapper.

    Equal for two predictors that were made alike, in other processes too.
    """
    digest = hashlib.sha256()
    for name, module in predictor.model.named_modules():
        settings = {key: value for key, value in vars(module).items() if _is_setting(value)}
        digest.update(f"{name} {_described(module, settings)}\n".encode())
    for name, tensor in predictor.model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())  # [bytes]
    digest.update(_described(predictor.mapper, vars(predictor.mapper)).encode())
    return digest.hexdigest()[:16]


def describe_settings(predictor: Predictor, options: FileOptions) -> dict[str, str]:
    """What results of an image depend on besides its file, as text by name."""
    rule, formats = get_rule(predictor.mapper), set(options.formats)
    settings = {
        "model and weights": predictor_fingerprint(predictor),
        "score_threshold": f"{predictor.score_threshold or 0:g}",
        "tile": str(options.tile),
        "pixel_size": "of the file" if options.pixel_size is None else f"{options.pixel_size:g}",
    }
    if {"cutouts", "background"} & formats:
        settings |= {"background": options.background, "soft": str(options.soft)}
    if "geojson" in formats:
        settings["geojson's objects"] = options.object_type
    if rule.select:
        settings["channels"] = str(rule.select)
    if rule.projection:
        settings["projection"] = rule.projection
    if options.roi:
        settings["roi"] = str(options.roi)
    if options.skip_background:
        settings["empty tiles"] = "skipped"
    if predictor.auto_scale is not None:
        settings["diameter"] = predictor.auto_scale.describe()
    return settings


def changed_settings(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs between the settings of two runs, in words; those of formats count where both have them."""
    return [
        f"{name} ({before.get(name, 'none')} before, {now.get(name, 'none')} now)"
        for name in {**before, **now}
        if before.get(name) != now.get(name) and (name not in FORMAT_SETTINGS or (name in before and name in now))
    ]


def _is_setting(value: Any) -> bool:
    """Whether an attribute is a plain value or an object of plain values, such as a box transform with its weights."""
    if isinstance(value, torch.nn.Module):
        return False
    return _is_plain(value) or all(map(_is_plain, getattr(value, "__dict__", {"": value}).values()))


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, np.generic))


def _described(value: Any, attributes: Mapping[str, Any]) -> str:
    """Type and public attributes, in the order of their names."""
    public = {
        key: _text(each) for key, each in sorted(attributes.items()) if not key.startswith("_") and key != _CACHED
    }
    return f"{type(value).__module__}.{type(value).__qualname__} {public}"


def _text(value: Any) -> str:
    """A value as text that is the same in every process."""
    if isinstance(value, Mapping):
        return str({str(key): _text(each) for key, each in value.items()})
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        return str(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return str([_text(each) for each in value])
    if hasattr(value, "__qualname__"):  # a function or class
        return f"{value.__module__}.{value.__qualname__}"
    if getattr(value, "__dict__", None):
        return _described(value, vars(value))
    text = repr(value)
    return str(type(value)) if " at 0x" in text else text
