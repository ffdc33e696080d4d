"""Data sets in COCO's format, registered from a config, with their classes matched by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from detectron2.data import MetadataCatalog

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.check_cache import loaded_once
from maskrcnn_plus.data.formats.coco import Category, read_categories, read_coco, warn_once
from maskrcnn_plus.data.registration import register_source
from maskrcnn_plus.errors import listed

_SHOWN = 10

__all__ = ["ClassMap", "class_key", "coco_categories", "map_categories", "register_coco", "used_names"]


def register_coco(
    name: str,
    json_file: str,
    image_root: str,
    thing_classes: Sequence[str] | None = None,
    on_error: str = "raise",
) -> str:
    """Register a COCO json like Detectron2's `register_coco_instances`, but as a value in a LazyConfig.

    Registering the same again changes nothing; the file is read when the data set is first used.

    Args:
        name: name in DatasetCatalog and MetadataCatalog.
        json_file: COCO instances json with polygons, RLE and crowds.
        image_root: folder that its `file_name`s are relative to.
        thing_classes: the classes of the model in its order, which the categories are matched with by name. None takes
            all categories of the file in the order of their ids, as Detectron2 does.
        on_error: what images and annotations do that cannot be used: "raise", or "skip" them, named in a warning.

    Returns:
        `name`, so that it can stand for the data set: `names=L(register_coco)(...)`.

    Raises:
        DataError: the name is taken by another data set, or, when it is used, the file is missing or damaged, or has
            objects of other classes.
    """
    classes = None if thing_classes is None else tuple(map(str, thing_classes))
    source = _CocoFile(name, str(json_file), str(image_root), classes, on_error)
    known = {} if classes is None else {"thing_classes": list(classes)}
    return register_source(
        name, source, json_file=source.json_file, image_root=source.image_root, evaluator_type="coco", **known
    )


@dataclass(frozen=True)
class _CocoFile:
    name: str
    json_file: str
    image_root: str
    thing_classes: tuple[str, ...] | None
    on_error: str

    def __call__(self) -> list[dict]:
        for path, what in ((self.json_file, "annotation file"), (self.image_root, "image folder")):
            if "://" not in path and not Path(path).exists():
                raise DataError(
                    f"Data set '{self.name}': its {what} {path} does not exist. Set dataset.* of the config."
                )
        try:
            how = self.image_root, self.on_error
            data = loaded_once(self.json_file, how, lambda: read_coco(self.json_file, *how))
            classes = map_categories(data.categories, self.thing_classes, self.json_file)
        except DataError as error:
            raise DataError(f"Data set '{self.name}': {error}") from error
        for entry in (entry for record in data.records for entry in record["annotations"]):
            entry["category_id"] = classes.indices[entry["category_id"]]
        metadata = MetadataCatalog.get(self.name)
        found = {"thing_classes": classes.names, "thing_dataset_id_to_contiguous_id": classes.dataset_ids}
        if any(metadata.get(key, value) != value for key, value in found.items()):
            raise DataError(
                f"Data set '{self.name}': the categories in {self.json_file} are others than when it was first read. "
                "Start anew, or register it by another name."
            )
        metadata.set(**found)
        return data.records


class ClassMap(NamedTuple):
    """How the categories of a file are numbered.

    Attributes:
        names: of the classes, in their order.
        indices: the class of each category; None for one that is dropped as it has no objects.
        dataset_ids: id in the file -> class; a class that the file does not have has a number that is no id in it.
    """

    names: list[str]
    indices: list[int | None]
    dataset_ids: dict[int | float | str, int]

    @property
    def category_ids(self) -> list[int | float | str]:
        """The id in the file of each class."""
        first = {index: own for own, index in reversed(self.dataset_ids.items())}
        return [first[index] for index in range(len(self.names))]


def map_categories(categories: Sequence[Category], names: Sequence[str] | None, json_file: str) -> ClassMap:
    """Match the categories of a file with the classes of a model, by name in any case.

    Args:
        categories: of the file, in the order of their ids.
        names: the classes; None takes those of the file.
        json_file: named in errors.

    Raises:
        DataError: the file has objects of classes that are not among `names`.
    """
    used = {class_key(category.name) for category in categories if category.count}
    # A dummy beside a category of the same name has no objects, and its id is nobody's.
    real = [c for c in categories if c.count or class_key(c.name) not in used]
    if names is None:
        first: dict[str, str] = {}
        for category in real:
            first.setdefault(class_key(category.name), category.name)
        names = first.values()
    names = [str(name) for name in names]
    positions = {class_key(name): index for index, name in reversed(list(enumerate(names)))}
    with_objects = [c for c in real if c.count and class_key(c.name) not in positions]
    if len(names) == 1 and len({class_key(c.name) for c in real if c.count}) == len(with_objects) == 1:
        warn_once(f"{json_file}: its only class with objects, {with_objects[0].name}, is taken for {names[0]}.")
        positions[class_key(with_objects[0].name)] = 0
    elif with_objects:
        counted = ", ".join(f"{category.name} ({category.count})" for category in with_objects)
        raise DataError(
            f"{json_file}: it has objects of {counted}, but the classes are {', '.join(names)}. Name "
            "all classes in dataset.thing_classes, or rename or remove these in the file."
        )
    indices = [positions.get(class_key(c.name)) for c in categories]
    dataset_ids = {c.id: positions[class_key(c.name)] for c in real if class_key(c.name) in positions}
    if dropped := [c for c in categories if c.id not in dataset_ids]:
        warn_once(f"{json_file}: categories without objects are no classes: {_named(dropped)}.")
    merged = [c for c in real if c.count and sum(class_key(c.name) == class_key(o.name) for o in real) > 1]
    if merged:
        warn_once(f"{json_file}: categories of one name are taken for one class: {_named(merged)}.")
    # Results need an id for every class; in files that do not have a class it means nothing.
    numbers = [c.id for c in categories if not isinstance(c.id, str)]
    spare = int(max(numbers, default=0)) + 1
    for index in sorted(set(range(len(names))) - set(dataset_ids.values())):
        dataset_ids[spare] = index
        spare += 1
    return ClassMap(names, indices, dataset_ids)


def used_names(categories: Sequence[Category]) -> list[str]:
    """The classes that have objects, in the order of their ids; all of them in a file without any object."""
    used = [category for category in categories if category.count] or categories
    return map_categories(used, None, "").names


def coco_categories(json_file: str) -> list[Category]:
    """The categories of a COCO file; the file is read again only when it has changed.

    Raises:
        DataError: it is missing, or no COCO file.
    """
    return loaded_once(json_file, ("categories",), lambda: read_categories(json_file))


def class_key(name: str) -> str:
    """What the names of classes are compared by: neither case nor outer spaces tell classes apart."""
    return str(name).strip().casefold()


def _named(categories: Sequence[Category]) -> str:
    return listed([f"{category.name} (id {category.id!r})" for category in categories], _SHOWN)
