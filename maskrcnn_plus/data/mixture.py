"""Several data sets as one, each seen as often as its kind of image deserves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.image_facts import mark_kinds
from maskrcnn_plus.data.registration import register_source


def register_mixture(
    name: str, sets: Sequence[str], repeats: Sequence[int] | None = None, *, kinds: bool = False
) -> str:
    """Register data sets together as one, as a value in a LazyConfig.

    Nothing is read before the data set is used.

    Args:
        name: name in DatasetCatalog and MetadataCatalog.
        sets: names of registered data sets, all with the same classes.
        repeats: how often the images of each are seen in an epoch; None: once.
        kinds: mark each record with its kind: its data set, whether it is coloured and whether its objects are brighter
            than the rest. All images are read for it, once until a file changes.

    Returns:
        `name`.

    Raises:
        DataError: no data set is named, the numbers of repeats do not fit, or the name is taken. Loading raises it for
            data sets of other classes.
    """
    sets = [str(each) for each in sets]
    repeats = [1] * len(sets) if repeats is None else list(repeats)
    if not sets or len(repeats) != len(sets) or any(int(count) != count or count < 1 for count in repeats):
        raise DataError(
            f"Data set '{name}': give the names of sets and for each a whole number of repeats of at least 1, got "
            f"{sets} and {repeats}."
        )
    return register_source(name, _Mixture(name, tuple(sets), tuple(repeats), kinds), evaluator_type="coco")


@dataclass(frozen=True)
class _Mixture:
    name: str
    sets: tuple[str, ...]
    repeats: tuple[int, ...]
    kinds: bool

    def __call__(self) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = []
        classes: list[str] | None = None
        for source, count in zip(self.sets, self.repeats, strict=True):
            loaded = DatasetCatalog.get(source)
            found = list(MetadataCatalog.get(source).get("thing_classes", []))
            if classes is not None and found != classes:
                raise DataError(f"Data set '{self.name}': {source} has the classes {found}, the others {classes}.")
            classes = found
            if self.kinds:
                mark_kinds(loaded, f"{source}, ")
            records += [dict(record) for _ in range(count) for record in loaded]
        MetadataCatalog.get(self.name).set(thing_classes=classes)
        return records
