"""Training and validation images of a data set that comes without these splits."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats.files import WHOLE
from maskrcnn_plus.data.learned_images import image_key

__all__ = ["choose_validation", "train_and_val"]

_TRIALS = 64
_PARTS = 10  # of images that all belong together


def train_and_val(
    splits: Mapping[str, list[dict[str, Any]]],
    val: float = 0.2,
    seed: int = 0,
    groups: Callable[[list[dict[str, Any]]], Sequence[int]] | None = None,
    learned: Mapping[str, str] | None = None,
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """The splits of a data set with "train", and "val" where images can be had for it.

    Splits that the data set has stay as they are. Without one for validation its images are drawn from those for
    training; where there is only one split, whatever it is called, its images are taken for both.

    Args:
        splits: Detectron2 dataset dicts by split, as of `Annotated`.
        val: part of the images that are drawn; 0 draws none.
        seed: of the draw, which depends on nothing else but the file names.
        groups: gives a number for each of the images that are drawn from; images of one number stay together. None:
            each for itself.
        learned: "train" or "val" by `image_key`, of weights that the training starts from: their images stay what they
            were, and the draw is among the others.

    Returns:
        The splits, and what was assumed, a sentence each.

    Raises:
        DataError: there is no image, or the splits cannot be understood.
    """
    splits = {name: list(records) for name, records in splits.items() if records}
    notes: list[str] = []
    if not splits:
        raise DataError("No usable image is left.")
    if WHOLE in splits and "train" in splits:
        others = splits.pop(WHOLE)
        splits["train"] = splits["train"] + others
        notes.append(f"{len(others)} images are of no split, unlike others: they were taken for training.")
    if "train" not in splits:
        source = WHOLE if WHOLE in splits else next(iter(splits)) if len(splits) == 1 else None
        if source is None:
            raise DataError(f"There are the splits {', '.join(splits)}, but no train. Name one so.")
        if source != WHOLE:
            notes.append(f"there is only the split {source}: its images are taken for training and validation.")
        splits["train"] = splits.pop(source)
    if "val" in splits or val <= 0 or len(splits["train"]) < 2:
        return splits, notes + _seen(splits.get("val", []), learned)
    records = splits["train"]
    groups = None if groups is None else groups(records)
    chosen, note = _keep_apart(records, val, seed, groups, learned) if learned else ([], "")
    if not chosen:
        if groups is not None and len(set(groups)) == 1:
            groups = _consecutive_parts(records)
            notes.append(
                f"all {len(records)} images belong together, as frames of one video or tiles of one slide do: they "
                "were parted in the order of their names, so that figures of the validation will be somewhat too good."
            )
        chosen = choose_validation(records, val, seed, groups)
        kept = "" if groups is None or len(set(groups)) == len(records) else f", {len(set(groups))} groups kept whole"
        note = f"there is no split for validation: {len(chosen)} images were drawn for it by chance{kept}."
    notes.append(note)
    splits["val"] = [records[index] for index in chosen]
    splits["train"] = [records[index] for index in sorted(set(range(len(records))) - set(chosen))]
    return splits, notes + _seen(splits["val"], learned)


def _seen(records: Sequence[dict[str, Any]], learned: Mapping[str, str]) -> list[str]:
    """A sentence on the validation images that weights learned from, if there are some."""
    seen = sum(learned.get(image_key(record)) == "train" for record in records) if learned else 0
    warning = f"the weights have learned from {seen} of the {len(records)} validation images: its figures are too good."
    return [warning] if seen else []


def _keep_apart(
    records: Sequence[dict[str, Any]],
    val: float,
    seed: int,
    groups: Sequence[int] | None,
    learned: Mapping[str, str],
) -> tuple[list[int], str]:
    """Indices of validation images: all those by which weights were judged, and none that they learned from.

    Others that belong together with such an image go where it goes; of the rest a part is drawn.

    Returns:
        The indices, ascending, and what was done; none where the weights know no image, or all from learning.
    """
    groups = range(len(records)) if groups is None else groups
    parts = [learned.get(image_key(record)) for record in records]
    judged, known = parts.count("val"), len(parts) - parts.count(None)
    of_group = {
        group: part for part in ("val", "train") for group, own in zip(groups, parts, strict=True) if own == part
    }
    parts = [part or of_group.get(group) for part, group in zip(parts, groups, strict=True)]
    rest = [index for index, part in enumerate(parts) if part is None]
    drawn = choose_validation([records[k] for k in rest], val, seed, [groups[k] for k in rest]) if rest else []
    chosen = {index for index, part in enumerate(parts) if part == "val"} | {rest[index] for index in drawn}
    if not known or not chosen:
        return [], ""
    return sorted(chosen), (
        f"the weights know {known} images: {judged} by which they were judged are for validation again, the others for "
        f"training. Of {len(records) - known} images that are new to them {len(chosen) - judged} are for validation."
    )


def _consecutive_parts(records: Sequence[dict[str, Any]]) -> list[int]:
    """Groups of neighbours in the order of the file names, in which numbers count as such: at most `_PARTS`."""
    names = [re.split(r"(\d+)", str(record["file_name"])) for record in records]
    order = sorted(range(len(records)), key=lambda k: [int(t) if t.isdecimal() else t for t in names[k]])
    groups = [0] * len(records)
    for place, index in enumerate(order):
        groups[index] = place * min(_PARTS, len(records)) // len(records)
    return groups


def choose_validation(
    records: Sequence[dict[str, Any]], val: float, seed: int = 0, groups: Sequence[int] | None = None
) -> list[int]:
    """Draw whole groups of images, such that the classes have about the same shares in both parts.

    Of several random orders of the groups the one is taken whose first groups fit best: the size of the part, and for
    each class the part of its objects and of its images.

    Args:
        records: dataset dicts.
        val: part of the images that is wanted, above 0.
        seed: of the orders.
        groups: a number an image; None: of one image each.

    Returns:
        Indices of the chosen images, ascending; empty where there is one group alone. At least one image stays.
    """
    names = [str(record["file_name"]) for record in records]
    keys = names if groups is None else [f"{group:09d}" for group in groups]
    members: dict[str, list[int]] = {}
    for index in sorted(range(len(records)), key=lambda index: (names[index], index)):
        members.setdefault(keys[index], []).append(index)
    if len(members) < 2:
        return []
    # By the first file name of each, so that numbers of groups do not matter.
    parts = sorted(members.values(), key=lambda part: names[part[0]])
    classes = 1 + max((each["category_id"] for record in records for each in record["annotations"]), default=0)
    table = np.stack([_contents([records[index] for index in part], classes) for part in parts])  # [groups, figures]
    total = table.sum(axis=0)
    wanted = min(max(val * total[0], 1), total[0] - 1)
    generator = np.random.default_rng(seed)
    best: tuple[float, np.ndarray] | None = None
    for _ in range(_TRIALS):
        order = generator.permutation(len(parts))
        sums = table[order].cumsum(axis=0)[:-1]  # at least one group stays
        count = int(np.abs(sums[:, 0] - wanted).argmin())
        shares = sums[count] / np.maximum(total, 1)
        # A class with no object in one of the parts can be neither learned nor judged.
        missing = ((shares == 0) | (shares == 1))[total > 1].sum()
        error = float(np.abs(shares - val).mean() + missing)
        if best is None or error < best[0]:
            best = error, order[: count + 1]
    return sorted(index for part in best[1] for index in parts[part])


def _contents(part: Sequence[dict[str, Any]], classes: int) -> np.ndarray:
    """Numbers of images, of objects of each class and of images with each class."""
    figures = np.zeros(1 + 2 * classes)
    figures[0] = len(part)
    for record in part:
        counts = np.bincount([each["category_id"] for each in record["annotations"]], minlength=classes)
        figures[1 : 1 + classes] += counts
        figures[1 + classes :] += counts > 0
    return figures
