"""Names of classes in Pascal VOC's folders, by index and by colour.

labelmap.txt of CVAT has a line `name:r,g,b:parts:actions` a class; class_names.txt of labelme a name a line, the
background first; without them the classes are VOC's twenty.
"""

from __future__ import annotations

import re
from pathlib import Path

from maskrcnn_plus.data.formats.files import read_lines
from maskrcnn_plus.data.formats.instance_maps import colour_code

_VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_WITH_COLOUR = re.compile(r"(.+?):(\d{1,3}),(\d{1,3}),(\d{1,3})(:.*)?")


class ClassNames:
    """Names of the classes of a folder.

    Attributes:
        source: where they are from, for people.
        by_index: name of each index.
        by_colour: name of each colour, see `colour_code`.
        has_colours: whether a file says the colours, which then count before indices.
        is_guess: whether no file names the classes.
    """

    def __init__(self, root: Path) -> None:
        """Read them.

        Raises:
            DataError: a file is no text.
        """
        self.source, self.has_colours = "VOC's twenty classes", False
        self.by_index = dict(enumerate(_VOC, start=1))
        file = next((root / name for name in ("labelmap.txt", "class_names.txt") if (root / name).is_file()), None)
        self.is_guess = file is None
        if file is not None:
            self.source = str(file)
            lines = [line for line in read_lines(file) if not line.startswith("#") and line != "__ignore__"]
            entries = [_WITH_COLOUR.fullmatch(line) for line in lines]
            self.has_colours = bool(entries) and all(entries)
            self.by_index = dict(enumerate(entry[1] for entry in entries) if self.has_colours else enumerate(lines))
        self.by_colour = {_voc_colour(index): name for index, name in self.by_index.items()}
        if self.has_colours:
            self.by_colour = {colour_code(*map(int, entry.group(2, 3, 4))): entry[1] for entry in entries}

    def find(self, code: int, is_colour: bool) -> str | None:
        """Name of an index or a colour, None where a file that names them has not this one."""
        name = (self.by_colour if is_colour else self.by_index).get(code)
        if name is None and self.is_guess:
            return f"colour {code >> 32}, {code >> 16 & 0xFFFF}, {code & 0xFFFF}" if is_colour else f"class {code}"
        return name


def _voc_colour(index: int) -> int:
    """VOC's colour of an index: its bits 0, 3, 6 are the highest of red, bits 1, 4, 7 of green, bits 2, 5 of blue."""
    return colour_code(*(sum((index >> (3 * k + channel) & 1) << (7 - k) for k in range(3)) for channel in range(3)))
