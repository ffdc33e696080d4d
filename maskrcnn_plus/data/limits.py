"""How much of an image may be decoded at once: a header can claim what no file holds and no memory takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from maskrcnn_plus.data.read_error import ImageReadError

MAX_PIXELS = 2**30
"""Pixels that are decoded at once unless `pixel_limit` says otherwise; what is read by windows may be larger."""

DENSEST = 2000
"""Bytes that one byte of a file may become. Deflate reaches 1032 and JPEG about 1400, both on blank images."""

_SMALL = 2**26  # bytes that are taken without asking how many are free

_limit: ContextVar[int] = ContextVar("max_pixels", default=MAX_PIXELS)
_by_parts: ContextVar[bool] = ContextVar("by_parts", default=False)


@contextmanager
def pixel_limit(max_pixels: int | None) -> Iterator[None]:
    """Let images of up to `max_pixels` be decoded at once within this context; None changes nothing.

    Raises:
        ValueError: less than one pixel.
    """
    if max_pixels is not None and max_pixels < 1:
        raise ValueError(f"max_pixels is {max_pixels}, it must be at least 1.")
    token = _limit.set(_limit.get() if max_pixels is None else max_pixels)
    try:
        yield
    finally:
        _limit.reset(token)


@contextmanager
def reading_by_parts() -> Iterator[None]:
    """Within it images that can be entered in the middle are read by windows: `is_read_by_parts`."""
    token = _by_parts.set(True)
    try:
        yield
    finally:
        _by_parts.reset(token)


def is_read_by_parts() -> bool:
    """Whether TIFFs may be larger than what is decoded at once."""
    return _by_parts.get()


def check_size(name: str, height: int, width: int, pixel_bytes: float) -> None:
    """Refuse an image that is too large to be decoded at once, before memory is taken for it.

    Args:
        name: of the image in errors.
        height, width: of what is decoded at once, pixels.
        pixel_bytes: memory that a pixel takes.

    Raises:
        ImageReadError: more pixels than `pixel_limit` allows, or more memory than is free.
    """
    remedy = (
        "Save it as a tiled TIFF, which prediction reads by parts and tools/convert.py --tile cuts with its "
        "annotations, or in smaller pieces"
    )
    if height * width > _limit.get():
        raise ImageReadError(
            f"{name}: {width} x {height} pixels are more than the {_limit.get()} that are decoded at once. {remedy}; "
            "if you trust the file, raise the limit (--max-pixels of tools/predict.py)."
        )
    needed = height * width * pixel_bytes
    free = available_memory() if needed > _SMALL else None
    if free is not None and needed > free:
        raise ImageReadError(
            f"{name}: {width} x {height} pixels take {needed / 1e9:.1f} GB of memory to decode, and "
            f"{free / 1e9:.1f} GB are free. {remedy}."
        )


def check_density(name: str, height: int, width: int, least_bits: int, file_bytes: int) -> None:
    """Refuse a header that claims more pixels than its file can hold.

    Args:
        name: of the image in errors.
        height, width: that the header claims, pixels.
        least_bits: of a pixel before compression.
        file_bytes: size of the file.

    Raises:
        ImageReadError: the file is far too small.
    """
    if height * width * least_bits > 8 * DENSEST * file_bytes:
        raise ImageReadError(
            f"{name}: the header says {width} x {height} pixels, more than the file of {file_bytes} bytes can hold. "
            "The file is truncated or damaged: copy it again or remove it."
        )


def available_memory() -> int | None:
    """Bytes that this process can still take, by Linux and by the control group of a container; None elsewhere."""
    free = []
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free.append(int(line.split()[1]) * 1024)
    for folder, limit, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        numbers = [line for file in (limit, used) for line in _lines(f"{folder}/{file}")]
        if len(numbers) == 2 and all(map(str.isdigit, numbers)):
            statistics = (line.split() for line in _lines(f"{folder}/memory.stat"))
            cached = sum(int(value) for key, value in statistics if key == "inactive_file")
            free.append(int(numbers[0]) - int(numbers[1]) + cached)
    return min(free, default=None)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
