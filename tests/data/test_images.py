"""Reading: every depth and channel layout against the arrays that were written, and every refusal by name."""

import io
import warnings

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from maskrcnn_plus.data.image_facts import read_facts
from maskrcnn_plus.data.images import ImageReadError, read_image, read_image_size, read_label_map


def random_pixels(shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, size=shape, dtype=dtype, endpoint=True)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_8_bit_rgb_is_returned_as_written(tmp_path, suffix):
    pixels = random_pixels((7, 5, 3))
    path = str(tmp_path / f"a.{suffix}")
    Image.fromarray(pixels).save(path)
    result = read_image(path)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, pixels)
    assert read_image_size(path) == (7, 5)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_is_repeated_and_16_bit_is_scaled_by_257(tmp_path, suffix, dtype):
    pixels = random_pixels((6, 9), dtype)
    path = str(tmp_path / f"a.{suffix}")
    Image.fromarray(pixels).save(path)
    result = read_image(path)
    expected = pixels if dtype == np.uint8 else pixels / 257.0
    assert result.shape == (6, 9, 3)
    assert result.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
    for channel in range(3):
        np.testing.assert_allclose(result[:, :, channel], expected, rtol=1e-6)
    assert read_image(path, channels=1).shape == (6, 9, 1)
    np.testing.assert_array_equal(read_label_map(path), pixels)


@pytest.mark.parametrize("name", ["a.png", "lzw.tif"])
def test_16_bit_colour_keeps_its_depth(tmp_path, name):
    pixels = random_pixels((8, 6, 3), np.uint16)
    path = str(tmp_path / name)
    cv2.imwrite(path, pixels[:, :, ::-1])  # OpenCV writes TIFF with LZW compression
    np.testing.assert_allclose(read_image(path), pixels / 257.0, rtol=1e-6)


def test_rgb_becomes_grey_with_the_601_weights(tmp_path):
    pixels = random_pixels((5, 4, 3))
    path = str(tmp_path / "a.png")
    Image.fromarray(pixels).save(path)
    expected = 0.299 * pixels[..., 0] + 0.587 * pixels[..., 1] + 0.114 * pixels[..., 2]
    np.testing.assert_allclose(read_image(path, channels=1)[..., 0], expected, atol=0.51)
    assert read_image(path, channels=1).dtype == np.uint8


def test_alpha_is_dropped_from_colour_and_grey(tmp_path):
    rgba = random_pixels((5, 4, 4))
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    tifffile.imwrite(tmp_path / "rgba.tif", rgba, photometric="rgb")
    Image.fromarray(rgba[..., :2]).save(tmp_path / "la.png")
    np.testing.assert_array_equal(read_image(str(tmp_path / "rgba.png")), rgba[..., :3])
    np.testing.assert_array_equal(read_image(str(tmp_path / "rgba.tif")), rgba[..., :3])
    np.testing.assert_array_equal(read_image(str(tmp_path / "la.png")), np.repeat(rgba[..., :1], 3, axis=2))
    np.testing.assert_array_equal(read_image(str(tmp_path / "la.png"), channels=1), rgba[..., :1])


def test_a_grey_image_that_says_it_is_all_alpha_is_grey(tmp_path):
    grey = random_pixels((5, 4))
    tifffile.imwrite(tmp_path / "a.tif", grey, extratags=[(338, "H", 1, 2, True)])
    np.testing.assert_array_equal(read_image(str(tmp_path / "a.tif"))[..., 0], grey)
    assert read_facts([{"file_name": str(tmp_path / "a.tif")}])[0].channels == 1


def test_complex_numbers_are_refused_by_name(tmp_path):
    path = str(tmp_path / "a.tif")
    tifffile.imwrite(path, random_pixels((5, 4)).astype(np.complex64))
    for reader in (read_image, read_label_map):
        with pytest.raises(ImageReadError, match=r"a\.tif.*complex64"):
            reader(path)
    assert "complex64" in read_facts([{"file_name": path}])[0]


def test_palette_1_bit_and_cmyk(tmp_path):
    indices = random_pixels((6, 6)) % 4
    palette = Image.frombytes("P", (6, 6), indices.tobytes())
    colours = random_pixels((4, 3), seed=1)
    palette.putpalette(colours.ravel().tolist())
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_image(str(tmp_path / "palette.png")), colours[indices])
    np.testing.assert_array_equal(read_label_map(str(tmp_path / "palette.png")), indices)

    palette.save(tmp_path / "glass.png", transparency=bytes([0, 128, 255, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(str(tmp_path / "glass.png")), colours[indices])

    bits = indices > 1
    Image.fromarray(bits).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_image(str(tmp_path / "bits.png"), channels=1)[..., 0], bits * 255)
    np.testing.assert_array_equal(read_label_map(str(tmp_path / "bits.png")), bits)

    Image.new("CMYK", (6, 4), (255, 0, 0, 0)).save(tmp_path / "cmyk.jpg")
    red, green, blue = read_image(str(tmp_path / "cmyk.jpg"))[2, 3]
    assert red < 10
    assert min(green, blue) > 245


@pytest.mark.parametrize("planar", ["first", "last"])
def test_multi_channel_tiff_needs_its_exact_channel_count(tmp_path, planar):
    pixels = random_pixels((6, 7, 5), np.uint16)
    path = str(tmp_path / "five.tif")
    if planar == "first":
        tifffile.imwrite(path, np.moveaxis(pixels, 2, 0))
    else:
        tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")
    np.testing.assert_allclose(read_image(path, channels=5), pixels / 257.0, rtol=1e-6)
    np.testing.assert_array_equal(read_image(path, channels=None), read_image(path, channels=5))
    assert read_image_size(path) == (6, 7)
    with pytest.raises(ImageReadError, match=r"five\.tif.*5 channels where 3"):
        read_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "lzw.tif"])
def test_exif_orientation_equals_pillow(tmp_path, orientation, kind):
    pixels = np.zeros((16, 24, 3), dtype=np.uint8)
    pixels[:8, :8], pixels[8:, 16:] = 255, 120
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[274] = orientation
    path = str(tmp_path / f"a.{kind}")
    image.save(path, exif=exif, **({"compression": "tiff_lzw"} if kind == "lzw.tif" else {}))
    with Image.open(path) as opened:
        opened.load()  # turns a TIFF already
        expected = np.array(ImageOps.exif_transpose(opened))
    np.testing.assert_array_equal(read_image(path), expected)
    assert read_image_size(path) == expected.shape[:2]
    assert expected.shape[0] == (24 if orientation > 4 else 16)


def test_percentiles_follow_the_formula_and_clip(tmp_path):
    pixels = random_pixels((20, 30, 3), np.uint16) // 9
    path = str(tmp_path / "a.tif")
    tifffile.imwrite(path, pixels, photometric="rgb")
    low, high = np.percentile(pixels, (2, 97))
    expected = np.clip((pixels - low) / (high - low), 0, 1) * 255
    result = read_image(path, percentiles=(2, 97))
    np.testing.assert_allclose(result, expected, atol=1e-3)
    assert result.min() == 0
    assert result.max() == 255
    for channel in range(3):  # one map for all channels keeps the ratio between them
        assert np.ptp(result[..., channel]) > 0


def test_percentiles_of_flat_images(tmp_path):
    flat = np.full((10, 10), 7, dtype=np.uint8)
    Image.fromarray(flat).save(tmp_path / "flat.png")
    np.testing.assert_array_equal(read_image(str(tmp_path / "flat.png"), percentiles=(1, 99)), 0)
    flat[3, 4] = 9  # the percentiles are equal, but the image is not constant
    Image.fromarray(flat).save(tmp_path / "spot.png")
    result = read_image(str(tmp_path / "spot.png"), 1, percentiles=(1, 90))
    assert result[3, 4, 0] == 255
    assert result.sum() == 255


def test_float_images(tmp_path):
    pixels = np.random.default_rng(0).random((5, 6)).astype(np.float32)
    tifffile.imwrite(tmp_path / "unit.tif", pixels)
    np.testing.assert_allclose(read_image(str(tmp_path / "unit.tif"))[..., 1], pixels * 255, rtol=1e-6)
    tifffile.imwrite(tmp_path / "wide.tif", pixels * 50 - 20)
    with pytest.raises(ImageReadError, match=r"wide\.tif.*percentiles"):
        read_image(str(tmp_path / "wide.tif"))
    assert read_image(str(tmp_path / "wide.tif"), percentiles=(0, 100)).max() == 255
    for bad in (np.nan, np.inf):
        pixels[2, 2] = bad
        tifffile.imwrite(tmp_path / "bad.tif", pixels)
        with pytest.raises(ImageReadError, match=r"bad\.tif.*some pixel values are NaN or infinite"):
            read_image(str(tmp_path / "bad.tif"), percentiles=(0, 100))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_a_truncated_file_is_refused_at_every_length(tmp_path, suffix):
    whole = io.BytesIO()
    Image.fromarray(random_pixels((40, 40, 3))).save(whole, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix))
    data = whole.getvalue()
    path = tmp_path / f"cut.{suffix}"
    for length in (0, 1, 10, 40, len(data) // 4, len(data) // 2, int(len(data) * 0.9), len(data) - 200):
        path.write_bytes(data[:length])
        with pytest.raises(ImageReadError, match=rf"cut\.{suffix}: "):
            read_image(str(path))
        with pytest.raises(ImageReadError, match=rf"cut\.{suffix}: "):
            read_label_map(str(path))


def test_files_that_cannot_be_opened(tmp_path, monkeypatch):
    with pytest.raises(ImageReadError, match=r"gone\.png: there is no such file"):
        read_image(str(tmp_path / "gone.png"))
    with pytest.raises(ImageReadError, match="this is a folder"):
        read_image_size(str(tmp_path))
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(ImageReadError, match=r"text\.png.*not an image"):
        read_image_size(str(tmp_path / "text.png"))
    (tmp_path / "pointer.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ImageReadError, match=r"pointer\.png: .*git lfs pull"):
        read_image_size(str(tmp_path / "pointer.png"))

    with pytest.raises(ImageReadError, match=r"s3://bucket/a\.png: .*predict_cluster reads object stores"):
        read_image("s3://bucket/a.png")
    (tmp_path / "plate.CZI").write_bytes(b"ZISRAWFILE" + bytes(100))
    with pytest.raises(ImageReadError, match=r"plate\.CZI: .*Save it as OME-TIFF"):
        read_image(str(tmp_path / "plate.CZI"))

    def refuse(*args):
        raise PermissionError("denied")

    monkeypatch.setattr("maskrcnn_plus.data.tiff_files.open", refuse, raising=False)
    with pytest.raises(ImageReadError, match=r"text\.png: no permission"):
        read_image(str(tmp_path / "text.png"))


def test_zero_size_and_stacks_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="zero-size"):
        tifffile.imwrite(tmp_path / "none.tif", np.zeros((0, 5), dtype=np.uint8))
    with pytest.raises(ImageReadError, match=r"none\.tif.*zero size"):
        read_image(str(tmp_path / "none.tif"))
    with pytest.raises(ImageReadError, match=r"none\.tif.*zero size"):
        read_image_size(str(tmp_path / "none.tif"))
    stack = random_pixels((3, 6, 7))
    tifffile.imwrite(tmp_path / "stack.tif", stack, imagej=True, metadata={"axes": "ZYX"})
    with pytest.raises(ImageReadError, match=r"stack\.tif.*is a stack"):
        read_image(str(tmp_path / "stack.tif"))


def test_images_above_pillows_size_limit_are_read_and_the_limit_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.fromarray(random_pixels((8, 8))).save(tmp_path / "a.png")
    assert read_image(str(tmp_path / "a.png")).shape == (8, 8, 3)
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("percentiles", [(5,), (5, 5), (90, 10), (-1, 50), (0, 101), "ab", 3])
def test_bad_percentiles(tmp_path, percentiles):
    with pytest.raises(ValueError, match="percentiles="):
        read_image(str(tmp_path / "a.png"), percentiles=percentiles)


def test_bad_channel_number(tmp_path):
    with pytest.raises(ValueError, match="channels=0"):
        read_image(str(tmp_path / "a.png"), channels=0)


def test_label_maps_that_are_none(tmp_path):
    Image.fromarray(random_pixels((4, 4, 3))).save(tmp_path / "rgb.png")
    with pytest.raises(ImageReadError, match=r"rgb\.png.*one channel.*has 3"):
        read_label_map(str(tmp_path / "rgb.png"))
    tifffile.imwrite(tmp_path / "float.tif", np.ones((4, 4), dtype=np.float32))
    with pytest.raises(ImageReadError, match=r"float\.tif.*integers.*float32"):
        read_label_map(str(tmp_path / "float.tif"))
    tifffile.imwrite(tmp_path / "negative.tif", np.full((4, 4), -1, dtype=np.int32))
    with pytest.raises(ImageReadError, match=r"negative\.tif.*-1"):
        read_label_map(str(tmp_path / "negative.tif"))
    labels = np.arange(16, dtype=np.uint32).reshape(4, 4) * 10_000_000
    tifffile.imwrite(tmp_path / "wide.tif", labels)
    np.testing.assert_array_equal(read_label_map(str(tmp_path / "wide.tif")), labels)
    assert read_label_map(str(tmp_path / "wide.tif")).dtype == np.int32
