"""Files that no network can take: each gets a line that says why, and all others are predicted."""

import builtins
import shutil
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
import torch
from detectron2.config import LazyCall as L
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from maskrcnn_plus.apps.predict_files.run import predict_files
from maskrcnn_plus.data.mapper import InstanceMapper
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.results import FORMATS


class Bright(nn.Module):
    """One object: the pixels above 127."""

    def forward(self, batch):
        mask = batch[0]["image"].float().mean(dim=0) > 127
        instances = Instances(mask.shape, pred_masks=mask[None], scores=torch.ones(1))
        instances.pred_boxes, instances.pred_classes = Boxes(torch.zeros(1, 4)), torch.zeros(1, dtype=torch.int64)
        return [{"instances": instances}]


def png(width, height, bits, colour, rows):
    """A PNG file, chunk by chunk, for what no library writes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    data = b"".join(b"\0" + row for row in rows)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")]
    )


SQUARE = np.zeros((40, 50), dtype=np.uint8)
SQUARE[5:20, 10:30] = 255
WIDE = np.dstack([SQUARE.astype(np.uint16) * 257] * 3 + [np.full(SQUARE.shape, 65535, dtype=np.uint16)])


def write_all(folder):
    """All kinds of files; returns what to expect: the words of the reason, None for a file that is predicted."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 60), dtype=np.uint8)
    cv2.imwrite(str(folder / "cut.png"), noise)
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:1500])
    tifffile.imwrite(folder / "cut.tif", noise)
    (folder / "cut.tif").write_bytes((folder / "cut.tif").read_bytes()[:1500])
    (folder / "empty.png").touch()
    (folder / "empty.tif").touch()
    (folder / "empty.mp4").touch()
    (folder / "text.png").write_text("Dear Sir or Madam,\n" * 20)
    (folder / "text.mp4").write_text("Dear Sir or Madam,\n" * 20)
    (folder / "zero.png").write_bytes(png(0, 0, 8, 0, []))
    (folder / "flat.png").write_bytes(png(7, 0, 8, 0, []))
    nan = SQUARE.astype(np.float32) / 255
    tifffile.imwrite(folder / "float.tif", nan)
    nan[3, 3] = np.nan
    tifffile.imwrite(folder / "nan.tif", nan)
    tifffile.imwrite(folder / "physical.tif", SQUARE.astype(np.float32) * 7 - 100)
    tifffile.imwrite(folder / "complex.tif", SQUARE.astype(np.complex64))
    tifffile.imwrite(folder / "five.tif", np.stack([SQUARE] * 5), photometric="minisblack", metadata={"axes": "CYX"})
    Image.fromarray(np.dstack([255 - SQUARE] * 4), "CMYK").save(folder / "cmyk.jpg", quality=95)
    Image.fromarray(np.dstack([255 - SQUARE] * 4), "CMYK").save(folder / "cmyk.tif")
    Image.fromarray(SQUARE).convert("1").save(folder / "bits.png")
    Image.fromarray(SQUARE).convert("1").save(folder / "bits.tif")
    Image.fromarray(SQUARE).convert("P").save(folder / "palette.png")
    cv2.imwrite(str(folder / "rgba16.png"), WIDE)
    tifffile.imwrite(folder / "rgba16.tif", WIDE, photometric="rgb", extrasamples=["unassalpha"])
    cv2.imwrite(str(folder / "locked.png"), SQUARE)
    cv2.imwrite(str(folder / "png_in_fact.tif.png"), SQUARE)
    shutil.move(folder / "png_in_fact.tif.png", folder / "png_in_fact.tif")
    cv2.imwrite(str(folder / "good.png"), SQUARE)
    return {
        **dict.fromkeys(("empty.png", "empty.tif", "empty.mp4"), "the file is empty"),
        **dict.fromkeys(("cut.png", "text.png"), "damaged, truncated or not an image"),
        "cut.tif": "truncated or damaged",
        "text.mp4": "frames can be read",
        **dict.fromkeys(("zero.png", "flat.png"), ""),
        "nan.tif": "NaN or infinite",
        "physical.tif": "value range of float32",
        "complex.tif": "complex64",
        "five.tif": "5 channels where 3 are wanted",
        "locked.png": "Permission denied",
        **dict.fromkeys(("float.tif", "cmyk.jpg", "cmyk.tif", "bits.png", "bits.tif", "palette.png")),
        **dict.fromkeys(("rgba16.png", "rgba16.tif", "png_in_fact.tif", "good.png")),
    }


@pytest.fixture
def locked(monkeypatch):
    """Opening locked.png fails as it does for a user without the right to read it (which root always has)."""
    opening = builtins.open

    def refusing(file, *arguments, **options):
        if str(file).endswith("locked.png"):
            raise PermissionError(13, "Permission denied", str(file))
        return opening(file, *arguments, **options)

    monkeypatch.setattr(builtins, "open", refusing)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_each_bad_file_has_a_line_and_the_rest_is_done(tmp_path, capfd, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    expected = write_all(tmp_path / "in")
    predictor = Predictor(
        OmegaConf.create(
            {
                "model": L(Bright)(),
                "dataloader": {"test": {"mapper": L(InstanceMapper)(is_train=False, augmentations=[])}},
                "train": {"device": "cpu"},
            },
            flags={"allow_objects": True},
        ),
        "random",
    )
    request.getfixturevalue("locked")
    summary = predict_files(predictor, "in", "out", formats=tuple(FORMATS), report={})
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("predict: ")]
    reasons = {path.removeprefix("in/"): reason for path, reason in summary.failures}
    bad = {name: words for name, words in expected.items() if words is not None}
    assert set(reasons) == set(bad)
    for name, words in bad.items():
        assert words in reasons[name]
        assert len(reasons[name]) > 20
        assert "\n" not in reasons[name]
        assert sum(line.startswith(f"predict: in/{name}: ") for line in lines) == 1
    assert len(lines) == len(bad)

    done = {path.stem: path for path in (tmp_path / "out/labels").iterdir()}
    good = [name for name, words in expected.items() if words is None]
    assert summary.num_images == len(done) == len(good)
    for path in done.values():  # names of the same stem have their suffix added
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert labels.shape == SQUARE.shape
        assert ((labels > 0) != (SQUARE > 0)).sum() <= 4, path  # JPEG blurs
    assert (tmp_path / "out/report.html").read_text().count("<article") == len(good)
    again = predict_files(predictor, "in", "out", formats=tuple(FORMATS), report={})
    assert (again.num_before, again.num_images, len(again.failures)) == (len(good), 0, len(bad))
