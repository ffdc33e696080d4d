"""Rendered nuclei: functions of their arguments, with exact labels, in the colours of their stain."""

import numpy as np
import pytest

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.synthetic_nuclei import STAINS, render_nuclei


@pytest.mark.parametrize("stain", STAINS)
@pytest.mark.parametrize("size", [(160, 120), (32, 32)])
def test_the_same_arguments_give_the_same_pixels_with_labels_without_gaps(stain, size):
    image, labels = render_nuclei(stain, 3, 1, *size)
    again, _ = render_nuclei(stain, 3, 1, *size)
    other, _ = render_nuclei(stain, 3, 2, *size)
    assert np.array_equal(image, again)
    assert not np.array_equal(image, other)
    assert image.shape == (size if stain == "fluorescence" else (*size, 3))
    assert (image.dtype, labels.dtype, labels.shape) == (np.uint8, np.uint16, size)
    found, areas = np.unique(labels[labels > 0], return_counts=True)
    assert found.tolist() == list(range(1, len(found) + 1))
    assert len(found)
    assert areas.min() >= 30


def test_fluorescence_is_bright_on_black():
    image, labels = render_nuclei("fluorescence", 0, 0, 160, 160)
    assert image[labels > 0].mean() > 3 * image[labels == 0].mean()


def test_stained_nuclei_are_blue_and_darker_than_the_pink_around_them():
    image, labels = render_nuclei("tissue", 0, 0, 160, 160)
    nuclei, around = image[labels > 0].mean(axis=0), image[labels == 0].mean(axis=0)
    assert nuclei.mean() < 0.75 * around.mean()
    assert nuclei.argmax() == 2  # blue
    assert around[1] < min(around[0], around[2])  # pink: green is missing
    assert around[0] - around[2] > nuclei[0] - nuclei[2]


@pytest.mark.parametrize("arguments", [(-1, 0, 64, 64), (0, 0, 31, 64), (0, 0, 64, 9000)])
def test_arguments_out_of_range(arguments):
    with pytest.raises(DataError, match=r"32\.\.8192"):
        render_nuclei("tissue", *arguments)
