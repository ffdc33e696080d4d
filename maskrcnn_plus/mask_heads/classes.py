"""Predictions of a RoI's class among those of all classes; one rule for heads with and without classes.

Shorthand: R RoIs of all images, K rows of a head (1 where it does not tell classes apart).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Instances
from torch import Tensor


def get_class_rows(instances: Sequence[Instances], field: str, num_rows: int, device: torch.device) -> Tensor:
    """The row of each RoI's class.

    Args:
        instances: an Instances an image, with the field where there are RoIs and classes.
        field: "gt_classes" or "pred_classes".
        num_rows: K.
        device: where the rows are wanted.

    Returns:
        int64 [R]; all 0 where K is 1.
    """
    if num_rows == 1:
        return torch.zeros(sum(len(each) for each in instances), dtype=torch.int64, device=device)
    # Images without RoIs may lack the field.
    classes = [each.get(field) for each in instances if len(each)]
    return torch.cat(classes).to(device, torch.int64) if classes else torch.zeros(0, dtype=torch.int64, device=device)


def select_class(values: Tensor, rows: Tensor) -> Tensor:
    """Take the row of each RoI.

    Args:
        values: [R, K, ...].
        rows: int64 [R], of `get_class_rows`.

    Returns:
        [R, ...].
    """
    if values.shape[1] == 1:
        return values[:, 0]
    # Not len(values), which a trace keeps.
    return values[torch.arange(values.shape[0], device=values.device), rows]
