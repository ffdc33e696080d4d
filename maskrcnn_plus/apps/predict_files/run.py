"""Prediction of many files into one folder, which goes on where it was stopped.

    predictor = Predictor("nuclei/mask_rcnn_lite0_fpn", "model_best.pth")
    predict_files(predictor, ["slides/", "film.mp4"], "output", formats=["labels", "csv"])

Shape shorthand: H x W pixels of an image.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from maskrcnn_plus.apps.predict_files.file_predictor import FilePredictor, RunSummary
from maskrcnn_plus.apps.predict_files.fingerprint import describe_settings
from maskrcnn_plus.apps.predict_files.image_predictor import explain_no_objects, print_line
from maskrcnn_plus.apps.predict_files.inputs import InputFile, list_inputs
from maskrcnn_plus.apps.predict_files.merging import merged_files, write_merged
from maskrcnn_plus.apps.predict_files.prediction_loop import FileOptions
from maskrcnn_plus.apps.predict_files.records import Records, Shard
from maskrcnn_plus.apps.predict_files.shards import ShardRecord
from maskrcnn_plus.apps.predict_files.workers import Workers, predict_in_processes
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.results import DEFAULT_FORMATS, FORMATS

__all__ = ["RunSummary", "explain_no_objects", "predict_files"]


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
    batch_size: int = 1,
    shard: Shard | None = None,
    workers: Workers | None = None,
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
        batch_size: images that the network sees at once, where it pads them to the same size.
        shard: predict this part of the files alone, beside other processes that predict others. What brings all images
            together is then left to `merge_shards`.
        workers: predict in several processes of this machine.

    Raises:
        ValueError: nothing to predict, an unknown format, a `tile`, `pixel_size`, `roi` or `batch_size` out of range,
            or an output folder with other results.
        OSError: a result cannot be written.
    """
    with_report = report is not None
    options = FileOptions(
        *(tuple(formats), pixel_size, tile, with_report, background, soft, object_type),
        *(roi, skip_background, batch_size, max_pixels),
    )
    options.check(predictor)  # before anything is written
    folder = Path(output)
    sub_folders = [FORMATS[kind] for kind in formats]
    files = list_inputs(inputs, recursive, [str(folder / name) for name in FORMATS.values()])
    _check_apart(files, folder, sub_folders)
    names = predictor.class_names
    depends = describe_settings(predictor, options)
    depends |= {"classes": ", ".join(names), "category ids": str(predictor.category_ids)}
    written = sub_folders, merged_files(formats, with_report)
    with Records(folder, depends, *written, overwrite, shard) as records:
        if shard is not None:
            record = ShardRecord.begin(shard, files, records, options, names, report)
            files = files[shard.index - 1 :: shard.count]
        with tqdm(total=len(files), unit="image", disable=None if progress else True) as bar:

            def advance(more: int, done: int) -> None:
                bar.total += more
                bar.update(done)

            if workers is None:
                run = FilePredictor(predictor, options, records)
                run.run(files, advance)
                summary = run.summary
            else:
                summary = predict_in_processes(workers, files, options, records, advance)
        summary.done.sort()
        if shard is not None:
            record.end(summary)
        else:
            write_merged(folder, records, summary, formats, names, report)
    if summary.done and not summary.num_objects:
        print_line(explain_no_objects(predictor, len(summary.done)))
    return summary


def _check_apart(files: Sequence[InputFile], folder: Path, sub_folders: Sequence[str]) -> None:
    """Refuse inputs that results would be written over."""
    places = [(folder / name).resolve() for name in sub_folders]
    for file in files:
        path = Path(os.path.realpath(file.path))
        if any(path.is_relative_to(place) for place in places):
            raise ValueError(f"input {file.path} is among the results of {folder}: choose another output folder")
