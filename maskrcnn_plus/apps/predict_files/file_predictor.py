"""Files -> results in the output folder and a record an image; what has a record is not made again."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.structures import Instances

from maskrcnn_plus.apps.predict_files.image_predictor import failure_reason, print_line
from maskrcnn_plus.apps.predict_files.inputs import InputFile
from maskrcnn_plus.apps.predict_files.label_stacks import write_plane, write_stack
from maskrcnn_plus.apps.predict_files.prediction_loop import FileOptions, PredictionLoop, TakenImage
from maskrcnn_plus.apps.predict_files.records import Records, file_state
from maskrcnn_plus.data.images import read_image
from maskrcnn_plus.data.pixel_size import tiff_pixel_size
from maskrcnn_plus.data.windows import ImageWindows
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.results.annotation_sets import ANNOTATION_SETS
from maskrcnn_plus.results.overlay import draw_overlay, make_picture
from maskrcnn_plus.results.report import ReportEntry, report_entry

_MEASURES = {"csv", "counts", "geojson", "label-tiff"}  # formats that have lengths


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


class FilePredictor(PredictionLoop):
    """Predicts files and writes their results; `summary` says what became of them."""

    def __init__(self, predictor: Predictor, options: FileOptions, records: Records) -> None:
        super().__init__(predictor, options)
        self.records, self.summary = records, RunSummary()
        self._kinds = result_kinds(options)
        self._ended: set[int] = set()  # positions of files that were gone through

    def run(self, files: Sequence[InputFile], advance: Callable[[int, int], object] = lambda more, done: None) -> None:
        """As `PredictionLoop.run`; an interrupt is told in the summary."""
        self._ended.clear()
        try:
            super().run(files, advance)
        except KeyboardInterrupt:
            self.summary.interrupted = True
        self.summary.num_left += len(files) - len(self._ended - self.waiting())

    def is_done(self, taken: TakenImage) -> bool:
        """Whether its results are there."""
        taken.state = file_state(taken.image.path)
        if not self.records.has(taken.image, self._kinds):
            return False
        self.summary.num_before += 1
        self._count(taken, self.records.value(taken.image.name, "objects"))
        return True

    def predict_tiled(self, taken: TakenImage, part: ImageWindows, tiles: dict[str, Any]) -> Instances:
        """Go on after the tiles that a run before predicted."""
        with self.records.tiles(taken.image) as kept:
            return self.images.predict_tiled(part, taken.diameter, tiles, kept)

    def end_file(self, file: InputFile, count: int) -> None:
        """Write the label images of a file's `count` images as one TIFF, if all are there."""
        if "label-tiff" in self.options.formats:
            self.flush()
            ended = [entry for entry in self.summary.done[-count:] if entry[0] == file.position and entry[1]]
            done = [name for _, _, name in sorted(ended)]  # tiled images ended before those that waited for a batch
            try:
                if 0 < len(done) < count:
                    raise ValueError(f"label-tiff is not written, as {count - len(done)} of its {count} images failed")
                if done:
                    planes = [self.records.file(name, "label-tiff") for name in done]
                    write_stack(self.records.output, file, planes, self.images.rule, pixel_size=self.options.pixel_size)
            except ValueError as error:
                self.fail(file.path, error, file.path, file.position)
        self._ended.add(file.position)

    def write(self, taken: TakenImage, instances: Instances) -> None:
        """Write the results of an image and its record."""
        image, options = taken.image, self.options
        pixel_size = options.pixel_size
        if pixel_size is None and (options.with_report or _MEASURES & set(options.formats)):
            pixel_size = tiff_pixel_size(image.path)
        try:
            instances = self.images.place(instances, taken.windows)
            formats = [kind for kind in options.formats if kind != "label-tiff" or not image.number]
            files = self.write_files(self.records.output, taken, instances, formats, pixel_size, image.path)
            if "label-tiff" in options.formats and image.number:
                files["label-tiff"] = write_plane(self.records.output, image, instances)
            facts = {"objects": len(instances)}
            if options.with_report:
                facts["report"] = self._report_facts(taken, instances, files.get("overlay"), pixel_size)
        except ValueError as error:
            self.fail(taken.name, error, image.path, taken.position)
            return
        self.records.write(image, taken.state, files, **facts)
        self.summary.num_images += 1
        self._count(taken, len(instances))

    def _count(self, taken: TakenImage, num_objects: int) -> None:
        self.summary.num_objects += num_objects
        self.summary.done.append((taken.position, taken.image.number, taken.image.name))

    def _report_facts(
        self, taken: TakenImage, instances: Instances, drawn: Path | None, pixel_size: float | None
    ) -> dict[str, Any]:
        """A `ReportEntry` for JSON; `drawn` is the overlay's file, where it was written."""
        shown, reduced = make_picture(taken.windows, instances, self.images.channels)
        overlay = read_image(str(drawn)) if drawn else draw_overlay(shown, reduced, self.predictor.class_names)
        entry = report_entry(taken.name, instances, shown, overlay, pixel_size)
        return {**vars(entry), "pictures": [base64.b64encode(picture).decode() for picture in entry.pictures]}

    def fail(self, name: str, error: Exception, path: str, position: int) -> None:
        """Note and say it."""
        reason = failure_reason(error, name, path)
        self.summary.failures.append((name, reason))
        print_line(f"{name}: {reason}")


def result_kinds(options: FileOptions) -> tuple[str, ...]:
    """The results that the record of an image must have."""
    copies = [f"{kind} image" for kind in options.formats if kind in ANNOTATION_SETS]
    return (*options.formats, *copies, *["report"] * options.with_report)
