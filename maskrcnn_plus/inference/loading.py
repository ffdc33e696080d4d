"""A config and weights, of wherever they come from -> the model of a `Predictor`."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from maskrcnn_plus.build import build
from maskrcnn_plus.checkpoints import load_weights, read_classes
from maskrcnn_plus.checkpoints.choice import choose_config
from maskrcnn_plus.config import get_config, skip_pretrained
from maskrcnn_plus.data.classes import Classes, resolve_classes
from maskrcnn_plus.data.mapper import InstanceMapper
from maskrcnn_plus.device import usable_device, use_channels_last
from maskrcnn_plus.inference.exported import exported_classes, load_exported
from maskrcnn_plus.inference.precision import check_precision
from maskrcnn_plus.input_channels import follow_dataset_channels

RANDOM = "random"
"""In place of a file of weights."""


def find_config(config: DictConfig | str | os.PathLike, weights: str | None) -> tuple[DictConfig, str]:
    """The config, which may be changed, and the weights that the arguments of a `Predictor` name.

    Raises:
        ValueError: there is no such config, or there are no weights.
        WeightsError: a file that knows no config, or one with parts that are not built from a checkpoint.
    """
    if weights is None and not OmegaConf.is_config(config) and _is_weights(os.fspath(config)):
        weights = os.fspath(config)
        config = choose_config(None, weights)
    config = copy.deepcopy(config) if OmegaConf.is_config(config) else get_config(os.fspath(config))
    if not weights:
        start = OmegaConf.select(config, "train.init_checkpoint")
        raise ValueError(
            "weights are missing: without those of a trained model everything found would be random. Give a checkpoint "
            f'file{f" (the config starts from {start})" if start else ""}, or weights="random" for a test.'
        )
    return config, weights


def load_model(
    config: DictConfig, weights: str, device: str | None, precision: str | None
) -> tuple[nn.Module, Callable[[dict[str, Any]], dict[str, Any]], Classes | None, torch.device]:
    """Build the model of a config, which is changed, and load its weights.

    Args:
        config, weights: of `find_config`.
        device, precision: as for a `Predictor`; float32 networks stay so, but for an exported model, which is loaded in
            its precision.

    Returns:
        The model in evaluation mode, its mapper, its classes (None where neither config nor weights name them), and
        its device.

    Raises:
        ValueError: a config key is missing or cannot be built, the device is not there, there is no such precision, or
            the weights are missing, unreadable or of another model.
    """
    exported = os.path.isdir(weights)
    if exported and device not in (None, "auto", "cpu"):
        raise ValueError(f"{weights} is an exported model, which runs on the CPU; device is {device!r}")
    target = usable_device("cpu" if exported else device or OmegaConf.select(config, "train.device") or "auto")
    check_precision(precision, target)
    stored = None
    if weights == RANDOM:
        logging.getLogger(__name__).warning(
            "The weights are random, or as the config builds the model: so is what is found."
        )
    else:
        skip_pretrained(config)
        stored = exported_classes(weights) if exported else read_classes(weights)
    classes = resolve_classes(config, stored, splits=())
    follow_dataset_channels(config)
    mapper = build(config, "dataloader.test.mapper")
    if isinstance(mapper, InstanceMapper):
        mapper.on_error = "raise"  # what is skipped in an evaluation is an error here
    model = build(config, "model")
    if exported:
        load_exported(model, weights, precision)
    elif weights != RANDOM:
        load_weights(model, weights, class_names=classes and classes.names, strict=True)
    if target.type == "cpu" and OmegaConf.select(config, "train.channels_last", default=True):
        use_channels_last(model)
    return model.to(target).eval(), mapper, classes, target


def _is_weights(path: str) -> bool:
    """Whether it is a file, an exported folder or another source of weights, there or not, and no config."""
    if "://" in path or path.endswith((".pth", ".pt", ".pkl", ".safetensors")) or os.path.isdir(path):
        return True
    return os.path.isfile(path) and not path.endswith((".py", ".yaml", ".yml"))
