"""tools/draw_errors.py with a model whose objects are known: one a grey value, its score the value / 255."""

import importlib.util
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "draw_errors.py"

CONFIG = """
dataset = dict(root="", thing_classes=["cell"])
names = L(register_label_maps)(name="${dataset.root}", root="${dataset.root}", split="val")
mapper = L(InstanceMapper)(is_train=False, augmentations=[], percentiles=None)
dataloader = dict(test=dict(mapper=mapper, dataset=dict(names=names)))
del names, mapper
"""


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("draw_errors_under_test", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def folder(grey_values, tmp_path):
    """One image without an error; one with a missed, two merged and a found object, and a detection of nothing."""
    for sub in ("images", "labels"):
        (tmp_path / sub).mkdir()
    (tmp_path / "splits.json").write_text(json.dumps({"train": [], "val": ["bad", "good"]}))
    image, labels = np.zeros((2, 60, 400), np.uint8)
    for label, (x0, x1) in enumerate([(10, 30), (50, 70), (70, 90), (120, 140)], start=1):
        labels[10:30, x0:x1] = label
    image[10:30, 50:91], image[10:30, 120:140], image[40:50, 10:20], image[40:50, 50:60] = 240, 250, 200, 100
    for name, pixels, truth in (("bad", image, labels), ("good", labels * 60, labels)):
        cv2.imwrite(str(tmp_path / f"images/{name}.png"), pixels)
        cv2.imwrite(str(tmp_path / f"labels/{name}.png"), truth.astype(np.uint16))
    (tmp_path / "config.py").write_text(grey_values + CONFIG)
    return tmp_path


def draw(tool, folder, *arguments):
    fixed = ["--config-file", folder / "config.py", "--weights", "random", "--output", folder / "out", "--images", "1"]
    return tool.main([*map(str, fixed), *arguments, f"dataset.root={folder}"])


def test_errors_are_counted_and_the_worst_image_is_drawn(tool, folder, capsys):
    assert draw(tool, folder, "--score-threshold", "0.1", "--zoom", "3") == 0
    header, _, objects, detections = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()
    )
    objects, detections = (dict(zip(header[1:], row[1:], strict=True)) for row in (objects, detections))
    counts = {kind: int(count) for kind, count in objects.items() if count}
    assert counts == {"found": 5, "missed": 1, "merged": 2, "split": 0, "poor outline": 0, "wrong class": 0}
    counts = {kind: int(count) for kind, count in detections.items() if count}
    assert {kind: count for kind, count in counts.items() if count} == {"found": 5, "merged": 1, "spurious": 2}

    assert [path.name for path in (folder / "out").iterdir()] == ["bad.png"]
    picture = cv2.imread(str(folder / "out/bad.png"))
    assert picture.shape == (180 + tool.LEGEND_HEIGHT, 1200, 3)
    assert picture[: tool.LEGEND_HEIGHT].any()
    blue, green, red = picture[tool.LEGEND_HEIGHT + 3 * 20, 3 * 20].tolist()  # in the missed object
    assert red > blue + 50
    assert red > green + 50
    blue, green, red = picture[tool.LEGEND_HEIGHT + 3 * 20, 3 * 60].tolist()  # in one of the merged
    assert blue > red + 20


def test_what_is_wrong_is_said(tool, folder, capsys):
    assert draw(tool, folder, "dataset.rot=x") == 2
    assert "dataset.rot" in capsys.readouterr().err
    (folder / "labels/bad.png").unlink()
    assert draw(tool, folder) == 2
    assert "bad" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        draw(tool, folder, "--iou", "0")
    assert not (folder / "out").exists()


def test_images_of_one_name_in_two_folders_get_a_picture_each(tool, folder, grey_values, capsys):
    for name in ("day 1", "day 2"):
        (folder / name).mkdir()
        cv2.imwrite(str(folder / name / "well.png"), np.full((20, 30), 100 if name == "day 1" else 200, np.uint8))
    annotation = {"bbox": [2, 2, 5, 5], "segmentation": [[2, 2, 7, 2, 7, 7, 2, 7]], "category_id": 1, "iscrowd": 0}
    images = [{"id": k, "file_name": f"day {k}/well.png", "height": 20, "width": 30} for k in (1, 2)]
    annotations = [{**annotation, "id": k, "image_id": k, "area": 25} for k in (1, 2)]
    data = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
    (folder / "data.json").write_text(json.dumps(data))
    config = CONFIG.replace('split="val"', 'json_file="${dataset.root}/data.json"').replace("label_maps", "coco")
    config = config.replace('root="${dataset.root}", json', 'image_root="${dataset.root}", json')
    (folder / "config.py").write_text(grey_values + "from maskrcnn_plus.data.coco import register_coco\n" + config)
    assert draw(tool, folder, "--images", "5") == 0
    pictures = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    assert sorted(pictures) == ["day 2_well.png", "well.png"]
    assert len(set(pictures.values())) == 2


def test_nothing_found_is_said_with_what_to_look_at(tool, folder, capsys):
    assert draw(tool, folder, "--score-threshold", "1") == 0
    assert "0 objects in all 2 images" in capsys.readouterr().err
