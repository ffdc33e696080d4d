"""Films: how well trackers keep identities, and how many frames of a camera a model predicts in a second."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig

from maskrcnn_plus.data.images import read_image
from maskrcnn_plus.data.moving_nuclei import film_nuclei
from maskrcnn_plus.inference.bytetrack import ByteTracker
from maskrcnn_plus.inference.predictor import RANDOM, Predictor
from maskrcnn_plus.inference.tracking import MaskTracker
from maskrcnn_plus.masks.label_map import label_map_to_rles
from maskrcnn_plus.masks.measure import move_rles, rle_boxes
from maskrcnn_plus.masks.rle_masks import RLEMasks

FILMS = {
    "16 nuclei": {"count": 16},
    "40 nuclei": {"count": 40},
    "16 fast nuclei": {"count": 16, "speed": 6.0},
    "30 nuclei, no divisions": {"count": 30, "divisions": 0.0},
}
TRACKERS = {
    "masks, divisions": lambda: MaskTracker(divisions=True),
    "masks": MaskTracker,
    "ByteTrack": ByteTracker,
}
DETECTIONS = {"perfect": (0.0, 0.0), "a tenth missing, moved by 1 px": (0.1, 1.0)}  # share missing, deviation in pixels


def benchmark_tracking(num_films: int, num_frames: int = 70) -> None:
    """Print a Markdown table of IDF1, identity switches and time; the scores are those of `trackers.eval`."""
    from trackers.eval.clear import compute_clear_metrics
    from trackers.eval.identity import compute_identity_metrics

    print(
        "| film | detections | tracker | IDF1 | switches | tracks (true) | ms a frame |\n|---|---|---|---|---|---|---|"
    )
    for film, options in FILMS.items():
        films = [[labels for _, labels in film_nuclei(seed, num_frames, **options)] for seed in range(num_films)]
        for (detections, (missing, deviation)), (name, make) in itertools.product(DETECTIONS.items(), TRACKERS.items()):
            scores, switches, computed, true, seconds = [], 0, 0, 0, 0.0
            for seed, frames in enumerate(films):
                truth, found, similar = [], [], []
                tracker, rng = make(), np.random.default_rng(seed)
                for instances, values, kept in _detected(frames, rng, missing, deviation):
                    start = time.process_time()
                    identities = tracker.update(instances)
                    seconds += time.process_time() - start
                    tracked = np.flatnonzero(identities)
                    truth.append(values)
                    found.append(identities[tracked])
                    similar.append((values[:, None] == values[kept][None, tracked]).astype(float))
                scores.append(compute_identity_metrics(truth, found, similar)["IDF1"])
                switches += compute_clear_metrics(truth, found, similar)["IDSW"]
                computed += len(set(np.concatenate(found).tolist()))
                true += len(set(np.concatenate(truth).tolist()))
            each = 1000 * seconds / (num_films * num_frames)
            print(
                f"| {film} | {detections} | {name} | {np.mean(scores):.3f} | {switches} | {computed} ({true}) "
                f"| {each:.1f} |",
                flush=True,
            )


def _detected(
    frames: Sequence[np.ndarray], rng: np.random.Generator, missing: float, deviation: float
) -> Iterator[tuple[Instances, np.ndarray, np.ndarray]]:
    """What a detector finds in each label image: objects, the true identities, and the indices of those found."""
    for labels in frames:
        values = np.unique(labels)[1:].astype(int)
        kept = np.flatnonzero(rng.random(len(values)) >= missing)
        shifts = np.rint(deviation * rng.standard_normal((len(kept), 2))).astype(int).tolist()
        rles = label_map_to_rles(labels, values[kept].tolist())
        rles = [move_rles([rle], *shift, *labels.shape)[0] for rle, shift in zip(rles, shifts, strict=True)]
        boxes = torch.from_numpy(rle_boxes(rles).astype(np.float32).reshape(-1, 4))
        found = Instances(labels.shape, pred_boxes=Boxes(boxes), scores=torch.full((len(kept),), 0.9))
        found.pred_classes = torch.zeros(len(kept), dtype=torch.int64)
        found.pred_masks_rle = RLEMasks(rles, labels.shape)
        yield found, values, kept


def benchmark_stream(cfg: DictConfig, weights: str | None, images: str, size: tuple[int, int], rounds: float) -> None:
    """Print how many frames of photographs a model predicts in a second, the clock's and the processor's (all threads).

    Args:
        cfg: of the model.
        weights: a checkpoint; None takes random weights.
        images: folder of photographs, which are brought to the size of a camera's frames.
        size: (height, width), pixels.
        rounds: hundreds of frames.
    """
    predictor = Predictor(cfg, weights or RANDOM)
    paths = sorted(path for path in Path(images).iterdir() if path.suffix == ".jpg")[:20]
    frames = [cv2.resize(read_image(str(path)), size[::-1], interpolation=cv2.INTER_AREA) for path in paths]
    predictor.warm_up(*size)
    times, objects = [(time.perf_counter(), time.process_time())], 0
    for result in predictor.stream(itertools.islice(itertools.cycle(frames), round(100 * rounds))):
        objects += len(result.instances)
        times.append((time.perf_counter(), time.process_time()))
    parameters = sum(each.numel() for each in predictor.model.parameters()) / 1e6
    clock, processor = 1 / np.median(np.diff(times, axis=0), axis=0)
    print(
        f"{parameters:.1f} M parameters, frames of {size[0]} x {size[1]}, {objects / (len(times) - 1):.1f} objects a "
        f"frame: {clock:.1f} frames a second, {processor:.1f} a second of the processor"
    )
