"""Detections of one image in NumPy, with the part of the interface of Detectron2's `Instances` that results need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_OF_THE_IMAGE = ("class_names", "category_ids", "pixel_size")


@dataclass(frozen=True)
class ArrayBoxes:
    """Boxes as `pred_boxes` holds them: `tensor` is [N, 4] xyxy in pixels, an array here."""

    tensor: np.ndarray

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, item: Any) -> ArrayBoxes:
        return ArrayBoxes(self.tensor[item])


class Objects:
    """Fields of N objects, and facts of their image: what `Predictions` is with PyTorch.

    Attributes:
        image_size: (H, W) in pixels.
        class_names, category_ids, pixel_size: as of `Predictions`.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        *,
        class_names: Sequence[str] | None = None,
        category_ids: Sequence[int | float | str] | None = None,
        pixel_size: float | None = None,
        **fields: Any,
    ) -> None:
        """Take the fields, all of N entries, of types that an index picks from."""
        self._image_size, self._fields = image_size, fields
        self.class_names, self.category_ids, self.pixel_size = class_names, category_ids, pixel_size

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self._image_size

    def __getattr__(self, name: str) -> Any:
        if name != "_fields" and name in self._fields:
            return self._fields[name]
        raise AttributeError(f"these objects have no {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_") or name in _OF_THE_IMAGE:
            object.__setattr__(self, name, value)
        else:
            self._fields[name] = value

    def has(self, name: str) -> bool:
        """Whether there is such a field."""
        return name in self._fields

    def remove(self, name: str) -> None:
        """Remove a field."""
        del self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """The fields by name."""
        return self._fields

    def __len__(self) -> int:
        return len(next(iter(self._fields.values()), ()))

    def __getitem__(self, item: slice | np.ndarray) -> Objects:
        """The objects at a slice, a bool array [N] or integers [M]."""
        facts = {name: getattr(self, name) for name in _OF_THE_IMAGE}
        return Objects(self._image_size, **facts, **{name: field[item] for name, field in self._fields.items()})
