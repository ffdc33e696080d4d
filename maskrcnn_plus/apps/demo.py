"""What the package does out of the box: a shipped model on rendered nuclei, and a short training on synthetic cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from maskrcnn_plus.apps.finetune.run import train
from maskrcnn_plus.apps.finetune.shipped import NUCLEI
from maskrcnn_plus.apps.predict_files.run import RunSummary, predict_files
from maskrcnn_plus.data.synthetic import render_cells
from maskrcnn_plus.data.synthetic_nuclei import STAINS, render_nuclei
from maskrcnn_plus.errors import UserError
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.results.report import ReportSection, write_sections
from maskrcnn_plus.zoo import SCHEME, read_table

__all__ = ["run_demo"]

CONFIG = "demo/mask_rcnn_lite0_fpn"

_SIDE, _SAMPLES = 320, 2  # of each stain
_CELLS, _CELLS_SEED = 8, 2  # another seed than those of training and validation


def run_demo(output: Path, overrides: Sequence[str] = (), say: Callable[[str], None] = print) -> Path:
    """Predict with the shipped model, train, predict with what was trained, and show both on one page.

    A training that was stopped goes on; results are made anew.

    Args:
        output: folder for everything.
        overrides: `key=value` for the config of the training.
        say: is told what is done.

    Returns:
        The page, `report.html` in the folder.

    Raises:
        UserError: an override cannot be applied, weights cannot be used, or an image could not be predicted.
        OSError: a file cannot be written.
    """
    sections, note = [], ""
    if NUCLEI in read_table():
        source = f"{SCHEME}{NUCLEI}"
        say(f"Predicting rendered nuclei with {source}, which comes with the package ...")
        samples = {
            f"{stain}_{index}": render_nuclei(stain, 0, index, _SIDE, _SIDE)[0]
            for stain in STAINS
            for index in range(_SAMPLES)
        }
        heading = "The shipped model of nuclei, without any training"
        sections.append(_predict(source, samples, output / "nuclei", heading))
    else:
        note = f"No model {NUCLEI!r} comes with this package: nothing is predicted before the training."
        say(note)
    train(CONFIG, resume=True, overrides=[f"train.output_dir={output}", *overrides])
    cells = {f"cells_{index:04d}": render_cells(_CELLS_SEED, index, 256, 256)[0] for index in range(_CELLS)}
    heading = "A model trained here, on rendered cells of three classes"
    sections.append(_predict(str(output / "model_final.pth"), cells, output / "cells", heading))
    page = output / "report.html"
    write_sections(page, "Demo", sections, note)
    say(f"Open {page}")
    return page


def _predict(weights: str, images: dict[str, np.ndarray], folder: Path, heading: str) -> ReportSection:
    """Write images, predict them, and give their part of the page."""
    inputs = folder / "images"
    inputs.mkdir(parents=True, exist_ok=True)
    for name, pixels in images.items():
        Image.fromarray(pixels).save(inputs / f"{name}.png")
    predictor = Predictor(weights)
    paths, details = [str(inputs / f"{name}.png") for name in images], {"Weights": weights}
    summary: RunSummary = predict_files(predictor, paths, folder, report=details, overwrite=True)
    if summary.interrupted:
        raise KeyboardInterrupt
    if summary.failures:
        name, reason = summary.failures[0]
        raise UserError(f"{name}: {reason}")
    return ReportSection(heading, summary.entries, details=details, class_names=predictor.class_names)
