"""What the converters of the zoos take and give: a weights file as data, and tensors under the model's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from maskrcnn_plus.errors import UserError


class WeightsError(UserError):
    """A weights file is missing, unreadable, unsafe, or does not fit the model."""


class WeightsFile(NamedTuple):
    """The content of a weights file.

    Attributes:
        path: of the local file.
        tensors: name in the file -> tensor on the CPU, of its stored type.
        metadata: what else the file says about itself, e.g. {"__author__": "Caffe2"} or MMDetection's {"meta": ...}.
    """

    path: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any] = {}


class Converted(NamedTuple):
    """One tensor for the model.

    Attributes:
        tensor: in the model's layout.
        sources: names in the file of the tensors that it was made of.
        how: what was done besides renaming, in words; "" where nothing was.
    """

    tensor: Tensor
    sources: tuple[str, ...]
    how: str = ""
