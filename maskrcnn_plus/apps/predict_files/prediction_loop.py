"""Files, one after the other -> instances of their images, alone or in batches; a bad file stops nothing.

What is done with them, and which are done already, subclasses say: results in a folder (`FilePredictor`), rows of
tables (`maskrcnn_plus.apps.cluster`).
"""

from __future__ import annotations

import errno
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.structures import Instances

from maskrcnn_plus.apps.predict_files.image_predictor import ImagePredictor
from maskrcnn_plus.apps.predict_files.inputs import InputFile
from maskrcnn_plus.apps.predict_files.sources import SourceImage, iterate_images
from maskrcnn_plus.data.limits import pixel_limit
from maskrcnn_plus.data.windows import ImageWindows
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.inference.tile_choice import TileChoice
from maskrcnn_plus.results import check_formats, write_results
from maskrcnn_plus.results.cutouts import check_background

_FULL = (errno.ENOSPC, errno.EDQUOT)  # which is not the fault of an image


@dataclass(frozen=True)
class FileOptions:
    """What is made of each image; see `predict_files`."""

    formats: tuple[str, ...]
    pixel_size: float | None = None
    tile: int | str = "auto"
    with_report: bool = False
    background: str = "transparent"
    soft: bool = False
    object_type: str = "detection"
    roi: tuple[int, int, int, int] | None = None
    skip_background: bool = False
    batch_size: int = 1
    max_pixels: int | None = None

    def check(self, predictor: Predictor) -> None:
        """Refuse what `predictor` cannot make.

        Raises:
            ValueError: an unknown format, a `tile`, `pixel_size`, `roi`, `background` or `batch_size` out of range.
        """
        check_formats(self.formats)
        check_background(self.background)
        if self.pixel_size is not None and not 0 < self.pixel_size < math.inf:
            raise ValueError(f"pixel_size is {self.pixel_size}, it must be a number of micrometres above 0")
        if self.roi is not None and (min(self.roi[:2]) < 0 or min(self.roi[2:]) < 1):
            raise ValueError(f"roi is {self.roi}, it must be x, y (from 0), width and height in pixels")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}, it must be at least 1")
        TileChoice(predictor, self.tile)


@dataclass
class TakenImage:
    """An image that is predicted, open until it is written.

    Attributes:
        image: of a file.
        position: of the file among those of the run.
        windows: pixels, where they are needed.
        diameter: of its objects, where the scale follows from it.
        state: what `is_done` found out for `write`.
        stack: closes it.
    """

    image: SourceImage
    position: int
    stack: ExitStack
    windows: ImageWindows | None = None
    diameter: float | None = None
    state: Any = None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.image.path}, {self.image.part}" if self.image.part else self.image.path


class PredictionLoop(ABC):
    """Goes through files."""

    def __init__(self, predictor: Predictor, options: FileOptions) -> None:
        self.predictor, self.options = predictor, options
        self.images = ImagePredictor(predictor, options.tile, options.soft, options.roi, options.skip_background)
        self._waiting: list[TakenImage] = []

    @abstractmethod
    def is_done(self, taken: TakenImage) -> bool:
        """Whether nothing is to be done for an image."""

    @abstractmethod
    def write(self, taken: TakenImage, instances: Instances) -> None:
        """Write the results of an image.

        Raises:
            OSError: as of a full disk, which ends the run: it is not the fault of the image.
        """

    @abstractmethod
    def fail(self, name: str, error: Exception, path: str, position: int) -> None:
        """Note that an image, or the rest of a file, cannot be predicted.

        Args:
            name: of the image for people.
            error: why.
            path, position: of the file.
        """

    def predict_tiled(self, taken: TakenImage, part: ImageWindows, tiles: dict[str, Any]) -> Instances | None:
        """Predict what of an image is to be predicted by tiles; None leaves it to others."""
        return self.images.predict_tiled(part, taken.diameter, tiles)

    def write_files(
        self,
        folder: Path,
        taken: TakenImage,
        instances: Instances,
        formats: Sequence[str],
        pixel_size: float | None,
        file_name: str,
    ) -> dict[str, Path]:
        """Write results of an image as the options say; arguments and errors as of `write_results`."""
        image, options = taken.image, self.options
        return write_results(
            folder,
            image.name,
            instances,
            taken.windows,
            formats=formats,
            class_names=self.predictor.class_names,
            pixel_size=pixel_size,
            channels=self.images.channels,
            file_name=file_name,
            source=None if image.number else image.path,
            background=options.background,
            soft=options.soft,
            object_type=options.object_type,
        )

    def end_file(self, file: InputFile, count: int) -> None:  # noqa: B027 - there need be nothing to do
        """Called when a file of `count` images was gone through; images may be waiting for their batch."""

    def waiting(self) -> set[int]:
        """Positions of the files whose images wait for their batch."""
        return {each.position for each in self._waiting}

    def run(self, files: Iterable[InputFile], advance: Callable[[int, int], object] = lambda more, done: None) -> None:
        """Predict what is not done yet.

        An interrupt (Ctrl-C) ends it (KeyboardInterrupt); what is written stays.

        Args:
            files: of the run.
            advance: called with the images that a file has more than one of, and the images that are finished.
        """
        self._waiting.clear()
        with pixel_limit(self.options.max_pixels):
            try:
                for file in files:
                    expected, seen = 1, 0  # images of this file
                    for image in self._images_of(file):
                        advance(image.count - expected if image.count else 0, 0)
                        expected, seen = image.count or expected, seen + 1
                        self._take(image, file.position)
                        advance(0, 1)
                    self.end_file(file, seen)
                    advance(max(seen, 1) - expected, int(seen == 0))
                self.flush()
            finally:
                for each in self._waiting:
                    each.stack.close()

    def flush(self) -> None:
        """Predict the images that wait, as a batch, and write what is found."""
        if not self._waiting:
            return
        for instances in self._predict(self._waiting):
            taken = self._waiting[0]
            with taken.stack:
                if isinstance(instances, Exception):
                    self.fail(taken.name, instances, taken.image.path, taken.position)
                else:
                    self.write(taken, instances)
            del self._waiting[0]

    def _images_of(self, file: InputFile) -> Iterator[SourceImage]:
        """Images of a file up to where it is damaged."""
        images = iterate_images(file, self.images.rule)
        while True:
            try:
                image = next(images, None)
            except Exception as error:  # whatever a decoder makes of a bad file
                self.fail(file.path, error, file.path, file.position)
                return
            if image is None:
                return
            yield image

    def _take(self, image: SourceImage, position: int) -> None:
        """Predict an image, alone or with those that wait, unless it is done."""
        with ExitStack() as stack:
            taken, tiles, instances = TakenImage(image, position, stack), None, None
            try:
                if self.is_done(taken):
                    return
                if self.options.with_report or self.images.needs_pixels(image, self.options.formats):
                    taken.windows = stack.enter_context(image.open())
                part = self.images.part(taken.windows)
                taken.diameter, tiles = self.images.find_scale(part)
                if tiles is not None:
                    instances = self.predict_tiled(taken, part, tiles)
            except Exception as error:  # of the decoder, the model or the memory: the next image may be all right
                if isinstance(error, OSError) and error.errno in _FULL:  # tiles cannot be kept
                    raise
                self.fail(taken.name, error, image.path, position)
                return
            if instances is not None:
                self.write(taken, instances)
            if tiles is not None:
                return
            taken.stack = stack.pop_all()
        self._waiting.append(taken)
        if len(self._waiting) >= self.options.batch_size:
            self.flush()

    def _predict(self, batch: Sequence[TakenImage]) -> list[Instances | Exception]:
        """Predictions of each image, or why there are none."""
        try:
            parts = [(each.image, self.images.part(each.windows), each.diameter) for each in batch]
            return self.images.predict_whole(parts)
        except Exception as error:  # as in `_take`
            return [error] if len(batch) == 1 else [self._predict([each])[0] for each in batch]
