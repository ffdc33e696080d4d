"""Input files for prediction: folders and patterns expanded, and a name for the results of each file."""

from __future__ import annotations

import glob
import hashlib
import itertools
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from maskrcnn_plus.data.frames import VIDEO_SUFFIXES
from maskrcnn_plus.data.images import IMAGE_SUFFIXES, MICROSCOPE_REMEDY, MICROSCOPE_SUFFIXES
from maskrcnn_plus.data.slide_files import SLIDE_SUFFIXES

logger = logging.getLogger(__name__)

FOLDER_SUFFIXES = (*IMAGE_SUFFIXES, *SLIDE_SUFFIXES, *VIDEO_SUFFIXES)
"""What is taken of an input folder; a file that is named by itself is tried whatever its name. A link to nothing and
whatever else has such a name and cannot be read is taken too, so that it is named as a failure."""

_TIFF_SUFFIXES = (".tif", ".tiff")
_PART = re.compile(r"(_p\d{4,}|/frame_\d{6,})$")  # how results of pages and frames end
_LONGEST_NAME = 200  # bytes: file systems take 255, and results add to it


@dataclass(frozen=True)
class InputFile:
    """A file to predict.

    Attributes:
        path: as it was found; may be an address of Detectron2's path manager ("scheme://...").
        name: of its results, without suffix, "/" between sub-folders; no two files of a run have the same.
        position: among the files of the run, from 0.
    """

    path: str
    name: str
    position: int = field(default=0, compare=False)


def list_inputs(
    entries: Sequence[str] | str, recursive: bool = False, leave_out: Sequence[str] = ()
) -> list[InputFile]:
    """Image and video files of all entries without repetition, in natural order (2 before 10) within each entry.

    A file gets the name that it has below its input folder, without suffix. Where two would get the same, that of the
    later one has its suffix (same folder), its parent folders or a number added.

    Args:
        entries: one or several: files, folders, glob patterns, addresses with "://", which stay as they are, and
            "@LIST", a text file with such an entry a line. A line that gives no file stays as it is, so that it is
            named as a failure instead of stopping a long run.
        recursive: take the files in sub-folders of folders too.
        leave_out: folders whose files are not taken from input folders.

    Raises:
        ValueError: an entry that gives no file, or a list that is missing or empty.
    """
    entries = [entries] if isinstance(entries, (str, os.PathLike)) else entries
    found: dict[str, tuple[str, str]] = {}  # absolute path -> path, folder that its name begins below
    for entry, listed in expand_lists(map(os.fspath, entries)):
        for path, root in find_files(entry, recursive, leave_out, keep_missing=listed):
            found.setdefault(path if "://" in path else os.path.abspath(path), (path, root))
    return name_files(found.values())


def find_files(
    entry: str, recursive: bool = False, leave_out: Sequence[str] = (), keep_missing: bool = False
) -> list[tuple[str, str]]:
    """Files of an entry, each with the folder that its name begins below; arguments as of `list_inputs`.

    Raises:
        ValueError: it gives no file, unless `keep_missing` takes it as one.
    """
    skipped = tuple(os.path.join(os.path.abspath(folder), "") for folder in leave_out)
    root = ""
    if os.path.isdir(entry):
        root = entry
        pattern = os.path.join(glob.escape(entry), "**" if recursive else "", "*")
        found_paths = [path for path in glob.glob(pattern, recursive=recursive) if not os.path.isdir(path)]
        found_paths = [path for path in found_paths if not os.path.abspath(path).startswith(skipped)]
        paths = [path for path in found_paths if path.lower().endswith(FOLDER_SUFFIXES)]
        left_out = Counter(os.path.splitext(path)[1] or "without suffix" for path in set(found_paths) - set(paths))
        if left_out:
            kinds = ", ".join(f"{suffix} ({count})" for suffix, count in sorted(left_out.items()))
            foreign = any(suffix.lower() in MICROSCOPE_SUFFIXES for suffix in left_out)
            remedy = f". {MICROSCOPE_REMEDY}" if foreign else ""
            logger.warning("input %s: left out, as their names are not of images or videos: %s%s", entry, kinds, remedy)
        problem = f"no image or video ({' '.join(FOLDER_SUFFIXES)}) in the folder"
        problem += "" if recursive else "; --recursive looks into its sub-folders"
    elif "://" in entry or os.path.exists(entry):
        paths, problem = [entry], ""
    else:
        paths = [path for path in glob.glob(entry, recursive=True) if not os.path.isdir(path)]
        problem = "no such file or folder, and no file matches it as a pattern"
    if not paths and keep_missing:
        paths = [entry]
    if not paths:
        raise ValueError(f"input {entry}: {problem}")
    return [(path, root) for path in sorted(paths, key=natural_key)]


def name_files(found: Iterable[tuple[str, str]]) -> list[InputFile]:
    """Files with names for their results, of paths and the folders that names begin below."""
    names = _Names()
    return [InputFile(path, names.reserve(path, root), k) for k, (path, root) in enumerate(found)]


def expand_lists(entries: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """The entries, and the lines of lists among them with True.

    Raises:
        ValueError: a list that is missing or empty.
    """
    for entry in entries:
        if not entry.startswith("@") or os.path.lexists(entry):
            yield entry, False
            continue
        try:
            lines = Path(entry[1:]).read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
        except OSError as error:
            raise ValueError(f"input {entry}: the list {entry[1:]} cannot be read: {error.strerror}") from error
        lines = [line.strip() for line in lines if line.strip()]
        if not lines:
            raise ValueError(f"input {entry}: the list {entry[1:]} is empty")
        yield from ((line, True) for line in lines)


def natural_key(path: str) -> list[tuple[bool, int, str]]:
    """Sort key: 2 before 10."""
    parts = re.split(r"([0-9]+)", path)
    return [(k % 2 == 0, int(part) if k % 2 else 0, part) for k, part in enumerate(parts)]


class _Names:
    """Names that are taken, compared without case for file systems that do not see it."""

    def __init__(self) -> None:
        self._files: dict[str, str] = {}  # name -> path of the file that has it
        self._like_parts: set[str] = set()  # names that end like a page or frame, without that end

    def reserve(self, path: str, root: str) -> str:
        """A name for the file at `path`, found in the input folder `root` ("" where it was named by itself)."""
        plain = path.split("://", 1)[-1]
        below = os.path.relpath(plain, root) if root else os.path.basename(plain)
        pure, below = (PurePosixPath(each.replace(os.sep, "/")) for each in (plain, below))
        folder, stem = _folder(path), _shortened(pure.stem)
        parents = [part for part in pure.parent.parts if part not in ("/", ".", "..")]
        # Of files whose names differ in the suffix only, and of files from different folders.
        with_suffix = [f"{stem}_{pure.suffix.lstrip('.')}"]
        with_parents = ["_".join([*parents[-depth:], stem]) for depth in range(1, len(parents) + 1)]
        with_parents = [name for name in with_parents if len(os.fsencode(name)) < _LONGEST_NAME]
        taken_by = self._files.get(str(below.with_name(stem)).lower())
        same_folder = taken_by is not None and _folder(taken_by) == folder
        numbered = (f"{stem}_{k}" for k in itertools.count(2))
        candidates = itertools.chain([stem], with_suffix if same_folder else with_parents, numbered)
        for candidate in candidates:
            name = str(below.with_name(candidate))
            if self._free(name.lower(), path):
                break
        self._files[name.lower()] = path
        if _PART.search(name.lower()):
            self._like_parts.add(_PART.sub("", name.lower()))
        return name

    def _free(self, name: str, path: str) -> bool:
        whole = _PART.sub("", name)
        # Files are opened only where it matters: there may be millions.
        clash = whole != name and whole in self._files and _is_stack(self._files[whole])
        clash = clash or (name in self._like_parts and _is_stack(path))
        return name not in self._files and not clash


def _folder(path: str) -> str:
    """The folder of a file or an address."""
    return str(PurePosixPath(path.split("://", 1)[-1].replace(os.sep, "/")).parent)


def _is_stack(path: str) -> bool:
    """Whether a file may have pages or frames."""
    return path.lower().endswith((*_TIFF_SUFFIXES, *VIDEO_SUFFIXES, ".gif", ".webp")) or _is_animated_png(path)


def _is_animated_png(path: str) -> bool:
    """Whether a file is an animated PNG, by its chunks before the pixels."""
    if not path.lower().endswith((".png", ".apng")) or not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            file.seek(8)
            while len(chunk := file.read(8)) == 8 and chunk[4:] != b"IDAT":
                if chunk[4:] == b"acTL":
                    return True
                file.seek(int.from_bytes(chunk[:4], "big") + 4, os.SEEK_CUR)
    except OSError:  # it is named when it is read
        pass
    return False


def _shortened(stem: str) -> str:
    """A stem of at most `_LONGEST_NAME` bytes: a longer one is cut and gets a few letters of its hash."""
    encoded = os.fsencode(stem)
    if len(encoded) <= _LONGEST_NAME:
        return stem
    kept = encoded[: _LONGEST_NAME - 12].decode("utf-8", errors="ignore")
    return f"{kept}_{hashlib.sha256(encoded).hexdigest()[:10]}"
