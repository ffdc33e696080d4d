"""Which of several attributes of an object names its class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats.folders import suggest

_MANY = 20
"""Values of an attribute that may be a list of classes, however few objects there are."""


def choose_attribute(objects: Sequence[Mapping[str, str]], wanted: str | None, notes: list[str]) -> str | None:
    """The attribute that names the classes: of those that are no free text, the one that most objects have.

    Args:
        objects: filled attributes of each object, values by name.
        wanted: `ReadOptions.attribute`.
        notes: what was chosen is added here where there was a choice.

    Returns:
        The name; None where no object has an attribute.

    Raises:
        DataError: no object has the wanted one.
    """
    values: dict[str, list[str]] = {}
    for each in objects:
        for name, value in each.items():
            values.setdefault(name, []).append(value)
    if wanted is not None:
        if wanted not in values:
            known = ", ".join(values) or "none"
            raise DataError(f"No object has the attribute {wanted!r}.{suggest(wanted, values)} There are: {known}.")
        return wanted
    if not values:
        return None
    listed = [name for name, found in values.items() if not _is_free_text(found)] or list(values)
    chosen = max(listed, key=lambda name: len(values[name]))
    if len(values) > 1:
        counts = ", ".join(f"{name} ({len(found)} objects, {len(set(found))} values)" for name, found in values.items())
        notes.append(f"objects have the attributes {counts}: {chosen!r} names the class; --attribute chooses another.")
    return chosen


def _is_free_text(values: Sequence[str]) -> bool:
    return len(set(values)) > max(_MANY, len(values) / 2)
