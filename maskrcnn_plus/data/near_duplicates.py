"""Images that show nearly the same: resized, compressed again, brightened or darkened, or the next frame of a video.

Two images are compared by small grey pictures of which all coarse structure is taken away, since uneven lighting and a
common background make different images alike; what is left is compared by its correlation, which neither brightness nor
contrast change. Of 113,000 pairs of images of cells and everyday scenes one, of the same embryo, had 0.94, and no other
more than 0.48. Copies as above have 0.95 and more, and 0.76 where brightening has burnt out much of a bright image.

Shape shorthand: I images, D values of a small picture, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from maskrcnn_plus.data.image_facts import THUMB_SIDE, ImageFacts

NEAR_DUPLICATE = 0.75
"""Correlation from which on two images show the same."""

_COARSE = THUMB_SIDE / 8  # pixels of a small picture: standard deviation of the Gaussian that is subtracted
_ROWS = 1024  # of the matrix of correlations at once


def signatures(facts: Sequence[ImageFacts | str]) -> np.ndarray:
    """What images are compared by.

    Args:
        facts: as of `read_facts`.

    Returns:
        float32 [I, D] of length 1; zeros for an image that could not be read or is of one grey.
    """
    vectors = np.zeros((len(facts), THUMB_SIDE * THUMB_SIDE), dtype=np.float32)
    for vector, each in zip(vectors, facts, strict=True):
        if isinstance(each, ImageFacts):
            small = each.thumbnail().astype(np.float32)
            fine = small - cv2.GaussianBlur(small, (0, 0), _COARSE)
            vector[:] = (fine - fine.mean()).reshape(-1)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 1)


def similar_pairs(vectors: np.ndarray, threshold: float = NEAR_DUPLICATE) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of images that are alike.

    Args:
        vectors: as of `signatures`.
        threshold: least correlation.

    Returns:
        int64 [P, 2], indices of each pair, the smaller one first; float32 [P], their correlation.
    """
    pairs, values = [np.zeros((0, 2), dtype=np.int64)], [np.zeros(0, dtype=np.float32)]
    for first in range(0, len(vectors), _ROWS):
        block = vectors[first : first + _ROWS] @ vectors[first:].T  # [rows, I - first]
        rows, columns = np.nonzero(np.triu(block >= threshold, k=1))
        pairs.append(np.stack([rows, columns], axis=1) + first)
        values.append(block[rows, columns])
    return np.concatenate(pairs), np.concatenate(values)


def join_pairs(pairs: np.ndarray | Sequence[Sequence[int]], count: int) -> np.ndarray:
    """Group of each of `count` images, int64, where those of each pair [P, 2] belong together; 0 appears first."""
    first, second = np.asarray(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(count, count))
    labels = connected_components(graph, directed=False)[1]
    _, first, group = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[group]
