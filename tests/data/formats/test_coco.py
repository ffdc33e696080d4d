"""COCO files as tools write them: equal to the plain file where a person understands them, refused by name else."""

import copy
import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import supervision as sv
from coco_files import category, image, rle, square, write_coco
from pycocotools import mask as coco_mask

from maskrcnn_plus.data.check import DataError, check_dataset
from maskrcnn_plus.data.formats.coco import canonical_id, read_categories, read_coco
from maskrcnn_plus.data.formats.crowds import is_true

IMAGES = [image(1), image(2)]
ANNOTATIONS = [square(0, 1, 1), square(1, 1, 2), square(2, 2, 1)]
CATEGORIES = [category(1, "cell"), category(2, "dust")]


def read(tmp_path, images=IMAGES, annotations=ANNOTATIONS, categories=CATEGORIES, **further):
    return read_coco(*write_coco(tmp_path, images, annotations, categories), **further)


def objects(data):
    return [
        (Path(record["file_name"]).name, record["height"], record["width"], entry["category_id"], entry["bbox"])
        for record in data.records
        for entry in record["annotations"]
    ]


PLAIN = [
    ("1.png", 40, 60, 0, [2, 4, 8, 8]),
    ("1.png", 40, 60, 1, [12, 4, 8, 8]),
    ("2.png", 40, 60, 0, [22, 4, 8, 8]),
]


def as_text(entries, *keys):
    return [{key: str(value) if key in keys else value for key, value in entry.items()} for entry in entries]


UNDERSTOOD = {
    "ids as text": (as_text(IMAGES, "id"), as_text(ANNOTATIONS, "id", "image_id", "category_id"), CATEGORIES, "text"),
    "image ids as text in the images": (as_text(IMAGES, "id"), ANNOTATIONS, CATEGORIES, "text"),
    "category ids as text": (IMAGES, ANNOTATIONS, as_text(CATEGORIES, "id"), "text"),
    "ids as floats": (
        [image(1.0, "1.png"), image(2.0, "2.png")],
        ANNOTATIONS,
        [category(1.0, "cell"), category(2.0, "dust")],
        "",
    ),
    "an image listed twice": ([*IMAGES, IMAGES[0]], ANNOTATIONS, CATEGORIES, "more than once"),
    "a file under two ids": (
        [*IMAGES, image(3, "1.png")],
        [square(0, 1, 1), square(1, 3, 2), square(0, 3, 1, id=9), square(2, 2, 1)],
        CATEGORIES,
        "several ids",
    ),
    "a category listed twice": (IMAGES, ANNOTATIONS, [*CATEGORIES, category(2, "dust")], ""),
    "annotation ids that begin anew in each file": (
        IMAGES,
        [square(0, 1, 1), square(1, 1, 2), square(0, 2, 1, bbox=[22, 4, 8, 8])],
        CATEGORIES,
        "",
    ),
    "no annotation ids": (IMAGES, [{**entry, "id": ...} for entry in ANNOTATIONS], CATEGORIES, ""),
    "no sizes": ([image(1, height=..., width=None), image(2, width=...)], ANNOTATIONS, CATEGORIES, '"height"'),
    "sizes as text": (as_text(IMAGES, "height", "width"), ANNOTATIONS, CATEGORIES, ""),
    "folders before the names": (
        [image(1, "train/images/1.png"), image(2, "C:\\data\\2.png")],
        ANNOTATIONS,
        CATEGORIES,
        "another path",
    ),
}


@pytest.mark.parametrize("case", UNDERSTOOD)
def test_what_a_person_understands_equals_the_plain_file(tmp_path, caplog, case):
    images, annotations, categories, said = UNDERSTOOD[case]
    annotations = [{k: v for k, v in entry.items() if v is not ...} for entry in annotations]
    data = read(tmp_path, images, annotations, categories)
    assert objects(data) == PLAIN
    assert [(name, count) for _, name, count in data.categories[:2]] == [
        ("cell", 2 + (case == "a file under two ids")),
        ("dust", 1),
    ]
    assert said in caplog.text
    assert bool(caplog.text) == bool(said)
    assert [record["image_id"] for record in data.records] == [entry["id"] for entry in images[:2]]


def test_annotations_by_their_ids_are_a_list(tmp_path):
    """LIVECell's files of single cell types."""
    json_file, root = write_coco(tmp_path, IMAGES, ANNOTATIONS, CATEGORIES)
    content = json.loads(Path(json_file).read_text())
    content["annotations"] = {str(each["id"]): each for each in content["annotations"]}
    Path(json_file).write_text(json.dumps(content))
    assert objects(read_coco(json_file, root)) == PLAIN
    assert [each.count for each in read_categories(json_file)] == [2, 1]


def test_fields_stay_as_they_stand_in_the_file(tmp_path):
    odd = square(0, segmentation=[[1, 2, 3]], bbox=[], id="a7")
    data = read(tmp_path, annotations=[odd, square(1, segmentation=rle(1), iscrowd=...)])
    first, second = data.records[0]["annotations"]
    assert (first["segmentation"], first["bbox"], first["id"]) == ([[1, 2, 3]], [], "a7")
    assert second["segmentation"] == rle(1)
    assert "iscrowd" not in second


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_and_nan_are_read(tmp_path, encoding):
    json_file, root = write_coco(tmp_path, IMAGES, [square(0, bbox=[float("nan"), 4, 8, 8])], CATEGORIES)
    text = Path(json_file).read_text()
    assert "NaN" in text
    Path(json_file).write_text(text, encoding=encoding)
    x = read_coco(json_file, root).records[0]["annotations"][0]["bbox"][0]
    assert x != x


def test_a_file_without_annotations_has_images_without_objects(tmp_path, caplog):
    json_file, root = write_coco(tmp_path, IMAGES, None, CATEGORIES)
    assert [record["annotations"] for record in read_coco(json_file, root).records] == [[], []]
    assert "no annotations" in caplog.text


REFUSED = {
    "one id for two images": (
        dict(images=[image(1), image(2), image(1, "b.png"), image("2", "c.png")]),
        [r"id 1: 1\.png, b\.png; id 2: 2\.png, c\.png"],
    ),
    "one id for two categories": (
        dict(categories=[category(1, "cell"), category("1", "dust")]),
        ["category id '1'", "'cell'", "'dust'"],
    ),
    "a category without name": (dict(categories=[category(1, "cell"), {"id": 2}]), [r"categories\[1\]"]),
    "no images": (dict(images=[]), ['"images" is empty']),
    "images as a dict": (dict(images={"1": image(1)}), ["a dict as 'images'"]),
    "an image without id": (dict(images=[image(1), image(2), image(None, "c.png")]), [r"images\[2\].*c\.png"]),
    "an image without file": (dict(images=[*IMAGES, image(3, file_name=...)]), [r"images\[2\]"]),
    "an unknown image": (dict(annotations=[*ANNOTATIONS, square(44, 99)]), ["annotation 44", "image_id 99"]),
    "an unknown category": (
        dict(annotations=[*ANNOTATIONS, square(44, 2, 9)]),
        ["annotation 44", r"2\.png", "category_id 9"],
    ),
    "no category": (dict(annotations=[*ANNOTATIONS, square(44, 2, category_id=...)]), ["44", "category_id None"]),
    "a list as id": (dict(annotations=[*ANNOTATIONS, square(44, [1])]), ["annotation 44", r"image_id \[1\]"]),
    "an annotation that is a number": (dict(annotations=[*ANNOTATIONS, 5]), [r"annotations\[3\] is 5"]),
    "a crowd that is none": (dict(annotations=[*ANNOTATIONS, square(44, iscrowd="maybe")]), ["44", "'maybe'"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_nobody_understands_is_refused_by_name(tmp_path, case):
    changes, words = REFUSED[case]
    arguments = {"images": IMAGES, "annotations": ANNOTATIONS, "categories": CATEGORIES, **changes}
    if not isinstance(arguments["images"], list):
        path = tmp_path / "a.json"
        path.write_text(json.dumps(arguments))
        with pytest.raises(DataError, match=words[0]):
            read_coco(str(path), str(tmp_path))
        return
    for word in [r"a\.json", *words]:
        with pytest.raises(DataError, match=word):
            read(tmp_path, **arguments)


def test_bad_annotations_are_skipped_and_named_on_demand(tmp_path, caplog):
    bad = [square(44, 99), square(45, 2, 9), 5, square(46, iscrowd=7)]
    data = read(tmp_path, annotations=[*ANNOTATIONS, *bad], on_error="skip")
    assert objects(data) == PLAIN
    for word in ("44", "45", "46", "annotations[5]"):
        assert word in caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read as JSON"),
        ('{"images": [', "cannot be read as JSON"),
        ("[" * 100000, "cannot be read as JSON"),
        ('[{"image_id": 1, "score": 0.5}]', "results"),
        ("7", "holds a int"),
        ('{"shapes": [], "imagePath": "a.png"}', "no 'images'.*'shapes', 'imagePath'"),
        ('{"images": [{"id": 1}], "categories": []}', r"images\[0\]"),
        ('{"images": [{"id": 1}], "annotations": []}', "no 'categories'"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, text, words):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"x\.json.*{words}"):
        read_coco(str(path), str(tmp_path))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1),
        ("1", 1),
        (" 1 ", 1),
        (1.0, 1),
        (-3, -3),
        ("-3", -3),
        ("007", "007"),
        ("a", "a"),
        (1.5, 1.5),
        (10**400, 10**400),
        ("--1", "--1"),
        ("9" * 5000, "9" * 5000),
        *[(bad, None) for bad in (None, True, [], {}, "", float("nan"), float("inf"))],
    ],
)
def test_canonical_ids(value, expected):
    assert canonical_id(value) == expected
    assert type(canonical_id(value)) is type(expected)


@pytest.mark.parametrize("value", [1, True, 1.0, "1", "true", "1.0", " TRUE "])
def test_flags(value):
    assert is_true(value)
    for off in (0, False, 0.0, "0", "False", None, ""):
        assert not is_true(off)
    for neither in (2, "maybe", [], -1, float("nan")):
        with pytest.raises(ValueError, match=r"."):
            is_true(neither)


def crowds_of(data):
    return {entry["id"]: entry.get("iscrowd") for record in data.records for entry in record["annotations"]}


@pytest.mark.parametrize("mark", [1, "1", True, 1.0])
def test_a_class_of_nothing_but_crowds_has_single_objects(tmp_path, caplog, mark):
    habit = [square(number, 1, 1, iscrowd=mark, segmentation=rle(number)) for number in range(3)]
    data = read(tmp_path, annotations=[*habit, square(3, 2, 2)])
    assert crowds_of(data) == {0: 0, 1: 0, 2: 0, 3: 0}
    assert "cell (3)" in caplog.text
    assert coco_mask.area(coco_mask.frPyObjects(rle(1), 40, 60)) == 64
    assert crowds_of(read(tmp_path, annotations=[square(5, iscrowd=mark)])) == {5: 0}


def test_real_crowds_stay_crowds(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    people = [square(number, 1, 1) for number in range(18)]
    data = read(tmp_path, annotations=[*people, square(90, iscrowd=1, segmentation=rle()), square(91, 2, 2, iscrowd=1)])
    assert {number for number, crowd in crowds_of(data).items() if crowd} == {90, 91}
    assert "2 of 20 objects are crowds" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(("scale", "crowd"), [(1, 0), (10, 1)])
def test_rles_that_are_no_larger_than_polygons_are_single_objects(tmp_path, caplog, scale, crowd):
    polygons = [square(number) for number in range(4)]
    large = [2, 4, 8 * scale, 8]
    rles = [square(number, 2, 1, iscrowd=1, segmentation=rle(number), bbox=large) for number in (10, 11, 12)]
    data = read(tmp_path, annotations=[*polygons, *rles])
    assert [crowds_of(data)[number] for number in (10, 11, 12)] == [crowd] * 3
    assert ("holes or several" in caplog.text) == (not crowd)


def test_what_supervision_writes_has_no_crowds(tmp_path):
    masks = np.zeros((6, 40, 60), dtype=bool)
    for k in range(6):
        masks[k, 4:20, 8 * k + 2 : 8 * k + 9] = True
    masks[3:, 8:12, :] = False  # in two parts each
    detections = sv.Detections(sv.mask_to_xyxy(masks), mask=masks, class_id=np.zeros(6, dtype=int))
    write_coco(tmp_path, [image(1)], [], [])
    sv.DetectionDataset(["cell"], [str(tmp_path / "1.png")], {str(tmp_path / "1.png"): detections}).as_coco(
        annotations_path=str(tmp_path / "b.json")
    )
    written = json.loads((tmp_path / "b.json").read_text())["annotations"]
    assert [entry["iscrowd"] for entry in written] == [0, 0, 0, 1, 1, 1]
    data = read_coco(str(tmp_path / "b.json"), str(tmp_path))
    assert set(crowds_of(data).values()) == {0}


def test_half_crowds_and_ignored_ones_are_counted(tmp_path, caplog):
    half = [square(number, 1, 1, iscrowd=number % 2) for number in range(6)]
    ignored = [square(number, 2, 2, ignore=1) for number in (10, 11)]
    data = read(tmp_path, annotations=[*half, *ignored])
    assert sum(crowds_of(data).values()) == 5
    assert "5 of 8 objects are crowds" in caplog.text
    assert "cell 3 of 6, dust 2 of 2" in caplog.text


def test_text_zero_is_no_crowd(tmp_path):
    data = read(tmp_path, annotations=[square(0, iscrowd="0"), square(1, 1, 2, iscrowd=False), square(2, iscrowd=None)])
    assert crowds_of(data) == {0: 0, 1: 0, 2: 0}


def test_numbers_of_annotations(tmp_path):
    json_file, _ = write_coco(tmp_path, IMAGES, ANNOTATIONS, [category(7, "dummy"), *CATEGORIES])
    assert read_categories(json_file) == [(1, "cell", 2), (2, "dust", 1), (7, "dummy", 0)]


VALUES = [None, True, 0, -1, 2, 10**30, -(10**400), 1.5, float("nan"), "", "1", " 2 ", "abc", [], [[]], {}, [1], "../x"]


def mutate(node, rng):
    """Replace, remove or repeat something anywhere in a file."""
    holders, stack = [], [node]
    while stack:
        holder = stack.pop()
        items = holder.items() if isinstance(holder, dict) else enumerate(holder) if isinstance(holder, list) else ()
        for key, value in items:
            holders.append((holder, key))
            stack.append(value)
    holder, key = holders[rng.integers(len(holders))]
    kind = rng.integers(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    else:
        holder[key] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])


def test_damaged_files_are_refused_by_name_or_read_without_a_loss(tmp_path, caplog):
    annotations = [*ANNOTATIONS, square(3, 2, 2, iscrowd=1, segmentation=rle(3))]
    json_file, root = write_coco(tmp_path, IMAGES, annotations, CATEGORIES)
    whole = json.loads(Path(json_file).read_text())
    outcomes = Counter()
    for seed in range(120):
        rng, content = np.random.default_rng(seed), copy.deepcopy(whole)
        for _ in range(rng.integers(1, 3)):
            mutate(content, rng)
        Path(json_file).write_text(json.dumps(content))
        try:
            data = read_coco(json_file, root)
        except DataError as error:
            outcomes["refused" if "a.json" in str(error) else "refused without a name"] += 1
            continue
        found = sum(len(record["annotations"]) for record in data.records)
        assert found == len(content.get("annotations") or []), seed
        assert len(data.records) == len({entry["file_name"] for entry in content["images"]}), seed
        check_dataset(data.records, on_error="skip", num_classes=len(data.categories))
        outcomes["read"] += 1
    assert set(outcomes) == {"read", "refused"}
    assert min(outcomes.values()) > 20
