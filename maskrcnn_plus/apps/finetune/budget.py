"""What fits into the time that there is: batch, backbone, precision, iterations and evaluations, from measurements."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable

from omegaconf import DictConfig

from maskrcnn_plus.apps.finetune.plan import Plan
from maskrcnn_plus.apps.finetune.timing import Timing
from maskrcnn_plus.backbones.pretrained import PACKAGES
from maskrcnn_plus.errors import UserError

_PIXELS = {"cpu": 2**19, "cuda": 2**21}  # of all crops of a step
_BATCH = {"cpu": (2, 4), "cuda": (2, 16)}
_ENOUGH = 10_000  # iterations of a small backbone after which a larger one gains more
_LEAST = 50
_EVALUATED = 0.12  # of the time, at most
_MOST_EVALUATIONS = 10
_MINUTES_LOST = 5  # by a crash, at most
_BACKBONE = "model.backbone.bottom_up"
_CROP = "dataloader.train.mapper.mapper.augmentations.0.size"


def fit_into(plan: Plan, seconds: float, num_train: int, num_val: int, measure: Callable[[DictConfig], Timing]) -> None:
    """Decide what depends on time.

    Args:
        plan: with all that follows from the data.
        seconds: for the measurements, training and evaluations together.
        num_train, num_val: images of both splits.
        measure: of the steps of a config.

    Raises:
        UserError: the time is not enough for a training.
    """
    start = time.monotonic()
    kind = str(plan.get("train.device")).partition(":")[0]
    size, (low, high) = int(plan.get(_CROP)), _BATCH.get(kind, _BATCH["cpu"])
    batch = min(max(round(_PIXELS.get(kind, _PIXELS["cpu"]) / size**2), low), high)
    plan.decide({"dataloader.train.total_batch_size": batch}, f"{batch} crops of {size} pixels make a step.")
    timing = measure(plan.cfg)
    timing = _choose_backbone(plan, seconds, timing, measure)
    plan.decide(
        {"train.amp.enabled": timing.bfloat16},
        "bfloat16 is faster here." if timing.bfloat16 else "float32: bfloat16 is not faster here.",
    )
    seconds -= time.monotonic() - start
    evaluation = 1.3 * timing.image * num_val + timing.step * (plan.get("train.validation_loss") or 0) / batch
    count = int(min(max(_EVALUATED * seconds / max(evaluation, 1e-3), 1), _MOST_EVALUATIONS))
    iterations = int((seconds - count * evaluation) / timing.step)
    is_given = plan.is_given("train.max_iter")
    if iterations < _LEAST and not is_given:
        raise UserError(
            f"{seconds / 60:.1f} minutes are not enough: a step takes {timing.step:.2g} s and an evaluation "
            f"{evaluation:.2g} s here. Give more --hours, or fewer iterations yourself: train.max_iter=..."
        )
    epochs = iterations * batch / max(num_train, 1)
    plan.decide(
        {"train.max_iter": iterations},
        f"A step takes {timing.step:.2g} s here and an evaluation {evaluation:.2g} s: {iterations} iterations "
        f"({epochs:.0f} crops of each image) and {count} "
        f"evaluation{'s' * (count > 1)} fit into {seconds / 60:.0f} minutes.",
    )
    if not is_given:
        plan.decide(
            {"train.max_hours": round((seconds - evaluation) / 3600, 5)},
            "There are fewer iterations where the machine turns out to be slower, with the last evaluation after that.",
        )
    iterations = int(plan.get("train.max_iter"))
    plan.decide(
        {
            "train.eval_period": -(-iterations // count),  # so that the last one is that of the end
            "train.checkpointer.period": max(min(int(60 * _MINUTES_LOST / timing.step), iterations), 1),
            "train.checkpointer.max_to_keep": 1,
        },
        f"There is a checkpoint every {_MINUTES_LOST} minutes; {plan.get('train.patience')} evaluations in turn "
        "without anything better end the training.",
    )


def _choose_backbone(plan: Plan, seconds: float, timing: Timing, measure: Callable[[DictConfig], Timing]) -> Timing:
    """Take the largest backbone whose weights are here and for which the time is enough."""
    name = plan.get(f"{_BACKBONE}.name")
    if name not in PACKAGES or plan.is_given("model") or plan.get("train.init_checkpoint"):
        return timing
    if seconds / timing.step < _ENOUGH:
        plan.decide(
            {f"{_BACKBONE}.name": name},
            f"{name}: the time is for {seconds / timing.step:.0f} steps; a larger one gains from {_ENOUGH} on.",
        )
        return timing
    for larger in sorted(PACKAGES, reverse=True):
        if larger <= name or importlib.util.find_spec(PACKAGES[larger][0]) is None:
            continue
        changed = plan.cfg.copy()
        changed.model.backbone.bottom_up.name = larger
        slower = measure(changed)
        if seconds / slower.step >= _ENOUGH:
            plan.decide(
                {f"{_BACKBONE}.name": larger},
                f"{larger}: the time is for {seconds / slower.step:.0f} of its steps.",
            )
            return slower
    plan.decide({f"{_BACKBONE}.name": name}, f"{name}: the largest backbone whose weights are installed or that fits.")
    return timing
