"""The data check: what is wrong with a data set, found before training instead of in the middle of it.

Works on Detectron2 dataset dicts, from label images (`label_file_name`, `label_id`) as from COCO (`segmentation`).
"""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import filter_images_with_only_crowd_annotations, print_instances_class_histogram
from detectron2.data.detection_utils import check_metadata_consistency
from detectron2.structures import BoxMode

from maskrcnn_plus.data.channels import ChannelRule
from maskrcnn_plus.data.check_cache import fingerprint, get_cached, on_main_process
from maskrcnn_plus.data.findings import find_problems
from maskrcnn_plus.errors import UserError, printable

__all__ = ["DataError", "check_dataset", "checked_dataset", "list_some", "report_problems"]

logger = logging.getLogger(__name__)

_MAX_LISTED = 20
_reported: set[tuple[str | None, str]] = set()


class DataError(UserError):
    """A data set that cannot be used; the message lists files, annotations and remedies."""


def check_dataset(
    dicts: Sequence[dict],
    *,
    on_error: str = "raise",
    num_classes: int | None = None,
    decode: bool = False,
    rule: ChannelRule | None = None,
) -> list[dict]:
    """Check every image and annotation, and collect all problems before reporting them.

    An image is bad when it or its label image is missing or unreadable, or when sizes differ. An annotation is bad when
    its box is empty, not finite or outside the image, its category is unknown, or its mask is missing, malformed or far
    outside the image. An image whose annotations are all bad is left out with them: it is not without objects. What is
    unusual and can be understood (`data/annotations.py`) is brought into the usual form, and said in one warning a
    kind. A box that does not fit its mask is replaced by that of the mask.

    Args:
        dicts: Detectron2 dataset dicts; they are not changed.
        on_error: "raise", or "skip" to drop bad annotations and bad images with one warning that lists them.
        num_classes: category ids must be in 0..num_classes-1; None accepts every id that is not negative.
        decode: decode the pixels too, instead of the headers only. Slow, but finds truncated files, NaN pixels and
            label ids that do not occur in the label image.
        rule: refuse stacks of images by it; None accepts them.

    Returns:
        The dicts without what was dropped, as new dicts where annotations were dropped or changed.

    Raises:
        DataError: on_error is "raise" and there are problems.
        ValueError: on_error is neither "raise" nor "skip".
    """
    report_problems([], on_error)  # refuses an unknown on_error before the work
    return apply_findings(dicts, find_problems(dicts, num_classes, decode, rule=rule), on_error)


def apply_findings(
    dicts: Sequence[dict], findings: dict[str, Any], on_error: str, *, report: bool = True
) -> list[dict]:
    """Report findings of `find_problems`, and return the dicts without what is bad.

    Args:
        dicts: what was looked at.
        findings: what was found.
        on_error: as for `check_dataset`.
        report: False to say nothing of what is left out or understood, as it has been said.

    Raises:
        DataError: on_error is "raise" and there are problems.
    """
    if report or on_error == "raise":
        report_problems(findings["problems"], on_error, findings["causes"])
    if report:
        _report_notes(findings)
    lost = find_unusable(dicts, findings)
    bad = {*findings["bad_images"], *lost}
    cleaned = []
    for index, record in enumerate(dicts):
        if index in bad:
            continue
        changes = findings["changes"].get(str(index))
        if changes:
            kept = []
            for number, annotation in enumerate(record["annotations"]):
                change = changes.get(str(number), {})
                if change is not None:
                    kept.append({**annotation, **change} if change else annotation)
                if change and "bbox_mode" in change:  # a number where it comes from JSON
                    kept[-1]["bbox_mode"] = BoxMode(change["bbox_mode"])
            record = {**record, "annotations": kept}
        cleaned.append(record)
    if report and lost:
        names = ", ".join(str(dicts[index].get("file_name")) for index in lost[:3])
        logger.warning(f"Images with no annotation that can be used, left out ({len(lost)}): {names}.")
    return cleaned


def find_unusable(dicts: Sequence[dict], findings: dict[str, Any]) -> list[int]:
    """Indices of the images of which every annotation is bad: they are left out, as they are not without objects."""
    changes = {int(index): [*of_image.values()] for index, of_image in findings["changes"].items()}
    lost = (index for index, each in changes.items() if each.count(None) == len(dicts[index]["annotations"]))
    return sorted({*lost} - {*findings["bad_images"]})


def _report_notes(findings: dict[str, Any]) -> None:
    """Log what was understood, a warning a kind, and what all annotations have in common."""
    for kind, names in findings["notes"].items():
        others = f", and of {len(names) - 1} more" if len(names) > 1 else ""
        logger.warning(f"Unusual annotations, which are understood: {kind}. So of {names[0]}{others}.")
    if not findings["problems"]:
        for cause in findings["causes"]:
            logger.warning(f"The data look unusual: {cause}")


def checked_dataset(
    names: str | Sequence[str],
    *,
    filter_empty: bool = True,
    negatives: bool = False,
    balance: float = 0.0,
    on_error: str = "raise",
    decode: bool = False,
    select: Sequence[int | str] | None = None,
    projection: str | None = None,
) -> list[dict]:
    """Load registered data sets like Detectron2's `get_detection_dataset_dicts`, and check them before anything else.

    What the check finds is remembered until a file changes. In a job of several processes all of them must call it.

    Args:
        names: name or names in Detectron2's DatasetCatalog; several data sets must have the same classes.
        filter_empty: for training: drop images without annotations, and those whose annotations are all crowds.
        negatives: keep those without annotations nevertheless, to learn from them what is no object.
        balance: repeat images with classes that are in less than this part of the images, see `repeat_rare`.
        on_error, decode: as for `check_dataset`. The number of classes comes from the metadata of the first name.
        select, projection: `dataset.channels` and `dataset.projection`, see `ChannelRule`, by which stacks are
            refused for training.

    Returns:
        list of dataset dicts.

    Raises:
        DataError: problems were found (on_error="raise"), or no image is left.
        KeyError: a name is not registered.
    """
    # An evaluator checks the same images without knowing of them; its loader refuses stacks as it reads them.
    rule = ChannelRule(None, select, projection) if filter_empty else None
    dicts = checked_dicts(names, on_error=on_error, decode=decode, rule=rule)
    names = [names] if isinstance(names, str) else list(names)
    if dicts and all("annotations" in record for record in dicts):
        if filter_empty:
            kept = filter_images_with_only_crowd_annotations([record for record in dicts if record["annotations"]])
            dicts = kept + [record for record in dicts if negatives and not record["annotations"]]
            dicts = repeat_rare(dicts, balance)
        thing_classes = MetadataCatalog.get(names[0]).get("thing_classes")
        if thing_classes is not None:
            print_instances_class_histogram(dicts, thing_classes)
    if not dicts:
        raise DataError(f"No usable image is left in {', '.join(names)}. Each needs at least one annotated object.")
    return dicts


def repeat_rare(records: Sequence[dict[str, Any]], threshold: float) -> list[dict[str, Any]]:
    """Repeat images by their rarest class.

    An image is taken max(1, sqrt(threshold / f)) times, where f is the part of the images that have its rarest class.
    Source: Gupta et al., "LVIS" (2019), Sec. 3.3. Numbers are rounded up or down by chance, once, by a fixed seed.

    Args:
        records: dataset dicts with `annotations`.
        threshold: in 0..1; 0 repeats nothing.

    Returns:
        The dicts, with repeated ones in turn.
    """
    classes = [{each["category_id"] for each in record["annotations"]} for record in records]
    images = Counter(index for found in classes for index in found)
    factors = {index: max(1.0, (threshold * len(records) / count) ** 0.5) for index, count in images.items()}
    draws = np.random.default_rng(0).random(len(records))
    repeats = [
        int(max((factors[index] for index in found), default=1.0) + draw)
        for found, draw in zip(classes, draws, strict=True)
    ]
    return [record for record, count in zip(records, repeats, strict=True) for _ in range(count)]


def checked_dicts(
    names: str | Sequence[str], *, on_error: str = "raise", decode: bool = False, rule: ChannelRule | None = None
) -> list[dict]:
    """Load registered data sets and check them, as `checked_dataset` does, and leave images without annotations in.

    The main process alone looks at the files, and only at those that it does not know (`data/check_cache.py`). In a job
    of several processes all of them must call it.

    Args, Raises: as for `checked_dataset`; `rule` as for `check_dataset`.

    Returns:
        list of dataset dicts, empty where no image is good.
    """
    report_problems([], on_error)  # refuses an unknown on_error before the work
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise DataError("No data set is named. Set dataset.names to one or more registered data sets.")
    loaded = []

    def find() -> tuple[str | None, str | None, dict[str, Any]]:
        dicts, num_classes = _load(names)
        loaded.append(dicts)
        content = fingerprint(dicts, ())
        files = [record[key] for record in dicts for key in ("file_name", "label_file_name") if record.get(key)]
        key = None if content is None else fingerprint([content, num_classes, decode, str(rule)], files)
        return content, key, get_cached(key, lambda: find_problems(dicts, num_classes, decode, rule=rule))

    content, key, findings = on_main_process(find)
    dicts = loaded[0] if loaded else _load(names)[0]
    if not loaded and content is not None and fingerprint(dicts, ()) != content:
        raise DataError(
            f"{', '.join(names)}: this process reads other annotations than the main process. Give all machines the "
            "same files under the same paths."
        )
    report = key is None or (key, on_error) not in _reported
    _reported.add((key, on_error))
    return apply_findings(dicts, findings, on_error, report=report)


def _load(names: Sequence[str]) -> tuple[list[dict], int | None]:
    """Load registered data sets, and return their dicts and number of classes, None where that is not known."""
    dicts = []
    for name in names:
        loaded = DatasetCatalog.get(name)
        if not loaded:
            raise DataError(f"Data set '{name}' has no images. Check its folder and its split.")
        dicts.extend(loaded)
    thing_classes = MetadataCatalog.get(names[0]).get("thing_classes")
    if thing_classes is not None:
        check_metadata_consistency("thing_classes", names)
    return dicts, None if thing_classes is None else len(thing_classes)


def report_problems(problems: Sequence[str], on_error: str, causes: Sequence[str] = ()) -> None:
    """Raise a DataError that lists the problems, or log them as one warning.

    Args:
        problems: one line a problem; an empty list is fine.
        on_error: "raise" or "skip".
        causes: what the problems have in common, a sentence each.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r}: use 'raise' or 'skip'.")
    if not problems:
        return
    lines = [f"  Likely cause: {cause}" for cause in causes] + list_some(problems, "  - ")
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the data"
    if on_error == "raise":
        remedy = "repair them, or leave them out: --on-error skip, or dataset.on_error=skip in a config"
        raise DataError("\n".join([f"{count} ({remedy}):", *lines]))
    logger.warning("\n".join([f"{count}, left out:", *lines]))


def list_some(lines: Sequence[str], start: str) -> list[str]:
    """The first lines of many, each behind `start`, and how many more there are."""
    more = len(lines) - _MAX_LISTED
    shown = [f"{start}{printable(line)}" for line in lines[:_MAX_LISTED]]
    return shown + [f"  ... and {more} more"] * (more > 0)
