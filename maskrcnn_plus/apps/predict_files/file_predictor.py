"""Files -> results in the output folder and a record an image; what has a record is not made again."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.structures import Instances

from maskrcnn_plus.apps.predict_files.image_predictor import ImagePredictor, failure_reason, print_line
from maskrcnn_plus.apps.predict_files.inputs import InputFile
from maskrcnn_plus.apps.predict_files.label_stacks import write_plane, write_stack
from maskrcnn_plus.apps.predict_files.records import Records, file_state
from maskrcnn_plus.apps.predict_files.sources import SourceImage, iterate_images
from maskrcnn_plus.data.images import read_image
from maskrcnn_plus.data.limits import pixel_limit
from maskrcnn_plus.data.pixel_size import tiff_pixel_size
from maskrcnn_plus.data.windows import ImageWindows
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.results import write_results
from maskrcnn_plus.results.annotation_sets import ANNOTATION_SETS
from maskrcnn_plus.results.overlay import draw_overlay, make_picture
from maskrcnn_plus.results.report import ReportEntry, report_entry

_MEASURES = {"csv", "counts", "geojson", "label-tiff"}  # formats that have lengths


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

    @property
    def kinds(self) -> tuple[str, ...]:
        """The results that a record must have."""
        copies = [f"{kind} image" for kind in self.formats if kind in ANNOTATION_SETS]
        return (*self.formats, *copies, *["report"] * self.with_report)


@dataclass
class RunSummary:
    """What became of a run.

    Attributes:
        num_images: predicted now.
        num_before: images whose results were there already.
        num_objects: of all these images.
        failures: (file, reason) of files that could not be predicted, or not in all their images.
        num_left: files not looked at, since the run was interrupted.
        interrupted: whether it was.
        entries: of the report, where one was asked for.
        done: position of the file, number of the page or frame, and name of each image that has its results.
    """

    num_images: int = 0
    num_before: int = 0
    num_objects: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    num_left: int = 0
    interrupted: bool = False
    entries: list[ReportEntry] = field(default_factory=list)
    done: list[tuple[int, int, str]] = field(default_factory=list)

    def add(self, other: RunSummary) -> None:
        """Count in what became of a part of the run."""
        self.num_images += other.num_images
        self.num_before += other.num_before
        self.num_objects += other.num_objects
        self.failures += other.failures
        self.done += other.done


@dataclass
class _Waiting:
    """An image that waits for the others of its batch, open until then."""

    image: SourceImage
    position: int
    state: dict[str, Any]
    windows: ImageWindows | None
    diameter: float | None
    stack: ExitStack

    @property
    def name(self) -> str:
        return f"{self.image.path}, {self.image.part}" if self.image.part else self.image.path


class FilePredictor:
    """Predicts files and writes their results; `summary` says what became of them."""

    def __init__(self, predictor: Predictor, options: FileOptions, records: Records) -> None:
        self.predictor, self.options, self.records = predictor, options, records
        self.images = ImagePredictor(predictor, options.tile, options.soft, options.roi, options.skip_background)
        self.summary = RunSummary()
        self._waiting: list[_Waiting] = []

    def run(self, files: Sequence[InputFile], advance: Callable[[int, int], object] = lambda more, done: None) -> None:
        """Predict what is not done yet.

        An interrupt (Ctrl-C) ends it; what is done is kept.

        Args:
            files: of the run.
            advance: called with the images that a file has more than one of, and the images that are finished.
        """
        ended: set[int] = set()  # positions
        with pixel_limit(self.options.max_pixels):
            try:
                for file in files:
                    expected, seen = 1, 0  # images of this file
                    before = len(self.summary.done)
                    for image in self._images_of(file):
                        advance(image.count - expected if image.count else 0, 0)
                        expected, seen = image.count or expected, seen + 1
                        self._take(image, file.position)
                        advance(0, 1)
                    if "label-tiff" in self.options.formats:
                        self._flush()
                        self._write_stack(file, self.summary.done[before:], seen)
                    advance(max(seen, 1) - expected, int(seen == 0))
                    ended.add(file.position)
                self._flush()
            except KeyboardInterrupt:
                self.summary.interrupted = True
            finally:
                self.summary.num_left += len(files) - len(ended - {each.position for each in self._waiting})
                for each in self._waiting:
                    each.stack.close()
                self._waiting.clear()

    def _images_of(self, file: InputFile) -> Iterator[SourceImage]:
        """Images of a file up to where it is damaged."""
        images = iterate_images(file, self.images.rule)
        while True:
            try:
                image = next(images, None)
            except Exception as error:  # whatever a decoder makes of a bad file
                self._fail(file.path, error, file.path)
                return
            if image is None:
                return
            yield image

    def _take(self, image: SourceImage, position: int) -> None:
        """Predict an image, alone or with those that wait, unless it is done."""
        with ExitStack() as stack:
            waiting, instances = _Waiting(image, position, {}, None, None, stack), None
            try:
                waiting.state = file_state(image.path)
                if self.records.has(image, self.options.kinds):
                    self.summary.num_before += 1
                    self._count(waiting, self.records.value(image.name, "objects"))
                    return
                if self.options.with_report or self.images.needs_pixels(image, self.options.formats):
                    waiting.windows = stack.enter_context(image.open())
                part = self.images.part(waiting.windows)
                waiting.diameter, tiles = self.images.find_scale(part)
                if tiles is not None:
                    kept = stack.enter_context(self.records.tiles(image))
                    instances = self.images.predict_tiled(part, waiting.diameter, tiles, kept)
            except Exception as error:  # of the decoder, the model or the memory: the next image may be all right
                self._fail(waiting.name, error, image.path)
                return
            if instances is not None:
                self._write(waiting, instances)
                return
            waiting.stack = stack.pop_all()
        self._waiting.append(waiting)
        if len(self._waiting) >= self.options.batch_size:
            self._flush()

    def _flush(self) -> None:
        """Predict the images that wait, as a batch, and write what is found."""
        if not self._waiting:
            return
        for instances in self._predict(self._waiting):
            with self._waiting[0].stack:
                if isinstance(instances, Exception):
                    self._fail(self._waiting[0].name, instances, self._waiting[0].image.path)
                else:
                    self._write(self._waiting[0], instances)
            del self._waiting[0]

    def _predict(self, batch: Sequence[_Waiting]) -> list[Instances | Exception]:
        """Predictions of each image, or why there are none."""
        try:
            parts = [(each.image, self.images.part(each.windows), each.diameter) for each in batch]
            return self.images.predict_whole(parts)
        except Exception as error:  # as in `_take`
            return [error] if len(batch) == 1 else [self._predict([each])[0] for each in batch]

    def _write(self, waiting: _Waiting, instances: Instances) -> None:
        """Write the results of an image and its record.

        Raises:
            OSError: as of a full disk, which ends the run: it is not the fault of the image.
        """
        image, options = waiting.image, self.options
        pixel_size = options.pixel_size
        if pixel_size is None and (options.with_report or _MEASURES & set(options.formats)):
            pixel_size = tiff_pixel_size(image.path)
        try:
            instances = self.images.place(instances, waiting.windows)
            files = write_results(
                self.records.output,
                image.name,
                instances,
                waiting.windows,
                formats=[kind for kind in options.formats if kind != "label-tiff" or not image.number],
                class_names=self.predictor.class_names,
                pixel_size=pixel_size,
                channels=self.images.channels,
                file_name=image.path,
                source=None if image.number else image.path,
                background=options.background,
                soft=options.soft,
                object_type=options.object_type,
            )
            if "label-tiff" in options.formats and image.number:
                files["label-tiff"] = write_plane(self.records.output, image, instances)
            facts = {"objects": len(instances)}
            if options.with_report:
                facts["report"] = self._report_facts(waiting, instances, files.get("overlay"), pixel_size)
        except ValueError as error:
            self._fail(waiting.name, error, image.path)
            return
        self.records.write(image, waiting.state, files, **facts)
        self.summary.num_images += 1
        self._count(waiting, len(instances))

    def _write_stack(self, file: InputFile, done: Sequence[tuple[int, int, str]], count: int) -> None:
        """The label images of a file's `count` images as one TIFF, if all are there."""
        planes = [name for position, number, name in done if position == file.position and number]
        if not planes:
            return
        try:
            if len(planes) < count:
                raise ValueError(f"label-tiff is not written, as {count - len(planes)} of its {count} images failed")
            files = [self.records.file(name, "label-tiff") for name in planes]
            write_stack(self.records.output, file, files, self.images.rule, pixel_size=self.options.pixel_size)
        except ValueError as error:
            self._fail(file.path, error, file.path)

    def _count(self, waiting: _Waiting, num_objects: int) -> None:
        self.summary.num_objects += num_objects
        self.summary.done.append((waiting.position, waiting.image.number, waiting.image.name))

    def _report_facts(
        self, waiting: _Waiting, instances: Instances, drawn: Path | None, pixel_size: float | None
    ) -> dict[str, Any]:
        """A `ReportEntry` for JSON; `drawn` is the overlay's file, where it was written."""
        shown, reduced = make_picture(waiting.windows, instances, self.images.channels)
        overlay = read_image(str(drawn)) if drawn else draw_overlay(shown, reduced, self.predictor.class_names)
        entry = report_entry(waiting.name, instances, shown, overlay, pixel_size)
        return {**vars(entry), "pictures": [base64.b64encode(picture).decode() for picture in entry.pictures]}

    def _fail(self, name: str, error: Exception, path: str) -> None:
        """Note and say that an image of the file at `path` cannot be predicted."""
        reason = failure_reason(error, name, path)
        self.summary.failures.append((name, reason))
        print_line(f"{name}: {reason}")
