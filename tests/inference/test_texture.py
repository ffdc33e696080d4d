"""Of slides that are nearly empty, the tissue decides scale and grey values, and not dust, pen marks or fibres."""

import cv2
import numpy as np
import pytest
from detectron2.config import LazyCall as L
from disc_finder import LEARNED, DiscFinder, draw_discs
from omegaconf import OmegaConf

from maskrcnn_plus.checkpoints.sources import local_path
from maskrcnn_plus.data import InstanceMapper
from maskrcnn_plus.data.diameter import ScaleToDiameter
from maskrcnn_plus.data.synthetic_nuclei import STAINS, render_nuclei
from maskrcnn_plus.data.windows import open_windows
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.inference.texture import choose_parts, find_full, find_texture

HEIGHT, WIDTH = 4200, 5000
X, Y = 3000, 1500


def draw_slide(tissue, dark, marks=True):
    """A slide with a round piece [h, w] or [h, w, 3] of tissue whose upper left corner is at `X`, `Y`.

    A bright one is glass with dust and pen marks, uint8; a dark one a camera's noise with dust and fibres that are
    brighter than the tissue, uint16.
    """
    rng = np.random.default_rng(0)
    noise = np.tile(rng.normal(0, 5 if dark else 1.5, (600, 500)), (HEIGHT // 600, WIDTH // 500)).astype(np.float32)
    slide = 100 + noise if dark else np.float32([243, 241, 245]) + noise[:, :, None]
    slide = slide.astype(np.uint16 if dark else np.uint8)
    for _ in range(500):
        colour, place = int(rng.integers(110, 210)), tuple(map(int, rng.integers(0, (WIDTH, HEIGHT))))
        axes = tuple(map(int, rng.integers(2, 10, 2)))
        cv2.ellipse(slide, place, axes, 0, 0, 360, [colour * 10] if dark else [colour] * 3, -1)
    if marks:
        colour, thickness = ([20000], 20) if dark else ((30, 40, 120), 70)
        lines = [(300, 300), (900, 3900), (1400, 500), (1900, 3700), (2500, 200), (4700, 900), (4500, 4000)]
        cv2.polylines(slide, [np.int32(lines)], False, colour, thickness)
        cv2.circle(slide, (2400, 3600), 400, colour, thickness)
    height, width = tissue.shape[:2]
    down, across = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    alpha = np.clip((1 - np.hypot(down, across)) * 8, 0, 1)
    part = slide[Y : Y + height, X : X + width]
    if dark:
        part[:] = part + 10.0 * tissue * alpha
    else:
        part[:] = part * (1 - alpha[:, :, None]) + tissue * alpha[:, :, None]
    return slide


def predictor_of_discs():
    mapper = L(InstanceMapper)(
        is_train=False, augmentations=[L(ScaleToDiameter)(diameter=LEARNED)], percentiles=(1.0, 99.8)
    )
    config = {"model": L(DiscFinder)(), "dataloader": {"test": {"mapper": mapper}}}
    return Predictor(OmegaConf.create(config, flags={"allow_objects": True}), "random", optimize=False)


@pytest.mark.parametrize("stain", STAINS)
@pytest.mark.parametrize("factor", [3, 8])  # the network looks at the parts, whatever they are chosen by
def test_parts_are_those_with_tissue(stain, factor):
    tissue = render_nuclei(stain, 0, 0, 400, 500)[0]
    with open_windows(draw_slide(tissue, stain == "fluorescence")) as windows:
        small = windows.reduced(factor)
    ((x, y, *size),) = choose_parts(small, HEIGHT, WIDTH, 2048)
    assert size == [2048, 2048]
    assert np.hypot(x + 1024 - (X + 250), y + 1024 - (Y + 200)) < 250
    full = cv2.resize(find_full(small, HEIGHT, WIDTH, 2048).astype(np.uint8), (WIDTH, HEIGHT), interpolation=0)
    assert full[Y + 130 : Y + 270, X + 170 : X + 330].all()
    assert full.sum() < 1.2 * 400 * 500


@pytest.mark.parametrize("stain", STAINS)
@pytest.mark.parametrize("marks", [False, True])
def test_grey_values_are_those_of_the_tissue(stain, marks):
    """They become black and white; of all pixels, tissue is less than what the percentiles cut off, and marks more."""
    tissue = render_nuclei(stain, 0, 0, 320, 400)[0]
    slide = draw_slide(tissue, stain == "fluorescence", marks)
    with open_windows(slide) as windows:
        low, high = predictor_of_discs().intensity_range(windows)
    assert predictor_of_discs().intensity_range(slide) == (low, high)
    own = np.percentile(slide[Y + 40 : Y + 280, X + 50 : X + 350], (1, 99.8))
    assert (low, high) == pytest.approx(own, abs=0.25 * (own[1] - own[0]))


def test_the_diameter_is_that_of_objects_in_a_corner_of_a_slide():
    discs = draw_discs(400, 480, [14] * 200)[:, :, 0]
    with open_windows(draw_slide(discs, dark=True)) as windows:
        assert predictor_of_discs().find_diameter(windows) == pytest.approx(14, rel=0.15)


def test_a_round_piece_of_tissue_is_not_taken_for_an_object():
    try:
        weights = local_path("maskrcnn_plus://nuclei")
    except ValueError as error:
        pytest.skip(f"the shipped model is not there: {error}")
    image, labels = render_nuclei("tissue", 0, 3, 480, 600)
    diameter = 2 * np.sqrt(4 / np.pi * np.median(np.bincount(labels.ravel())[1:]))
    with open_windows(draw_slide(cv2.resize(image, None, fx=2, fy=2), dark=False)) as windows:
        assert Predictor(weights, device="cpu").find_diameter(windows) == pytest.approx(diameter, rel=0.15)


def test_parts_lie_within_the_image_and_apart():
    noise = np.random.default_rng(0).integers(0, 255, (64, 128, 1)).astype(np.uint8)
    parts = choose_parts(noise, 6400, 12800, 2048)
    assert len(parts) == 4
    for x, y, *size in parts:
        assert (size, 0 <= x <= 12800 - 2048, 0 <= y <= 6400 - 2048) == ([2048, 2048], True, True)
        centre = x + 1024, y + 1024
        assert sum(abs(centre[0] - a - 1024) < 900 and abs(centre[1] - b - 1024) < 900 for a, b, _, _ in parts) == 1
    assert [size for _, _, *size in choose_parts(noise, 1000, 9000, 2048)] == [[2048, 1000]] * 4
    assert choose_parts(np.zeros_like(noise), 6400, 12800, 2048)[0] == (0, 0, 2048, 2048)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float64, bool])
def test_texture_of_nothing_and_of_everything(dtype):
    assert not find_texture(np.ones((40, 30, 2), dtype), 20).any()
    noise = np.random.default_rng(0).integers(0, 2, (40, 30, 1)).astype(dtype)
    texture = find_texture(noise, 100)
    assert texture.shape == (40, 30)
    assert 0 < texture.max() < 1
    assert find_full(np.ones((40, 30, 1), dtype), 400, 300, 100).all()
