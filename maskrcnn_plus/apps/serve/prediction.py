"""Images to their objects as tools/predict.py finds them: whole or by tiles, at the scale of their objects."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from maskrcnn_plus.apps.predict_files.image_predictor import ImagePredictor
from maskrcnn_plus.apps.serve.jobs import Job
from maskrcnn_plus.results.predictions import Predictions


def predict_jobs(images: ImagePredictor, jobs: Sequence[Job]) -> list[Predictions]:
    """Predict images together; those that are better seen by tiles, each alone.

    Raises:
        ValueError, OSError: one of the images cannot be used; the message names its file.
        JobCancelled: nobody wants one of them any more.
    """
    results: dict[Job, Predictions] = {}
    together = []
    with ExitStack() as stack:
        for job in jobs:
            windows = stack.enter_context(job.image.open()) if images.needs_pixels(job.image, ()) else None
            diameter, options = images.find_scale(windows)
            if options is None:
                together.append((job, windows, diameter))
            else:
                options = {**options, "progress": False, "on_tile": job.on_tile}
                results[job] = images.predict_tiled(windows, diameter, options)
        found = images.predict_whole([(job.image, *rest) for job, *rest in together]) if together else []
    for (job, _, _), each in zip(together, found, strict=True):
        _note_limit(images, job, each)
        results[job] = each
    return [results[job] for job in jobs]


def _note_limit(images: ImagePredictor, job: Job, found: Predictions) -> None:
    """Say it where the model's limit may have cut a result."""
    limit = images.predictor.max_objects
    if limit is not None and len(found) >= limit:
        job.note = (
            f"{len(found)} objects are the most that the model gives an image, so that more may be missing: start the "
            "server with --tile SIZE, or raise the limit (--opts dataset.max_objects=N)."
        )
