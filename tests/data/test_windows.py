"""Windows of images read from disk: the same pixels as the whole image."""

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from maskrcnn_plus.data import image_windows
from maskrcnn_plus.data.images import ImageReadError, read_image
from maskrcnn_plus.data.tiff_windows import TiffWindows
from maskrcnn_plus.data.windows import open_windows

RNG = np.random.default_rng(0)


def pixels(shape, dtype):
    if np.dtype(dtype).kind == "f":
        return RNG.random(shape).astype(dtype)
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


GREY, RGB, PLANES = (83, 61), (83, 61, 3), (5, 83, 61)
LAYOUTS = {
    "one contiguous block": dict(),
    "strips": dict(rowsperstrip=7),
    "compressed strips": dict(rowsperstrip=7, compression="zlib"),
    "compressed strips with predictor": dict(rowsperstrip=7, compression="zlib", predictor=True),
    "tiles": dict(tile=(32, 16)),
    "compressed tiles": dict(tile=(32, 16), compression="zlib"),
    "big-endian tiles": dict(tile=(32, 16), byteorder=">"),
    "big-endian block": dict(byteorder=">"),
    "white is 0": dict(photometric="miniswhite", rowsperstrip=7),
    "one compressed strip": dict(rowsperstrip=1000, compression="zlib"),
}


def write(path, image, byteorder=None, **layout):
    with tifffile.TiffWriter(path, byteorder=byteorder) as tiff:
        tiff.write(image, **({"photometric": "rgb" if image.shape[-1] in (3, 4) else "minisblack"} | layout))


def assert_reads_as(source, whole, page=None):
    height, width = whole.shape[:2]
    with open_windows(source, page) as windows:
        assert windows.shape == whole.shape
        assert windows.dtype == whole.dtype
        for _ in range(12):
            x, y = RNG.integers(0, width), RNG.integers(0, height)
            w, h = RNG.integers(1, width - x + 1), RNG.integers(1, height - y + 1)
            np.testing.assert_array_equal(windows.read(x, y, w, h), whole[y : y + h, x : x + w])
            right, down = w // 3, h // 3
            inner = windows.crop(x, y, w, h).read(right, down, w - right, h - down)
            np.testing.assert_array_equal(inner, whole[y + down : y + h, x + right : x + w])
        np.testing.assert_array_equal(windows.read(0, 0, width, height), whole)
        np.testing.assert_array_equal(windows.sample(), whole)


@pytest.mark.parametrize("factor", [1, 2, 7, 100])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "bool"])
@pytest.mark.parametrize("side", [(83, 61), (1, 61), (83, 1)])
def test_reduced_pixels_are_means_of_blocks(monkeypatch, factor, dtype, side):
    monkeypatch.setattr(image_windows, "CACHE_BYTES", 4 * 61 * 3 * 15)  # bands of some rows
    image = RNG.random((*side, 3)) > 0.5 if dtype == "bool" else pixels((*side, 3), dtype)
    with open_windows(image) as windows:
        reduced = windows.reduced(factor)
    rows, columns = (range(0, length, factor) for length in side)
    blocks = [[image[y : y + factor, x : x + factor].mean(axis=(0, 1), dtype=float) for x in columns] for y in rows]
    assert reduced.dtype == image.dtype
    tolerance = {"float32": 1e-6}.get(dtype, 0.5 + 1e-6)  # rounded
    np.testing.assert_allclose(reduced.astype(float), blocks, rtol=0, atol=tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "dtype"), [(GREY, "uint8"), (GREY, "uint16"), (GREY, "float32"), (RGB, "uint8")])
def test_tiff_windows_are_those_of_the_whole(tmp_path, layout, shape, dtype):
    image, options = pixels(shape, dtype), LAYOUTS[layout]
    if options.get("predictor") and dtype == "float32":
        pytest.skip("tifffile needs imagecodecs for the predictor of floats")
    if "photometric" in options and len(shape) == 3:
        pytest.skip("colour has no white level")
    path = str(tmp_path / "image.tif")
    write(path, image, **options)
    whole = image if image.ndim == 3 else image[:, :, None]
    if "photometric" in options and dtype != "float32":
        whole = ~whole
        np.testing.assert_array_equal(whole / np.float32(257 if dtype == "uint16" else 1), read_image(path, channels=1))
    assert_reads_as(path, whole)


@pytest.mark.parametrize("options", [dict(), dict(tile=(32, 16)), dict(rowsperstrip=7, compression="zlib")])
def test_channels_in_planes_and_pages(tmp_path, options):
    image = pixels(PLANES, "uint16")
    planar, paged = str(tmp_path / "planar.tif"), str(tmp_path / "paged.tif")
    tifffile.imwrite(planar, image, photometric="minisblack", planarconfig="separate", **options)
    tifffile.imwrite(paged, image, photometric="minisblack", metadata={"axes": "CYX"}, ome=True, **options)
    for path in (planar, paged):
        assert_reads_as(path, np.moveaxis(image, 0, 2))
        np.testing.assert_array_equal(np.moveaxis(image, 0, 2) / np.float32(257), read_image(path, channels=None))


def test_a_page_of_a_stack(tmp_path):
    stack = pixels((4, 50, 40), "uint16")
    for options in (dict(), dict(tile=(16, 16)), dict(compression="zlib")):
        path = str(tmp_path / "stack.tif")
        tifffile.imwrite(path, stack, photometric="minisblack", metadata={"axes": "ZYX"}, **options)
        for page in (0, 3):
            assert_reads_as(path, stack[page][:, :, None], page)
        with pytest.raises(ImageReadError, match=r"stack\.tif.*stack"), open_windows(path):
            pass
        with pytest.raises(ImageReadError, match=r"stack\.tif: there is no page 4"), open_windows(path, 4):
            pass


@pytest.mark.parametrize(("shape", "dtype"), [(GREY, "uint8"), (GREY, "uint16"), (RGB, "uint8"), (RGB, "uint16")])
def test_png_and_arrays(tmp_path, shape, dtype):
    image = pixels(shape, dtype)
    path = str(tmp_path / "image.png")
    cv2.imwrite(path, image[:, :, ::-1] if image.ndim == 3 else image)
    whole = image if image.ndim == 3 else image[:, :, None]
    assert_reads_as(image, whole)
    with open_windows(path) as windows:
        np.testing.assert_array_equal(windows.read(3, 4, 20, 30), whole[4:34, 3:23])
        with pytest.raises(ImageReadError, match="only a TIFF has pages"), open_windows(path, 1):
            pass


def test_what_tifffile_cannot_enter_is_read_whole(tmp_path):
    image = pixels(RGB, "uint8")
    for name, options in {"jpeg.tif": dict(compression="jpeg"), "lzw.tif": dict(compression="tiff_lzw")}.items():
        Image.fromarray(image).save(tmp_path / name, **options)
        assert_reads_as(str(tmp_path / name), read_image(str(tmp_path / name)))
    rotated = str(tmp_path / "rotated.tif")
    tifffile.imwrite(rotated, image, photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    assert_reads_as(rotated, np.rot90(image, -1))


def test_alpha_is_told(tmp_path):
    path = str(tmp_path / "rgba.tif")
    tifffile.imwrite(path, pixels((30, 30, 4), "uint8"), photometric="rgb", extrasamples=["unassalpha"], tile=(16, 16))
    with open_windows(path) as windows:
        assert windows.alpha
        assert windows.shape == (30, 30, 4)
    grey = str(tmp_path / "four.tif")
    tifffile.imwrite(grey, pixels((4, 30, 30), "uint8"), photometric="minisblack", planarconfig="separate")
    with open_windows(grey) as windows:
        assert not windows.alpha


def test_segments_are_decoded_once_a_row_of_windows_and_the_cache_is_bounded(tmp_path, monkeypatch):
    path = str(tmp_path / "strips.tif")
    image = pixels((400, 300), "uint16")
    write(path, image, rowsperstrip=10, compression="zlib")
    monkeypatch.setattr(image_windows, "CACHE_BYTES", 12 * 10 * 300 * 2)
    with open_windows(path) as windows:
        assert type(windows) is TiffWindows
        decoded = []
        decode = windows._key.decode
        windows._key.__dict__["decode"] = lambda data, index, **kw: (decoded.append(index), decode(data, index, **kw))[
            1
        ]
        for y in range(0, 400, 100):
            for x in range(0, 300, 60):
                np.testing.assert_array_equal(windows.read(x, y, 60, 100)[:, :, 0], image[y : y + 100, x : x + 60])
                assert sum(segment.nbytes for segment in windows._cache.values()) <= image_windows.CACHE_BYTES
        assert sorted(decoded) == list(range(1, 40))  # strip 0 came with the opening


def test_the_sample_of_a_large_image_is_a_grid_of_its_pixels(tmp_path, monkeypatch):
    path = str(tmp_path / "large.tif")
    image = pixels((300, 200), "uint8")
    write(path, image, tile=(32, 32), compression="zlib")
    monkeypatch.setattr(image_windows, "SAMPLE_VALUES", 300 * 200 // 9 + 1)
    monkeypatch.setattr(image_windows, "CACHE_BYTES", 4 * 200 * 50)  # bands of 48 rows
    with open_windows(path) as windows:
        np.testing.assert_array_equal(windows.sample()[:, :, 0], image[::3, ::3])


def test_bad_files_and_windows(tmp_path):
    (tmp_path / "empty.tif").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image")
    whole = tmp_path / "whole.tif"
    write(str(whole), pixels((200, 200), "uint16"), rowsperstrip=8, compression="zlib")
    block = tmp_path / "block.tif"
    write(str(block), pixels((200, 200), "uint16"))
    for name in ("empty.tif", "text.png", "missing.tif"):
        with pytest.raises(ImageReadError, match=name), open_windows(str(tmp_path / name)):
            pass
    for file in (whole, block):
        file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
        with pytest.raises(ImageReadError, match=file.name), open_windows(str(file)) as windows:
            windows.read(0, 0, 200, 200)
    with open_windows(pixels(GREY, "uint8")) as windows:
        for window in [(-1, 0, 5, 5), (0, 0, 62, 5), (0, 80, 5, 4), (0, 0, 0, 5)]:
            with pytest.raises(ValueError, match="is not within 61 x 83"):
                windows.read(*window)
    for shape in [(0, 5), (5, 0, 3), (4, 5, 6, 7)]:
        with pytest.raises(ImageReadError, match="has the shape"), open_windows(np.zeros(shape)):
            pass
