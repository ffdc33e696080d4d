"""Images that belong together: frames of a video, tiles of a slide, pages of a stack, images of one patient.

Were some of them learned from and others evaluated on, the figures would be too good. Names alone do not tell: frames
are numbered like independent images. So a plainly numbered series is one group only where neighbours look alike, and
names alone decide only where they say more than a number.

Shape shorthand: I images.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from maskrcnn_plus.data.image_facts import read_facts
from maskrcnn_plus.data.near_duplicates import join_pairs, signatures, similar_pairs

MAX_COMPARED = 20_000
"""Images of larger data sets are not compared with each other."""

_FRAMES = 0.5  # median correlation of neighbours in a series from which on they are frames
_LEAST_STEP = 16  # pixels between tiles
_NAMED, _UNNAMED = 2, 3  # least number of groups, where a word says what they are and where none does
_OPAQUE = re.compile(r"[0-9a-f-]{16,}", re.IGNORECASE)
_ROBOFLOW = re.compile(r"\.rf\.\w+$")
_AXES = (("x", "y"), ("y", "x"), ("r", "c"), ("row", "col"), ("col", "row"), ("i", "j"))
_TILE = re.compile("|".join(rf"^(.*?)[\W_]*(?<![a-z]){a}[\W_]?\d+[\W_]*{b}[\W_]?\d+$" for a, b in _AXES), re.IGNORECASE)
_WORDS = re.compile(
    r"animal|case|clip|donor|embryo|film|mouse|movie|pat|patient|plate|pos|sample|scene|seq|series|slide|stack|subject|"
    r"subj|track|vid|video|volume|well|wsi",
    re.IGNORECASE,
)


def find_groups(records: Sequence[dict[str, Any]], notes: list[str] | None = None) -> list[int]:
    """Group images that belong together. All images may be one group, as of one video.

    Args:
        records: Detectron2 dataset dicts; `file_name` counts, and the pixels of the first 20,000 images.
        notes: what was found is added here, a sentence each.

    Returns:
        Number of the group of each image, from 0 on in the order of appearance.
    """
    notes = [] if notes is None else notes
    files = [str(record["file_name"]) for record in records]
    names = _relative(files)
    kinds = {
        "pages of one file": _by_value(files),
        "augmented copies of one image by their names": _by_value(_sources(names)),
        "tiles of one image by their names": _by_value(_tiles(names)),
        "images of one folder, as of one patient or slide": _by_value(_folders(names)),
        "images with one number before their own, as of one patient or video": _by_value(_prefixes(names)),
        "images with one number and different endings": _by_value(_endings(names)),
    }
    if len(records) <= MAX_COMPARED:
        vectors = signatures(read_facts(records))
        kinds["frames of a video, as neighbours of a series look alike"] = _frames(names, vectors)
        kinds["images that show nearly the same"] = similar_pairs(vectors)[0].tolist()
    else:
        notes.append(f"{len(records)} images are too many to be compared; near-duplicates among them are not known.")
    for text, pairs in kinds.items():
        sizes = np.bincount(join_pairs(pairs, len(records)))
        if pairs:
            notes.append(f"{text}: {int(sizes[sizes > 1].sum())} images in {int((sizes > 1).sum())} groups.")
    return join_pairs([pair for pairs in kinds.values() for pair in pairs], len(records)).tolist()


def _relative(files: Sequence[str]) -> list[PurePath]:
    """Paths without the folders that all have in common, and without extension."""
    folders = {os.path.dirname(file) for file in files}
    common = os.path.commonpath(folders) if folders and len({os.path.isabs(f) for f in folders}) == 1 else ""
    return [PurePath(os.path.relpath(file, common) if common else file).with_suffix("") for file in files]


def _by_value(values: Iterable[Any]) -> list[tuple[int, int]]:
    """Pairs of neighbours of one value; None is no value."""
    last: dict[Any, int] = {}
    pairs = []
    for index, value in enumerate(values):
        if value is None:
            continue
        if value in last:
            pairs.append((last[value], index))
        last[value] = index
    return pairs


def _sources(names: Sequence[PurePath]) -> list[str | None]:
    """Name of the image that a copy of Roboflow was made of; the folders, which are splits, do not count."""
    return [_ROBOFLOW.sub("", name.name) if _ROBOFLOW.search(name.name) else None for name in names]


def _tiles(names: Sequence[PurePath]) -> list[str | None]:
    """Folder and name before the coordinates of a tile: letters at two numbers say so, or their common step."""
    found: list[str | None] = [None] * len(names)
    plain = defaultdict(list)
    for index, name in enumerate(names):
        if match := _TILE.match(name.name):
            found[index] = f"{name.parent}/{match[match.lastindex]}"
        elif match := re.match(r"^(.*?)[\W_]*(\d+)[\W_]+(\d+)$", name.name):
            plain[name.parent].append((index, match[1], int(match[2]), int(match[3])))
    for folder, entries in plain.items():
        if all(_is_axis([entry[axis] for entry in entries]) for axis in (2, 3)):
            for index, prefix, _, _ in entries:
                found[index] = f"{folder}/{prefix}"
    return found


def _is_axis(values: Sequence[int]) -> bool:
    """Whether numbers are those of tiles along one side: multiples of many pixels, or nothing but 0."""
    return not any(values) or (len(set(values)) > 1 and math.gcd(*values) >= _LEAST_STEP)


def _folders(names: Sequence[PurePath]) -> list[str | None]:
    """The highest folder of each image that is one of a numbered series of folders with several images."""
    levels = max((len(name.parts) - 1 for name in names), default=0)
    found: list[str | None] = [None] * len(names)
    for level in range(levels):
        chosen = [i for i, name in enumerate(names) if len(name.parts) > level + 1 and found[i] is None]
        keys = ["/".join(names[i].parts[: level + 1]) for i in chosen]
        for index, key in zip(chosen, _numbered(keys), strict=True):
            found[index] = key
    return found


def _prefixes(names: Sequence[PurePath]) -> list[str | None]:
    """Name before the last number, where that has a number too, as in patient_03_slice_7."""
    pairs = zip(names, map(_series, names), strict=True)
    return _numbered([None if series is None else f"{name.parent}/{series[0]}" for name, series in pairs])


def _endings(names: Sequence[PurePath]) -> list[str | None]:
    """Name up to the last number of those that go on with some text, as in patient_03_left."""
    matches = [None if _OPAQUE.search(name.name) else re.match(r"^(.*\d)\D*$", name.name) for name in names]
    pairs = zip(names, matches, strict=True)
    return _numbered([None if match is None else f"{name.parent}/{match[1]}" for name, match in pairs])


def _numbered(keys: Sequence[str | None]) -> list[str | None]:
    """Keys that differ from others in their last part by numbers alone, several of which have several images."""
    sizes = Counter(key for key in keys if key is not None)
    families = defaultdict(list)
    for key in sizes:
        last = key.rpartition("/")[2]
        if re.search(r"\d", last) and not _OPAQUE.search(last):
            families[re.sub(r"\d+", "#", key)].append(key)
    kept = set()
    for family, members in families.items():
        least = _NAMED if _WORDS.search(family.rpartition("/")[2]) else _UNNAMED
        several = [key for key in members if sizes[key] > 1]
        if len(several) >= least and sum(sizes[key] for key in several) > 0.5 * sum(sizes[key] for key in members):
            kept.update(members)
    return [key if key in kept else None for key in keys]


def _series(name: PurePath) -> tuple[str, int] | None:
    """Name before its last number, with the text after it, and the number; None where it is no number."""
    stem = _ROBOFLOW.sub("", name.name)
    if _OPAQUE.search(stem) and not stem.isdecimal():
        return None
    match = re.match(r"^(.*?)(\d+)(\D*)$", stem)
    return None if match is None else (f"{match[1]}|{match[3]}", int(match[2]))


def _frames(names: Sequence[PurePath], vectors: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of neighbours of each series whose neighbours look alike."""
    members = defaultdict(list)
    for index, name in enumerate(names):
        if (series := _series(name)) is not None:
            members[name.parent, series[0]].append((series[1], index))
    pairs = []
    for entries in members.values():
        order = [index for _, index in sorted(entries)]
        likeness = (vectors[order[:-1]] * vectors[order[1:]]).sum(axis=1)
        if len(likeness) and np.median(likeness) >= _FRAMES:
            pairs += itertools.pairwise(order)
    return pairs
