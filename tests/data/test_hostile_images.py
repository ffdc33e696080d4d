"""Files made to exhaust a reader: refused by name before memory or time is spent, or another program is started."""

import io
import os
import re
import resource
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import EpsImagePlugin, Image

from maskrcnn_plus.apps.predict_files.inputs import InputFile
from maskrcnn_plus.apps.predict_files.sources import iterate_images
from maskrcnn_plus.data import limits
from maskrcnn_plus.data.check import DataError, check_dataset
from maskrcnn_plus.data.images import ImageReadError, read_image, read_image_size, read_label_map
from maskrcnn_plus.data.limits import pixel_limit, reading_by_parts
from maskrcnn_plus.data.pixel_size import tiff_pixel_size
from maskrcnn_plus.data.windows import open_windows


def open_by_windows(path):
    with open_windows(path) as windows:
        windows.read(0, 0, *windows.shape[1::-1])


def open_as_source(path):
    for image in iterate_images(InputFile(path, "name")):
        with image.open() as windows:
            windows.reduced(1)


READERS = (read_image, read_label_map, read_image_size, open_by_windows, open_as_source)


@pytest.fixture
def bounded():
    """A limit of 1 GB more than is taken already: what takes more raises MemoryError instead of filling the machine."""
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def png(width, height, bits=8, colour=0):
    """A PNG whose header says its size and whose pixels are a few compressed zeros."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(20000))), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def jpeg(side):
    content = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(content, "JPEG")
    data = bytearray(content.getvalue())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    return bytes(data) + bytes(1500)


def directories(*links, big=False):
    """A TIFF of 1 x 1 pixels whose page k is followed by page links[k]."""
    entries = [
        (256, 3, 1, 1),
        (257, 3, 1, 1),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 0),
        (279, 4, 1, 1),
    ]
    start, count, entry, offset = (16, "<Q", "<HHQQ", "<Q") if big else (8, "<H", "<HHII", "<I")
    size = struct.calcsize(count) + len(entries) * struct.calcsize(entry) + struct.calcsize(offset)
    at = [start + k * size for k in range(len(links))]
    content = struct.pack("<2sHHHQ", b"II", 43, 8, 0, start) if big else struct.pack("<2sHI", b"II", 42, start)
    for link in links:
        content += struct.pack(count, len(entries)) + b"".join(struct.pack(entry, *each) for each in entries)
        content += struct.pack(offset, 0 if link is None else at[link])
    return content


def sub_directory_of_itself():
    """A page among whose reduced copies is the page."""
    content = io.BytesIO()
    with tifffile.TiffWriter(content) as writer:
        writer.write(np.zeros((8, 8), np.uint8), subifds=1, metadata=None)
        writer.write(np.zeros((4, 4), np.uint8), subfiletype=1, metadata=None)
    data = bytearray(content.getvalue())
    with tifffile.TiffFile(io.BytesIO(content.getvalue())) as tiff:
        page = tiff.pages[0]
        tag = page.tags[330]
    data[tag.offset + 8 : tag.offset + 12] = struct.pack("<I", page.offset)
    return bytes(data)


def without_most_of_its_tiles():
    """A compressed TIFF of 16 x 64 pixels whose header says 8 million columns."""
    content = io.BytesIO()
    tifffile.imwrite(content, np.zeros((16, 64), np.uint8), tile=(16, 16), compression="zlib")
    data = bytearray(content.getvalue())
    with tifffile.TiffFile(io.BytesIO(content.getvalue())) as tiff:
        tag = tiff.pages[0].tags["ImageWidth"]
    data[tag.offset + 2 : tag.offset + 12] = struct.pack("<HII", 4, 1, 8_000_000)
    return bytes(data)


def without_most_of_its_rows():
    """A page of 1 bit, 16 x 64 pixels in one strip, whose header says 8 million rows."""
    content = io.BytesIO()
    tifffile.imwrite(content, np.zeros((16, 64), bool), bitspersample=1)
    data = bytearray(content.getvalue())
    with tifffile.TiffFile(io.BytesIO(content.getvalue())) as tiff:
        tag = tiff.pages[0].tags["ImageLength"]
    data[tag.offset + 2 : tag.offset + 12] = struct.pack("<HII", 4, 1, 8_000_000)
    return bytes(data)


BOMBS = {
    "few_rows.tif": (without_most_of_its_rows, "truncated or damaged"),
    "few_tiles.tif": (without_most_of_its_tiles, "truncated or damaged"),
    "huge.jpg": (lambda: jpeg(65500), "can hold|more than the"),
    "huge.png": (lambda: png(60000, 60000, colour=2), "can hold|more than the"),
    "long.png": (lambda: png(2**31 - 1, 100), "can hold|more than the"),
    "loop.tif": (lambda: directories(1, 2, 0), "leads back to itself"),
    "itself.tif": (lambda: directories(0), "leads back to itself"),
    "big_loop.tif": (lambda: directories(1, 0, big=True), "leads back to itself"),
    "sub_loop.tif": (sub_directory_of_itself, "leads back to itself"),
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("reader", READERS)
def test_is_refused_by_name_before_memory_is_taken(tmp_path, bounded, name, reader):
    content, message = BOMBS[name]
    (tmp_path / name).write_bytes(content())
    with pytest.raises(ImageReadError, match=rf"{name}: .*({message})"):
        reader(str(tmp_path / name))


def test_the_data_check_names_them_all_at_once(tmp_path, bounded):
    for name, (content, _) in BOMBS.items():
        (tmp_path / name).write_bytes(content())
    records = [{"file_name": str(tmp_path / name), "annotations": []} for name in BOMBS]
    with pytest.raises(DataError) as raised:
        check_dataset(records)
    assert all(str(raised.value).count(f"/{name}: ") == 1 for name in BOMBS)


def test_no_pixel_size_of_a_loop(tmp_path):
    (tmp_path / "loop.tif").write_bytes(directories(1, 0))
    assert tiff_pixel_size(str(tmp_path / "loop.tif")) is None


def test_many_pages_and_both_kinds_of_tiff_are_walked_to_the_end(tmp_path):
    for big in (False, True):
        for count in (1, 300):
            path = str(tmp_path / "many.tif")
            tifffile.imwrite(
                path, np.zeros((count, 4, 4), np.uint8), bigtiff=big, photometric="minisblack", metadata=None
            )
            assert sum(1 for _ in iterate_images(InputFile(path, "name"))) == count


def test_pages_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("maskrcnn_plus.data.tiff_directories.MAX_PAGES", 5)
    (tmp_path / "six.tif").write_bytes(directories(1, 2, 3, 4, 5, None))
    with pytest.raises(ImageReadError, match=r"six\.tif.*more than 5 pages"):
        read_image_size(str(tmp_path / "six.tif"))


def test_metadata_that_claim_more_planes_than_a_file_has(tmp_path, bounded):
    path = str(tmp_path / "planes.tif")
    tifffile.imwrite(path, np.zeros((8, 8), np.uint8), ome=True)
    with tifffile.TiffFile(path) as tiff:
        claimed = tiff.ome_metadata.replace('SizeT="1"', 'SizeT="1000000000"')
    tifffile.imwrite(path, np.zeros((8, 8), np.uint8), description=claimed, metadata=None)
    for reader in READERS:
        with pytest.raises(ImageReadError, match=r"planes\.tif.*1000000000 planes"):
            reader(path)


def described(path, text, **options):
    tifffile.imwrite(path, np.zeros((8, 8), np.uint8), description=text, metadata=None, **options)


@pytest.mark.parametrize(
    ("planes", "said"),
    [
        ('<TiffData IFD="0" PlaneCount="100000000"/>', "100000000 planes"),
        ('<TiffData IFD="0"><UUID FileName="/dev/zero">urn:uuid:1</UUID></TiffData>', "outside of its folder"),
        ('<TiffData IFD="0"><UUID FileName="sub/../../a.tif">urn:uuid:1</UUID></TiffData>', "outside of its folder"),
        ('<TiffData IFD="0"><UUID FileName="loop.tif">urn:uuid:1</UUID></TiffData>', "leads back to itself"),
        ('<TiffData IFD="0"><UUID FileName="pipe.tif">urn:uuid:1</UUID></TiffData>', "is a pipe"),
    ],
)
def test_planes_and_files_that_metadata_name(tmp_path, bounded, planes, said):
    path = str(tmp_path / "named.ome.tif")
    tifffile.imwrite(path, np.zeros((8, 8), np.uint8), ome=True)
    with tifffile.TiffFile(path) as tiff:
        text = re.sub(r"<TiffData.*?/>|<TiffData.*?</TiffData>", planes, tiff.ome_metadata, flags=re.DOTALL)
    (tmp_path / "loop.tif").write_bytes(directories(0))
    os.mkfifo(tmp_path / "pipe.tif")
    described(path, text)
    for reader in READERS:
        with pytest.raises(ImageReadError, match=rf"named\.ome\.tif.*{said}"):
            reader(path)


@pytest.mark.parametrize(
    ("text", "compression"),
    [('{"shape": [1000000, 8, 8]}', None), ("ImageJ=1.54\nimages=1000000\nslices=1000000\n", "zlib")],
)
def test_metadata_that_claim_more_pixels_than_a_file_has(tmp_path, bounded, text, compression):
    path = str(tmp_path / "claims.tif")
    described(path, text, compression=compression)
    for reader in READERS:
        with pytest.raises(ImageReadError, match=r"claims\.tif.*truncated"):
            reader(path)


@pytest.mark.parametrize("no_jp2", [False, True])
def test_a_jpeg_2000_file_of_fewer_tiles_than_its_header_claims(tmp_path, no_jp2):
    file, path = io.BytesIO(), str(tmp_path / "a.jp2")
    pixels = np.random.default_rng(0).integers(0, 255, (100, 150), dtype=np.uint8)
    options = {"tile_size": (64, 64), "offset": (10, 20), "tile_offset": (3, 5)}
    Image.fromarray(pixels).save(file, "JPEG2000", no_jp2=no_jp2, **options)
    (tmp_path / "a.jp2").write_bytes(file.getvalue())
    assert np.array_equal(read_image(path)[:, :, 0], pixels)
    content = bytearray(file.getvalue())
    struct.pack_into(">2I", content, content.find(b"\xff\x4f\xff\x51") + 8, 160, 8000)
    if not no_jp2:
        struct.pack_into(">2I", content, content.find(b"ihdr") + 4, 7980, 150)
    (tmp_path / "a.jp2").write_bytes(content)
    with pytest.raises(ImageReadError, match=r"a.jp2: the header says 160 x 8000 pixels in 375 tiles, .* has 6 of"):
        read_image(path)


def test_an_animation_that_claims_more_frames_than_bytes(tmp_path, bounded):
    content, chunk = io.BytesIO(), struct.pack(">4sII", b"acTL", 50_000_000, 0)
    Image.new("L", (8, 8)).save(content, "PNG")
    data = content.getvalue()
    chunk = struct.pack(">I", 8) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "frames.png").write_bytes(data[:33] + chunk + data[33:])
    with pytest.raises(ImageReadError, match=r"frames\.png: it says that it has 50000001 frames"):
        open_as_source(str(tmp_path / "frames.png"))


def test_the_limit_is_an_option_and_windows_go_beyond_it(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 50), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(16, 16))
    for name in ("a.png", "a.tif"):
        path = str(tmp_path / name)
        with pixel_limit(2999), pytest.raises(ImageReadError, match=rf"{name}: 50 x 60 pixels are more than the 2999"):
            read_image(path, 1)
        with pixel_limit(3000):
            assert np.array_equal(read_image(path, 1)[:, :, 0], pixels)
    with pixel_limit(2999), open_windows(str(tmp_path / "a.tif")) as windows:
        assert np.array_equal(windows.read(0, 0, 50, 60)[:, :, 0], pixels)
        with reading_by_parts():
            assert read_image_size(str(tmp_path / "a.tif")) == (60, 50)
    with (
        pixel_limit(255),
        pytest.raises(ImageReadError, match=r"16 x 16 pixels"),
        open_windows(str(tmp_path / "a.tif")),
    ):
        pass
    with pytest.raises(ValueError, match="max_pixels is 0"), pixel_limit(0):
        pass


def test_an_image_that_does_not_fit_into_the_free_memory_is_refused(tmp_path, monkeypatch):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 60), dtype=np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr(limits, "_SMALL", 10**4)
    with monkeypatch.context() as patch:
        patch.setattr(limits, "available_memory", lambda: 10**4)
        with pytest.raises(ImageReadError, match=r"a\.png: 60 x 90 pixels take .* GB of memory to decode"):
            read_image(str(tmp_path / "a.png"))
    assert read_image(str(tmp_path / "a.png")).shape == (90, 60, 3)
    free = limits.available_memory()
    assert free is None or 2**20 < free < 2**50


@pytest.mark.parametrize("name", ["page.png", "page.tif", "page.jpg", "page.eps"])
def test_postscript_starts_no_program(tmp_path, monkeypatch, name):
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments, **options: started.append(arguments))
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    path = tmp_path / name
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")
    for reader in READERS:
        with pytest.raises(ImageReadError, match=rf"{name}.*formats PNG, JPEG"):
            reader(str(path))
    assert not started


def test_a_pipe_is_no_image(tmp_path):
    path = str(tmp_path / "pipe.png")
    os.mkfifo(path)
    for reader in READERS:
        with pytest.raises(ImageReadError, match=r"pipe\.png: this is a pipe"):
            reader(path)


def test_a_playlist_named_like_a_video_opens_nothing(tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "x_001.png")
    playlist = f"ffconcat version 1.0\nfile {tmp_path / 'x_001.png'}\n"
    for name, content in {
        "list.mp4": playlist,
        "hls.avi": "#EXTM3U\n#EXTINF:1,\nx_001.png\n",
        "x_%03d.mp4": "x",
    }.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(ImageReadError, match="0 of its frames"):
            open_as_source(str(tmp_path / name))
