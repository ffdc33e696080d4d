"""Cellpose's _seg.npy: the pixels of its masks, and files that are no data or would run code."""

import os
import pickle
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest
from annotation_folders import masks_of, read_one, rectangle, write_image
from PIL import Image

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats import read, sniff

MASKS = [rectangle(6, 4, 30, 20), rectangle(30, 4, 40, 20) | rectangle(50, 2, 55, 8)]
LABELS = (MASKS[0] + 2 * MASKS[1]).astype(np.uint16)


def content(masks=LABELS):
    """What Cellpose 3 puts into the file."""
    flows = [np.zeros((1, 40, 60, 3), dtype=np.uint8), np.zeros((1, 40, 60)), [5, "x", None], np.array([], np.float32)]
    return {
        "outlines": (masks * 0).astype(np.uint16),
        "colors": np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8),
        "masks": masks,
        "filename": "C:\\images\\one.tif",
        "flows": flows,
        "ismanual": np.zeros(2, dtype=bool),
        "manual_changes": [["01/02/2026, 10:00:00", "added mask", [np.arange(3), np.arange(3)]]],
        "chan_choose": [0, 0],
        "model_path": 0,
        "est_diam": np.float64(30.0),
        "normalize_params": {"percentile": [1.0, 99.0], "tile_norm": False},
        "restore": None,
        "ratio": 1.0,
    }


def write(root, masks=LABELS, image="one.tif"):
    write_image(root / image)
    np.save(root / "one_seg.npy", content(masks))
    return root


@pytest.mark.parametrize("masks", [LABELS, LABELS.astype(np.int32) * 70000, LABELS[None], LABELS > 0])
def test_masks_are_those_of_the_file(tmp_path, masks):
    write(tmp_path, masks)
    Image.fromarray(LABELS).save(tmp_path / "one_cp_masks.png")
    record, data = read_one(tmp_path)
    assert sniff(tmp_path) == ["cellpose"]
    assert data.problems == []
    assert record["file_name"] == str(tmp_path / "one.tif")
    np.testing.assert_array_equal(masks_of(record), MASKS if masks.dtype != bool else [MASKS[0] | MASKS[1]])


def test_a_plain_array_and_no_objects(tmp_path):
    write_image(tmp_path / "one.png")
    np.save(tmp_path / "one_seg.npy", LABELS * 0)
    assert read_one(tmp_path)[0]["annotations"] == []


def test_the_name_in_the_file_finds_the_image(tmp_path):
    write(tmp_path, image="images/one.tif")
    assert read_one(tmp_path)[0]["file_name"] == str(tmp_path / "images" / "one.tif")
    (tmp_path / "images" / "one.tif").unlink()
    assert "1 of 1 images that are annotated are not there" in read(tmp_path).problems[0]


@pytest.mark.parametrize("kind", [PurePosixPath, PureWindowsPath, Path])
def test_a_path_is_the_name_of_the_image(tmp_path, kind):
    """Cellpose writes what its function was called with."""
    write(tmp_path)
    (tmp_path / "one.tif").rename(tmp_path / "other.tif")
    saved = content()
    saved["filename"] = kind("/data/cells/other.tif")
    np.save(tmp_path / "one_seg.npy", saved)
    record, data = read_one(tmp_path)
    assert Path(record["file_name"]).name == "other.tif"
    assert not data.problems


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_is_executed(tmp_path):
    write(tmp_path)
    for payload in ({"masks": LABELS, "x": Hostile(str(tmp_path / "made"))}, Hostile(str(tmp_path / "made"))):
        np.save(tmp_path / "one_seg.npy", payload)
        data = read(tmp_path)
        assert not data.splits
        assert "refused" in data.problems[0]
        assert "_cp_masks.png" in data.problems[0]
    assert not (tmp_path / "made").exists()
    pickle.loads(pickle.dumps(Hostile(str(tmp_path / "made"))))  # that it would have
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("is_empty", [False, True])
def test_a_picture_stands_in_for_a_file_that_is_refused(tmp_path, suffix, is_empty):
    write(tmp_path)
    np.save(tmp_path / "one_seg.npy", {"masks": Hostile("x")})
    if is_empty:
        (tmp_path / "one_seg.npy").write_bytes(b"")
    Image.fromarray(LABELS).save(tmp_path / f"one_cp_masks{suffix}")
    record, data = read_one(tmp_path, "cellpose")
    np.testing.assert_array_equal(masks_of(record), MASKS)
    assert any("was read instead" in note for note in data.notes)


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        ({"outlines": LABELS}, "no label image"),
        ({"masks": LABELS.astype(float)}, "no label image"),
        ({"masks": LABELS[:-1]}, "39 x 60"),
        ({"masks": np.stack([LABELS] * 3)}, "3 x 40 x 60"),
        ({"masks": -LABELS.astype(np.int32)}, "no labels"),
        ([1, 2], "no label image"),
    ],
)
def test_what_is_no_label_image_is_named(tmp_path, saved, said):
    write(tmp_path)
    np.save(tmp_path / "one_seg.npy", np.array(saved, dtype=object) if isinstance(saved, list) else saved)
    data = read(tmp_path)
    assert not data.splits
    assert "one_seg.npy" in data.problems[0]
    assert said in data.problems[0]


def test_damaged_files_never_crash(tmp_path):
    write(tmp_path)
    whole = (tmp_path / "one_seg.npy").read_bytes()
    for seed in range(60):
        rng, damaged = np.random.default_rng(seed), bytearray(whole)
        for place in rng.integers(600 if seed % 2 else len(whole), size=rng.integers(1, 6)):
            damaged[place] = rng.integers(256)
        (tmp_path / "one_seg.npy").write_bytes(damaged[: len(whole) if seed % 3 else rng.integers(1, len(whole))])
        data = read(tmp_path)
        assert all("one_seg.npy" in problem for problem in data.problems)
        assert data.problems or len(data.splits["all"]) == 1
    for damaged in (b"", whole.replace(b"(), }", b"((, }"), whole.replace(b"(), }", b"  , }")):
        (tmp_path / "one_seg.npy").write_bytes(damaged)
        assert "one_seg.npy" in read(tmp_path).problems[0]


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no masks of Cellpose"):
        read(tmp_path, "cellpose")
