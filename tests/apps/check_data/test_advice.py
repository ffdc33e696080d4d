"""What the doctor advises where the images are unusual in number or size."""

import pytest

from maskrcnn_plus.apps.check_data.advice import give_advice
from maskrcnn_plus.data.formats.masks import polygon_annotation
from maskrcnn_plus.data.statistics import measure


def images(count, side, objects):
    """Square images with a row of squares each."""
    squares = [[x, 10, x + 20, 10, x + 20, 30, x, 30] for x in range(10, 10 + 30 * objects, 30)]
    annotations = [polygon_annotation([square], 0) for square in squares]
    return measure([{"height": side, "width": side, "annotations": annotations}] * count, ["cell"])


@pytest.mark.parametrize(("side", "objects", "said"), [(4097, 101, True), (4096, 101, False), (4097, 100, False)])
def test_large_crowded_images_are_better_cut(side, objects, said):
    advice = " ".join(give_advice(images(12, side, objects), images(6, 100, 3)))
    assert ("12 images are large and crowded, up to 17 megapixels" in advice) == said
    assert ("tools/convert.py --tile" in advice) == said


def test_one_image_cannot_be_split():
    assert "One image cannot be both learned from and judged by" in " ".join(give_advice(images(1, 100, 3), None))
    assert "a training will take some of the 2 for it" in " ".join(give_advice(images(2, 100, 3), None))
