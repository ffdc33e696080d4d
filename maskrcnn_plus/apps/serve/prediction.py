"""Images to their objects as tools/predict.py finds them: whole or by tiles, at the scale of their objects.

Shape shorthand: H x W pixels of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from maskrcnn_plus.apps.serve.jobs import Job
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.inference.tile_choice import TileChoice
from maskrcnn_plus.inference.tiling import predict_tiled
from maskrcnn_plus.masks.rle_masks import encode_masks
from maskrcnn_plus.results.predictions import Predictions


def predict_image(predictor: Predictor, tiles: TileChoice, job: Job) -> Predictions:
    """Predict one image.

    Raises:
        ValueError, OSError: the image cannot be used; the message names its file.
        JobCancelled: nobody wants it any more.
    """
    job.on_tile(0, 1)
    if predictor.auto_scale is None and tiles.options(*job.size) is None and not job.image.number:
        found = predictor.predict(job.image.path)
    else:
        with job.image.open() as windows:
            diameter = predictor.find_diameter(windows)
            options = tiles.options(*windows.shape[:2], diameter)
            if options is not None:
                tiled = predict_tiled(
                    predictor, windows, diameter=diameter, progress=False, on_tile=job.on_tile, **options
                )
                return encode_masks(tiled)
            found = predictor.predict(windows if job.image.number or diameter else job.image.path, diameter=diameter)
    return _checked(predictor, job, found)


def predict_batch(predictor: Predictor, tiles: TileChoice, jobs: Sequence[Job]) -> list[Predictions]:
    """Predict small images together; those that are better seen by tiles, each alone.

    Raises:
        ValueError, OSError: one of the images cannot be used.
    """
    with ExitStack() as stack:
        images = [stack.enter_context(job.image.open()) if job.image.number else job.image.path for job in jobs]
        results = predictor.predict(images, batch_size=len(images))
    return [
        _checked(predictor, job, found)
        if tiles.options(*job.size, found.object_diameter) is None
        else predict_image(predictor, tiles, job)
        for job, found in zip(jobs, results, strict=True)
    ]


def _checked(predictor: Predictor, job: Job, found: Predictions) -> Predictions:
    """The result with masks as run-length codes; says so where the model's limit may have cut it."""
    limit = predictor.max_objects
    if limit is not None and len(found) >= limit:
        job.note = (
            f"{len(found)} objects are the most that the model gives an image, so that more may be missing: start the "
            "server with --tile SIZE, or raise the limit (--opts dataset.max_objects=N)."
        )
    return encode_masks(found)
