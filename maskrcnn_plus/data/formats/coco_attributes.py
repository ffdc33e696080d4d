"""COCO files in which the categories of an object are values of several attributes, and objects that are listed twice.

VIA writes the values of every attribute as categories, with the attribute as their supercategory, and an object once an
attribute. CVAT writes `attributes` of an annotation.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from maskrcnn_plus.data.formats.annotated import Annotated
from maskrcnn_plus.data.formats.attributes import choose_attribute
from maskrcnn_plus.data.formats.coco_ids import canonical_id

_MOST = 0.5  # of the annotations that are there once more in another supercategory


def select_attribute(content: dict[str, Any], wanted: str | None, where: str, data: Annotated) -> dict[str, Any]:
    """The content of a COCO file with the categories of one attribute, and no annotation twice.

    Args:
        content: of the file, with any entries in its lists.
        wanted: `ReadOptions.attribute`.
        where: the file in messages.
        data: what was chosen and left out is noted there.

    Raises:
        DataError: there is no such attribute.
    """
    if not isinstance(content.get("annotations") or [], list):
        return content
    annotations = [each for each in content.get("annotations") or [] if isinstance(each, dict)]
    if wanted is not None and any(wanted in _attributes(each) for each in annotations):
        return _by_values(content, annotations, wanted, where, data)
    groups, names = {}, {}
    for category in content["categories"]:
        if isinstance(category, dict):
            key = canonical_id(category.get("id"))
            groups[key], names[key] = str(category.get("supercategory") or ""), str(category.get("name"))
    kept, twins = _without_repeated(content, groups, where, data)
    values = [
        {groups[key]: names[key]} for each in annotations if (key := canonical_id(each.get("category_id"))) in groups
    ]
    used = {name for each in values for name in each}
    if wanted is None and (len(used) < 2 or twins <= _MOST * len(values)):
        return {**content, "annotations": kept}
    notes: list[str] = []
    chosen = choose_attribute(values, wanted, notes)
    data.notes += [f"{where}: {note}" for note in notes]
    selected = [each for each in kept if not isinstance(each, dict) or _group(each, groups) in (chosen, None)]
    dropped = len(kept) - len(selected)
    if dropped:
        data.notes.append(f"{where}: {dropped} annotations of attributes other than {chosen!r} were left out.")
    categories = [each for each in content["categories"] if groups.get(canonical_id(each.get("id"))) == chosen]
    return {**content, "annotations": selected, "categories": categories}


def _attributes(annotation: dict[str, Any]) -> dict[str, Any]:
    found = annotation.get("attributes")
    return found if isinstance(found, dict) else {}


def _group(annotation: dict[str, Any], groups: dict[Any, str]) -> str | None:
    return groups.get(canonical_id(annotation.get("category_id")))


def _by_values(
    content: dict[str, Any], annotations: list[dict[str, Any]], wanted: str, where: str, data: Annotated
) -> dict[str, Any]:
    """Categories from the values of `attributes[wanted]`."""
    ids: dict[str, int] = {}
    kept = []
    for each in annotations:
        value = str(_attributes(each).get(wanted, "")).strip()
        if value:
            kept.append({**each, "category_id": ids.setdefault(value, len(ids) + 1)})
        else:
            data.problems.append(
                f"{where}, annotation {each.get('id')!r}: it has no attribute {wanted!r}. Give it one."
            )
    return {**content, "annotations": kept, "categories": [{"id": key, "name": name} for name, key in ids.items()]}


def _without_repeated(
    content: dict[str, Any], groups: dict[Any, str], where: str, data: Annotated
) -> tuple[list[Any], int]:
    """Annotations without those that are there already, and how many have another supercategory but the same mask."""
    known: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    kept, repeated, twins = [], 0, set()
    for number, each in enumerate(content.get("annotations") or []):
        if isinstance(each, dict) and each.get("segmentation"):
            same = known[str(each.get("image_id")), str(each.get("bbox"))]
            equal = [other for other in same if other["mask"] == each["segmentation"]]
            if any(other["category"] == each.get("category_id") for other in equal):
                repeated += 1
                continue
            group = _group(each, groups)
            for other in equal:
                if other["group"] != group:
                    twins |= {number, other["number"]}
            category = each.get("category_id")
            same.append({"mask": each["segmentation"], "category": category, "group": group, "number": number})
        kept.append(each)
    if repeated:
        data.notes.append(f"{where}: {repeated} annotations are there twice, with the same mask, and were taken once.")
    return kept, len(twins)
