"""Whole-slide files: windows of the slide, and what is smaller from its pyramid."""

import sys

import cv2
import numpy as np
import pytest
import tifffile
from slide_files import write_svs

from maskrcnn_plus.data.channels import ChannelRule
from maskrcnn_plus.data.images import ImageReadError
from maskrcnn_plus.data.pixel_size import tiff_pixel_size
from maskrcnn_plus.data.tiff_planes import list_planes
from maskrcnn_plus.data.windows import open_windows

RNG = np.random.default_rng(0)


def pixels(height=300, width=220):
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def tiffslide():
    return pytest.importorskip("tiffslide")


def test_windows_are_those_of_level_0(tmp_path, tiffslide):
    image, path = pixels(), str(tmp_path / "a.svs")
    write_svs(path, image)
    with open_windows(path) as windows:
        assert (windows.shape, windows.dtype) == (image.shape, np.uint8)
        for _ in range(10):
            x, y = RNG.integers(0, 220), RNG.integers(0, 300)
            w, h = RNG.integers(1, 220 - x + 1), RNG.integers(1, 300 - y + 1)
            np.testing.assert_array_equal(windows.read(x, y, w, h), image[y : y + h, x : x + w])
            np.testing.assert_array_equal(windows.crop(x, y, w, h).read(0, 0, w, h), image[y : y + h, x : x + w])
        np.testing.assert_array_equal(windows.sample(), image)
        np.testing.assert_array_equal(
            windows.pick(ChannelRule(1, (2,))).read(5, 6, 7, 8)[:, :, 0], image[6:14, 5:12, 2]
        )
    assert len(list_planes(path, ChannelRule())) == 1


def test_smaller_images_come_from_the_pyramid(tmp_path, tiffslide):
    """Level 1 has other pixels than level 0 here, which tells where they are from."""
    image, level, path = pixels(320, 240), pixels(80, 60), str(tmp_path / "a.svs")
    write_svs(path, image, level=level)
    pairs = level.reshape(40, 2, 30, 2, 3).mean(axis=(1, 3))
    with open_windows(path) as windows:
        np.testing.assert_array_equal(windows.reduced(4), level)
        np.testing.assert_allclose(windows.reduced(8), pairs, atol=0.5)
        assert windows.reduced(7).shape == (46, 35, 3)
        blocks = image.reshape(160, 2, 120, 2, 3).mean(axis=(1, 3))
        np.testing.assert_allclose(windows.reduced(2), blocks, atol=0.5)  # of level 0, which is the next larger
        part = windows.crop(40, 80, 100, 60)
        np.testing.assert_array_equal(part.reduced(4), level[20:35, 10:35])
        assert part.reduced(1000).shape == (1, 1, 3)


def test_jpeg_slides_are_decoded_as_tifffile_does(tmp_path, tiffslide):
    image, path = cv2.GaussianBlur(pixels(), (0, 0), 5), str(tmp_path / "a.svs")
    write_svs(path, image, compression="jpeg")
    with open_windows(path) as windows:
        np.testing.assert_array_equal(windows.read(10, 20, 150, 200), tifffile.imread(path)[20:220, 10:160])
        assert np.abs(windows.read(0, 0, 220, 300).astype(int) - image).mean() < 4


@pytest.mark.parametrize(("mpp", "expected"), [("0.2527", 0.2527), (None, None), ("nonsense", None), ("-1", None)])
def test_pixel_size_is_that_of_the_description(tmp_path, mpp, expected):
    write_svs(tmp_path / "a.svs", pixels(64, 64), mpp=mpp)
    assert tiff_pixel_size(str(tmp_path / "a.svs")) == expected


def test_without_tiffslide_the_extra_is_named_and_what_can_be_read_is(tmp_path, monkeypatch, caplog):
    image, path = pixels(64, 64), str(tmp_path / "a.svs")
    write_svs(path, image)
    monkeypatch.setitem(sys.modules, "tiffslide", None)
    with open_windows(path) as windows:
        np.testing.assert_array_equal(windows.read(0, 0, 64, 64), image)
    assert (
        'a.svs is a whole-slide file. To read it by parts and from its pyramid: pip install "maskrcnn_plus[slides]"'
        in (caplog.text)
    )


@pytest.mark.parametrize("kept", [100, 0.5])
def test_a_damaged_slide_is_named(tmp_path, tiffslide, kept):
    path = tmp_path / "a.svs"
    write_svs(path, pixels())
    content = path.read_bytes()
    path.write_bytes(content[: int(kept if kept > 1 else kept * len(content))])
    with pytest.raises(ImageReadError, match=r"a\.svs"), open_windows(str(path)) as windows:
        windows.read(0, 0, 220, 300)
