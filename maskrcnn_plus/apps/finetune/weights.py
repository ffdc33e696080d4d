"""What a training starts from, and the model that this decides on."""

from __future__ import annotations

from maskrcnn_plus.apps.finetune.plan import Plan


def choose_start(plan: Plan, weights: str | None) -> None:
    """Decide on the model and its first weights."""
    if weights is None:
        plan.decide({}, "Starts from the ImageNet weights of the backbone.")
