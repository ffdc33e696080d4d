"""What a `Predictor` does to an image before and after its network, as the description of an exported model."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import detectron2.data.transforms as T
from detectron2.data import DatasetMapper
from detectron2.structures import ImageList

from maskrcnn_plus.checkpoints.description import package_version
from maskrcnn_plus.data.augmentation import ScaleImage
from maskrcnn_plus.data.diameter import ScaleToDiameter
from maskrcnn_plus.data.mapper import InstanceMapper
from maskrcnn_plus.data.resize import InterpolateShortestEdge
from maskrcnn_plus.data.resize_mmcv import MMCVResize
from maskrcnn_plus.errors import UserError
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.model_folder import ModelDescription, Postprocessing, Preprocessing, Resize

_RULES = {T.ResizeShortestEdge: "detectron2", InterpolateShortestEdge: "torchvision", MMCVResize: "mmcv"}


def describe_model(
    predictor: Predictor,
    kind: str,
    precision: str,
    *,
    inside_graph: bool = True,
    nms_inside: bool = True,
    packages: Sequence[str] = (),
    details: dict[str, Any] | None = None,
) -> ModelDescription:
    """Describe a model.

    Args:
        predictor: the model.
        kind, precision, details: see `ModelDescription`.
        inside_graph: whether the graph normalises and pads.
        nms_inside: whether the graph suppresses doubles.
        packages: that made the export, beside PyTorch and this one.

    Returns:
        A description without files.

    Raises:
        UserError: the mapper does something that a description cannot tell, or the number of objects has no limit.
    """
    model = predictor.model
    maximum = predictor.max_objects
    if maximum is None or maximum < 1:
        raise UserError(
            f"model.roi_heads.box_predictor.test_topk_per_image is {maximum}: an exported model needs a limit of the "
            "objects of an image (dataset.max_objects), such as 500."
        )
    return ModelDescription(
        kind=kind,
        precision=precision,
        class_names=tuple(predictor.class_names),
        category_ids=None if predictor.category_ids is None else tuple(predictor.category_ids),
        preprocessing=_preprocessing(predictor, inside_graph, by_config=kind == "hybrid"),
        postprocessing=Postprocessing(
            max_objects=maximum,
            score_threshold=None if predictor.score_threshold is None else float(predictor.score_threshold),
            nms_inside=nms_inside,
            has_masks=bool(getattr(model.roi_heads, "mask_on", False)),
            mask_pasting=getattr(model, "mask_pasting", "detectron2"),
            min_mask_area=getattr(model, "min_mask_area", 0),
            max_covered=float(getattr(model, "max_covered", 1.0)),
        ),
        packages={name: package_version(name) for name in ("maskrcnn_plus", "torch", "detectron2", *packages)},
        details=details or {},
    )


def _preprocessing(predictor: Predictor, inside_graph: bool, by_config: bool) -> Preprocessing:
    model, mapper = predictor.model, predictor.mapper
    mean, std = ([float(value) for value in values.flatten()] for values in (model.pixel_mean, model.pixel_std))
    common = {
        "channels": len(mean),
        "resize": _resize(predictor, by_config),
        "pixel_mean": tuple(mean),
        "pixel_std": tuple(std),
        "pad_to_multiple": max(int(getattr(model.backbone, "size_divisibility", 1)), 1),
        "pad_to_square": get_square_size(model.backbone),
        "inside_graph": inside_graph,
    }
    if isinstance(mapper, DatasetMapper):
        return Preprocessing(color_order=mapper.image_format, eight_bit=True, **common)
    percentiles, rule = mapper.percentiles, mapper.rule
    return Preprocessing(
        color_order=mapper.image_format,
        select=rule.select,
        projection=rule.projection,
        percentiles=None if percentiles is None else tuple(float(value) for value in percentiles),
        **common,
    )


def get_square_size(backbone: Any) -> int:
    """Least length of both sides of a padded image, pixels, where this Detectron2 pads so (v0.6 does not); else 0."""
    pads = "padding_constraints" in inspect.signature(ImageList.from_tensors).parameters
    return int(getattr(backbone, "padding_constraints", {}).get("square_size", 0)) if pads else 0


def _resize(predictor: Predictor, by_config: bool) -> Resize:
    """The only augmentation of a mapper; with `by_config` others are left to the config to tell."""
    mapper, auto_scale = predictor.mapper, predictor.auto_scale
    if not isinstance(mapper, InstanceMapper | DatasetMapper):
        raise UserError(
            f"dataloader.test.mapper is a {type(mapper).__name__}, whose work an exported model cannot describe: set "
            "it to an InstanceMapper."
        )
    steps = [each for each in mapper.augmentations.augs if not isinstance(each, T.NoOpTransform)]
    if not steps:
        return Resize("none")
    (step, *others), kind = steps, type(steps[0])
    if kind is ScaleImage and not others:
        return Resize("scale", float(step.scale), step.short_side, step.max_size)
    lengths = getattr(step, "short_edge_length", ())
    lengths = {lengths} if isinstance(lengths, int) else set(lengths)
    if kind in _RULES and not others and len(lengths) == 1:
        return Resize(_RULES[kind], short_side=int(lengths.pop()), max_size=int(step.max_size))
    if by_config:
        return Resize("config")
    if kind is ScaleToDiameter and not others:
        if auto_scale.diameter is None:
            raise UserError(
                "this model finds the diameter of the objects of each image before it looks for them, which one graph "
                "cannot: give it the diameter that your images have, --diameter PIXELS (Predictor(diameter=...))."
            )
        return Resize("scale", float(auto_scale.scale(auto_scale.diameter)), max_size=auto_scale.scaling.max_size)
    names = ", ".join(type(each).__name__ for each in steps)
    raise UserError(
        f"dataloader.test.mapper.augmentations ({names}): an exported model knows one resizing to one size, of "
        f"ScaleImage, {', '.join(each.__name__ for each in _RULES)}."
    )
