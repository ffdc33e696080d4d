"""What the values of a config may be: one table of keys, and the check that reads it.

Constructors of this package check their own arguments. The table is for the keys that the training reads itself, and
for arguments of Detectron2 and PyTorch that nobody checks or that only fail deep inside a training step.
"""

from __future__ import annotations

import fnmatch
import functools
import math
from collections.abc import Iterator

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from maskrcnn_plus.errors import ConfigError
from maskrcnn_plus.overrides import shortened
from maskrcnn_plus.value_rules import (
    Rule,
    component,
    either,
    filled,
    flag,
    integer,
    mapping,
    number,
    optional,
    part,
    sequence,
    text,
)

__all__ = ["check_config"]


SHARE = number(0, 1)
COUNT = integer(1)
SIZE = either(COUNT, sequence(COUNT, 2, 2))

# Key, "*" for any text -> rule. The first that matches holds; a component in place of a value is its own business.
RULES: dict[str, Rule] = {
    "model": component(),
    "optimizer": component(),
    "lr_multiplier": component(),
    "dataloader.train": component(),
    "dataloader.test": component(),
    "dataloader.proposal_evaluator": component(),
    "dataloader.*.mapper": part(),
    "model.backbone": part(),
    "model.proposal_generator": part(),
    "model.*.anchor_generator": part(),
    "model.*box2box_transform": part(),
    "model.roi_heads": part(),
    "model.*.mask_head": part(),
    # how to train
    "train.output_dir": filled(),
    "train.init_checkpoint": optional(text()),
    "train.init_allow_partial": flag(),
    "train.max_iter": COUNT,
    "train.max_hours": number(0),
    "train.device": text(),
    "train.seed": integer(0),
    "train.channels_last": flag(),
    "train.amp.enabled": flag(),
    "train.amp.dtype": text("bfloat16", "float16"),
    "train.accumulate": integer(1, 65536),
    "train.clip_grad_norm": number(0),
    "train.ema.enabled": flag(),
    "train.ema.decay": number(0, 1, ends=False),
    "train.ddp.*": flag(),
    "train.checkpointer.period": integer(0),
    "train.checkpointer.max_to_keep": optional(integer(0)),
    "train.best.metric": optional(text()),
    "train.best.mode": text("max", "min"),
    "train.eval_period": integer(0),
    "train.patience": integer(0),
    "train.validation_loss": integer(0),
    "train.eval_proposals": flag(),
    "train.log_period": COUNT,
    "train.logger": optional(sequence(text("wandb", "mlflow"))),
    "train.cudnn_benchmark": flag(),
    # data
    "dataset.num_classes": COUNT,
    "dataset.thing_classes": optional(sequence(either(text(), number()), 1)),
    "dataset.max_objects": COUNT,
    "dataset.num_train": COUNT,
    "dataset.num_val": COUNT,
    "dataset.percentiles": optional(sequence(number(0, 100), 2, 2, increasing=True)),
    "dataset.scale": number(0, ends=False),
    "dataset.score_threshold": optional(SHARE),
    "dataset.on_error": text("raise", "skip"),
    "dataset.negatives": flag(),
    "dataset.kinds": flag(),
    "dataset.balance": SHARE,
    "dataset.root": text(),
    "dataset.split_of": optional(text()),
    "dataset.*.json": text(),
    "dataset.*.images": text(),
    "dataloader.*.total_batch_size": integer(1, 65536),
    "dataloader.*.num_workers": integer(0, 512),
    "dataloader.*.aspect_ratio_grouping": flag(),
    "dataloader.*.filter_empty": flag(),
    "dataloader.*.is_train": flag(),
    "dataloader.*.use_instance_mask": flag(),
    "dataloader.*.recompute_boxes": flag(),
    "dataloader.*.sample_style": text("range", "choice"),
    "dataloader.*.short_edge_length": either(COUNT, sequence(COUNT, 1)),
    "dataloader.*.max_size": COUNT,
    "dataloader.*.min_scale": number(0, ends=False),
    "dataloader.*.max_scale": number(0, ends=False),
    "dataloader.*.target_height": COUNT,
    "dataloader.*.target_width": COUNT,
    "dataloader.*.crop_size": sequence(COUNT, 2, 2),
    "dataloader.*.brightness": sequence(number(0), 2, 2),
    "dataloader.*.saturation": sequence(number(0), 2, 2),
    "dataloader.*.contrast": sequence(number(0), 2, 2),
    "dataloader.*.gamma": sequence(number(0), 2, 2),
    "dataloader.*.noise": sequence(number(0), 2, 2),
    "dataloader.*.horizontal": flag(),
    "dataloader.*.vertical": flag(),
    "dataloader.*.on_error": text("raise", "skip"),
    "dataloader.*.image_format": text(),
    "dataloader.*.score_threshold": optional(SHARE),
    "dataloader.*.max_detections": optional(COUNT),
    "dataloader.*.seed": integer(0),
    "dataloader.*.num_images": COUNT,
    "dataloader.*.name": text(),
    # optimisation
    "optimizer.lr": number(0),
    "optimizer.weight_decay": number(0),
    "optimizer.momentum": SHARE,
    "optimizer.betas": sequence(SHARE, 2, 2),
    "optimizer.eps": number(0),
    "optimizer.fused": optional(flag()),
    "optimizer.params.base_lr": optional(number(0)),
    "optimizer.params.weight_decay_norm": optional(number(0)),
    "optimizer.params.overrides.*.lr": number(0),
    "optimizer.params.overrides.*.weight_decay": number(0),
    "lr_multiplier.warmup_length": SHARE,
    "lr_multiplier.warmup_factor": number(0),
    "lr_multiplier.warmup_method": text("linear", "constant"),
    "lr_multiplier.scheduler.start_value": number(0),
    "lr_multiplier.scheduler.end_value": number(0),
    "lr_multiplier.scheduler.values": sequence(number(0), 1),
    "lr_multiplier.scheduler.milestones": sequence(COUNT, 1, increasing=True),
    "lr_multiplier.scheduler.num_updates": optional(COUNT),
    # the model
    "model.pixel_mean": sequence(number(), 1),
    "model.pixel_std": sequence(number(0, ends=False), 1),
    "model.input_format": text(),
    "model.*box2box_transform.weights": sequence(number(0, ends=False), 4, 4),
    "model.backbone.*.weights": text(),
    "model.*.freeze_at": integer(0),
    "model.*.out_channels": COUNT,
    "model.*.in_channels": COUNT,
    "model.*.bottleneck_channels": COUNT,
    "model.*.channels": COUNT,
    "model.*.height": optional(COUNT),
    "model.*.width": optional(COUNT),
    "model.*.num_blocks": COUNT,
    "model.*.num_groups": COUNT,
    "model.*.num_anchors": COUNT,
    "model.*.num_classes": COUNT,
    "model.*.stride_in_1x1": flag(),
    "model.*.in_features": sequence(text(), 1),
    "model.*.box_in_features": sequence(text(), 1),
    "model.*.mask_in_features": sequence(text(), 1),
    "model.*.out_features": sequence(text(), 1),
    "model.*.strides": sequence(COUNT, 1),
    "model.*.sizes": sequence(sequence(number(0, ends=False), 1), 1),
    "model.*.aspect_ratios": sequence(either(number(0, ends=False), sequence(number(0, ends=False), 1)), 1),
    "model.*.offset": number(0, 1),
    "model.*.anchor_matcher.labels": sequence(integer(-1, 1), 2),
    "model.*.proposal_matcher.labels": sequence(integer(-1, 1), 2),
    "model.*.thresholds": sequence(SHARE, 1, increasing=True),
    "model.*.allow_low_quality_matches": flag(),
    "model.*.batch_size_per_image": COUNT,
    "model.*.positive_fraction": number(0.001, 1),
    "model.*.pre_nms_topk": sequence(COUNT, 2, 2),
    "model.*.post_nms_topk": sequence(COUNT, 2, 2),
    "model.*.nms_thresh": SHARE,
    "model.*.loss_weight": either(number(0), mapping(number(0))),
    "model.*.min_box_size": number(0),
    "model.*.smooth_l1_beta": number(0),
    "model.*.test_score_thresh": SHARE,
    "model.*.test_nms_thresh": SHARE,
    "model.*.test_topk_per_image": either(COUNT, integer(-1, -1)),
    "model.*.cls_agnostic_bbox_reg": flag(),
    "model.*.output_size": SIZE,
    "model.*.scales": sequence(number(0, ends=False), 1),
    "model.*.sampling_ratio": integer(0),
    "model.*.pooler_type": text(),
    "model.*.canonical_box_size": COUNT,
    "model.*.head.conv_dims": sequence(either(COUNT, integer(-1, -1)), 1),
    "model.*.conv_dims": sequence(COUNT),
    "model.*.fc_dims": sequence(COUNT),
}


def check_config(cfg: DictConfig) -> None:
    """Check the values of a config by the table, in place: numbers that are whole become integers, and the like.

    Raises:
        ConfigError: values that cannot be; the message names each with its key and what it may be.
    """
    problems, references = {}, set()
    for key, parent, name in _entries(cfg):
        is_reference = OmegaConf.is_interpolation(parent, name)
        references |= {key} if is_reference else set()
        rule = _find_rule(key)
        try:
            value = parent[name]
        except OmegaConfBaseException:  # of a part that may not be needed; what needs it will say so
            continue
        if rule is None or (isinstance(value, DictConfig) and "_target_" in value):
            if isinstance(value, float) and math.isnan(value):
                problems[key] = f"{key}=nan: a number is needed"
            continue
        try:
            converted = rule.convert(value)
        except (TypeError, ValueError, OverflowError):
            problems[key] = f"{key}={shortened(value)}: {rule.wanted} is needed"
            continue
        if not is_reference and type(converted) is not type(value) and not OmegaConf.is_config(value):
            parent[name] = converted
    if problems:
        own = [key for key in problems if key not in references] or list(problems)
        raise ConfigError("; ".join(problems[key] for key in own) + ".", own[0])


def _entries(
    node: DictConfig | ListConfig, prefix: str = ""
) -> Iterator[tuple[str, DictConfig | ListConfig, str | int]]:
    """Dotted key, parent and name of every value; the items of a list with a rule are the rule's business."""
    for name in list(node) if isinstance(node, DictConfig) else range(len(node)):
        key = f"{prefix}{name}"
        yield key, node, name
        child = None if OmegaConf.is_interpolation(node, name) else node._get_node(name)
        is_parent = isinstance(child, DictConfig) or (isinstance(child, ListConfig) and _find_rule(key) is None)
        if is_parent and not child._is_none() and not child._is_missing():
            yield from _entries(child, f"{key}.")


@functools.cache
def _find_rule(key: str) -> Rule | None:
    return next((rule for pattern, rule in RULES.items() if fnmatch.fnmatchcase(key, pattern)), None)
