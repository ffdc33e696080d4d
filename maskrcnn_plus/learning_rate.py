"""Learning rates that follow the number of images in an optimizer step, by the linear rule.

Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017, Sec. 2.1: with k times the images, k
times the learning rate. Detectron2 does so for `SOLVER.REFERENCE_WORLD_SIZE`. Here a config says for how many images
its learning rate is meant, `optimizer.lr = linear_lr(0.02, images=16)`; a plain number in its place is taken as it is.
The length of the training and of its warm-up stay what the config says.
"""

from __future__ import annotations

import logging
import re

from omegaconf import DictConfig, OmegaConf

__all__ = ["images_per_step", "linear_lr", "log_learning_rate"]

logger = logging.getLogger(__name__)


def linear_lr(lr: float, images: int) -> str:
    """A learning rate for a LazyConfig: `lr` where an optimizer step has `images` images, else in proportion.

    A step has `dataloader.train.total_batch_size` images (of all processes together) times `train.accumulate`.
    """
    return f"${{linear_lr:{lr!r},{images}}}"


def images_per_step(cfg: DictConfig) -> int | None:
    """Images of an optimizer step of a config, None where it does not say."""
    batch = OmegaConf.select(cfg, "dataloader.train.total_batch_size")
    return None if batch is None else int(batch) * int(OmegaConf.select(cfg, "train.accumulate") or 1)


def log_learning_rate(cfg: DictConfig) -> None:
    """Say which learning rate a training has, and whether it was scaled."""
    images = images_per_step(cfg)
    text = f"Learning rate {cfg.optimizer.lr:g} with {images} images an optimizer step"
    meant = re.fullmatch(r"\$\{linear_lr:([^,]+),(\d+)\}", str(cfg.optimizer._get_node("lr")._value()))
    if meant is None:
        logger.info(f"{text}: as optimizer.lr says, whatever the batch.")
    elif int(meant[2]) == images:
        logger.info(f"{text}, as it is meant.")
    else:
        logger.warning(
            f"{text}: the config's {meant[1]} is for {meant[2]} images and was scaled with the batch; a number of your "
            f"own (optimizer.lr=...) is taken as it is. train.max_iter={cfg.train.max_iter} and the warm-up are not "
            "scaled."
        )


def _scale(lr: float, images: int, *, _root_: DictConfig) -> float:
    now = images_per_step(_root_)
    return lr if now in (None, images) else lr * now / images


OmegaConf.register_new_resolver("linear_lr", _scale, replace=True)
