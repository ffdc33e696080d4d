"""The images of a file: single, pages, frames; their pixels, and the size of their pixels."""

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from maskrcnn_plus.apps.predict_files.inputs import InputFile
from maskrcnn_plus.apps.predict_files.sources import iterate_images
from maskrcnn_plus.data.channels import ChannelRule
from maskrcnn_plus.data.images import ImageReadError
from maskrcnn_plus.data.pixel_size import tiff_pixel_size


def images(path, channels=3):
    return [(image, pixels_of(image)) for image in iterate_images(InputFile(str(path), "name"), channels)]


def pixels_of(image):
    with image.open() as windows:
        return windows.reduced(1)


def volume(*shape, dtype=np.uint16):
    return np.random.default_rng(0).integers(0, 250, shape).astype(dtype)


@pytest.mark.parametrize(
    ("suffix", "shape", "dtype"),
    [
        (".png", (9, 7), np.uint8),
        (".png", (9, 7, 3), np.uint16),
        (".tif", (9, 7), np.float32),
        (".tif", (9, 7, 3), np.uint8),
    ],
)
def test_a_single_image_is_the_file_itself(tmp_path, suffix, shape, dtype):
    pixels = volume(*shape, dtype=dtype)
    if suffix == ".tif":
        tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb" if len(shape) == 3 else None)
    else:
        cv2.imwrite(str(tmp_path / "x.png"), pixels[:, :, ::-1] if len(shape) == 3 else pixels)
    ((image, read),) = images(tmp_path / f"x{suffix}")
    assert (image.name, image.number, image.count, image.part) == ("name", 0, 1, "")
    assert read.dtype == dtype
    assert np.array_equal(read, pixels.reshape(9, 7, -1))


@pytest.mark.parametrize(
    "options",
    [
        {"photometric": "minisblack"},
        {"photometric": "minisblack", "compression": "zlib"},
        {"imagej": True, "metadata": {"axes": "ZYX"}},
        {"photometric": "minisblack", "ome": True, "metadata": {"axes": "TYX"}},
        {"photometric": "minisblack", "metadata": None},
    ],
)
def test_pages_are_images(tmp_path, options):
    pixels = volume(4, 9, 7)
    tifffile.imwrite(tmp_path / "x.tif", pixels, **options)
    found = images(tmp_path / "x.tif")
    assert [image.name for image, _ in found] == [f"name_p{k:04d}" for k in (1, 2, 3, 4)]
    assert {image.count for image, _ in found} == {4}
    assert all(np.array_equal(read[:, :, 0], page) for (_, read), page in zip(found, pixels, strict=True))


def test_pages_of_colour_and_of_several_axes(tmp_path):
    colour = volume(3, 9, 7, 3, dtype=np.uint8)
    tifffile.imwrite(tmp_path / "rgb.tif", colour, photometric="rgb")
    assert all(np.array_equal(read, page) for (_, read), page in zip(images(tmp_path / "rgb.tif"), colour, strict=True))

    stack = volume(2, 3, 2, 9, 7)
    tifffile.imwrite(tmp_path / "tzc.tif", stack, imagej=True, metadata={"axes": "TZCYX"})
    found = images(tmp_path / "tzc.tif", channels=2)
    assert len(found) == 6
    for (_, read), page in zip(found, stack.reshape(6, 2, 9, 7), strict=True):
        assert np.array_equal(read, np.moveaxis(page, 0, 2))


def test_a_stack_without_a_page_a_plane(tmp_path):
    """ImageJ's stacks above 4 GB have one page and the other planes behind it."""
    pixels = volume(5, 9, 7)
    tifffile.imwrite(tmp_path / "x.tif", pixels, imagej=True, metadata={"axes": "ZYX"}, contiguous=True)
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        next_page = tiff.pages[0].offset + 2 + 12 * len(tiff.pages[0].tags)  # where the offset of page 2 stands
    content = bytearray((tmp_path / "x.tif").read_bytes())
    content[next_page : next_page + 4] = bytes(4)
    (tmp_path / "x.tif").write_bytes(content)
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        assert len(tiff.pages) == 1
    found = images(tmp_path / "x.tif")
    assert all(np.array_equal(read[:, :, 0], page) for (_, read), page in zip(found, pixels, strict=True))


def test_pages_that_are_channels_stay_together(tmp_path):
    pixels = volume(5, 9, 7)
    tifffile.imwrite(tmp_path / "c.tif", pixels, photometric="minisblack", metadata={"axes": "CYX"})
    tifffile.imwrite(tmp_path / "q.tif", pixels, photometric="minisblack")
    for name in ("c.tif", "q.tif"):
        ((image, read),) = images(tmp_path / name, channels=5)
        assert image.number == 0
        assert np.array_equal(read, np.moveaxis(pixels, 0, 2))
    assert len(images(tmp_path / "q.tif", channels=3)) == 5


def test_pages_of_different_sizes_and_reduced_copies(tmp_path):
    first, second, small = volume(9, 7), volume(6, 12), volume(4, 3)
    with tifffile.TiffWriter(tmp_path / "x.tif") as writer:
        writer.write(first, photometric="minisblack", metadata=None)
        writer.write(small, photometric="minisblack", metadata=None, subfiletype=1)
        writer.write(second, photometric="minisblack", metadata=None)
    found = images(tmp_path / "x.tif")
    assert [read.shape for _, read in found] == [(9, 7, 1), (6, 12, 1)]
    assert np.array_equal(found[1][1][:, :, 0], second)


def test_images_that_a_stopped_recording_lacks_are_left_out(tmp_path, caplog):
    frames, path = volume(3, 5, 6), tmp_path / "x.ome.tif"
    tifffile.imwrite(path, frames, photometric="minisblack", ome=True, metadata={"axes": "TYX"})
    with tifffile.TiffFile(path) as tiff:
        text = tiff.ome_metadata.replace('SizeT="3"', 'SizeT="9"')
    tifffile.imwrite(path, frames, photometric="minisblack", description=text, metadata=None)
    found = images(path)
    assert [image.number for image, _ in found] == [1, 2, 3]
    assert all(np.array_equal(read[:, :, 0], frame) for (_, read), frame in zip(found, frames, strict=True))
    assert "6 of 9 images" in caplog.text


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg"])
def test_pages_in_compressions_of_pillow(tmp_path, compression):
    pages = [Image.fromarray(np.full((16, 16), 50 * k, dtype=np.uint8)) for k in (1, 2, 3)]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:], compression=compression)
    found = images(tmp_path / "x.tif")
    assert [read.shape[:2] for _, read in found] == [(16, 16)] * 3
    assert all(abs(int(read.mean()) - 50 * k) <= 1 for k, (_, read) in enumerate(found, start=1))


def video(path, count=6, size=(64, 48)):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, size)
    for k in range(count):
        frame = np.zeros((size[1], size[0], 3), dtype=np.uint8)
        frame[:, :, 2] = 30 * (k % 8)  # red, in OpenCV's order
        writer.write(frame)
    writer.release()


def test_frames_are_images(tmp_path):
    video(tmp_path / "x.avi")
    found = images(tmp_path / "x.avi")
    assert [image.name for image, _ in found] == [f"name/frame_{k:06d}" for k in range(1, 7)]
    for k, (_, read) in enumerate(found):
        assert read.shape == (48, 64, 3)
        assert abs(read[:, :, 0].mean() - 30 * k) < 4  # RGB
        assert read[:, :, 2].max() < 8


def test_frames_that_are_not_read_need_no_decoding(tmp_path):
    video(tmp_path / "x.avi")
    reds = [
        pixels_of(image)[0, 0, 0]
        for image in iterate_images(InputFile(str(tmp_path / "x.avi"), "x"))
        if image.number == 5
    ]
    assert len(reds) == 1
    assert abs(int(reds[0]) - 120) < 4


def test_a_truncated_video_gives_its_frames_and_then_an_error(tmp_path):
    video(tmp_path / "x.avi", count=30)
    content = (tmp_path / "x.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) // 2])
    frames = []
    with pytest.raises(ImageReadError, match=r"cut\.avi.* frames"):
        frames.extend(pixels_of(image) for image in iterate_images(InputFile(str(tmp_path / "cut.avi"), "x")))
    assert 0 < len(frames) < 30


@pytest.mark.parametrize("name", ["x.mp4", "x.tif"])
@pytest.mark.parametrize("content", [b"", b"no image", b"II*\0\xff\xff\xff\x7f", b"II*\0"])
def test_damaged_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageReadError, match=name):
        images(tmp_path / name)
    with pytest.raises(ImageReadError, match=r"gone\.mp4"):
        images(tmp_path / "gone.mp4")


IMAGE = np.zeros((8, 8), dtype=np.uint16)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}, 0.25),
        ({"resolution": (12700, 12700), "resolutionunit": "INCH"}, 2.0),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, None),
        ({"resolution": (28.35, 28.35), "resolutionunit": "CENTIMETER"}, None),  # 72 dots an inch
        ({"resolution": (118.11, 118.11), "resolutionunit": "CENTIMETER"}, None),
        ({"resolution": (10, 10), "resolutionunit": "CENTIMETER"}, None),  # of libvips, where nothing is known
        ({"resolution": (40000, 20000), "resolutionunit": "CENTIMETER"}, None),
        ({"resolution": (4, 4), "resolutionunit": "NONE"}, None),
        ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "um"}}, 0.25),
        ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "\\u00B5m"}}, 0.25),
        ({"imagej": True, "resolution": (0.002, 0.002), "metadata": {"unit": "nm"}}, 0.5),
        ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "pixel"}}, None),
        ({"ome": True, "metadata": {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}}, 0.5),
        ({"ome": True, "metadata": {"PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.5}}, 0.5),
        ({"ome": True, "metadata": {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.7}}, None),
        ({}, None),
    ],
)
def test_pixel_size_of_a_tiff(tmp_path, options, expected):
    tifffile.imwrite(tmp_path / "x.tif", IMAGE, **options)
    assert tiff_pixel_size(str(tmp_path / "x.tif")) == (None if expected is None else pytest.approx(expected, rel=1e-6))


def test_pixel_size_of_other_files_is_not_known(tmp_path):
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "x.png", dpi=(25400, 25400))
    (tmp_path / "x.tif").write_bytes(b"II*\0")
    assert tiff_pixel_size(str(tmp_path / "x.png")) is None
    assert tiff_pixel_size(str(tmp_path / "x.tif")) is None
    assert tiff_pixel_size(str(tmp_path / "gone.tif")) is None


def test_planes_of_a_stack_follow_the_rules_of_single_images(tmp_path):
    """White at 0 and a projection, in a stack whose planes are no pages of their own, as in a file of one plane."""
    pixels = volume(2, 3, 9, 7, dtype=np.uint8)
    options = {"photometric": "miniswhite", "ome": True}
    tifffile.imwrite(tmp_path / "stack.ome.tif", pixels, metadata={"axes": "TZYX"}, **options)
    found = images(tmp_path / "stack.ome.tif", ChannelRule(3, projection="max"))
    assert len(found) == 2
    for time, (_, read) in enumerate(found):
        tifffile.imwrite(tmp_path / "one.ome.tif", pixels[time], metadata={"axes": "ZYX"}, **options)
        ((_, alone),) = images(tmp_path / "one.ome.tif", ChannelRule(3, projection="max"))
        assert np.array_equal(read, alone)
        assert np.array_equal(read[:, :, 0], 255 - pixels[time].min(axis=0))
