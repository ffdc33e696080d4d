"""What the values of a config may be: one table of keys, and the check that reads it.

Constructors of this package check their own arguments. The table is for the keys that the training reads itself, and
for arguments of Detectron2 and PyTorch that nobody checks or that only fail deep inside a training step.
"""

from __future__ import annotations

import fnmatch
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from maskrcnn_plus.errors import ConfigError
from maskrcnn_plus.overrides import shortened

__all__ = ["check_config"]


class Rule(NamedTuple):
    """What a value may be.

    Attributes:
        wanted: in words.
        convert: gives the value as it is meant (1e3 is the whole number 1000), or raises TypeError or ValueError.
    """

    wanted: str
    convert: Callable[[Any], Any]


def whole(least: int, most: int = 2**31 - 1) -> Rule:
    """An integer in a range, both ends included."""

    def convert(value: Any) -> int:
        return int(_accept(value, _is_number(value) and int(value) == value and least <= value <= most))

    return Rule(
        f"a whole number from {least} to {most}" if most < 2**31 - 1 else f"a whole number from {least} on", convert
    )


def number(least: float = -math.inf, most: float = math.inf, ends: bool = True) -> Rule:
    """A finite number in a range, with or without its ends."""

    def convert(value: Any) -> float:
        value = float(value) if isinstance(value, str) else value  # YAML reads 1e-4 as text
        inside = _is_number(value) and (least <= value <= most if ends else least < value < most)
        return _accept(value, inside)

    words = f"in {least:g}..{most:g}" if most < math.inf else f"{'of at least' if ends else 'above'} {least:g}"
    return Rule(f"a number {words if ends or most == math.inf else f'between {least:g} and {most:g}'}", convert)


def flag() -> Rule:
    """True or false."""
    return Rule("true or false", lambda value: bool(_accept(value, value in (True, False))))


def text(*choices: str) -> Rule:
    """Text, one of the choices where there are any."""
    words = f"one of {', '.join(map(repr, choices))}" if choices else "text"
    return Rule(words, lambda value: _accept(value, isinstance(value, str) and (not choices or value in choices)))


def optional(rule: Rule) -> Rule:
    """Null, or what another rule accepts."""
    return Rule(f"{rule.wanted}, or null", lambda value: None if value is None else rule.convert(value))


def several(rule: Rule, least: int = 0, most: float = math.inf, increasing: bool = False) -> Rule:
    """A list of what another rule accepts, with a number of items in a range."""

    def convert(value: Any) -> list:
        items = [rule.convert(item) for item in _accept(value, isinstance(value, ListConfig))]
        ordered = not increasing or all(a < b for a, b in itertools.pairwise(items))
        return _accept(items, least <= len(items) <= most and ordered)

    count = "" if least == 0 else f"{least} or more, " if most == math.inf else f"{least}, " if least == most else ""
    return Rule(f"a list ({count}{'increasing, ' if increasing else ''}each {rule.wanted})", convert)


def mapping(rule: Rule) -> Rule:
    """A mapping of names to what another rule accepts."""

    def convert(value: Any) -> DictConfig:
        _accept(value, isinstance(value, DictConfig))
        return _accept(value, all(rule.convert(item) is not None for item in value.values()))

    return Rule(f"a mapping of names to {rule.wanted}", convert)


def either(*rules: Rule) -> Rule:
    """What one of the rules accepts."""

    def convert(value: Any) -> Any:
        for rule in rules[:-1]:
            try:
                return rule.convert(value)
            except (TypeError, ValueError):
                continue
        return rules[-1].convert(value)

    return Rule(", or ".join(rule.wanted for rule in rules), convert)


def part() -> Rule:
    """A callable with its arguments, as LazyCall makes it, or a mapping of which only a part is used."""
    return Rule("a component (_target_ and its arguments)", lambda value: _accept(value, isinstance(value, DictConfig)))


SHARE = number(0, 1)
COUNT = whole(1)
SIZE = either(COUNT, several(COUNT, 2, 2))

# Key, "*" for any text -> rule. The first that matches holds; a component in place of a value is its own business.
RULES: dict[str, Rule] = {
    "model": part(),
    "optimizer": part(),
    "lr_multiplier": part(),
    "dataloader.train": part(),
    "dataloader.test": part(),
    "dataloader.proposal_evaluator": part(),
    # how to train
    "train.output_dir": text(),
    "train.init_checkpoint": optional(text()),
    "train.init_allow_partial": flag(),
    "train.max_iter": COUNT,
    "train.device": text(),
    "train.seed": whole(0),
    "train.channels_last": flag(),
    "train.amp.enabled": flag(),
    "train.amp.dtype": text("bfloat16", "float16"),
    "train.accumulate": whole(1, 65536),
    "train.clip_grad_norm": number(0),
    "train.ema.enabled": flag(),
    "train.ema.decay": number(0, 1, ends=False),
    "train.ddp.*": flag(),
    "train.checkpointer.period": whole(0),
    "train.checkpointer.max_to_keep": optional(whole(0)),
    "train.best.metric": optional(text()),
    "train.best.mode": text("max", "min"),
    "train.eval_period": whole(0),
    "train.eval_proposals": flag(),
    "train.log_period": COUNT,
    "train.cudnn_benchmark": flag(),
    # data
    "dataset.num_classes": COUNT,
    "dataset.thing_classes": optional(several(either(text(), number()), 1)),
    "dataset.max_objects": COUNT,
    "dataset.num_train": COUNT,
    "dataset.num_val": COUNT,
    "dataset.percentiles": optional(several(number(0, 100), 2, 2, increasing=True)),
    "dataset.scale": number(0, ends=False),
    "dataset.score_threshold": optional(SHARE),
    "dataset.on_error": text("raise", "skip"),
    "dataset.root": text(),
    "dataset.*.json": text(),
    "dataset.*.images": text(),
    "dataloader.*.total_batch_size": whole(1, 65536),
    "dataloader.*.num_workers": whole(0, 512),
    "dataloader.*.aspect_ratio_grouping": flag(),
    "dataloader.*.filter_empty": flag(),
    "dataloader.*.is_train": flag(),
    "dataloader.*.use_instance_mask": flag(),
    "dataloader.*.recompute_boxes": flag(),
    "dataloader.*.sample_style": text("range", "choice"),
    "dataloader.*.short_edge_length": either(COUNT, several(COUNT, 1)),
    "dataloader.*.max_size": COUNT,
    "dataloader.*.min_scale": number(0, ends=False),
    "dataloader.*.max_scale": number(0, ends=False),
    "dataloader.*.target_height": COUNT,
    "dataloader.*.target_width": COUNT,
    "dataloader.*.crop_size": several(COUNT, 2, 2),
    "dataloader.*.brightness": several(number(0), 2, 2),
    "dataloader.*.contrast": several(number(0), 2, 2),
    "dataloader.*.gamma": several(number(0), 2, 2),
    "dataloader.*.noise": several(number(0), 2, 2),
    "dataloader.*.horizontal": flag(),
    "dataloader.*.vertical": flag(),
    "dataloader.*.on_error": text("raise", "skip"),
    "dataloader.*.image_format": text(),
    "dataloader.*.score_threshold": optional(SHARE),
    "dataloader.*.max_detections": optional(COUNT),
    "dataloader.*.seed": whole(0),
    "dataloader.*.num_images": COUNT,
    "dataloader.*.name": text(),
    # optimisation
    "optimizer.lr": number(0),
    "optimizer.weight_decay": number(0),
    "optimizer.momentum": SHARE,
    "optimizer.betas": several(SHARE, 2, 2),
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
    "lr_multiplier.scheduler.values": several(number(0), 1),
    "lr_multiplier.scheduler.milestones": several(COUNT, 1, increasing=True),
    "lr_multiplier.scheduler.num_updates": optional(COUNT),
    # the model
    "model.pixel_mean": several(number(), 1),
    "model.pixel_std": several(number(0, ends=False), 1),
    "model.input_format": text(),
    "model.*box2box_transform.weights": several(number(0, ends=False), 4, 4),
    "model.backbone.*.weights": text(),
    "model.*.freeze_at": whole(0),
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
    "model.*.in_features": several(text(), 1),
    "model.*.box_in_features": several(text(), 1),
    "model.*.mask_in_features": several(text(), 1),
    "model.*.out_features": several(text(), 1),
    "model.*.strides": several(COUNT, 1),
    "model.*.sizes": several(several(number(0, ends=False), 1), 1),
    "model.*.aspect_ratios": several(either(number(0, ends=False), several(number(0, ends=False), 1)), 1),
    "model.*.offset": number(0, 1),
    "model.*.anchor_matcher.labels": several(whole(-1, 1), 2),
    "model.*.proposal_matcher.labels": several(whole(-1, 1), 2),
    "model.*.thresholds": several(SHARE, 1, increasing=True),
    "model.*.allow_low_quality_matches": flag(),
    "model.*.batch_size_per_image": COUNT,
    "model.*.positive_fraction": number(0.001, 1),
    "model.*.pre_nms_topk": several(COUNT, 2, 2),
    "model.*.post_nms_topk": several(COUNT, 2, 2),
    "model.*.nms_thresh": SHARE,
    "model.*.loss_weight": either(number(0), mapping(number(0))),
    "model.*.min_box_size": number(0),
    "model.*.smooth_l1_beta": number(0),
    "model.*.test_score_thresh": SHARE,
    "model.*.test_nms_thresh": SHARE,
    "model.*.test_topk_per_image": either(COUNT, whole(-1, -1)),
    "model.*.cls_agnostic_bbox_reg": flag(),
    "model.*.output_size": SIZE,
    "model.*.scales": several(number(0, ends=False), 1),
    "model.*.sampling_ratio": whole(0),
    "model.*.pooler_type": text(),
    "model.*.canonical_box_size": COUNT,
    "model.*.head.conv_dims": several(either(COUNT, whole(-1, -1)), 1),
    "model.*.conv_dims": several(COUNT),
    "model.*.fc_dims": several(COUNT),
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
        rule = _rule_of(key)
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
        is_parent = isinstance(child, DictConfig) or (isinstance(child, ListConfig) and _rule_of(key) is None)
        if is_parent and not child._is_none() and not child._is_missing():
            yield from _entries(child, f"{key}.")


@functools.cache
def _rule_of(key: str) -> Rule | None:
    return next((rule for pattern, rule in RULES.items() if fnmatch.fnmatchcase(key, pattern)), None)


def _accept(value: Any, accepted: bool) -> Any:
    if not accepted:
        raise ValueError(value)
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
