"""What a training starts from, and the model that follows from these weights."""

from __future__ import annotations

from maskrcnn_plus.apps.finetune.plan import Plan
from maskrcnn_plus.checkpoints.choice import find_zoo_config
from maskrcnn_plus.checkpoints.description import NoDescriptionError, described_config
from maskrcnn_plus.checkpoints.sources import local_path
from maskrcnn_plus.learning_rate import linear_lr
from maskrcnn_plus.weights.files import read_weights


def choose_start(plan: Plan, weights: str | None, why: str = "") -> None:
    """Decide on the model and its first weights.

    Args:
        plan: before anything else is decided.
        weights: a file or another source of weights, see `local_path`: of this package, whose description names the
            model, of a detector of torchvision, MMDetection or Detectron2, which is taken for its Mask R-CNN with
            ResNet-50 or -101 and FPN, or of a classification network. None for those of the backbone alone.
        why: they were chosen, for the reason, where the user did not.

    Raises:
        WeightsError: they cannot be read.
    """
    if weights is None:
        name = plan.get("model.backbone.bottom_up.name")
        plan.decide({"train.init_checkpoint": ""}, f"Starts from the ImageNet weights of its backbone, {name}.")
        return
    try:
        described_config(weights)
        model, what = weights, "a checkpoint of this package"
    except NoDescriptionError:
        model, what = find_zoo_config(read_weights(local_path(weights)), weights)
    if model is None:
        plan.decide({"train.init_checkpoint": weights}, f"Starts from {weights}: {what}.")
        return
    plan.take_model(model)
    what = ", ".join(filter(None, (what, why)))
    plan.decide(
        {"train.init_checkpoint": weights, "optimizer.lr": linear_lr(1e-4, images=4)},
        f"Starts from {weights}: {what}. The model is that of these weights, with their anchors and levels, and learns "
        "at a quarter of the rate.",
    )
