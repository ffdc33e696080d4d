"""The largest values of each row, the first of equal ones: a stable sort that is cut off, in less time on CPUs.

Shorthand: N rows of P values.
"""

from __future__ import annotations

import torch
from torch import Tensor


def stable_topk(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest values of each row; NaNs are the largest, as in `torch.sort`.

    Args:
        values: [N, P].
        k: how many; all where P is less.

    Returns:
        Values and int64 places in their row, [N, min(k, P)], the largest first and equal ones in their order.
    """
    if values.device.type != "cpu" or torch.jit.is_tracing() or k >= values.shape[1] or not values.numel():
        best, places = values.sort(descending=True, stable=True, dim=1)
        return best[:, :k], places[:, :k]
    least = values.topk(k, dim=1).values[:, -1:]  # [N, 1]
    rows = []
    for row, enough in zip(values, ~(values < least), strict=True):
        places = enough.nonzero()[:, 0]  # k or, where others equal the least, more
        rows.append(places[row[places].argsort(descending=True, stable=True)[:k]])
    places = torch.stack(rows)
    return values.gather(1, places), places
