"""The image that an annotation file names, among the files of a folder."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from maskrcnn_plus.data.formats.files import list_tree
from maskrcnn_plus.data.images import IMAGE_SUFFIXES, ImageReadError, read_stored_size
from maskrcnn_plus.data.slide_files import SLIDE_SUFFIXES

if TYPE_CHECKING:
    from maskrcnn_plus.data.formats.annotated import Annotated

_UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)")  # how Label Studio names what was uploaded

LABEL_FOLDER = re.compile(r"label|mask|segm|annot|truth|instance|^(gt|ann|seg)s?$", re.IGNORECASE)
"""Names of folders of label images."""

IMAGE_FOLDER = re.compile(r"image|img|picture|photo|raw|original|input", re.IGNORECASE)
"""Names of folders of images, where several folders hold files of the same names."""

_SEVERAL = "of several files with the name of an image, all with the same content, one was taken"
_EXTENSION = "images that are there with another extension or other capitals than the annotations say"


class ImageFinder:
    """Image files of a folder by name."""

    def __init__(self, root: Path, data: Annotated) -> None:
        """List the folder.

        Args:
            root: folder of the data set.
            data: what was assumed and what is missing is told there.
        """
        self.files = list_tree(root, (*IMAGE_SUFFIXES, *SLIDE_SUFFIXES))
        self.data = data
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        self._by_letters: dict[str, list[Path]] = defaultdict(list)  # of a stem, small or capital
        for file in self.files:
            self._by_name[same_text(file.name)].append(file)
            self._by_stem[same_text(file.stem)].append(file)
            self._by_letters[same_text(file.stem).casefold()].append(file)

    def note_left_out(self, why: str, images: Sequence[Path] | None = None) -> None:
        """Note the images that no annotation file is of.

        Args:
            why: what they lack, as in "images WHY and were left out".
            images: those; None for all of the folder that were not given to `Annotated.is_new`.
        """
        others = [file for file in self.files if not self.data.has_image(file)] if images is None else images
        if others:
            self.data.notes.append(f"{len(others)} images {why} and were left out, {others[0]} among them.")

    def find(self, name: str, beside: Path, say: bool = True, size: tuple[int, int] | None = None) -> Path | None:
        """The image that an annotation file names.

        Args:
            name: as the file gives it: a path of any machine, or an address.
            beside: the annotation file.
            say: whether an image that is not there is noted as missing.
            size: (height, width) that the annotation file states, which tells files of one name apart.

        Returns:
            The path relative to the annotation file; else the file's name beside it; else the file below the root with
            this name, or with its stem; else the image beside the annotation file with that file's name; else None.
        """
        for plain in _spellings(name):
            base = plain.rpartition("/")[2]
            for candidate in (beside.parent / plain, beside.parent / base):
                if base and is_file(candidate):
                    return candidate
            if same_text(base) in self._by_name:
                return self._choose(self._by_name[same_text(base)], plain, say, size)
        for plain in _spellings(name):
            stem = same_text(plain.rpartition("/")[2].rpartition(".")[0])
            if len(files := self._of_stem(stem)) == 1:
                self.data.assume(_EXTENSION, name)
                return files[0]
        near = [file for file in self._by_stem.get(same_text(beside.stem), ()) if file.parent == beside.parent]
        if len(near) == 1:
            return near[0]
        if say:
            self.data.missing.append(name)
        return None

    def find_stem(self, name: str, folder: Path, say: bool = False) -> Path | None:
        """The image that an annotation file is named after: in a folder, else anywhere below the root.

        Of several there those count that lie in folders called "images" or so.

        Args:
            name: of the image, with or without its extension.
            folder: where it is looked for first.
            say: whether an image that is not there is noted as missing.
        """
        files = self._by_name.get(same_text(name)) or self._by_stem.get(same_text(name), [])
        stem, suffix = os.path.splitext(same_text(name))
        stem = stem if suffix.lower() in IMAGE_SUFFIXES else same_text(name)
        if not files and (files := self._of_stem(stem)):
            self.data.assume(_EXTENSION, name)
        near = [file for file in files if file.parent == folder]
        named = [file for file in files if IMAGE_FOLDER.search(file.parent.name)]
        if files:
            return self._choose(near or named or files, str(folder / name), say)
        if say:
            self.data.missing.append(name)
        return None

    def _of_stem(self, stem: str) -> list[Path]:
        """Files of a name without extension, as written, else in other capitals."""
        return self._by_stem.get(stem) or self._by_letters.get(stem.casefold(), [])

    def _choose(self, files: list[Path], name: str, say: bool, size: tuple[int, int] | None = None) -> Path | None:
        """The file whose folders are most like those of a name; None where nobody can tell.

        Label images are taken only where there is nothing else, those of the stated size and then those in folders
        called "images" or so before others.
        """
        files = [file for file in files if not LABEL_FOLDER.search(file.parent.name)] or files
        parts = same_text(name).split("/")
        places = [same_text(str(file)).split("/") for file in files]
        common = [(_common_tail(place, parts), len({*place} & {*parts})) for place in places]
        best = [file for file, count in zip(files, common, strict=True) if count == max(common)]
        if len(best) > 1 and size is not None:
            best = [file for file in best if has_size(file, size)] or best
        best = [file for file in best if IMAGE_FOLDER.search(file.parent.name)] or best
        if len(best) > 1:
            first = best[0].read_bytes()
            if any(file.read_bytes() != first for file in best[1:]):
                if say:
                    shown = ", ".join(map(str, best[:2]))
                    self.data.problems.append(f"{name} may be any of {len(best)} files that differ: {shown}. Keep one.")
                return None
            self.data.assume(_SEVERAL, str(best[0]))
        return best[0]


def has_size(file: Path, size: tuple[int, int] | None) -> bool:
    """Whether an image is of a (height, width), as it is stored or upright."""
    try:
        height, width, orientation = read_stored_size(str(file))
    except ImageReadError:
        return False
    return size == (height, width) or (orientation in (5, 6, 7, 8) and size == (width, height))


def same_text(name: str) -> str:
    """A name in the one form of its letters: macOS writes a letter and its accent as two characters."""
    return unicodedata.normalize("NFC", name)


def _spellings(name: str) -> list[str]:
    """What a name may mean as a path, slashes forward."""
    plain = name.replace("\\", "/").strip()
    found = list(dict.fromkeys([plain, same_text(plain)]))
    if "%" in plain or "?" in plain or "://" in plain:
        try:
            address = urlsplit(plain)
        except ValueError:
            return found
        found += [*parse_qs(address.query).get("d", []), unquote(address.path)]
    uploaded = [_UPLOADED.fullmatch(each.rpartition("/")[2]) for each in found]
    return found + [match.group(1) for match in uploaded if match]


def _common_tail(a: list[str], b: list[str]) -> int:
    pairs = zip(reversed(a), reversed(b), strict=False)
    return next((count for count, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def is_file(path: Path) -> bool:
    """Whether there is such a file; there is none of a name that no file can have, such as a long address."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
