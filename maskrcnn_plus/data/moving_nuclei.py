"""Films of nuclei that move, pass over one another and divide, with the identity of each; a function of a seed.

Shape shorthand: H, W height and width of a frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from maskrcnn_plus.data.cells import MIN_VISIBLE, check_request, shape_cell, smooth_noise

__all__ = ["film_nuclei"]

_PERSISTENCE = 0.9  # of the velocity, from frame to frame
_YOUNG = 15  # frames in which a nucleus does not divide again
_RADII = (8.0, 12.0)  # pixels


@dataclass
class _Nucleus:
    """A nucleus in one frame; `centre` and `velocity` are (y, x), pixels and pixels a frame."""

    identity: int
    centre: np.ndarray
    velocity: np.ndarray
    radius: float
    age: int = 0


def film_nuclei(
    seed: int,
    num_frames: int,
    height: int = 256,
    width: int = 256,
    count: int = 16,
    speed: float = 2.0,
    divisions: float = 0.005,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Render the frames one after the other. The same arguments give the same pixels in every process.

    Nuclei wander with a velocity that changes slowly, turn round at the border and pass over one another in an order
    that stays: an older one is below. At a division the nucleus ends and two new ones begin.

    Args:
        seed: 0 or more.
        num_frames: of the film.
        height, width: 32..8192 pixels.
        count: nuclei in the first frame.
        speed: standard deviation of each component of the velocity, pixels a frame.
        divisions: probability that a nucleus divides in a frame.

    Yields:
        image: [H, W] uint8, fluorescence, bright on black.
        labels: [H, W] uint16, 0 = background, else the identity, from 1; what is less than 30 pixels is not there.

    Raises:
        DataError: an argument is out of range.
    """
    check_request(seed, 0, height, width)
    rng = np.random.default_rng((seed, 0, 5))
    nuclei, last = [], 0
    for last in range(1, count + 1):
        centre, velocity = rng.uniform((0, 0), (height, width)), speed * rng.standard_normal(2)
        nuclei.append(_Nucleus(last, centre, velocity, rng.uniform(*_RADII), age=_YOUNG))
    haze = 0.03 * np.exp(0.3 * smooth_noise(rng, height, width, 30.0))  # [H, W]
    for _ in range(num_frames):
        yield _paint(nuclei, haze, rng, seed)
        following = []
        for nucleus in nuclei:
            daughters = []
            if nucleus.age > _YOUNG and rng.random() < divisions:
                daughters = _divide(nucleus, rng, last)
                last += len(daughters)
            following += daughters or [nucleus]
        nuclei = following
        for nucleus in nuclei:
            _move(nucleus, rng, speed, np.array([height, width]))


def _divide(mother: _Nucleus, rng: np.random.Generator, last: int) -> list[_Nucleus]:
    """Two daughters on both sides of the mother's centre; identities go on after `last`."""
    angle = rng.uniform(0, np.pi)
    axis = np.array([np.sin(angle), np.cos(angle)])
    return [
        _Nucleus(last + k, mother.centre + 0.7 * mother.radius * side, mother.velocity + side, 0.75 * mother.radius)
        for k, side in enumerate((axis, -axis), start=1)
    ]


def _move(nucleus: _Nucleus, rng: np.random.Generator, speed: float, size: np.ndarray) -> None:
    """One frame further; `size` (H, W)."""
    noise = np.sqrt(1 - _PERSISTENCE**2) * speed * rng.standard_normal(2)
    nucleus.velocity = _PERSISTENCE * nucleus.velocity + noise
    nucleus.centre = nucleus.centre + nucleus.velocity
    outside = (nucleus.centre < nucleus.radius) | (nucleus.centre > size - nucleus.radius)
    inwards = np.sign(size / 2 - nucleus.centre) * np.abs(nucleus.velocity)
    nucleus.velocity = np.where(outside, inwards, nucleus.velocity)
    nucleus.centre = np.clip(nucleus.centre, 1, size - 1)
    nucleus.age += 1
    if nucleus.age > 1:
        nucleus.radius = max(min(nucleus.radius * 1.01, _RADII[1]), nucleus.radius)


def _paint(
    nuclei: list[_Nucleus], haze: np.ndarray, rng: np.random.Generator, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels [H, W] of a frame."""
    canvas, labels = haze.copy(), np.zeros(haze.shape, dtype=np.uint16)
    for nucleus in nuclei:
        own = np.random.default_rng((seed, nucleus.identity, 6))  # the same shape and light in all frames
        cell = shape_cell(own, int(own.random() < 0.2), nucleus.radius, nucleus.centre, *haze.shape)
        light = own.uniform(0.3, 0.8) * (0.4 + 0.6 * np.clip(1 - cell.rho**2, 0, 1) ** 0.4)
        canvas[cell.window] += cell.cover() * (light - canvas[cell.window])
        labels[cell.window][cell.rho < 1] = nucleus.identity
    visible = np.bincount(labels.ravel())
    labels[visible[labels] < MIN_VISIBLE] = 0
    canvas = cv2.GaussianBlur(canvas.astype(np.float32), (0, 0), 0.9)
    canvas += np.sqrt(0.008**2 + 0.001 * canvas) * rng.standard_normal(canvas.shape, dtype=np.float32)
    return np.rint(255 * np.clip(canvas, 0, 1)).astype(np.uint8), labels
