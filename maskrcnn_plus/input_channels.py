"""The number of channels that the network of a config takes, after `dataset.channels`."""

import logging

from detectron2.config import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

logger = logging.getLogger(__name__)

_BACKBONES = ("model.backbone.bottom_up", "model.backbone.net", "model.backbone")


def follow_dataset_channels(cfg: DictConfig) -> None:
    """Let model and mappers take as many channels as `dataset.channels` picks, in place, and say so.

    One channel goes into a network of three as grey does. For another number than the network has, its first
    convolution is made for it, and pixel mean and deviation become the averages of what they were.

    Args:
        cfg: with `model`; and `dataset` and `dataloader`, where there are.

    Raises:
        ValueError: the backbone has no number of input channels that is known here.
    """
    chosen = OmegaConf.select(cfg, "dataset.channels")
    # Numbers, or a call that gives those of the backbone.
    mean, std = (instantiate(OmegaConf.select(cfg, f"model.{key}")) for key in ("pixel_mean", "pixel_std"))
    if chosen is None or mean is None or std is None:
        return
    count, before = len(chosen) if isinstance(chosen, ListConfig | list | tuple) else 1, len(mean)
    if count in (1, before):
        return
    key = next((key for name in _BACKBONES if (key := _input_key(OmegaConf.select(cfg, name), name))), None)
    if key is None:
        raise ValueError(
            f"dataset.channels={list(chosen)} picks {count} channels, the network takes {before}: repeat some, or set "
            "the input channels of the backbone, model.pixel_mean and model.pixel_std."
        )
    OmegaConf.update(cfg, key, count, force_add=True)
    cfg.model.pixel_mean = [sum(mean) / before] * count
    cfg.model.pixel_std = [sum(std) / before] * count
    for part in ("train", "test"):
        mapper = OmegaConf.select(cfg, f"dataloader.{part}.mapper")
        mapper = None if mapper is None else mapper.get("mapper", mapper)  # copy-paste wraps one
        if mapper is not None and "select" in mapper:
            OmegaConf.update(mapper, "channels", count, force_add=True)
    logger.info(
        f"The network takes the {count} channels of dataset.channels={list(chosen)}: {key}={count}, and pixel mean and "
        f"deviation are the averages of the {before} channels before."
    )


def _input_key(node: DictConfig | None, name: str) -> str | None:
    """Key of the number of input channels of a backbone; None where it has none of its own."""
    if not isinstance(node, DictConfig):
        return None
    if OmegaConf.select(node, "stem.in_channels") is not None:  # Detectron2's ResNet
        return f"{name}.stem.in_channels"
    target = node.get("_target_", "")
    target = target if isinstance(target, str) else target.__name__
    return f"{name}.in_chans" if target.rsplit(".", 1)[-1] == "TimmBackbone" else None
