"""Values of results as NumPy arrays, whether they are PyTorch's tensors or arrays already."""

from __future__ import annotations

from typing import Any

import numpy as np


def as_array(values: Any) -> np.ndarray:
    """A tensor (of any device, without its gradient), an array, a number or numbers in a sequence as an array."""
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
