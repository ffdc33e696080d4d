"""The embedded demo data set: fluorescence micrographs of three kinds of cells, rendered on the fly from a seed.

Cells touch and overlap; a pixel belongs to the cell on top, so the masks are exact. Files are addressed as
`synthetic://SEED/INDEX/HEIGHTxWIDTH/image.png` (and `labels.png`), which Detectron2's PathManager turns into PNG files
in a cache folder once this module is imported, so that every reader that uses PathManager can open them.
"""

import getpass
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO

import cv2
import numpy as np
from detectron2.utils.file_io import PathHandler, PathManager

from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.data.cells import SYNTHETIC_CLASSES, check_request, lay_out_cells, render_cells
from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.check_cache import pack, unpack
from maskrcnn_plus.data.registration import label_map_annotations, register_source

__all__ = ["SYNTHETIC_CLASSES", "SyntheticPathHandler", "register_synthetic_cells", "render_cells"]

_PREFIX = "synthetic://"
_RENDERER_VERSION = 1  # part of the cache folder's name: count up whenever rendered pixels change


def register_synthetic_cells(name: str, num_images: int, seed: int = 0, size: Sequence[int] = (256, 256)) -> str:
    """Register rendered images of cells as a data set with the classes of `SYNTHETIC_CLASSES`.

    Nothing is rendered before `DatasetCatalog.get(name)`. Use another seed for other images (training, validation).

    Args:
        name: name in DatasetCatalog and MetadataCatalog.
        num_images: number of images, at least 1.
        seed: 0 or more.
        size: (height, width) in pixels.

    Returns:
        `name`, so that the call can stand in a config where a data set name is expected.

    Raises:
        DataError: an argument is out of range, or the name is taken.
    """
    if num_images < 1 or len(size) != 2:
        raise DataError(f"Data set '{name}': num_images={num_images} must be 1 or more, size={size} (height, width).")
    height, width = (int(value) for value in size)
    check_request(seed, 0, height, width)
    source = SyntheticCells(int(num_images), int(seed), height, width)
    return register_source(name, source, thing_classes=list(SYNTHETIC_CLASSES), evaluator_type="label_map")


@dataclass(frozen=True)
class SyntheticCells:
    """The data set function: lays out all images on the first call, and returns fresh dicts on every call."""

    num_images: int
    seed: int
    height: int
    width: int
    _packed: list[bytes] = field(default_factory=list, compare=False, repr=False)

    def __call__(self) -> list[dict]:
        if not self._packed:
            self._packed.append(pack([self._record(index) for index in range(self.num_images)]))
        return unpack(self._packed[0])

    def _record(self, index: int) -> dict:
        """Make the dataset dict of one image."""
        folder = f"{_PREFIX}{self.seed}/{index}/{self.height}x{self.width}"
        _, label_map, classes = lay_out_cells(self.seed, index, self.height, self.width)
        return {
            "file_name": f"{folder}/image.png",
            "image_id": f"{self.seed}-{index}",
            "height": self.height,
            "width": self.width,
            "label_file_name": f"{folder}/labels.png",
            "annotations": label_map_annotations(label_map, classes),
        }


class SyntheticPathHandler(PathHandler):
    """Resolves `synthetic://` addresses to PNG files in a cache folder of the user, which it renders when missing."""

    def _get_supported_prefixes(self) -> list[str]:
        return [_PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: object) -> str:
        self._check_kwargs(kwargs)
        seed, index, height, width, kind = _parse(path)
        folder = os.path.join(_cache_folder(), str(seed), str(index), f"{height}x{width}")
        local_path = os.path.join(folder, f"{kind}.png")
        if force or not os.path.isfile(local_path):
            os.makedirs(folder, exist_ok=True)
            image, label_map, _ = render_cells(seed, index, height, width)
            _write_png(os.path.join(folder, "image.png"), image[:, :, ::-1])
            _write_png(os.path.join(folder, "labels.png"), label_map)
        return local_path

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: object) -> IO:
        self._check_kwargs(kwargs)
        if mode not in ("r", "rb"):
            raise DataError(f"{path}: synthetic images can only be read, not opened with mode {mode!r}.")
        return open(self._get_local_path(path), mode, buffering)

    def _isfile(self, path: str, **kwargs: object) -> bool:
        self._check_kwargs(kwargs)
        try:
            _parse(path)
        except DataError:
            return False
        return True

    _exists = _isfile


def _parse(path: str) -> tuple[int, int, int, int, str]:
    """Split an address into seed, index, height, width and "image" or "labels"."""
    match = re.fullmatch(_PREFIX + r"(\d{1,18})/(\d{1,18})/(\d{1,5})x(\d{1,5})/(image|labels)\.png", path, re.ASCII)
    if match is None:
        raise DataError(f"{path}: expected {_PREFIX}SEED/INDEX/HEIGHTxWIDTH/image.png or .../labels.png.")
    seed, index, height, width = (int(value) for value in match.groups()[:4])
    check_request(seed, index, height, width)
    return seed, index, height, width, match[5]


def _cache_folder() -> str:
    """Return the cache folder, which must belong to this user because other users may write to its parent."""
    user = str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()
    folder = os.path.join(tempfile.gettempdir(), f"maskrcnn_plus-{user}", f"synthetic-v{_RENDERER_VERSION}")
    parent = os.path.dirname(folder)
    os.makedirs(parent, mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and os.lstat(parent).st_uid != os.getuid():
        raise DataError(f"{parent}: the cache folder belongs to another user. Set TMPDIR to a folder of your own.")
    return folder


def _write_png(path: str, pixels: np.ndarray) -> None:
    """Write a PNG (channels in BGR order) such that other processes see all of it or nothing."""
    _, encoded = cv2.imencode(".png", pixels)
    write_atomically(path, encoded.tobytes())


PathManager.register_handler(SyntheticPathHandler())
