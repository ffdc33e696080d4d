"""Prediction of many files into one folder, which goes on where it was stopped.

    predictor = Predictor("nuclei/mask_rcnn_lite0_fpn", "model_best.pth")
    predict_files(predictor, ["slides/", "film.mp4"], "output", formats=["labels", "csv"])

Shape shorthand: H x W pixels of an image.
"""

from __future__ import annotations

import base64
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.structures import Instances
from tqdm import tqdm

from maskrcnn_plus.apps.predict_files.fingerprint import predictor_fingerprint
from maskrcnn_plus.apps.predict_files.inputs import InputFile, list_inputs
from maskrcnn_plus.apps.predict_files.label_stacks import write_plane, write_stack
from maskrcnn_plus.apps.predict_files.records import Records, file_state
from maskrcnn_plus.apps.predict_files.sources import SourceImage, iterate_images
from maskrcnn_plus.data.channels import get_rule
from maskrcnn_plus.data.images import read_image, read_image_size
from maskrcnn_plus.data.limits import pixel_limit
from maskrcnn_plus.data.pixel_size import tiff_pixel_size
from maskrcnn_plus.data.windows import ImageWindows
from maskrcnn_plus.inference.kept_tiles import KeptTiles
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.inference.tile_choice import TileChoice
from maskrcnn_plus.inference.tiling import predict_tiled
from maskrcnn_plus.masks.rle_masks import encode_masks
from maskrcnn_plus.results import DEFAULT_FORMATS, FORMATS, MERGED, check_formats, needs_pixels, write_results
from maskrcnn_plus.results.annotation_sets import ANNOTATION_SETS
from maskrcnn_plus.results.cutouts import check_background
from maskrcnn_plus.results.overlay import draw_overlay, make_picture
from maskrcnn_plus.results.report import MAX_PICTURES, ReportEntry, report_entry, write_report

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
    """

    num_images: int = 0
    num_before: int = 0
    num_objects: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    num_left: int = 0
    interrupted: bool = False
    entries: list[ReportEntry] = field(default_factory=list)


def predict_files(
    predictor: Predictor,
    inputs: Sequence[str] | str,
    output: str | Path,
    *,
    formats: Sequence[str] = DEFAULT_FORMATS,
    recursive: bool = False,
    pixel_size: float | None = None,
    tile: int | str = "auto",
    report: Mapping[str, str] | None = None,
    overwrite: bool = False,
    progress: bool = True,
    max_pixels: int | None = None,
    background: str = "transparent",
    soft: bool = False,
    roi: tuple[int, int, int, int] | None = None,
    skip_background: bool = False,
    object_type: str = "detection",
) -> RunSummary:
    """Predict image files, folders, glob patterns, TIFF stacks and videos, and write the results image by image.

    The results of an image are in `write_results`'s places; the files of all images of the run (`results.MERGED`, such
    as `predictions.csv`) are written at the end, also of an interrupted one (Ctrl-C). An image whose results are there
    from an earlier run, and whose file has not changed since, is not predicted again. That run must have had the same
    model, weights, pre-processing and settings (formats apart); results of others are refused.
    A file that cannot be read or predicted is named on standard error, and the run goes on.

    Args:
        predictor: the model.
        inputs: see `list_inputs`.
        output: folder, made if it is not there.
        formats: keys of `maskrcnn_plus.results.FORMATS`.
        recursive: look into the sub-folders of input folders.
        pixel_size: micrometres a pixel, for csv and the report; None takes that of a TIFF's metadata, else all is in
            pixels.
        tile: side of tiles in pixels; "off" predicts every image whole; "auto" tiles what the network would otherwise
            see smaller than other images, or what is very large, see `maskrcnn_plus.inference.tile_choice`.
        report: facts for the head of `report.html`; None writes no report.
        overwrite: replace what is in the output folder and predict all images again.
        progress: show a progress bar with the time left, where standard error is a terminal.
        max_pixels: of an image that is decoded at once, see `maskrcnn_plus.data.limits`; a larger one fails.
        background, soft: of cut-outs and images without background, see `write_results`.
        roi: (x, y, width, height), the part of each image that is predicted, as if it were all of it, pixels; results
            are in the coordinates of the image.
        skip_background: tiles with nothing in them are not predicted, see `maskrcnn_plus.inference.background`.
        object_type: of geojson, "detection" or "annotation".

    Raises:
        ValueError: nothing to predict, an unknown format, a `tile`, `pixel_size` or `roi` out of range, or an output
            folder with other results.
        OSError: a result cannot be written.
    """
    check_formats(formats)
    check_background(background)
    if pixel_size is not None and not 0 < pixel_size < math.inf:
        raise ValueError(f"pixel_size is {pixel_size}, it must be a number of micrometres above 0")
    if roi is not None and (min(roi[:2]) < 0 or min(roi[2:]) < 1):
        raise ValueError(f"roi is {roi}, it must be x, y (from 0), width and height in pixels")
    folder = Path(output)
    sub_folders = [FORMATS[kind] for kind in formats]
    files = list_inputs(inputs, recursive, [str(folder / name) for name in FORMATS.values()])
    for file in files:
        if any(Path(os.path.realpath(file.path)).is_relative_to((folder / name).resolve()) for name in sub_folders):
            raise ValueError(f"input {file.path} is among the results of {folder}: choose another output folder")
    writing = {"background": background, "soft": soft, "object_type": object_type}
    run = _Run(predictor, formats, pixel_size, tile, report is not None, writing, roi, skip_background)
    depends = {
        "model and weights": predictor_fingerprint(predictor),
        "score_threshold": f"{predictor.score_threshold or 0:g}",
        "tile": str(tile),
        "pixel_size": "of the file" if pixel_size is None else f"{pixel_size:g}",
        **({"background": background, "soft": str(soft)} if {"cutouts", "background"} & set(formats) else {}),
        **({"geojson's objects": object_type} if "geojson" in formats and object_type != "detection" else {}),
        **({"channels": str(run.rule.select)} if run.rule.select else {}),
        **({"projection": run.rule.projection} if run.rule.projection else {}),
        **({"roi": str(roi)} if roi else {}),
        **({"empty tiles": "skipped"} if skip_background else {}),
    }
    if predictor.auto_scale is not None:
        depends["diameter"] = predictor.auto_scale.describe()
    at_the_end = [name for kind, (name, _) in MERGED.items() if kind in formats] + ["report.html"] * run.with_report
    with Records(folder, depends, sub_folders, at_the_end, overwrite) as records:
        with pixel_limit(max_pixels):
            done = run.process(files, records, progress)
        for kind, (name, merge) in MERGED.items():
            if kind in formats:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                merge(folder / name, [records.file(image, kind) for image in done], predictor.class_names)
        if report is not None:
            entries = [_report_entry(records.value(name, "report"), k < MAX_PICTURES) for k, name in enumerate(done)]
            run.summary.entries = entries
            title = "Predictions" + (f" (interrupted after {len(done)} images)" if run.summary.interrupted else "")
            failures, names = run.summary.failures, predictor.class_names
            path = folder / "report.html"
            write_report(path, entries, title, details=dict(report), failures=failures, class_names=names)
    if done and not run.summary.num_objects:
        _print_line(explain_no_objects(predictor, len(done)))
    return run.summary


def explain_no_objects(predictor: Predictor, num_images: int) -> str:
    """What to look at when nothing was found in any image."""
    threshold = predictor.score_threshold or 0
    channels = getattr(predictor.mapper, "channels", 3)
    images = "the image" if num_images == 1 else f"all {num_images} images"
    if predictor.auto_scale is None:
        size = f"an image of 512 x 512 px is scaled by {predictor.get_scale(512, 512):.2g}; set dataset.scale"
    else:
        size = f"their diameter: {predictor.auto_scale.describe()}; give another --diameter"
    return (
        f"0 objects in {images}. Likely causes: a score threshold that is too high ({threshold:g}; try a lower "
        f"--score-threshold); objects of another size than in the training ({size}); other channels, contrast or "
        f"staining than in the training (the model sees {channels} channel{'s' * (channels > 1)}); or weights of "
        "another data set."
    )


class _Run:
    """The state of one call of `predict_files`; arguments as there."""

    def __init__(
        self,
        predictor: Predictor,
        formats: Sequence[str],
        pixel_size: float | None,
        tile: int | str,
        with_report: bool,
        writing: dict[str, Any],
        roi: tuple[int, int, int, int] | None,
        skip_background: bool,
    ) -> None:
        self.predictor, self.formats, self.pixel_size = predictor, tuple(formats), pixel_size
        self.writing, self.soft = writing, writing["soft"]
        self.roi, self.skip_background = roi, skip_background
        self.with_report = with_report
        copies = [f"{kind} image" for kind in formats if kind in ANNOTATION_SETS]
        self.kinds = (*self.formats, *copies, *["report"] * with_report)  # that a record must have
        self.rule = get_rule(predictor.mapper)
        self.channels = self.rule.count or 3
        self.tiles = TileChoice(predictor, tile)
        self.summary = RunSummary()

    def process(self, files: Sequence[InputFile], records: Records, progress: bool) -> list[str]:
        """Predict what is not done yet; returns the names of all images that are."""
        done = []
        self.summary.num_left = len(files)
        with tqdm(total=len(files), unit="image", disable=None if progress else True) as bar:
            try:
                for file in files:
                    expected, seen = 1, 0  # images of this file
                    planes: list[str] = []
                    for image in self._images(file):
                        bar.total += image.count - expected if image.count else 0
                        expected, seen = image.count or expected, seen + 1
                        is_done = self._process_image(image, records)
                        done += [image.name] * is_done
                        planes += [image.name] * (is_done and image.number > 0)
                        bar.update()
                    if "label-tiff" in self.formats and planes:
                        self._write_stack(file, planes, seen, records)
                    bar.total += max(seen, 1) - expected
                    bar.update(seen == 0)
                    self.summary.num_left -= 1
            except KeyboardInterrupt:
                self.summary.interrupted = True
        return done

    def _images(self, file: InputFile) -> Iterator[SourceImage]:
        """Images of a file up to where it is damaged."""
        images = iterate_images(file, self.rule)
        while True:
            try:
                image = next(images, None)
            except Exception as error:  # whatever a decoder makes of a bad file
                self._fail(file.path, error, file.path)
                return
            if image is None:
                return
            yield image

    def _process_image(self, image: SourceImage, records: Records) -> bool:
        """Predict an image unless it is done; returns whether it is now."""
        name = f"{image.path}, {image.part}" if image.part else image.path
        with ExitStack() as stack:
            try:
                state = file_state(image.path)
                if records.has(image, self.kinds):
                    self.summary.num_before += 1
                    self.summary.num_objects += records.value(image.name, "objects")
                    return True
                windows = stack.enter_context(image.open()) if self._needs_pixels(image) else None
                instances = self._predict(image, windows, stack.enter_context(records.tiles(image)))
            except Exception as error:  # of the decoder, the model or the memory: the next image may be all right
                self._fail(name, error, image.path)
                return False
            pixel_size = self.pixel_size
            if pixel_size is None and (self.with_report or _MEASURES & set(self.formats)):
                pixel_size = tiff_pixel_size(image.path)
            # An OSError, such as of a full disk, ends the run: it is not the fault of the image.
            try:
                files = write_results(
                    records.output,
                    image.name,
                    instances,
                    windows,
                    formats=[kind for kind in self.formats if kind != "label-tiff" or not image.number],
                    class_names=self.predictor.class_names,
                    pixel_size=pixel_size,
                    channels=self.channels,
                    file_name=image.path,
                    source=None if image.number else image.path,
                    **self.writing,
                )
                if "label-tiff" in self.formats and image.number:
                    files["label-tiff"] = write_plane(records.output, image, instances)
                facts = {"objects": len(instances)}
                if self.with_report:
                    facts["report"] = self._report_facts(name, instances, windows, files.get("overlay"), pixel_size)
            except ValueError as error:
                self._fail(name, error, image.path)
                return False
        records.write(image, state, files, **facts)
        self.summary.num_images += 1
        self.summary.num_objects += len(instances)
        return True

    def _needs_pixels(self, image: SourceImage) -> bool:
        """Whether the file's name does not do, for the prediction and the results."""
        if self.with_report or image.number or self.roi or needs_pixels(self.formats, image.path):
            return True
        if self.predictor.auto_scale is not None:
            return True
        return self.tiles.options(*read_image_size(image.path, self.rule, decodes=False)) is not None

    def _predict(self, image: SourceImage, windows: ImageWindows | None, kept: KeptTiles) -> Instances:
        """Predictions of an image; `windows` of it are there where `_needs_pixels`."""
        if self.roi is not None:
            part = self._predict_whole(image, windows.crop(*self.roi), kept)
            return part.placed(*self.roi[:2], *windows.shape[:2])
        return self._predict_whole(image, windows, kept)

    def _predict_whole(self, image: SourceImage, windows: ImageWindows | None, kept: KeptTiles) -> Instances:
        diameter = None if windows is None else self.predictor.find_diameter(windows)
        options = None if windows is None else self.tiles.options(*windows.shape[:2], diameter)
        if options is not None:
            options |= {"diameter": diameter, "skip_background": self.skip_background, "kept": kept}
            return encode_masks(predict_tiled(self.predictor, windows, **options))
        source = windows if image.number or diameter or self.roi else image.path
        instances = self.predictor.predict(source, soft_masks=self.soft, diameter=diameter)
        limit = self.predictor.max_objects
        if limit is not None and len(instances) >= limit:
            _print_line(
                f"{image.path}: {len(instances)} objects, the most that the model gives, so that more may be "
                "missing: predict by tiles (--tile) or raise the limit of the config (dataset.max_objects)"
            )
        return encode_masks(instances)

    def _write_stack(self, file: InputFile, planes: Sequence[str], count: int, records: Records) -> None:
        """The label images of a file's `count` images as one TIFF, if all are there."""
        try:
            if len(planes) < count:
                raise ValueError(f"label-tiff is not written, as {count - len(planes)} of its {count} images failed")
            write_stack(
                *(records.output, file, [records.file(name, "label-tiff") for name in planes], self.rule),
                pixel_size=self.pixel_size,
            )
        except ValueError as error:
            self._fail(file.path, error, file.path)

    def _report_facts(
        self, name: str, instances: Instances, windows: ImageWindows, drawn: Path | None, pixel_size: float | None
    ) -> dict[str, Any]:
        """A `ReportEntry` for JSON; `drawn` is the overlay's file, where it was written."""
        shown, reduced = make_picture(windows, instances, self.channels)
        overlay = read_image(str(drawn)) if drawn else draw_overlay(shown, reduced, self.predictor.class_names)
        entry = report_entry(name, instances, shown, overlay, pixel_size)
        return {**vars(entry), "pictures": [base64.b64encode(picture).decode() for picture in entry.pictures]}

    def _fail(self, name: str, error: Exception, path: str) -> None:
        """Note and say that an image of the file at `path` cannot be predicted."""
        lines = str(error).splitlines()
        reason = lines[0] if lines else type(error).__name__
        if not isinstance(error, (ValueError, OSError)):
            reason = f"{type(error).__name__}: {reason}"
        reason = reason.removeprefix(f"{name}: ").removeprefix(f"{path}: ")
        self.summary.failures.append((name, reason))
        _print_line(f"{name}: {reason}")


def _print_line(line: str) -> None:
    """Show a line beside the progress bar."""
    tqdm.write(f"predict: {line}", file=sys.stderr)


def _report_entry(facts: dict[str, Any], with_pictures: bool) -> ReportEntry:
    """The entry that `_Run._report_facts` put down."""
    pictures = facts.pop("pictures")
    return ReportEntry(**facts, pictures=tuple(map(base64.b64decode, pictures)) if with_pictures else None)
