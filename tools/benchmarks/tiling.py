"""Prediction by tiles of mosaics of a config's images: time, memory, and agreement with each image predicted alone."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog
from omegaconf import DictConfig
from scipy.optimize import linear_sum_assignment

from maskrcnn_plus.data.images import read_image
from maskrcnn_plus.inference.predictor import RANDOM, Predictor
from maskrcnn_plus.inference.tiling import Tiling, plan_tiling, predict_tiled, tile_starts
from maskrcnn_plus.masks.measure import move_rles, rle_boxes, rle_ious

SCORE = 0.5
SEAM = 32
"""Pixels: objects nearer to a seam between images of the mosaic see another neighbourhood, and are not judged."""


@dataclass
class Piece:
    """A source image, perhaps cut, and where it lies in the mosaic (pixels)."""

    x: int
    y: int
    pixels: np.ndarray


def benchmark_tiling(cfg: DictConfig, weights: str | None, sides: Sequence[int], progress: bool = True) -> None:
    """Print a Markdown table with a row for a mosaic of each side (pixels), the smallest first.

    The images are those of the config's data sets, normalised to 8 bits one by one; a mosaic and its source images
    alone are then mapped by the grey values of the mosaic, so that both see the same pixels.
    """
    predictor = Predictor(cfg, weights or RANDOM, score_threshold=SCORE)
    names = [entry["file_name"] for data in (cfg.dataloader.train, cfg.dataloader.test) for entry in _entries(data)]
    tiling = plan_tiling(predictor)
    print(f"tiles of {tiling.tile_size} px, overlap {tiling.overlap} px, scale {tiling.scale:g}; score >= {SCORE}")
    print("| mosaic | images | objects | s | s / Mpx | peak memory, MB | AP50 with images alone | doubled |")
    print("|---|---|---|---|---|---|---|---|")
    predictor.warm_up(1024, 1024)
    for side in sorted(sides):
        pieces = _pack(names, side, cfg.dataset.percentiles)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"mosaic_{side}.tif"
            mosaic = np.zeros((side, side), dtype=np.uint8)
            for piece in pieces:
                height, width = piece.pixels.shape
                mosaic[piece.y : piece.y + height, piece.x : piece.x + width] = piece.pixels
            tifffile.imwrite(path, mosaic, tile=(256, 256), compression="zlib", photometric="minisblack")
            limits = predictor.intensity_range(mosaic)
            start = time.perf_counter()
            tiled = predict_tiled(predictor, path, progress=progress)
            seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rles = list(tiled.pred_masks_rle)
        boxes = rle_boxes(rles)
        counts, doubles = np.zeros(3, dtype=np.int64), set(_doubles_at_borders(rles, boxes, side, tiling))
        for piece in pieces:
            alone = list(predictor.predict(piece.pixels, intensity_range=limits).pred_masks_rle)
            near = _touching(boxes, piece)
            cut = move_rles([rles[k] for k in near], -piece.x, -piece.y, *piece.pixels.shape)
            ious = rle_ious(alone, cut)
            inner = [_away_from_seams(rle_boxes(masks), piece.pixels.shape) for masks in (alone, cut)]
            counts += _matches(ious, *inner)
            doubles -= _also_alone(doubles, ious, near)
        doubles = {pair for pair in doubles if not _in_one_tile(predictor, mosaic, limits, rles, boxes, pair, tiling)}
        print(
            f"| {side} x {side} | {len(pieces)} | {len(rles)} | {seconds:.1f} | {seconds / side**2 * 1e6:.2f} "
            f"| {peak:.0f} | {counts[0] / max(counts.sum(), 1):.4f} (TP {counts[0]}, FP {counts[1]}, FN {counts[2]}) "
            f"| {len(doubles)} |",
            flush=True,
        )
    print(
        f"\nAP50 = TP / (TP + FP + FN) of masks at IoU 0.5, of objects {SEAM} px or more from seams between images. "
        "Doubled: pairs with an IoU of 0.5 and more in an overlap of tiles, where neither the image alone nor "
        "any one tile has both."
    )


def _entries(loader: DictConfig) -> list[dict]:
    """The entries of the data set that a loader's config names, which is registered where it need be."""
    dataset = loader.dataset.dataset if "dataset" in loader.dataset else loader.dataset
    names = instantiate(dataset.names)
    return [entry for name in ([names] if isinstance(names, str) else names) for entry in DatasetCatalog.get(name)]


def _pack(names: Sequence[str], side: int, percentiles: Sequence[float]) -> list[Piece]:
    """Fill a square with images in rows; a row is as high as its first image, others are cut or leave black below."""
    order = np.random.default_rng(0).permutation(len(names))
    pieces, x, y, row, number = [], 0, 0, 0, 0
    while y < side:
        image = read_image(names[order[number % len(order)]], 1, tuple(percentiles))[:, :, 0]
        number += 1
        if x == 0:
            row = min(image.shape[0], side - y)
        pixels = np.rint(image[:row, : side - x]).astype(np.uint8)
        pieces.append(Piece(x, y, pixels))
        x += pixels.shape[1]
        if x >= side:
            x, y = 0, y + row
    return pieces


def _touching(boxes: np.ndarray, piece: Piece) -> np.ndarray:
    """Indices of the boxes [N, 4] of the mosaic that touch a piece."""
    low, high = np.array([piece.x, piece.y]), np.array([piece.x, piece.y]) + piece.pixels.shape[::-1]
    return np.flatnonzero(((boxes[:, :2] < high) & (boxes[:, 2:] > low)).all(axis=1))


def _matches(ious: np.ndarray, alone_judged: np.ndarray, tiled_judged: np.ndarray) -> np.ndarray:
    """TP, FP, FN of one image from IoUs [alone, tiled]; a pair is judged where that of `alone` is."""
    first, second = linear_sum_assignment(ious >= 0.5, maximize=True)
    matched = ious[first, second] >= 0.5
    first, second = first[matched], second[matched]
    hits = np.count_nonzero(alone_judged[first])
    tiled_judged[second] = False
    return np.array([hits, tiled_judged.sum(), alone_judged.sum() - hits])


def _also_alone(pairs: set[tuple[int, int]], ious: np.ndarray, near: np.ndarray) -> set[tuple[int, int]]:
    """Those of the pairs of tiled objects that the image alone has too; ious [alone, near]."""
    place = {index: column for column, index in enumerate(near.tolist())}
    inside = [(a, b) for a, b in pairs if a in place and b in place]
    return {(a, b) for a, b in inside if np.count_nonzero((ious[:, [place[a], place[b]]] >= 0.5).any(axis=1)) > 1}


def _away_from_seams(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Whether boxes [N, 4] lie `SEAM` px and more from the border of their image, bool [N]."""
    return (boxes[:, :2] >= SEAM).all(axis=1) & (boxes[:, 2:] <= np.array(size[::-1]) - SEAM).all(axis=1)


def _in_one_tile(
    predictor: Predictor,
    mosaic: np.ndarray,
    limits: tuple[float, float] | None,
    rles: list[dict],
    boxes: np.ndarray,
    pair: tuple[int, int],
    tiling: Tiling,
) -> bool:
    """Whether the model finds both objects of a pair in one of the tiles, so that the merging is not to blame."""
    size, both = tiling.tile_size, boxes[list(pair)]
    low, high = both[:, :2].min(axis=0), both[:, 2:].max(axis=0)
    corners = [(x, y) for y in tile_starts(len(mosaic), tiling) for x in tile_starts(len(mosaic), tiling)]
    for x, y in corners:
        if (low < (x + size, y + size)).all() and (high > (x, y)).all():
            tile = mosaic[y : y + size, x : x + size]
            found = list(predictor.predict(tile, intensity_range=limits).pred_masks_rle)
            ious = rle_ious(move_rles([rles[k] for k in pair], -x, -y, *tile.shape), found)
            if np.count_nonzero((ious >= 0.5).any(axis=0)) > 1:
                return True
    return False


def _doubles_at_borders(rles: list[dict], boxes: np.ndarray, side: int, tiling: Tiling) -> list[tuple[int, int]]:
    """Pairs of masks with an IoU of 0.5 and more that touch an overlap of tiles."""
    starts = np.array(tile_starts(side, tiling))
    low, high = starts[1:], starts[:-1] + tiling.tile_size  # of the overlaps
    spans = [(boxes[:, axis, None] < high) & (boxes[:, axis + 2, None] > low) for axis in (0, 1)]  # [N, overlaps]
    order = np.flatnonzero(spans[0].any(axis=1) | spans[1].any(axis=1))
    order = order[np.argsort(boxes[order, 0], kind="stable")]
    lefts = boxes[order, 0]
    pairs = []
    for place, index in enumerate(order.tolist()):
        later = order[place + 1 : np.searchsorted(lefts, boxes[index, 2], side="left")]
        near = later[(boxes[later, 1] < boxes[index, 3]) & (boxes[later, 3] > boxes[index, 1])]
        ious = rle_ious([rles[index]], [rles[k] for k in near])[0]
        pairs += [(index, k) for k in near[ious >= 0.5].tolist()]
    return pairs
