"""Label images: each layout, each way of writing values, classes, and what is refused with its remedy."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from annotation_folders import masks_of, read_one, rectangle, write_image
from PIL import Image

from maskrcnn_plus.apps.check_data.diagnosis import diagnose
from maskrcnn_plus.data.check import DataError, check_dataset
from maskrcnn_plus.data.formats import ReadOptions, read, sniff
from maskrcnn_plus.data.formats.label_maps import LabelMapFolder

MASKS = [rectangle(6, 4, 30, 20), rectangle(30, 4, 40, 20) | rectangle(50, 2, 55, 8)]
LABELS = MASKS[0].astype(np.uint16) + 2 * MASKS[1].astype(np.uint16)
REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "cells_phase"


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels)
    else:
        Image.fromarray(pixels).save(path)


def in_folders(root, labels=LABELS, image="images/a.png", label="labels/a.png"):
    write_image(root / image)
    save(root / label, labels)
    return root


@pytest.mark.parametrize(
    ("image", "label", "split"),
    [
        ("images/a.png", "labels/a.png", "all"),
        ("images/a.jpg", "masks/a.tif", "all"),
        ("train/images/a.png", "train/labels/a.png", "train"),
        ("images/val/a.png", "labels/val/a.png", "val"),
        ("set/a.tif", "set/a_masks.tif", "all"),
        ("set/a_img.tif", "set/a_masks.tif", "all"),
        ("a.png", "a_cp_masks.png", "all"),
        ("a.tif", "a_label.tif", "all"),
        ("a.tif", "a_seg.tif", "all"),
        ("PNGImages/a.png", "PedMasks/a_mask.png", "all"),
        ("first/a.png", "second/a.png", "all"),
        ("images/img_001.png", "masks/mask_001.png", "all"),
        ("images/001.png", "masks/label-001.png", "all"),
        ("images/a.png", "masks/a.png.tif", "all"),
        ("train/a.png", "train/masks/a_cp_masks.png", "train"),  # Cellpose, with folders
        ("slide [x=0,y=0].tif", "slide [x=0,y=0]-labelled.tif", "all"),  # QuPath
        ("slide [x=0,y=0].jpg", "slide [x=0,y=0].png", "all"),
        ("a.tif", "a_Object Identities.tif", "all"),  # ilastik
        ("a.tif", "LblImg_a.tif", "all"),  # TrackMate
        ("images/\u00e4.png", "labels/a\u0308.png", "all"),  # copied by way of a Mac
        ("\u00e4.png", "a\u0308_mask.png", "all"),
    ],
)
def test_layouts(tmp_path, image, label, split):
    rng = np.random.default_rng(0)
    in_folders(tmp_path, image=image, label=label)
    noise = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
    save(tmp_path / image, noise)
    record, data = read_one(tmp_path)
    assert sniff(tmp_path) == [data.format] == ["labels"]
    assert (list(data.splits), data.problems) == ([split], [])
    assert record["file_name"] == str(tmp_path / image)
    assert record["label_file_name"] == str(tmp_path / label)
    np.testing.assert_array_equal(masks_of(record), MASKS)
    assert [entry["bbox"] for entry in record["annotations"]] == [[6, 4, 30, 20], [30, 2, 55, 20]]
    assert check_dataset([record], num_classes=1, decode=True) == [record]


COLOURS = np.zeros((40, 60, 3), dtype=np.uint8)
COLOURS[MASKS[0]] = (0, 0, 7)
COLOURS[MASKS[1]] = (200, 0, 7)


@pytest.mark.parametrize(
    "pixels",
    [
        LABELS.astype(np.uint8),
        LABELS * 30000,
        LABELS.astype(np.int32) * 70000,
        LABELS.astype(np.float32),
        COLOURS,
        np.dstack([COLOURS, np.full((40, 60), 255, dtype=np.uint8)]),
        np.repeat(LABELS.astype(np.uint8)[:, :, None], 3, axis=2),
    ],
)
def test_values_and_colours(tmp_path, pixels):
    name = "labels/a.tif" if pixels.dtype != np.uint8 else "labels/a.png"
    record, data = read_one(in_folders(tmp_path, pixels, label=name))
    assert not data.problems
    np.testing.assert_array_equal(sorted(masks_of(record), key=lambda mask: -mask.sum()), MASKS)
    assert ("label_file_name" in record) == (pixels.ndim == 2 and pixels.dtype != np.float32)
    assert check_dataset([record], num_classes=1, decode=True) == [record]


def test_a_palette(tmp_path):
    picture = Image.fromarray(LABELS.astype(np.uint8))
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    in_folders(tmp_path)
    picture.save(tmp_path / "labels" / "a.png")
    np.testing.assert_array_equal(masks_of(read_one(tmp_path)[0]), MASKS)


def test_splits_file(tmp_path):
    for name in "abc":
        in_folders(tmp_path, image=f"images/{name}.png", label=f"labels/{name}.png")
    write_image(tmp_path / "images" / "d.png")
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["a"], "val": ["b", "x"]}))
    data = read(tmp_path)
    names = {split: [Path(record["file_name"]).stem for record in records] for split, records in data.splits.items()}
    assert names == {"train": ["a"], "val": ["b"]}
    assert len(data.problems) == 1
    assert "'x' has no image" in data.problems[0]
    assert any("1 images are in no split" in note for note in data.notes)
    assert any("d.png" in note for note in data.notes)


def test_classes_by_a_file(tmp_path):
    in_folders(tmp_path)
    (tmp_path / "labels" / "a.json").write_text('{"1": "NA", "2": "dust"}')
    record, data = read_one(tmp_path)
    assert [data.class_names[entry["category_id"]] for entry in record["annotations"]] == ["NA", "dust"]
    assert "label_file_name" in record
    (tmp_path / "labels" / "a.json").write_text('{"1": "NA"}')
    assert "label 2" in read(tmp_path).problems[0]
    for wrong in ("[1]", '{"a": "b"}', '{"1": 5}', "{"):
        (tmp_path / "labels" / "a.json").write_text(wrong)
        with pytest.raises(DataError, match=r"a\.json"):
            read(tmp_path)


def test_a_folder_that_is_registered_for_one_class_says_that_there_are_more(tmp_path, caplog):
    in_folders(tmp_path)
    LabelMapFolder(str(tmp_path), None, "images", "labels", "raise")()
    assert "names classes" not in caplog.text
    (tmp_path / "labels" / "a.json").write_text('{"1": "cell", "2": "dust"}')
    LabelMapFolder(str(tmp_path), None, "images", "labels", "raise")()
    assert "a.json names classes" in caplog.text


def test_classes_by_folders(tmp_path):
    in_folders(tmp_path, label="labels/cell/a.png")
    save(tmp_path / "labels" / "dust" / "a.png", MASKS[0].astype(np.uint8))
    record, data = read_one(tmp_path)
    assert [data.class_names[entry["category_id"]] for entry in record["annotations"]] == ["cell", "cell", "dust"]
    np.testing.assert_array_equal(masks_of(record), [*MASKS, MASKS[0]])


def test_one_value_in_pieces_is_refused_until_pieces_are_objects(tmp_path):
    foreground = (LABELS > 0).astype(np.uint8) * 255
    in_folders(tmp_path, foreground)
    with pytest.raises(DataError, match=r"a\.png has the value 255 in 2.*--split-components"):
        read(tmp_path)
    data = read(tmp_path, options=ReadOptions(split_components=True))
    (record,) = data.splits["all"]
    expected = [rectangle(6, 4, 40, 20), rectangle(50, 2, 55, 8)]
    np.testing.assert_array_equal(sorted(masks_of(record), key=lambda mask: -mask.sum()), expected)
    assert any("connected pieces" in note for note in data.notes)
    in_folders(tmp_path, MASKS[0])
    assert len(read_one(tmp_path)[0]["annotations"]) == 1


def test_pieces_keep_their_class(tmp_path):
    in_folders(tmp_path)
    (tmp_path / "labels" / "a.json").write_text('{"1": "cell", "2": "dust"}')
    data = read(tmp_path, options=ReadOptions(split_components=True))
    (record,) = data.splits["all"]
    found = sorted(data.class_names[entry["category_id"]] for entry in record["annotations"])
    assert found == ["cell", "dust", "dust"]


def test_no_objects_are_a_negative(tmp_path):
    record, data = read_one(in_folders(tmp_path, np.zeros((40, 60), dtype=np.uint8)))
    assert (record["annotations"], data.problems) == ([], [])


@pytest.mark.parametrize(
    ("name", "pixels", "said"),
    [
        ("a.jpg", LABELS.astype(np.uint8), "JPEG changes the values"),
        ("a.tif", LABELS + np.float32(0.5), "integers"),
        ("a.tif", -LABELS.astype(np.int16), "-2..0"),
        ("a.png", LABELS[:-1], "39 x 60"),
    ],
)
def test_what_is_no_label_image_is_named(tmp_path, name, pixels, said):
    in_folders(tmp_path, pixels, label=f"labels/{name}")
    in_folders(tmp_path, image="images/b.png", label="labels/b.png")
    data = read(tmp_path)
    assert len(data.splits["all"]) == len(data.problems) == 1
    assert name in data.problems[0]
    assert said in data.problems[0]


@pytest.mark.parametrize("axes", ["CYX", "ZYX", "TYX"])
def test_planes_of_labels_are_no_colours_and_nothing_that_is_projected(tmp_path, axes):
    in_folders(tmp_path)
    write_image(tmp_path / "images" / "b.png")
    planes = np.stack([LABELS, 2 * LABELS, LABELS])
    tifffile.imwrite(tmp_path / "labels" / "b.tif", planes, imagej=True, metadata={"axes": axes})
    (problem,) = read(tmp_path).problems
    assert "b.tif: a label image is one plane" in problem
    assert f"'{axes[0]}': 3" in problem
    assert "dataset." not in problem


def test_channels_of_16_bits_are_no_colours(tmp_path):
    in_folders(tmp_path)
    write_image(tmp_path / "images" / "b.png")
    tifffile.imwrite(tmp_path / "labels" / "b.tif", np.dstack([LABELS, 2 * LABELS, LABELS]), photometric="rgb")
    (problem,) = read(tmp_path).problems
    assert "three channels of uint16" in problem


def test_an_orphan_is_named(tmp_path):
    in_folders(tmp_path)
    save(tmp_path / "labels" / "b.png", LABELS)
    assert "b.png" in read(tmp_path).problems[0]


def test_of_several_folders_of_label_images_the_one_of_objects_is_taken(tmp_path):
    in_folders(tmp_path)
    save(tmp_path / "mask binary" / "a.png", (LABELS > 0).astype(np.uint8) * 255)
    record, data = read_one(tmp_path)
    assert record["label_file_name"] == str(tmp_path / "labels" / "a.png")
    assert any("mask binary tells fewer objects" in note for note in data.notes)
    save(tmp_path / "masks" / "a.png", LABELS)
    with pytest.raises(DataError, match=r"labels, .*masks: these folders hold files of the same names"):
        read(tmp_path)


def test_of_several_folders_of_pictures_the_one_of_images_is_taken(tmp_path):
    in_folders(tmp_path, image="overlay/a.png", label="label masks/a.png")
    write_image(tmp_path / "tissue images" / "a.png")
    record, _ = read_one(tmp_path)
    assert record["file_name"] == str(tmp_path / "tissue images" / "a.png")
    write_image(tmp_path / "raw" / "a.png")
    with pytest.raises(DataError, match=r"raw, .*tissue images: these folders"):
        read(tmp_path)


def test_other_folders_are_not_taken(tmp_path):
    write_image(tmp_path / "images" / "a.png")
    write_image(tmp_path / "others" / "b.png")
    with pytest.raises(DataError, match="no annotations recognised"):
        sniff(tmp_path)
    with pytest.raises(DataError, match="holds no label images"):
        read(tmp_path, "labels")


def test_damaged_files_never_crash(tmp_path):
    in_folders(tmp_path)
    whole = (tmp_path / "labels" / "a.png").read_bytes()
    for seed in range(40):
        rng, content = np.random.default_rng(seed), bytearray(whole)
        for place in rng.integers(len(whole), size=rng.integers(1, 6)):
            content[place] = rng.integers(256)
        (tmp_path / "labels" / "a.png").write_bytes(content[: len(content) if seed % 3 else rng.integers(len(content))])
        with contextlib.suppress(DataError):
            data = read(tmp_path, "labels")
            assert all("a.png" in problem for problem in data.problems)
            assert data.problems or len(data.splits["all"]) == 1


@pytest.mark.skipif(not REAL.is_dir(), reason="the folder is not there")
def test_a_real_folder():
    data = read(REAL)
    assert (data.format, data.problems) == ("labels", [])
    assert {split: len(records) for split, records in data.splits.items()} == {"train": 6, "val": 2}
    assert sum(len(record["annotations"]) for records in data.splits.values() for record in records) == 575


def test_sequences_of_the_cell_tracking_challenge(tmp_path):
    for sequence in ("01", "02"):
        for frame in ("t000", "t001", "t002"):
            write_image(tmp_path / sequence / f"{frame}.tif")
        save(tmp_path / f"{sequence}_GT" / "SEG" / "man_seg001.tif", LABELS)
        save(tmp_path / f"{sequence}_GT" / "TRA" / "man_track000.tif", LABELS)
        save(tmp_path / f"{sequence}_ST" / "SEG" / "man_seg002.tif", LABELS)
    data = read(tmp_path)
    assert [Path(each["file_name"]).relative_to(tmp_path).as_posix() for each in data.splits["all"]] == [
        "01/t001.tif",
        "02/t001.tif",
    ]
    np.testing.assert_array_equal(masks_of(data.splits["all"][0]), MASKS)
    assert not data.problems
    assert any("4 images have no label image" in note for note in data.notes)


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_words_for_the_splits(tmp_path, name):
    for image in ("a", "b"):
        in_folders(tmp_path, image=f"images/{image}.png", label=f"labels/{image}.png")
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["a"], name: ["b"]}), encoding="utf-8-sig")
    splits = read(tmp_path).splits
    assert {split: [Path(each["file_name"]).stem for each in splits[split]] for split in splits} == {
        "train": ["a"],
        "val": ["b"],
    }
    (tmp_path / "splits.json").write_text(json.dumps({"fold1": ["a"], "fold2": ["b"]}))
    assert set(read(tmp_path).splits) == {"fold1", "fold2"}
    assert set(diagnose(tmp_path).splits) == {"fold1", "fold2"}
    (tmp_path / "splits.json").write_text(json.dumps({"val": ["a"], "valid": ["b"]}))
    assert [len(records) for records in read(tmp_path).splits.values()] == [2]
