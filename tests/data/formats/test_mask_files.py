"""A mask file an object: the pixels of the files, and what is refused by name."""

from pathlib import Path

import numpy as np
import pytest
from annotation_folders import masks_of, read_one, rectangle, write_image
from PIL import Image

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats import read, sniff

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "formats" / "nuclei_masks_per_object"
MASKS = [rectangle(6, 4, 30, 20), rectangle(20, 10, 40, 30) | rectangle(50, 2, 55, 8)]


def write(root, *masks):
    write_image(root / "id" / "images" / "id.png")
    (root / "id" / "masks").mkdir(exist_ok=True)
    for index, mask in enumerate(masks):
        Image.fromarray(mask).save(root / "id" / "masks" / f"{index}.png")
    return root


@pytest.mark.parametrize("value", [1, 255])
def test_masks_that_overlap_or_have_pieces_stay_objects(tmp_path, value):
    record, data = read_one(write(tmp_path, *(mask.astype(np.uint8) * value for mask in MASKS)))
    assert sniff(tmp_path) == ["masks"]
    assert not data.problems
    np.testing.assert_array_equal(masks_of(record), MASKS)
    assert record["annotations"][0]["bbox"] == [6, 4, 30, 20]


@pytest.mark.parametrize("mode", ["1", "RGB", "RGBA", "P", "I;16"])
def test_masks_of_other_kinds_of_pictures(tmp_path, mode):
    root = write(tmp_path, MASKS[0])
    picture = Image.fromarray(MASKS[0].astype(np.uint16) * 500 if mode == "I;16" else MASKS[0].astype(np.uint8) * 255)
    (picture if mode == "I;16" else picture.convert(mode)).save(root / "id" / "masks" / "0.png")
    record, data = read_one(root)
    assert (data.format, data.problems) == ("masks", [])
    np.testing.assert_array_equal(masks_of(record), MASKS[:1])


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.zeros((40, 60), dtype=np.uint8), "empty"),
        (MASKS[0].astype(np.uint8) + MASKS[1], "2 values"),
        (np.ones((41, 60), dtype=np.uint8), "41 x 60"),
    ],
)
def test_a_file_that_is_no_mask_is_named(tmp_path, mask, said):
    record, data = read_one(write(tmp_path, MASKS[0].astype(np.uint8), mask))
    assert len(record["annotations"]) == 1
    assert said in data.problems[0]
    assert "1.png" in data.problems[0]


def test_no_masks_are_a_negative(tmp_path):
    record, _ = read_one(write(tmp_path), "masks")
    assert record["annotations"] == []


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"(?s)Looked for.*Not annotated yet\?"):
        sniff(tmp_path)
    with pytest.raises(DataError, match="holds no masks"):
        read(tmp_path, "masks")


@pytest.mark.skipif(not REAL.is_dir(), reason="the folder is not there")
def test_a_real_folder():
    data = read(REAL)
    assert not data.problems
    for record in data.splits["all"]:
        files = sorted((Path(record["file_name"]).parents[1] / "masks").glob("*.png"))
        expected = [np.asarray(Image.open(file)) > 0 for file in files]
        np.testing.assert_array_equal(masks_of(record), expected)
