"""The estimate of the diameter of objects, by a stand-in whose scores are known for every size."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from disc_finder import LEARNED, DiscFinder, draw_discs

from maskrcnn_plus.inference.object_diameter import LOOK_PIXELS, estimate_diameter

LIMITS = (0.02, 4.0)


class Detector:
    """The stand-in as a function, which counts the pixels that it has seen."""

    def __init__(self):
        self.model = DiscFinder()

    def __call__(self, image):
        height, width = image.shape[:2]
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return self.model([{"image": pixels, "height": height, "width": width}])[0]["instances"]


def estimate(*parts):
    return estimate_diameter(parts, Detector(), LEARNED, LIMITS)


@pytest.mark.parametrize(
    ("diameter", "count", "size"),
    [(6, 200, (300, 400)), (12, 60, (256, 256)), (22, 30, (520, 696)), (60, 30, (900, 700)), (220, 6, (1024, 1280))],
)
def test_the_diameter_of_equal_discs(diameter, count, size):
    found = estimate(draw_discs(*size, [diameter] * count))
    assert found == pytest.approx(diameter, rel=0.1, abs=1.5)  # the stand-in's boxes are of whole pixels


@pytest.mark.parametrize("factor", [0.5, 2, 3])
def test_an_image_that_is_magnified_has_objects_that_are(factor):
    image = draw_discs(400, 500, [20] * 40 + [26] * 15 + [33] * 10)
    resized = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA if factor < 1 else 1)
    assert estimate(resized) == pytest.approx(factor * estimate(image), rel=0.1)


def test_of_a_mixture_it_is_the_median_of_the_objects_and_not_of_their_area():
    diameters = [16] * 40 + [24] * 15 + [60] * 8
    found = estimate(draw_discs(600, 800, diameters))
    assert found == pytest.approx(np.median(diameters), rel=0.15)
    assert found < 24  # half of the area belongs to larger ones


@pytest.mark.parametrize("count", [1, 2])
def test_few_objects(count):
    assert estimate(draw_discs(300, 400, [30] * count)) == pytest.approx(30, rel=0.12)


class TissueFromAfar(Detector):
    """Takes an image for one object, where it sees it small, and is less sure of those in it."""

    def __call__(self, image):
        found = super().__call__(image)
        height, width = image.shape[:2]
        if max(height, width) > 64:
            found.scores = 0.5 + 0.6 * (found.scores - 0.5)
            return found
        whole = Boxes(torch.tensor([[1.0, 1.0, width - 1.0, height - 1.0]]))
        return Instances((height, width), pred_boxes=whole, scores=torch.tensor([0.97]))


@pytest.mark.parametrize("count", [30, 120])
def test_tissue_full_of_objects_is_no_object(count):
    image = draw_discs(512, 512, [20] * count)
    assert estimate_diameter([image], TissueFromAfar(), LEARNED, LIMITS) == pytest.approx(20, rel=0.15)


class CellsAndNuclei(Detector):
    """Finds bright discs, and with less certainty the grey ones around them."""

    def __init__(self):
        self.model = DiscFinder(junk=0.0)

    def __call__(self, image):
        nuclei, cells = (super(CellsAndNuclei, self).__call__((image > least) * np.float32(255)) for least in (180, 60))
        cells.scores = 0.5 + 0.8 * (cells.scores - 0.5)
        return Instances.cat([nuclei, cells])


@pytest.mark.parametrize("nucleus", [20, 26])
def test_cells_that_look_like_nuclei_from_afar_are_not_taken_for_them(nucleus):
    image = np.zeros((1024, 1024, 3), np.uint8)
    for y in range(80, 1000, 140):
        for x in range(80, 1000, 140):
            cv2.circle(image, (x, y), 60, (120, 120, 120), -1)
            cv2.circle(image, (x, y), nucleus // 2, (230, 230, 230), -1)
    assert estimate_diameter([image], CellsAndNuclei(), LEARNED, LIMITS) == pytest.approx(nucleus, rel=0.15)


def test_an_object_as_large_as_the_image():
    assert estimate(draw_discs(256, 256, [200])) == pytest.approx(200, rel=0.12)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (200, 300), (1000, 1000)])
def test_without_objects_it_ends_and_says_so(size):
    detector = Detector()
    assert estimate_diameter([np.zeros((*size, 3), np.float32)], detector, LEARNED, LIMITS) is None
    assert len(detector.model.seen) < 12


def test_no_look_is_large_and_objects_in_a_corner_are_seen():
    image = np.zeros((1500, 2000, 3), np.uint8)
    image[1200:, 1600:] = draw_discs(300, 400, [12] * 50)
    detector = Detector()
    found = estimate_diameter([image], detector, LEARNED, LIMITS)
    assert found == pytest.approx(12, rel=0.15)
    assert max(height * width for height, width in detector.model.seen) <= 1.01 * LOOK_PIXELS


def test_clumps_that_look_like_objects_from_afar_are_not_taken_for_them():
    image = np.zeros((800, 800, 3), np.uint8)
    corners = [(y, x) for y in range(40, 700, 180) for x in range(40, 700, 180)]
    for y, x in corners:  # 3 x 3 discs with gaps that vanish when the image is made small
        for row in range(3):
            for column in range(3):
                cv2.circle(image, (x + 21 * column + 10, y + 21 * row + 10), 9, (230, 230, 230), -1)
    assert estimate(image) == pytest.approx(19, rel=0.15)


def test_the_same_again():
    image = draw_discs(500, 500, [14] * 60)
    assert estimate(image) == estimate(image)


def test_several_parts_are_one_image():
    parts = [draw_discs(300, 300, [15] * 20, seed=1), np.zeros((300, 300, 3), np.uint8), draw_discs(300, 300, [15] * 9)]
    assert estimate(*parts) == pytest.approx(15, rel=0.12)
