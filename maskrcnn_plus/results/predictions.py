"""Predicted instances that know what their classes are called and the size of a pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.structures import Instances

_OF_THE_IMAGE = ("class_names", "category_ids", "pixel_size")


class Predictions(Instances):
    """Detectron2's `Instances` of one image with facts of the image beside its fields.

    Parts by an index, copies on another device and what `Predictions.cat` joins know them too. `Instances.cat` gives
    Detectron2's type, which has the fields only.

    Attributes:
        class_names: a name a class, in the order of `pred_classes`; None where they are not known.
        category_ids: an id a class, of the COCO file that the model was trained on; None where it is not known.
        pixel_size: micrometres a pixel; None where it is not known.
    """

    class_names: Sequence[str] | None
    category_ids: Sequence[int | float | str] | None
    pixel_size: float | None

    def __init__(
        self,
        image_size: tuple[int, int],
        *,
        class_names: Sequence[str] | None = None,
        category_ids: Sequence[int | float | str] | None = None,
        pixel_size: float | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(image_size, **fields)
        self.class_names, self.category_ids, self.pixel_size = class_names, category_ids, pixel_size

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OF_THE_IMAGE:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def to(self, *args: Any, **kwargs: Any) -> Predictions:
        """A copy with all fields that have a device on the given one."""
        return self._with_facts(super().to(*args, **kwargs))

    def __getitem__(self, item: Any) -> Predictions:
        return self._with_facts(super().__getitem__(item))

    @staticmethod
    def cat(instance_lists: Sequence[Instances]) -> Instances:
        """Join instances of one image; the facts are those of the first."""
        joined, first = Instances.cat(instance_lists), instance_lists[0]
        return first._with_facts(joined) if isinstance(first, Predictions) else joined

    def _with_facts(self, instances: Instances) -> Predictions:
        facts = {name: getattr(self, name) for name in _OF_THE_IMAGE}
        return Predictions(instances.image_size, **facts, **instances.get_fields())


def known_class_names(instances: Instances, chosen: Sequence[str] | None = None) -> Sequence[str] | None:
    """`chosen`, else the names that the instances know."""
    return chosen if chosen is not None else getattr(instances, "class_names", None)


def known_pixel_size(instances: Instances, chosen: float | None = None) -> float | None:
    """`chosen`, else micrometres a pixel as the instances know them."""
    return chosen if chosen is not None else getattr(instances, "pixel_size", None)
