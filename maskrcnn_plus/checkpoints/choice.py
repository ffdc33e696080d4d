"""The config that weights are for: the one that they bring along, or that of the zoo that their tensors are of."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence

from omegaconf import DictConfig

from maskrcnn_plus.backbones import classification
from maskrcnn_plus.checkpoints import mmdet, torchvision
from maskrcnn_plus.checkpoints.description import NoDescriptionError, described_config
from maskrcnn_plus.checkpoints.load import get_classes
from maskrcnn_plus.checkpoints.sources import local_path
from maskrcnn_plus.config import get_score_threshold, load_config
from maskrcnn_plus.overrides import apply_overrides
from maskrcnn_plus.weights.conversion import WeightsFile
from maskrcnn_plus.weights.files import read_weights

__all__ = ["choose_config", "find_zoo_config"]

_CAFFE = re.compile(r"style\s*=\s*['\"]caffe")

logger = logging.getLogger(__name__)


def choose_config(config_file: str | None, weights: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The config for a prediction: that of the file where one is given, else the one that the weights are for.

    A detector of torchvision's, MMDetection's or Detectron2's zoo whose classes are known is taken for the Mask R-CNN
    of `configs/zoo` that its tensors are of, and the log says so; whether they fit it shows when they are loaded.

    Args:
        config_file: a LazyConfig file, or the name of a shipped config.
        weights: a source of weights, see `local_path`.
        overrides: "key=value" of a command line, see `apply_overrides`.

    Raises:
        WeightsError: as of `described_config`.
        ConfigError: an override or a value cannot be.
    """
    if config_file:
        return load_config(config_file, overrides)
    try:
        return described_config(weights, overrides)
    except NoDescriptionError as error:
        file = read_weights(local_path(weights))
        name, what = find_zoo_config(file, weights)
        if name is None:
            raise
        classes = get_classes(file)
        if classes is None:
            raise NoDescriptionError(
                f"{error} It may be {what}: if so, --config-file {name} with the names of its classes, in the order of "
                'the training, as dataset.thing_classes="[a, b]" (--opts).'
            ) from error
    logger.warning(f"{weights} is taken for {what}, of the config {name}.")
    cfg = load_config(name)
    cfg.dataset.thing_classes = classes.names
    cfg.dataset.score_threshold = get_score_threshold(cfg, None)  # also for a Predictor
    return apply_overrides(cfg, overrides)


def find_zoo_config(file: WeightsFile, source: str) -> tuple[str | None, str]:
    """The shipped config of the Mask R-CNN that weights of another project are taken for, and what the weights are.

    Args:
        file: what was read.
        source: its name, which tells MMDetection's two styles of ResNet apart where the file does not.

    Returns:
        None of a classification network. What is of no other project is taken for a detector of Detectron2.
    """
    names: Collection[str] = file.tensors.keys()
    if torchvision.matches(names):
        version = "_v2" if any(name.startswith("roi_heads.box_head.3") for name in names) else ""
        return f"zoo/torchvision_mask_rcnn_r50_fpn{version}", "a detector of torchvision"
    if mmdet.matches(names):
        is_caffe = "caffe" in source.lower() or _CAFFE.search(mmdet.config_text(file))
        return f"zoo/mmdet_mask_rcnn_r50{'_caffe' if is_caffe else ''}_fpn", "a detector of MMDetection"
    if classification.matches(names):
        return None, "a classification network, for the backbone"
    if any("res4.22." in name or "res4_22_" in name for name in names):
        return "coco/mask_rcnn_r101_fpn_3x", "a detector of Detectron2"
    return "zoo/detectron2_mask_rcnn_r50_fpn", "a detector of Detectron2"
