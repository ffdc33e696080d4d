"""One folder with annotations of several formats: what one tool wrote and what was converted from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats.annotated import Annotated


def choose_reading(path: Path, names: Sequence[str], read: Callable[[str], Annotated]) -> Annotated:
    """What the formats of a folder say, where one of them annotates all images that the others do.

    Of several that do, those with splits come first, then those with most objects.

    Args:
        path: folder or file, for messages.
        names: of the formats.
        read: reads the folder as one of them, or raises a DataError.

    Raises:
        DataError: none can be read, or they annotate different images.
    """
    if len(names) == 1:
        return read(names[0])
    readings: dict[str, Annotated] = {}
    errors: list[str] = []
    for name in names:
        try:
            readings[name] = read(name)
        except DataError as error:
            errors.append(f"{name}: {error}")
    if not readings:
        raise DataError(
            f"{path} holds annotations of several formats, none of which can be used:\n  " + "\n  ".join(errors)
        )
    images = {name: _images(data) for name, data in readings.items()}

    def rank(name: str) -> tuple[int, ...]:
        data, found = readings[name], len(images[name])
        return found, 0 if found else len(data.missing), len(data.splits), _count(data)

    best = max(readings, key=rank)
    shown = "; ".join(
        f"{name}: {len(images[name])} images with {_count(data)} objects" for name, data in readings.items()
    )
    if any(others - images[best] for others in images.values()):
        raise DataError(
            f"{path} holds annotations of several formats, of different images ({shown}). Name one with --format, or "
            "keep them in folders of their own."
        )
    if len(readings) > 1:
        readings[best].notes.insert(0, f"annotations of several formats are there ({shown}): {best} was taken.")
    readings[best].notes += [f"what was not taken, {error}" for error in errors]
    return readings[best]


def _images(data: Annotated) -> set[str]:
    """Names of the images with objects, without folders and extensions, which copies do not share."""
    return {Path(each["file_name"]).stem for records in data.splits.values() for each in records if each["annotations"]}


def _count(data: Annotated) -> int:
    return sum(len(each["annotations"]) for records in data.splits.values() for each in records)
