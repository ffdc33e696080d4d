"""The data doctor: planted faults are found where they are, and none where there is none."""

from pathlib import Path

import numpy as np
import pytest
from hotcoco import COCO
from PIL import Image
from planted_faults import SIDE, DataSet, disc, rle_of

from maskrcnn_plus.apps.check_data.diagnosis import NOTE, PROBLEM, WARNING, diagnose
from maskrcnn_plus.apps.check_data.suspicious import choose_shown
from maskrcnn_plus.apps.check_data.terminal import describe
from maskrcnn_plus.data import image_facts

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


@pytest.fixture
def data(tmp_path):
    return DataSet(tmp_path / "data")


def of(diagnosis, severity):
    return [each for each in diagnosis.findings if each.severity == severity]


def disc_mask(x, y, radius):
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 < radius**2


def test_clean_data_have_no_findings(data):
    found = diagnose(data.write())
    assert found.findings == found.suspicious == []
    assert found.num_problems == 0
    assert found.format == "coco"
    assert {split: len(records) for split, records in found.splits.items()} == {"train": 12, "val": 6}
    total = found.statistics[""]
    assert (total.num_images, total.num_objects) == (18, 216)
    assert total.class_counts == {"round": 108, "disc": 108}
    assert total.pixels.dark_background == 1
    assert found.advice == [
        "12 images with 144 objects to learn from, 6 with 72 to evaluate on: nothing is scarce.",
    ]


def cut_file(data):
    path = data.root / "train" / "train3.png"
    path.write_bytes(path.read_bytes()[:600])
    return "train3.png"


def remove_file(data):
    (data.root / "train" / "train3.png").unlink()
    return "train3.png"


def resize_file(data):
    Image.new("L", (50, 40)).save(data.root / "val" / "val2.png")
    return "val2.png"


def leave_image(data):
    data.add([disc(SIDE + 60, 40, 8)], image=4)
    return "train4.png, annotation 12 (id 145)"


def lie_on_a_line(data):
    data.add([[10.0, 10, 20, 10, 30, 10]], image=4)
    return "train4.png, annotation 12 (id 145)"


def normalize(data):
    data.add([[0.1, 0.1, 0.5, 0.1, 0.5, 0.6]], image=4)
    return "train4.png, annotation 12 (id 145)"


def not_finite(data):
    Image.fromarray(np.full((SIDE, SIDE), np.nan, dtype=np.float32)).save(data.root / "train" / "train5.tif")
    data.content["train"]["images"][4]["file_name"] = "train5.tif"
    return "train5.tif"


@pytest.mark.parametrize(
    "plant", [cut_file, remove_file, resize_file, leave_image, lie_on_a_line, normalize, not_finite]
)
def test_what_stops_a_training_is_named(data, plant):
    where = plant(data)
    found = diagnose(data.write())
    (problem,) = of(found, PROBLEM)
    assert len(problem.lines) == found.num_problems == 1
    assert where in problem.lines[0]
    assert not of(found, WARNING)
    assert len(found.records) == 18 - (plant in (cut_file, remove_file, resize_file, not_finite))
    assert where in describe(found)


def test_problems_of_one_kind_are_one_finding(data):
    for image in range(1, 9):
        data.add([disc(SIDE + 60 + image, 40, 8)], image=image)
    (problem,) = of(diagnose(data.write()), PROBLEM)
    assert len(problem.lines) == 8
    assert "outside of the image" in problem.kind


def test_objects_that_are_annotated_twice(data):
    number = data.repeat(5, 2)
    other = data.repeat(2, 2)
    found = diagnose(data.write())
    pairs = {(each.first, each.second): each.same_class for each in found.repeated}
    assert pairs == {(5, number): True, (2, other): False}
    assert len(of(found, WARNING)) == 2
    named = COCO(str(data.root / "train" / "_annotations.coco.json")).healthcheck()["warnings"]
    (twice,) = [each["affected_ids"] for each in named if each["code"] == "near_duplicate"]
    ids = [found.splits["train"][0]["annotations"][k]["id"] for k in (5, number)]
    assert sorted(twice) == sorted(ids)


def test_many_of_the_same_are_each_told_once(data):
    polygon = data.content["train"]["annotations"][5]["segmentation"][0]
    numbers = [data.add([[value + shift for value in polygon]], category=2) for shift in (0.05, 0.1, 0.15)]
    pairs = [(each.first, each.second) for each in diagnose(data.write()).repeated]
    assert pairs == [(5, number) for number in numbers]


def test_images_of_two_splits_that_show_the_same(data):
    picture = Image.open(data.root / "train" / "train7.png")
    brighter = np.asarray(picture.resize((120, 120))) * 0.8 + 40
    Image.fromarray(brighter.clip(0, 255).astype(np.uint8)).resize((SIDE, SIDE)).save(data.root / "val" / "val2.png")
    picture.save(data.root / "train" / "train9.png")
    found = diagnose(data.write())
    (across,) = of(found, WARNING)
    assert len(across.lines) == 2  # train9 is the same as train7
    assert all("val2.png" in line for line in across.lines)
    records = found.records
    names = {(Path(records[a]["file_name"]).stem, Path(records[b]["file_name"]).stem) for a, b in found.shared}
    assert names == {("train7", "val2"), ("train9", "val2")}
    (within,) = of(found, NOTE)
    assert "2 images in 1 groups" in within.remedy


@pytest.mark.parametrize(
    ("segmentation", "kind", "said"),
    [
        ([disc(80, 80, 45)], "size", "times the median"),
        ([disc(80, 6, 1.2)], "size", "1/"),
        ([[0, 77, 90, 77, 90, 81, 0, 81]], "shape", "its box is 90 x 4 px"),
        ([[60, 60, 80, 60, 80, 61, 61, 61, 61, 80, 60, 80]], "fill", "of its box, others"),
        ([[60, 60, 78, 60, 78, 78, 60, 78]], "fill", "whole box"),
        ([[0, 20, 1.6, 20, 1.6, 36, 0, 36]], "border", "at the border"),
        (rle_of(disc_mask(80, 60, 9) | disc_mask(120, 60, 1.5)), "pieces", "away from the rest"),
        ([[0, 0, SIDE, 0, SIDE, SIDE, 0, SIDE]], "image", "100% of the image"),
    ],
)
def test_an_unusual_annotation_comes_first(data, segmentation, kind, said):
    number = data.add(segmentation, image=2)
    found = diagnose(data.write())
    assert found.num_problems == 0
    first = found.suspicious[0]
    assert (first.image, first.number) == (1, number)
    assert kind == first.kind or said in " ".join(first.reasons)
    assert said in " ".join(first.reasons)
    assert len(found.suspicious) == 1


def test_many_of_one_kind_do_not_hide_others(data):
    for image in range(1, 13):
        data.add([disc(80, 80, 45)], image=image)
        data.add([disc(80, 80, 40)], image=image)
    data.add([[0, 20, 1.6, 20, 1.6, 36, 0, 36]], image=3)
    found = diagnose(data.write()).suspicious
    assert len(found) > 12
    shown = choose_shown(found)
    assert len(shown) == 12
    assert any("border" in reason for each in shown for reason in each.reasons)


def test_boxes_of_others_and_lost_scale_are_said(data):
    for each in data.content["train"]["annotations"]:
        each["segmentation"] = [[2 * value for value in polygon] for polygon in each["segmentation"]]
        each["bbox"] = [2 * value for value in each["bbox"]]
    found = diagnose(data.write())
    assert found.num_problems > 40
    assert any("larger images" in each.kind for each in of(found, WARNING))


def test_a_box_of_another_place_is_noted(data):
    data.content["train"]["annotations"][0]["bbox"] = [100, 100, 20, 20]
    found = diagnose(data.write())
    (note,) = of(found, NOTE)
    assert "does not fit its mask" in note.kind
    assert "train1.png, annotation 0 (id 1)" in note.lines[0]
    assert found.num_problems == 0


def test_no_object_is_a_problem(data):
    for content in data.content.values():
        content["annotations"] = []
    found = diagnose(data.write())
    assert "No object is left" in of(found, PROBLEM)[0].kind
    assert "Nothing stops" not in describe(found)


def test_no_image_is_a_problem(data):
    for path in data.root.glob("*/*.png"):
        path.unlink()
    found = diagnose(data.write())
    assert any("No usable image" in each.kind for each in of(found, PROBLEM))
    assert describe(found)


def test_splits_that_no_training_understands_are_a_problem(data):
    path = data.write()
    (path / "train").rename(path / "test")
    (problem,) = of(diagnose(path), PROBLEM)
    assert "no train" in problem.lines[0]


def test_a_second_run_reads_no_pixel(data, monkeypatch):
    path = data.write()
    calls = []
    first = diagnose(path, progress=lambda total: lambda: calls.append(total))
    assert calls == [18] * 18

    def fail(*_):
        raise AssertionError("a pixel was read")

    monkeypatch.setattr(image_facts, "decode", fail)
    again = diagnose(path)
    assert again.statistics[""].pixels.intensity.tolist() == first.statistics[""].pixels.intensity.tolist()
    assert again.findings == first.findings


def test_a_second_folder_for_validation(data, tmp_path):
    data.write()
    other = DataSet(tmp_path / "other")
    other.content["val"]["categories"] = [{"id": 1, "name": "Disc"}, {"id": 2, "name": "square"}]
    other.write()
    found = diagnose(data.root / "train", val=other.root / "val")
    assert {split: len(records) for split, records in found.splits.items()} == {"train": 12, "val": 6}
    assert found.class_names == ["round", "disc", "square"]
    assert found.statistics["val"].class_counts == {"round": 0, "disc": 36, "square": 36}
    assert any("square" in each for each in found.advice)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
@pytest.mark.parametrize(
    "name", ["coco_tiny", "formats/veins_roboflow", "formats/nuclei_masks_per_object", "nuclei_16bit"]
)
def test_real_data_have_no_problems(name):
    found = diagnose(SHARED / name)
    assert of(found, PROBLEM) == []
    assert of(found, WARNING) == []
    assert found.records


def test_images_that_are_not_there_are_a_kind(data):
    folder = data.write()
    for file in sorted(folder.rglob("train*.png"))[:5]:
        file.unlink()
    kinds = [each.kind for each in of(diagnose(folder), PROBLEM)]
    assert any("images that are annotated are not there" in kind for kind in kinds)
