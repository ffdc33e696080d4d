"""Pascal VOC's folders: palettes with a border and gaps, colours, classes by majority, lists of names."""

import contextlib

import numpy as np
import pytest
from annotation_folders import masks_of, read_one, rectangle, write_image
from PIL import Image

from maskrcnn_plus.data.check import DataError, check_dataset
from maskrcnn_plus.data.formats import ReadOptions, read, sniff

MASKS = [rectangle(6, 4, 30, 20), rectangle(32, 4, 40, 20)]
BORDER = rectangle(30, 4, 32, 20)
# The first colours of VOC's table: aeroplane, bicycle, bird, boat, bottle.
COLOURS = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128)]


def paint(*values, border=255):
    """Values of the two masks, with the border between them."""
    picture = np.zeros((40, 60), dtype=np.uint8)
    for mask, value in zip(MASKS, values, strict=True):
        picture[mask] = value
    picture[BORDER] = border
    return picture


def palette(values, colours=COLOURS):
    picture = Image.fromarray(values)
    picture.putpalette(
        [level for colour in colours for level in colour] + [0] * 3 * (255 - len(colours)) + [224, 224, 192]
    )
    return picture


def colours(values):
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(COLOURS)] = COLOURS
    table[255] = (224, 224, 192)
    return Image.fromarray(table[values])


def write(root, objects, classes=None, name="a"):
    write_image(root / "JPEGImages" / f"{name}.jpg")
    for folder, picture in (("SegmentationObject", objects), ("SegmentationClass", classes)):
        if picture is not None:
            (root / folder).mkdir(parents=True, exist_ok=True)
            picture.save(root / folder / f"{name}.png")
    return root


def classes_of(record, data):
    return [data.class_names[entry["category_id"]] for entry in record["annotations"]]


@pytest.mark.parametrize("draw", [palette, colours])
def test_objects_with_gaps_and_a_border(tmp_path, draw):
    root = write(tmp_path / "VOCdevkit" / "VOC2012", draw(paint(2, 5)), draw(paint(4, 1)))
    record, data = read_one(tmp_path)
    assert sniff(tmp_path) == ["voc"]
    assert data.problems == []
    order = [0, 1] if draw is palette else [1, 0]  # colours are numbered by red, green, blue
    found = dict(zip(classes_of(record, data), masks_of(record), strict=True))
    np.testing.assert_array_equal([found["boat"], found["aeroplane"]], MASKS)
    assert ("label_file_name" in record) == (draw is palette)
    assert check_dataset([record], num_classes=2, decode=True) == [record]
    assert record["file_name"] == str(root / "JPEGImages" / "a.jpg")
    assert len(order) == len(record["annotations"])


def test_the_class_is_that_of_most_pixels(tmp_path):
    classes = paint(1, 2)
    classes[4:10, 6:30] = 3  # a part of the first object
    classes[10:12, 6:30] = 255
    record, data = read_one(write(tmp_path, palette(paint(1, 2)), palette(classes)))
    assert classes_of(record, data) == ["aeroplane", "bicycle"]


@pytest.mark.parametrize("draw", [palette, colours])
def test_names_of_a_labelmap_go_by_colour(tmp_path, draw):
    write(tmp_path, draw(paint(1, 2)), draw(paint(4, 1)))
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::", "NA:0,0,128::", "dust:128,0,0::"]
    (tmp_path / "labelmap.txt").write_text("\n".join(lines))
    record, data = read_one(tmp_path)
    assert sorted(classes_of(record, data)) == ["NA", "dust"]
    named = dict(zip(classes_of(record, data), masks_of(record), strict=True))
    np.testing.assert_array_equal(named["NA"], MASKS[0])


@pytest.mark.parametrize(("draw", "name"), [(palette, "class 77"), (colours, "colour 9, 8, 7")])
def test_classes_that_nothing_names(tmp_path, draw, name):
    classes = draw(paint(1, 77))
    if draw is colours:
        pixels = np.array(classes)
        pixels[MASKS[1]] = (9, 8, 7)
        classes = Image.fromarray(pixels)
    record, data = read_one(write(tmp_path, palette(paint(1, 2)), classes))
    assert classes_of(record, data) == ["aeroplane", name]
    assert any("named as those of VOC" in note for note in data.notes)


def test_names_a_line_go_by_index(tmp_path):
    write(tmp_path, palette(paint(1, 2)), palette(paint(2, 1)))
    (tmp_path / "class_names.txt").write_text("__ignore__\n_background_\ncell\ndust\n")
    record, data = read_one(tmp_path)
    assert classes_of(record, data) == ["dust", "cell"]


def test_lists_are_splits_and_what_they_miss_is_named(tmp_path):
    for name in "abc":
        write(tmp_path, palette(paint(1, 2)), palette(paint(1, 2)), name)
    write_image(tmp_path / "JPEGImages" / "unsegmented.jpg")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nmissing\n")
    (lists / "trainval.txt").write_text("a\nb\nc\n")
    (lists / "val.txt").write_text("b\n")
    data = read(tmp_path)
    assert {split: len(records) for split, records in data.splits.items()} == {"train": 2, "val": 1}
    assert len(data.problems) == 1
    assert "'missing'" in data.problems[0]
    assert any("1 names" in note for note in data.notes)


def test_lists_by_other_words_are_splits(tmp_path):
    """CVAT names them after the subsets of a project."""
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name, subset in (("a", "Train"), ("b", "Validation")):
        write(tmp_path, palette(paint(1, 2)), palette(paint(1, 2)), name)
        (lists / f"{subset}.txt").write_text(f"{name}\n")
    assert {split: len(records) for split, records in read(tmp_path).splits.items()} == {"train": 1, "val": 1}


def test_names_of_a_mac(tmp_path):
    write(tmp_path, palette(paint(1, 2)), name="\u00e4")
    (image,) = (tmp_path / "JPEGImages").iterdir()
    image.rename(image.with_stem("a\u0308"))
    record, data = read_one(tmp_path)
    assert len(record["annotations"]) == 2
    assert not data.problems


def test_no_class_pictures_and_no_objects(tmp_path):
    record, data = read_one(write(tmp_path, palette(paint(1, 2))))
    assert classes_of(record, data) == ["object", "object"]
    record, _ = read_one(write(tmp_path, palette(paint(0, 0)), palette(paint(0, 0))))
    assert record["annotations"] == []


def test_classes_alone_are_refused_until_pieces_are_objects(tmp_path):
    write(tmp_path, None, palette(paint(1, 1)))
    with pytest.raises(DataError, match="--split-components"):
        read(tmp_path)
    data = read(tmp_path, options=ReadOptions(split_components=True))
    (record,) = data.splits["all"]
    np.testing.assert_array_equal(masks_of(record), MASKS)
    assert classes_of(record, data) == ["aeroplane"] * 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: palette(paint(1, 2)[:-1]).save(root / "SegmentationObject" / "a.png"), "39 x 60"),
        (lambda root: palette(paint(1, 2)[:-1]).save(root / "SegmentationClass" / "a.png"), "not of the size"),
        (lambda root: palette(paint(1, 0)).save(root / "SegmentationClass" / "a.png"), "object 2 has no pixel"),
        (lambda root: (root / "JPEGImages" / "a.jpg").unlink(), "there is no image a"),
        (lambda root: (root / "SegmentationObject" / "a.png").write_bytes(b"no png"), "cannot be read"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, said):
    write(tmp_path, palette(paint(1, 2)), palette(paint(1, 2)))
    change(tmp_path)
    data = read(tmp_path)
    assert not data.splits["all"]
    assert len(data.problems) == 1
    assert "a.png" in data.problems[0]
    assert said in data.problems[0]


def test_damaged_files_never_crash(tmp_path):
    write(tmp_path, palette(paint(1, 2)), palette(paint(1, 2)))
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\ncell:128,0,0::\ndust:0,128,0::")
    files = [tmp_path / "SegmentationObject/a.png", tmp_path / "SegmentationClass/a.png", tmp_path / "labelmap.txt"]
    whole = [file.read_bytes() for file in files]
    for seed in range(30):
        rng = np.random.default_rng(seed)
        file, content = files[seed % 3], bytearray(whole[seed % 3])
        for place in rng.integers(len(content), size=3):
            content[place] = rng.integers(256)
        file.write_bytes(content)
        with contextlib.suppress(DataError):
            data = read(tmp_path)
            assert data.problems or len(data.splits["all"]) == 1
        file.write_bytes(whole[seed % 3])


def test_boxes_alone_are_named(tmp_path):
    write_image(tmp_path / "JPEGImages" / "a.jpg")
    write_image(tmp_path / "AnnotationsVisualization" / "a.jpg")
    (tmp_path / "Annotations").mkdir()
    box = "<bndbox><xmin>6</xmin><ymin>4</ymin><xmax>30</xmax><ymax>20</ymax></bndbox>"
    (tmp_path / "Annotations" / "a.xml").write_text(f"<annotation><object><name>cell</name>{box}</object></annotation>")
    with pytest.raises(DataError, match=r"boxes of Pascal VOC.*a\.xml.*no masks"):
        read(tmp_path)
