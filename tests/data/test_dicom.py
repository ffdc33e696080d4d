"""DICOM files: grey values by the standard's formulas, frames as pages, and headers that lie."""

import numpy as np
import pytest
import torch

pydicom = pytest.importorskip("pydicom")

from detectron2.structures import Boxes, Instances  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, RLELossless, generate_uid  # noqa: E402

from maskrcnn_plus.apps.predict_files.inputs import InputFile, list_inputs  # noqa: E402
from maskrcnn_plus.apps.predict_files.sources import iterate_images  # noqa: E402
from maskrcnn_plus.data.channels import ChannelRule  # noqa: E402
from maskrcnn_plus.data.images import ImageReadError, read_image, read_image_size, read_label_map  # noqa: E402
from maskrcnn_plus.data.windows import open_windows  # noqa: E402
from maskrcnn_plus.results import write_results  # noqa: E402

RNG = np.random.default_rng(0)
U12 = RNG.integers(0, 4096, (20, 30)).astype(np.uint16)
U8 = RNG.integers(0, 256, (20, 30)).astype(np.uint8)
RGB = RNG.integers(0, 256, (20, 30, 3)).astype(np.uint8)


def save(path, pixels, bits=None, syntax=ExplicitVRLittleEndian, **tags):
    frames = pixels.shape[0] if pixels.ndim == 4 or (pixels.ndim == 3 and pixels.shape[2] != 3) else None
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.Rows, data.Columns = pixels.shape[1:3] if frames else pixels.shape[:2]
    data.SamplesPerPixel = 3 if pixels.shape[-1] == 3 else 1
    data.PhotometricInterpretation = "RGB" if data.SamplesPerPixel == 3 else "MONOCHROME2"
    if data.SamplesPerPixel == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = 8 * pixels.itemsize
    data.BitsStored = bits or data.BitsAllocated
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    if frames:
        data.NumberOfFrames = frames
    data.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    if syntax == RLELossless:
        data.compress(RLELossless)
    data.save_as(path, enforce_file_format=True)
    return str(path)


def grey(path, **options):
    return read_image(path, 1, **options)[:, :, 0]


def test_stored_values_without_a_window(tmp_path):
    np.testing.assert_array_equal(grey(save(tmp_path / "a.dcm", U8)), U8)
    np.testing.assert_allclose(grey(save(tmp_path / "b.dcm", U12, 12)), U12 / 4095 * 255, rtol=1e-5)
    np.testing.assert_array_equal(read_image(save(tmp_path / "c.dcm", RGB)), RGB)
    np.testing.assert_array_equal(read_label_map(str(tmp_path / "b.dcm")), U12)
    assert read_image_size(str(tmp_path / "a.dcm")) == (20, 30)
    with open_windows(tmp_path / "a.dcm") as windows:
        np.testing.assert_array_equal(windows.read(3, 2, 5, 4)[:, :, 0], U8[2:6, 3:8])


def test_the_file_is_known_by_its_content(tmp_path):
    np.testing.assert_array_equal(grey(save(tmp_path / "IM000001", U8)), U8)


@pytest.mark.parametrize("start", [b"II*\0", b"MM\0*"])
def test_a_preamble_like_a_tiff_is_none(tmp_path, start):
    path = save(tmp_path / "a.dcm", U8, preamble=start.ljust(128, b"\0"))
    np.testing.assert_array_equal(grey(path), U8)
    assert read_image_size(path) == U8.shape
    with open_windows(path) as windows:
        np.testing.assert_array_equal(windows.read(0, 0, 30, 20)[:, :, 0], U8)
    (image,) = iterate_images(InputFile(path, "a"), 1)
    assert image.number == 0


def window(x, center, width):
    """PS3.3, C.11.2.1.2.1, a pixel at a time."""
    if x <= center - 0.5 - (width - 1) / 2:
        return 0.0
    if x > center - 0.5 + (width - 1) / 2:
        return 255.0
    return ((x - (center - 0.5)) / (width - 1) + 0.5) * 255


@pytest.mark.parametrize("inverted", [False, True])
def test_rescale_window_and_inversion(tmp_path, inverted):
    tags = dict(RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=[40, 300], WindowWidth=[400, 1500])
    kind = "MONOCHROME1" if inverted else "MONOCHROME2"
    path = save(tmp_path / "a.dcm", U12, 12, PhotometricInterpretation=kind, **tags)
    expected = np.vectorize(window)(U12 * 2.0 - 1024, 40, 400)
    np.testing.assert_allclose(grey(path), 255 - expected if inverted else expected, atol=1e-3)


def test_other_windows(tmp_path):
    tags = dict(WindowCenter=2000, WindowWidth=1000)
    exact = grey(save(tmp_path / "a.dcm", U12, 12, VOILUTFunction="LINEAR_EXACT", **tags))
    np.testing.assert_allclose(exact, ((U12 - 2000.0) / 1000 + 0.5).clip(0, 1) * 255, atol=1e-2)
    sigmoid = grey(save(tmp_path / "b.dcm", U12, 12, VOILUTFunction="SIGMOID", **tags))
    np.testing.assert_allclose(sigmoid, 255 / (1 + np.exp(-4 * (U12 - 2000.0) / 1000)), atol=1e-2)
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 8], np.arange(4096).astype(np.uint8).tolist()
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    found = grey(save(tmp_path / "c.dcm", U12, 12, VOILUTSequence=[table]))
    np.testing.assert_allclose(found, U12 % 256, atol=1e-3)


def test_rescaled_values_without_a_window_need_percentiles(tmp_path):
    path = save(tmp_path / "a.dcm", U12, 12, RescaleSlope=1, RescaleIntercept=-1024)
    with pytest.raises(ImageReadError, match="percentiles"):
        grey(path)
    np.testing.assert_allclose(grey(path, percentiles=(0, 100)), (U12 - U12.min()) / np.ptp(U12) * 255.0, atol=1e-3)
    signed = save(tmp_path / "b.dcm", U12.astype(np.int16) - 2000)
    np.testing.assert_allclose(grey(signed, percentiles=(0, 100)), (U12 - U12.min()) / np.ptp(U12) * 255.0, atol=1e-3)


def test_palettes_and_ybr(tmp_path):
    table = np.arange(256, dtype=np.uint16) * 257
    tags = {f"{name}PaletteColorLookupTableDescriptor": [256, 0, 16] for name in ("Red", "Green", "Blue")}
    tags |= {
        f"{name}PaletteColorLookupTableData": (table[::-1] if name == "Red" else table).tobytes()
        for name in ("Red", "Green", "Blue")
    }
    found = read_image(save(tmp_path / "a.dcm", U8, PhotometricInterpretation="PALETTE COLOR", **tags))
    np.testing.assert_allclose(found, np.stack([255 - U8, U8, U8], axis=2), atol=1)
    ybr = np.zeros((20, 30, 3), dtype=np.uint8)
    ybr[:] = (76, 85, 255)  # pure red
    assert (
        abs(read_image(save(tmp_path / "b.dcm", ybr, PhotometricInterpretation="YBR_FULL"))[0, 0] - [254, 0, 0]).max()
        < 3
    )


def test_frames_are_pages(tmp_path):
    path = save(tmp_path / "a.dcm", np.stack([U8, U8 // 2, U8 // 4]))
    with pytest.raises(ImageReadError, match="3 frames"):
        read_image(path)
    assert read_image_size(path) == (20, 30)
    with pytest.raises(ImageReadError, match="3 frames"):
        read_image_size(path, ChannelRule(3))
    np.testing.assert_array_equal(read_image(path, ChannelRule(1, projection="max"))[:, :, 0], U8)
    (file,) = list_inputs(str(tmp_path))
    pages = list(iterate_images(file))
    assert [page.name for page in pages] == ["a_p0001", "a_p0002", "a_p0003"]
    with pages[2].open() as windows:
        np.testing.assert_array_equal(windows.read(0, 0, 30, 20)[:, :, 0], U8 // 4)
    (whole,) = iterate_images(InputFile(save(tmp_path / "b.dcm", U8), "b"))
    assert whole.number == 0


def test_beside_annotations_it_is_written_as_a_picture(tmp_path):
    path = save(tmp_path / "a.dcm", U12, 12, WindowCenter=2000, WindowWidth=1000)
    instances = Instances((20, 30), pred_masks=torch.ones(1, 20, 30, dtype=torch.bool), scores=torch.ones(1))
    instances.pred_boxes, instances.pred_classes = Boxes(torch.zeros(1, 4)), torch.zeros(1, dtype=torch.int64)
    image = write_results(tmp_path, "a", instances, path, formats=["labelme"])["labelme image"]
    assert image == tmp_path / "labelme" / "a.png"
    np.testing.assert_allclose(grey(str(image)), grey(path), atol=0.01)


def test_frames_with_windows_of_their_own(tmp_path):
    groups = []
    for center in (64, 192):
        voi, group = Dataset(), Dataset()
        voi.WindowCenter, voi.WindowWidth = center, 128
        group.FrameVOILUTSequence = [voi]
        groups.append(group)
    save(tmp_path / "a.dcm", np.stack([U8, U8]), PerFrameFunctionalGroupsSequence=groups)
    for page, center in zip(iterate_images(InputFile(str(tmp_path / "a.dcm"), "a")), (64, 192), strict=True):
        with page.open() as windows:
            expected = np.vectorize(window)(U8.astype(float), center, 128) / 255
            np.testing.assert_allclose(windows.read(0, 0, 30, 20)[:, :, 0], expected, atol=1e-5)


def test_run_lengths_are_decoded(tmp_path):
    np.testing.assert_array_equal(grey(save(tmp_path / "a.dcm", U8, syntax=RLELossless)), U8)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(Rows=60000, Columns=60000), "more than the 1073741824 that are decoded"),
        (dict(Rows=200), "cut short"),
        (dict(NumberOfFrames=2000000000), "frames"),
        (dict(Rows=0), "no image"),
        (dict(PixelData=b""), "cut short"),
        (dict(BitsAllocated=7), "cannot be read"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, change, said):
    path = save(tmp_path / "a.dcm", U8)
    data = pydicom.dcmread(path)
    for name, value in change.items():
        setattr(data, name, value)
    data.save_as(path)
    with pytest.raises(ImageReadError, match=rf"a\.dcm.*{said}"):
        read_image(path)


def test_a_compression_without_decoder_is_named(tmp_path):
    path = save(tmp_path / "a.dcm", U8)
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = JPEGLSLossless
    data.PixelData = pydicom.encaps.encapsulate([data.PixelData])
    data["PixelData"].is_undefined_length = True
    data.save_as(path)
    with pytest.raises(ImageReadError, match=r"a\.dcm: nothing here decodes its compression, JPEG-LS"):
        read_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_files_never_crash(tmp_path):
    path = tmp_path / "a.dcm"
    save(path, U12, 12, RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400)
    whole = path.read_bytes()
    for seed in range(60):
        rng, content = np.random.default_rng(seed), bytearray(whole)
        for place in rng.integers(132, 700, size=rng.integers(1, 5)):
            content[place] = rng.integers(256)
        path.write_bytes(content[: len(whole) if seed % 3 else rng.integers(132, len(whole))])
        try:
            assert read_image(str(path), percentiles=(0, 100)).ndim == 3
        except ImageReadError as error:
            assert "a.dcm" in str(error)  # noqa: PT017
