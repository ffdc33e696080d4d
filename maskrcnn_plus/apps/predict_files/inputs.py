"""Input files for prediction: folders and patterns expanded, and a name for the results of each file."""

from __future__ import annotations

import glob
import hashlib
import itertools
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from maskrcnn_plus.data.images import IMAGE_SUFFIXES
from maskrcnn_plus.data.slide_files import SLIDE_SUFFIXES

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
ANIMATION_SUFFIXES = (".gif", ".webp", ".png", ".apng")
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
    """

    path: str
    name: str


def list_inputs(
    entries: Sequence[str] | str, recursive: bool = False, leave_out: Sequence[str] = ()
) -> list[InputFile]:
    """Image and video files of all entries without repetition, in natural order (2 before 10) within each entry.

    A file gets the name that it has below its input folder, without suffix. Where two would get the same, that of the
    later one has its suffix (same folder), its parent folders or a number added.

    Args:
        entries: one or several: files, folders, glob patterns, and addresses with "://", which stay as they are.
        recursive: take the files in sub-folders of folders too.
        leave_out: folders whose files are not taken from input folders.

    Raises:
        ValueError: an entry that gives no file.
    """
    entries = [entries] if isinstance(entries, (str, os.PathLike)) else entries
    skipped = tuple(os.path.join(os.path.abspath(folder), "") for folder in leave_out)
    found: dict[str, tuple[str, str]] = {}  # absolute path -> path, folder that its name begins below
    for entry in map(os.fspath, entries):
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
                logger.warning("input %s: left out, as their names are not of images or videos: %s", entry, kinds)
            problem = f"no image or video ({' '.join(FOLDER_SUFFIXES)}) in the folder"
            problem += "" if recursive else "; --recursive looks into its sub-folders"
        elif "://" in entry or os.path.exists(entry):
            paths, problem = [entry], ""
        else:
            paths = [path for path in glob.glob(entry, recursive=True) if not os.path.isdir(path)]
            problem = "no such file or folder, and no file matches it as a pattern"
        if not paths:
            raise ValueError(f"input {entry}: {problem}")
        for path in sorted(paths, key=_natural):
            found.setdefault(path if "://" in path else os.path.abspath(path), (path, root))
    names = _Names()
    return [InputFile(path, names.reserve(path, root)) for path, root in found.values()]


def _natural(path: str) -> list[tuple[bool, int, str]]:
    parts = re.split(r"([0-9]+)", path)
    return [(k % 2 == 0, int(part) if k % 2 else 0, part) for k, part in enumerate(parts)]


class _Names:
    """Names that are taken, compared without case for file systems that do not see it."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}  # name -> folder of the file that has it
        self._of_stacks: set[str] = set()  # of files that may have pages or frames
        self._like_parts: set[str] = set()  # names that end like a page or frame, without that end

    def reserve(self, path: str, root: str) -> str:
        """A name for the file at `path`, found in the input folder `root` ("" where it was named by itself)."""
        plain = path.split("://", 1)[-1]
        below = os.path.relpath(plain, root) if root else os.path.basename(plain)
        pure, below = (PurePosixPath(each.replace(os.sep, "/")) for each in (plain, below))
        folder, stem = str(pure.parent), _shortened(pure.stem)
        parents = [part for part in pure.parent.parts if part not in ("/", ".", "..")]
        # Of files whose names differ in the suffix only, and of files from different folders.
        with_suffix = [f"{stem}_{pure.suffix.lstrip('.')}"]
        with_parents = ["_".join([*parents[-depth:], stem]) for depth in range(1, len(parents) + 1)]
        with_parents = [name for name in with_parents if len(os.fsencode(name)) < _LONGEST_NAME]
        same_folder = self._folders.get(str(below.with_name(stem)).lower()) == folder
        numbered = (f"{stem}_{k}" for k in itertools.count(2))
        candidates = itertools.chain([stem], with_suffix if same_folder else with_parents, numbered)
        is_stack = path.lower().endswith((*_TIFF_SUFFIXES, *VIDEO_SUFFIXES, ".gif", ".webp")) or _is_animated_png(path)
        for candidate in candidates:
            name = str(below.with_name(candidate))
            if self._free(name.lower(), is_stack):
                break
        self._folders[name.lower()] = folder
        if is_stack:
            self._of_stacks.add(name.lower())
        if _PART.search(name.lower()):
            self._like_parts.add(_PART.sub("", name.lower()))
        return name

    def _free(self, name: str, is_stack: bool) -> bool:
        whole = _PART.sub("", name)
        clash = (whole != name and whole in self._of_stacks) or (is_stack and name in self._like_parts)
        return name not in self._folders and not clash


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
