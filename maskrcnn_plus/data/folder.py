"""Folders of annotations of any format as data sets of Detectron2's catalogs."""

from __future__ import annotations

import difflib
import functools
import itertools
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from maskrcnn_plus.data import formats
from maskrcnn_plus.data.check import DataError, list_some, report_problems
from maskrcnn_plus.data.check_cache import pack, unpack
from maskrcnn_plus.data.coco import class_key
from maskrcnn_plus.data.formats.coco import warn_once
from maskrcnn_plus.data.formats.files import walk
from maskrcnn_plus.data.groups import find_groups
from maskrcnn_plus.data.image_facts import mark_kinds
from maskrcnn_plus.data.learned_images import read_learned
from maskrcnn_plus.data.limits import is_read_by_parts
from maskrcnn_plus.data.registration import register_source
from maskrcnn_plus.data.split import train_and_val

_KEPT = 4  # folders whose content is remembered in a process
_loaded: dict[tuple, bytes] = {}


@dataclass
class FolderData:
    """Images and annotations of a folder, with a split for training and, where there are images for it, validation.

    Attributes:
        class_names: of all categories, also of those without objects.
        splits: Detectron2 dataset dicts by "train", "val" and "test".
        format: name of the format.
        notes: what was assumed or left out, a sentence each.
        problems: images and annotations that cannot be used, a line each.
    """

    class_names: list[str]
    splits: dict[str, list[dict[str, Any]]]
    format: str
    notes: list[str]
    problems: list[str]

    def used_classes(self) -> list[str]:
        """Names of the classes with objects, each once, in the order of the categories."""
        records = itertools.chain.from_iterable(self.splits.values())
        used = {each["category_id"] for record in records for each in record["annotations"]}
        names = {class_key(name): name for index, name in reversed(list(enumerate(self.class_names))) if index in used}
        return list(names.values())[::-1]


def load_folder(
    path: str | os.PathLike,
    format: str | None = None,
    *,
    val: float = 0.2,
    seed: int = 0,
    split_of: str | None = None,
    **options: Any,
) -> FolderData:
    """Read a folder or an annotation file of any format; once a process, as long as no file of it changes.

    Args:
        path: see `maskrcnn_plus.data.formats`.
        format: its name; None finds it.
        val, seed: of the images for validation, where the folder does not say which; see `train_and_val`.
        split_of: a file of weights, whose images stay in training or validation as they were, where the folder does not
            say which.
        **options: of `ReadOptions`.

    Raises:
        DataError: it cannot be read, holds no images that can be used, or `split_of` is missing.
        WeightsError: `split_of` cannot be read.
    """
    path = Path(path).expanduser()
    if split_of is not None and not os.path.isfile(os.path.expanduser(split_of)):
        raise DataError(
            f"dataset.split_of is {split_of}, which is no file, so that it is not known which images these weights "
            "learned from. Put it there, or set dataset.split_of=null, by which other images are drawn for validation."
        )
    how = (format, val, seed, split_of, *sorted(options.items()), is_read_by_parts())
    key = (str(path.resolve()), _state(path), how)
    if key not in _loaded:
        data = formats.read(path, format, formats.ReadOptions(**options))
        if not any(data.splits.values()):
            why = list_some([*data.problems, *data.notes], "  - ")
            raise DataError("\n".join([f"{path}: no usable image is left.", *why]))
        notes = list(data.notes)
        groups = functools.partial(find_groups, notes=notes)
        splits, assumed = train_and_val(data.splits, val, seed, groups, read_learned(split_of))
        _loaded[key] = pack(FolderData(data.class_names, splits, data.format, [*notes, *assumed], data.problems))
        for old in list(_loaded)[:-_KEPT]:
            del _loaded[old]
    return unpack(_loaded[key])


def register_folder(
    name: str,
    path: str,
    split: str = "train",
    *,
    thing_classes: Sequence[str] | None = None,
    format: str | None = None,
    val: float = 0.2,
    seed: int = 0,
    split_of: str | None = None,
    on_error: str = "raise",
    kinds: bool = False,
    **options: Any,
) -> str:
    """Register a folder of annotations of any format that is read, as a value in a LazyConfig.

    Nothing is read before the data set is used.

    Args:
        name: name in DatasetCatalog and MetadataCatalog.
        path, format, val, seed, split_of, **options: as of `load_folder`.
        split: "train", "val" or "test".
        thing_classes: the classes in the order of the model, matched by name. Objects of others are left out, with a
            warning. None takes all classes with objects.
        on_error: what images and annotations do that cannot be used: "raise", or "skip" them with a warning.
        kinds: mark each record with its kind, see `mark_kinds`.

    Returns:
        `name`, so that the call can stand in a config where a data set name is expected.

    Raises:
        DataError: the name is taken. Loading raises it for what cannot be read.
        TypeError: an unknown option.
    """
    report_problems([], on_error)  # refuses an unknown on_error at once
    formats.ReadOptions(**options)
    path = os.path.abspath(os.path.expanduser(path))
    classes = None if thing_classes is None else tuple(map(str, thing_classes))
    how = tuple(sorted({"format": format, "val": val, "seed": seed, "split_of": split_of, **options}.items()))
    known = {} if classes is None else {"thing_classes": list(classes)}
    source = _Split(name, path, split, on_error, how, kinds, classes)
    return register_source(name, source, evaluator_type="coco", root=path, split=split, **known)


@dataclass(frozen=True)
class _Split:
    name: str
    path: str
    split: str
    on_error: str
    how: tuple[tuple[str, Any], ...]
    kinds: bool
    thing_classes: tuple[str, ...] | None = field(compare=False)

    def __call__(self) -> list[dict]:
        try:
            data = load_folder(self.path, **dict(self.how))
            report_problems(data.problems, self.on_error)
            for note in data.notes:
                warn_once(f"{self.path}: {note}")
            if self.split not in data.splits:
                raise DataError(f"{self.path} has no images of the split {self.split}, only {', '.join(data.splits)}.")
            names = list(self.thing_classes) if self.thing_classes else data.used_classes()
            records = choose_classes(data, self.split, names, self.path)
        except DataError as error:
            raise DataError(f"Data set '{self.name}': {error}") from error
        if self.kinds:
            mark_kinds(records)
        MetadataCatalog.get(self.name).set(thing_classes=names)
        return records


def choose_classes(data: FolderData, split: str, names: Sequence[str], where: str) -> list[dict[str, Any]]:
    """The dataset dicts of a split, with categories numbered as in `names`; objects of other classes are left out.

    Args:
        data: of a folder.
        split: key of its splits.
        names: of the classes, compared without regard to case.
        where: the folder, for messages.

    Raises:
        DataError: no object of the split is left, though it has some.
    """
    positions = {class_key(name): index for index, name in enumerate(names)}
    used = data.used_classes()
    if len(names) == len(used) == 1 and class_key(used[0]) not in positions:
        warn_once(f"{where}: its only class with objects, {used[0]}, is taken for {names[0]}.")
        positions[class_key(used[0])] = 0
    indices = [positions.get(class_key(name)) for name in data.class_names]
    others: Counter[str] = Counter()
    for record in data.splits[split]:
        kept = []
        for each in record["annotations"]:
            index = indices[each["category_id"]]
            if index is None:
                others[data.class_names[each["category_id"]]] += 1
            else:
                kept.append({**each, "category_id": index})
        record["annotations"] = kept
    if others:
        listed = ", ".join(f"{name} ({count})" for name, count in others.most_common())
        if not any(record["annotations"] for record in data.splits[split]):
            near = [difflib.get_close_matches(name, list(others), 1) for name in names]
            hint = next((f" Did you mean {each[0]}?" for each in near if each), "")
            raise DataError(f"{where} has no object of {', '.join(names)}, but of {listed}.{hint}")
        warn_once(f"{where}, {split}: objects of classes that are not asked for are left out: {listed}.")
    return data.splits[split]


def _state(path: Path) -> tuple[int, int, int]:
    """Number, total size and newest change of the files of a folder."""
    files = [path] if path.is_file() else [Path(base, name) for base, _, names in walk(path) for name in names]
    states = [file.stat() for file in files if file.exists()]
    newest = max((state.st_mtime_ns for state in states), default=0)
    return len(states), sum(state.st_size for state in states), newest
