"""A trained model, applied to image files through the pre-processing of its config's evaluation.

Shape shorthand: N objects of one image of H x W pixels.
"""

import copy
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.structures import Instances
from omegaconf import DictConfig, OmegaConf

from maskrcnn_plus.allocator import keep_freed_memory
from maskrcnn_plus.checkpoints import load_weights
from maskrcnn_plus.config import skip_pretrained
from maskrcnn_plus.device import usable_device


class Predictor:
    """Image file -> `Instances`, by the model and the test mapper of a LazyConfig.

    Args:
        cfg: a LazyConfig with `cfg.model`, `cfg.dataloader.test.mapper` (a callable on `{"file_name": path}`) and,
            optionally, `cfg.train.device`, `cfg.train.channels_last` (CPU only, default true) and
            `cfg.dataset.thing_classes` (list of class names).
        weights: checkpoint file; None leaves the model as the config builds it.
        device: overrides `cfg.train.device`; "auto" is the GPU where there is one.
        score_threshold: keeps objects with a score of at least this. Objects below the model's own threshold
            (`test_score_thresh` of its box predictor) are never seen here.

    Raises:
        ValueError: a config key is missing or cannot be built, the device is not there, the threshold is not in 0..1
            or the weights are missing, unreadable or of another model.
    """

    def __init__(
        self,
        cfg: DictConfig,
        weights: str | None = None,
        device: str | None = None,
        score_threshold: float | None = None,
    ):
        if score_threshold is not None and not 0 <= score_threshold <= 1:
            raise ValueError(f"score_threshold is {score_threshold}, it must be between 0 and 1")
        self.device = usable_device(device or OmegaConf.select(cfg, "train.device") or "auto")
        self.score_threshold = score_threshold
        if self.device.type == "cpu":
            keep_freed_memory()
        if weights:
            cfg = copy.deepcopy(cfg)
            skip_pretrained(cfg)
        self.mapper = _build(cfg, "dataloader.test.mapper")
        model = _build(cfg, "model")
        if weights:
            load_weights(model, weights, class_names=OmegaConf.select(cfg, "dataset.thing_classes"), strict=True)
        channels_last = OmegaConf.select(cfg, "train.channels_last", default=True)
        if self.device.type == "cpu" and channels_last:
            model = model.to(memory_format=torch.channels_last)
        self.model = model.to(self.device).eval()
        self._class_names = _class_names(cfg)

    @property
    def class_names(self) -> list[str]:
        """A name a class: `cfg.dataset.thing_classes`, or "class 0", "class 1", ... where the config has none."""
        return self._class_names

    @torch.inference_mode()
    def __call__(self, path: str) -> Instances:
        """Predict the objects of one image file.

        Args:
            path: an image file, or any other path that the config's mapper reads.

        Returns:
            `Instances` on the CPU in the coordinates of the image as stored: `pred_boxes` (xyxy, pixels),
            `scores` [N] in falling order, `pred_classes` [N], and the masks of the model (`pred_masks` [N, H, W]
            bool, for a Mask R-CNN).

        Raises:
            ValueError, OSError: the mapper cannot read the image; the message names the file.
        """
        example = self.mapper({"file_name": path})
        instances = self.model([example])[0]["instances"].to("cpu")
        order = instances.scores.argsort(descending=True, stable=True)
        if self.score_threshold is not None:
            order = order[instances.scores[order] >= self.score_threshold]
        return _select(instances, order)


def _build(cfg: DictConfig, key: str) -> Any:
    """Instantiate the part of the config at `key`."""
    part = OmegaConf.select(cfg, key)
    if part is None:
        raise ValueError(f"the config has no `{key}`; prediction needs it, please add it")
    try:
        return instantiate(part)
    except Exception as error:  # whatever the constructors make of the config's values
        raise ValueError(f"config key `{key}` cannot be built: {type(error).__name__}: {error}") from error


def _select(instances: Instances, indices: torch.Tensor) -> Instances:
    """Instances at `indices` [M]; unlike their own indexing, also of fields that are lists (`pred_masks_rle`)."""
    fields = {
        name: [value[k] for k in indices.tolist()] if isinstance(value, list) else value[indices]
        for name, value in instances.get_fields().items()
    }
    return Instances(instances.image_size, **fields)


def _class_names(cfg: DictConfig) -> list[str]:
    num_classes = OmegaConf.select(cfg, "model.roi_heads.num_classes")
    names = OmegaConf.select(cfg, "dataset.thing_classes")
    if names is None:
        return [f"class {k}" for k in range(num_classes or 1)]
    if num_classes is not None and len(names) != num_classes:
        raise ValueError(
            f"the config names {len(names)} classes (`dataset.thing_classes`) but its model has {num_classes} "
            "(`model.roi_heads.num_classes`); make them agree"
        )
    return [str(name) for name in names]
