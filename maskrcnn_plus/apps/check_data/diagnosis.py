"""What a data set holds and what is wrong with it: read, checked, measured, compared.

Shape shorthand: I images of all splits.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_plus.apps.check_data.advice import give_advice
from maskrcnn_plus.apps.check_data.suspicious import Repeated, Suspicion, find_repeated, find_suspicious
from maskrcnn_plus.data.check import DataError, apply_findings, find_unusable
from maskrcnn_plus.data.check_cache import fingerprint, get_cached
from maskrcnn_plus.data.coco import class_key
from maskrcnn_plus.data.findings import annotation_name, find_problems
from maskrcnn_plus.data.formats import Annotated, ReadOptions, read
from maskrcnn_plus.data.formats.files import WHOLE
from maskrcnn_plus.data.groups import MAX_COMPARED
from maskrcnn_plus.data.image_facts import ImageFacts, read_facts
from maskrcnn_plus.data.near_duplicates import join_pairs, signatures, similar_pairs
from maskrcnn_plus.data.split import train_and_val
from maskrcnn_plus.data.statistics import Statistics, measure_splits, summarize

_REMEDY = "Correct them where they were made; --fix leaves them out."
_ORDER = [WHOLE, "train", "val", "test"]

PROBLEM, WARNING, NOTE = "problem", "warning", "note"
"""What stops a training; what is worth a look; what was assumed."""

HEADINGS = {PROBLEM: "Problems, which stop a training", WARNING: "Worth a look", NOTE: "Assumed and noticed"}


@dataclass(frozen=True)
class Finding:
    """What is wrong, or was assumed, several times.

    Attributes:
        severity: `PROBLEM`, `WARNING` or `NOTE`.
        kind: what all have in common.
        lines: each with file and annotation.
        remedy: what to do about them, where the lines do not say it.
    """

    severity: str
    kind: str
    lines: list[str]
    remedy: str = ""


@dataclass
class Diagnosis:
    """What is known of a data set.

    Attributes:
        path: the folder.
        format: name of its format.
        class_names: of all categories.
        splits: dataset dicts without what cannot be used, by split.
        statistics: of each split, and under "" of all together.
        findings: by severity, then by number of lines.
        suspicious: annotations that are worth a look, the strongest first; images are numbered over all splits.
        repeated: pairs of annotations with one mask; images are numbered over all splits.
        shared: (image to learn from, image to evaluate on) that show nearly the same, as indices over all splits.
        advice: whether the data suffice, in sentences.
    """

    path: Path
    format: str
    class_names: list[str]
    splits: dict[str, list[dict[str, Any]]]
    statistics: dict[str, Statistics]
    findings: list[Finding] = field(default_factory=list)
    suspicious: list[Suspicion] = field(default_factory=list)
    repeated: list[Repeated] = field(default_factory=list)
    shared: list[tuple[int, int]] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    @property
    def records(self) -> list[dict[str, Any]]:
        """The dataset dicts of all splits, in their order."""
        return [record for records in self.splits.values() for record in records]

    def name(self, record: dict[str, Any]) -> str:
        """File of a dataset dict, from the folder on."""
        file = Path(record["file_name"])
        return str(file.relative_to(self.path)) if file.is_relative_to(self.path) else str(file)

    @property
    def num_problems(self) -> int:
        """Lines that stop a training."""
        return sum(len(each.lines) for each in self.findings if each.severity == PROBLEM)


def diagnose(
    path: Path,
    name: str | None = None,
    val: Path | None = None,
    options: ReadOptions | None = None,
    progress: Callable[[int], Callable[[], object]] | None = None,
) -> Diagnosis:
    """Look through a folder of annotations.

    Pixels are read once: what they tell is remembered until a file changes.

    Args:
        path: folder or annotation file.
        name: its format; None finds it.
        val: a second folder, of images for validation.
        options: how the annotations are read.
        progress: called with the number of images before they are read, gives what is called after each.

    Raises:
        DataError: the annotations cannot be read at all, or `val` comes beside a split for validation.
    """
    data = read(path, name, options)
    if val is not None:
        _add_validation(data, read(val, name, options), path)
    findings = _group(PROBLEM, data.problems, _REMEDY) + [Finding(NOTE, note, []) for note in data.notes]
    splits = {}
    for split in sorted(data.splits, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER)):
        records = data.splits[split]
        splits[split], found = _check(records, len(data.class_names))
        findings += found
    records = [record for records in splits.values() for record in records]
    facts = read_facts(records, progress=None if progress is None else progress(len(records)))
    findings += _group(PROBLEM, [each for each in facts if isinstance(each, str)], _REMEDY)
    readable = (isinstance(each, ImageFacts) for each in facts)  # of the splits in turn
    splits = {split: list(itertools.compress(members, readable)) for split, members in splits.items()}
    splits = {split: members for split, members in splits.items() if members}
    facts = [each for each in facts if isinstance(each, ImageFacts)]
    diagnosis = Diagnosis(path, data.format, data.class_names, splits, {})
    _measure(diagnosis, facts)
    _judge_annotations(diagnosis)
    findings += _describe_repeated(diagnosis)
    findings += _compare_images(diagnosis, facts)
    findings += _describe_splits(diagnosis)
    order = list(HEADINGS)
    diagnosis.findings = sorted(findings, key=lambda each: (order.index(each.severity), -len(each.lines)))
    train, val_statistics = _learned_from(diagnosis)
    if train is not None:
        diagnosis.advice = give_advice(train, val_statistics)
    return diagnosis


def _add_validation(data: Annotated, val: Annotated, path: Path) -> None:
    """Add the images of a second folder as the split for validation, with classes matched by name."""
    if "val" in data.splits:
        raise DataError(f"{path} has a split for validation itself. Leave out --val.")
    if WHOLE in data.splits:
        data.splits["train"] = data.splits.pop(WHOLE)
    known = {class_key(name): name for name in data.class_names}
    indices = [data.category(known.get(class_key(name), name)) for name in val.class_names]
    for record in (record for records in val.splits.values() for record in records):
        for each in record["annotations"]:
            each["category_id"] = indices[each["category_id"]]
        data.splits["val"].append(record)
    data.problems += val.problems
    data.notes += [note for note in val.notes if note not in data.notes]


def _check(records: list[dict[str, Any]], num_classes: int) -> tuple[list[dict[str, Any]], list[Finding]]:
    """The dicts of a split without what cannot be used, and what the data check says."""
    files = [record[key] for record in records for key in ("file_name", "label_file_name") if record.get(key)]
    key = fingerprint([records, num_classes, "doctor"], files)
    found = get_cached(key, lambda: find_problems(records, num_classes))
    findings = _group(PROBLEM, found["problems"], _REMEDY)
    findings += [Finding(WARNING, cause, []) for cause in found["causes"]]
    findings += [
        Finding(NOTE, f"{note}", names, "A training understands it; --fix writes it in the usual form.")
        for note, names in found["notes"].items()
    ]
    lost = [records[index]["file_name"] for index in find_unusable(records, found)]
    if lost:
        findings.append(Finding(PROBLEM, "An image with no annotation that can be used", lost, _REMEDY))
    return apply_findings(records, found, "skip", report=False), findings


def _group(severity: str, lines: Iterable[str], remedy: str = "") -> list[Finding]:
    """Lines "FILE, annotation 3: what is wrong." by what is wrong, whatever the numbers and names in it."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        line = re.sub(r"^image \d+: ", "", line)
        kinds[_kind(line)].append(line)
    return [Finding(severity, kind, members, remedy) for kind, members in kinds.items()]


def _kind(line: str) -> str:
    """The first sentence of what is wrong, without numbers and names."""
    head, _, tail = line.partition(": ")
    text = tail if tail and head.count("(") == head.count(")") else line  # not the colon of a list of examples
    text = re.sub(r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|\([^()]*(?:\([^()]*\)[^()]*)*\)|\S*[/\\]\S*", "…", text)
    text = re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?", "N", re.split(r"\. |\.$", text)[0])
    return text[:1].upper() + text[1:120]


def _measure(diagnosis: Diagnosis, facts: Sequence[ImageFacts]) -> None:
    """Add the figures of each split and of all together."""
    found, rest = measure_splits(diagnosis.splits, diagnosis.class_names), iter(facts)
    parts = {split: list(itertools.islice(rest, len(members))) for split, members in diagnosis.splits.items()}
    for split, part in {**parts, "": facts}.items():
        diagnosis.statistics[split] = replace(found[split], pixels=summarize(part))


def _judge_annotations(diagnosis: Diagnosis) -> None:
    """Add what is repeated and what is unusual, which is remembered: masks of label images are looked at for it."""
    records = diagnosis.records
    files = [record["label_file_name"] for record in records if "label_file_name" in record]

    def find() -> dict[str, Any]:
        repeated = find_repeated(records)
        suspicious = find_suspicious(records, diagnosis.statistics[""], repeated)
        return {"repeated": [asdict(each) for each in repeated], "suspicious": [asdict(each) for each in suspicious]}

    found = get_cached(fingerprint([records, "judged"], files), find)
    diagnosis.repeated = [Repeated(**each) for each in found["repeated"]]
    diagnosis.suspicious = [Suspicion(**{**each, "reasons": tuple(each["reasons"])}) for each in found["suspicious"]]


def _learned_from(diagnosis: Diagnosis) -> tuple[Statistics | None, Statistics | None]:
    """Figures of the images to learn from and of those to evaluate on."""
    of = diagnosis.statistics
    train = of.get("train") or of.get(WHOLE) or next((of[split] for split in of if split), None)
    return train, of.get("val") or (of.get("test") if "train" in of else None)


def _describe_splits(diagnosis: Diagnosis) -> list[Finding]:
    """Whether something is left to learn from, and what a training makes of the splits."""
    total = diagnosis.statistics[""]
    if total.num_images == 0:
        return [Finding(PROBLEM, "No usable image is left.", [str(diagnosis.path)])]
    try:
        notes = train_and_val(diagnosis.splits, val=0)[1]
    except DataError as error:
        return [Finding(PROBLEM, "Splits that a training does not understand", [f"{diagnosis.path}: {error}"])]
    if total.num_objects == 0:
        text = f"{diagnosis.path}: {total.num_images} images without an object."
        return [Finding(PROBLEM, "No object is left to learn from.", [text], "Are the annotations where they belong?")]
    return [Finding(NOTE, note, []) for note in notes]


def _describe_repeated(diagnosis: Diagnosis) -> list[Finding]:
    """Annotations with the same mask, of one class and of several."""
    kinds = {True: [], False: []}
    for each in diagnosis.repeated:
        record = diagnosis.records[each.image]
        first, second = (annotation_name(k, record["annotations"][k]) for k in (each.first, each.second))
        kinds[each.same_class].append(f"{record['file_name']}, {second}: the same as {first} (IoU {each.iou:.2f}).")
    texts = {
        True: ("An object annotated twice", "Remove one of them; --fix keeps the first."),
        False: ("The same pixels as objects of two classes", "Remove the wrong one, if they are one object."),
    }
    return [Finding(WARNING, texts[same][0], lines, texts[same][1]) for same, lines in kinds.items() if lines]


def _compare_images(diagnosis: Diagnosis, facts: Sequence[ImageFacts]) -> list[Finding]:
    """Images that show nearly the same, in two splits and within one."""
    records = diagnosis.records
    if len(records) > MAX_COMPARED:
        return [Finding(NOTE, f"{len(records)} images are too many to be compared with each other.", [])]
    pairs, values = similar_pairs(signatures(facts))
    split_of = [split for split, members in diagnosis.splits.items() for _ in members]
    across, within = defaultdict(list), []
    for (a, b), value in zip(pairs.tolist(), values.tolist(), strict=True):
        if split_of[a] == split_of[b]:
            within.append((a, b))
            continue
        if "train" in (split_of[a], split_of[b]):
            diagnosis.shared.append((a, b) if split_of[a] == "train" else (b, a))
        line = f"{diagnosis.name(records[a])} and {diagnosis.name(records[b])} (likeness {value:.2f})"
        across[split_of[a], split_of[b]].append(line)
    findings = [
        Finding(
            WARNING,
            f"Images of {first} and {second} that show nearly the same: figures will be too good",
            lines,
            "Keep all images of one scene, sample or patient in one split; --fix takes them from train.",
        )
        for (first, second), lines in across.items()
    ]
    if within:
        sizes = np.bincount(join_pairs(np.array(within), len(records)))
        remedy = f"{int(sizes[sizes > 1].sum())} images in {int((sizes > 1).sum())} groups, which count like fewer."
        examples = [f"{diagnosis.name(records[a])} and {diagnosis.name(records[b])}" for a, b in within]
        findings.append(Finding(NOTE, "Images of one split that show nearly the same", examples, remedy))
    return findings
