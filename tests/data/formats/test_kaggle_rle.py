"""Run-length codes of Kaggle: counted from 1, down the columns; columns of each competition; what is refused."""

import contextlib

import numpy as np
import pytest
from annotation_folders import masks_of, read_one, rectangle, write_image

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats import read, sniff
from maskrcnn_plus.data.formats.kaggle_rle import decode_kaggle

MASKS = [rectangle(6, 4, 30, 20), rectangle(36, 22, 50, 35) | rectangle(1, 1, 3, 3)]


def encode(mask, order="F"):
    """Runs of a mask by the definition: a loop over its pixels."""
    runs, inside = [], False
    for place, value in enumerate(mask.reshape(-1, order=order).tolist(), start=1):
        if value and not inside:
            runs.append([place, 0])
        if value:
            runs[-1][1] += 1
        inside = value
    return " ".join(f"{start} {length}" for start, length in runs)


def write(root, *lines, header="ImageId,EncodedPixels", images=("a.png",)):
    for image in images:
        write_image(root / image)
    (root / "train.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8-sig")
    return root


RUNS = [encode(mask) for mask in MASKS]


@pytest.mark.parametrize(
    ("header", "line", "classes"),
    [
        ("ImageId,EncodedPixels", "a,{}", ["object"] * 2),
        ("ImageId,EncodedPixels", "a.png,{}", ["object"] * 2),
        ("ImageId,EncodedPixels", "a.jpg,{}", ["object"] * 2),
        ("id,rle", "a,{}", ["object"] * 2),
        ("ImageId;EncodedPixels", "a;{}", ["object"] * 2),
        ("ImageId\tClassId\tEncodedPixels", "a\t3\t{}", ["3"] * 2),
        ("Image_Label,EncodedPixels", "a.jpg_NA,{}", ["NA"] * 2),
        ("ImageId_ClassId,EncodedPixels", "a_4,{}", ["4"] * 2),
        ("ImageId,ClassId,EncodedPixels", "a.png,3,{}", ["3"] * 2),
        ("ImageId,EncodedPixels,Height,Width,ClassId", "a.png,{},40,60,cell", ["cell"] * 2),
    ],
)
def test_columns(tmp_path, header, line, classes):
    record, data = read_one(write(tmp_path, *(line.format(runs) for runs in RUNS), header=header))
    assert sniff(tmp_path) == ["kaggle"]
    assert data.problems == []
    assert [data.class_names[entry["category_id"]] for entry in record["annotations"]] == classes
    np.testing.assert_array_equal(masks_of(record), MASKS)


def test_along_the_rows(tmp_path):
    lines = [f"a,{encode(mask, 'C')},60,40,astro" for mask in MASKS]
    record, data = read_one(write(tmp_path, *lines, header="id,annotation,width,height,cell_type"))
    np.testing.assert_array_equal(masks_of(record), MASKS)
    assert data.class_names == ["astro"]
    assert any("along the rows" in note for note in data.notes)


def test_empty_codes_are_negatives(tmp_path):
    data = read(write(tmp_path, "a,", "b,-1", f"c,{RUNS[0]}", images=("a.png", "b.png", "c.png")))
    assert [len(record["annotations"]) for record in data.splits["all"]] == [0, 0, 1]


def test_images_in_folders_of_their_own(tmp_path):
    record, _ = read_one(write(tmp_path, f"x1,{RUNS[0]}", images=("x1/images/x1.png",)))
    assert record["file_name"] == str(tmp_path / "x1" / "images" / "x1.png")


def test_runs_that_overlap_are_one(tmp_path):
    rle = decode_kaggle("3 4 1 3 20 1 5 3", (40, 60))
    assert rle == decode_kaggle("1 7 20 1", (40, 60))


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ("1 2 3", "3 numbers"),
        ("0 5", "counted from 1"),
        ("5 0", "counted from 1"),
        ("2400 2", "ends at pixel"),
        ("2401 1", "counted from 1"),
        ("1 x", "are no runs"),
        ("1.5 2", "are no runs"),
        (f"{10**30} 1", "are no runs"),
        ("-5 9", "counted from 1"),
    ],
)
def test_what_are_no_runs_is_named(tmp_path, runs, said):
    record, data = read_one(write(tmp_path, f"a,{RUNS[0]}", f"a,{runs}"))
    assert len(record["annotations"]) == len(data.problems) == 1
    assert "train.csv, line 3" in data.problems[0]
    assert said in data.problems[0]


def test_missing_images_and_short_rows_are_named(tmp_path):
    data = read(write(tmp_path, f"a,{RUNS[0]}", f"b,{RUNS[0]}", "c"))
    assert "1 of 2 images" in data.problems[0]
    assert "line 4" in data.problems[1]


def test_a_long_row_is_read(tmp_path):
    image = tmp_path / "a.png"
    write_image(image, 600, 600)
    (tmp_path / "train.csv").write_text("ImageId,EncodedPixels\na," + " ".join(f"{k} 1" for k in range(1, 360000, 8)))
    (record,) = read(tmp_path).splits["all"]
    assert masks_of(record)[0].sum() == 45000


def test_other_tables_are_not_taken(tmp_path):
    for header, line in (("id,label", "a,cat"), ("filename,annotation", "a.png,a cat"), ("", "")):
        write(tmp_path, line, header=header)
        with pytest.raises(DataError, match="no annotations recognised"):
            sniff(tmp_path)


def test_damaged_files_never_crash(tmp_path):
    write(tmp_path, *(f"a,{runs}" for runs in RUNS))
    whole = (tmp_path / "train.csv").read_bytes()
    for seed in range(40):
        rng, content = np.random.default_rng(seed), bytearray(whole)
        for place in rng.integers(len(whole), size=rng.integers(1, 5)):
            content[place] = rng.integers(256)
        (tmp_path / "train.csv").write_bytes(content)
        with contextlib.suppress(DataError):
            data = read(tmp_path, "kaggle")
            assert data.problems or len(data.splits["all"]) == 1


def test_an_example_of_a_submission_is_no_annotation(tmp_path):
    write(tmp_path, f"a,{RUNS[0]}")
    write_image(tmp_path / "test" / "b.png")
    (tmp_path / "sample_submission.csv").write_text("ImageId,EncodedPixels\nb,1 2\n")
    data = read(tmp_path)
    assert [len(records) for records in data.splits.values()] == [1]
    assert any("sample_submission.csv was left out" in note for note in data.notes)


def test_an_image_whose_runs_cannot_be_used_is_no_negative(tmp_path):
    record, data = read_one(write(tmp_path, "a,1 2 3", f"b,{RUNS[0]}", images=("a.png", "b.png")))
    assert record["file_name"].endswith("b.png")
    assert any("no object could be used" in note and "a.png" in note for note in data.notes)
