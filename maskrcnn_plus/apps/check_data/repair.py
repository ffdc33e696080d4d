"""A clean COCO data set of what a diagnosis found usable."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from maskrcnn_plus.apps.check_data.diagnosis import NOTE, PROBLEM, Diagnosis
from maskrcnn_plus.apps.convert import refuse_full_folder, write_data_set
from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.findings import annotation_name
from maskrcnn_plus.data.formats.files import WHOLE


def refuse_output(path: Path, output: Path) -> None:
    """Refuse a folder that has files, or that lies in the data set.

    Raises:
        DataError: it is such a folder.
    """
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    if output.resolve().is_relative_to(folder):
        raise DataError(f"--fix {output} lies in {folder}, which stays as it is. Give a folder outside of it.")
    refuse_full_folder(output)


def write_repaired(diagnosis: Diagnosis, output: Path) -> list[str]:
    """Write a COCO data set without what cannot be used, and without what is there twice.

    What a person has to decide on stays as it is: unusual annotations, and objects of two classes with one mask. Of
    images to learn from those are left out that show nearly the same as one to evaluate on.

    Args:
        diagnosis: of a folder, which is not changed.
        output: a new folder.

    Returns:
        What was repaired and left out, a line each.

    Raises:
        DataError: no object is left, or `output` cannot be written.
    """
    if not diagnosis.statistics[""].num_objects:
        raise DataError(f"{diagnosis.path}: no object is left to write.")
    lines = []
    for each in diagnosis.findings:
        if each.severity == PROBLEM:
            lines += [f"left out: {line}" for line in each.lines]
        elif each.severity == NOTE and each.remedy:
            lines += [f"written in the usual form: {line}: {each.kind}" for line in each.lines]
    records = diagnosis.records
    repeated: dict[int, set[int]] = defaultdict(set)
    for each in diagnosis.repeated:
        # Of three that are one object, the first stays, whichever pairs were found.
        if each.same_class and each.first not in repeated[each.image]:
            repeated[each.image].add(each.second)
    shared = dict(diagnosis.shared)
    splits: dict[str, list[dict[str, Any]]] = {}
    start = 0
    for split, members in diagnosis.splits.items():
        kept = []
        for index, record in enumerate(members, start=start):
            if index in shared:
                other = records[shared[index]]["file_name"]
                lines.append(f"left out: {record['file_name']}: it shows nearly the same as {other}.")
                continue
            for number in sorted(repeated[index]):
                name = annotation_name(number, record["annotations"][number])
                lines.append(f"left out: {record['file_name']}, {name}: its object is annotated twice.")
            annotations = [each for k, each in enumerate(record["annotations"]) if k not in repeated[index]]
            kept.append({**record, "annotations": annotations})
        start += len(members)
        if kept:
            splits.setdefault("train" if split == WHOLE else split, []).extend(kept)
    lines += write_data_set(splits, diagnosis.class_names, output, "coco")
    return [*lines, f"written to {output}"]
