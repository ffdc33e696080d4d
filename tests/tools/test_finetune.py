"""The whole way from a folder to a model: config, training, and a prediction that needs no config."""

import json
import os
import re
import shutil

import finetune
import numpy as np
import pytest
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog
from PIL import Image

from maskrcnn_plus.apps.finetune import run
from maskrcnn_plus.apps.finetune.timing import Timing, measure_speed
from maskrcnn_plus.config import get_config
from maskrcnn_plus.inference import Predictor
from maskrcnn_plus.masks.measure import rle_areas


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """LabelMe annotations of eight grey images with bright squares, one of them without."""
    root = tmp_path_factory.mktemp("mine")
    for index in range(8):
        rng = np.random.default_rng(index)
        image = rng.integers(20, 60, (96, 96), dtype=np.uint8)
        shapes = []
        for k in range(3 if index else 0):
            x, y = 8 + 30 * k, int(rng.integers(5, 70))
            image[y : y + 18, x : x + 18] = 230
            points = [[x, y], [x + 18, y], [x + 18, y + 18], [x, y + 18]]
            shapes.append({"label": "square", "shape_type": "polygon", "points": points})
        Image.fromarray(image).save(root / f"photo {index}.png")
        content = {"version": "5", "shapes": shapes, "imagePath": f"photo {index}.png", "imageData": None}
        (root / f"photo {index}.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def quick(monkeypatch):
    """No measurement."""
    monkeypatch.setattr(run, "measure_speed", lambda cfg: Timing(0.5, 0.1, False))


def test_from_a_folder_to_predictions(folder, tmp_path, capsys, monkeypatch):
    measured = []
    monkeypatch.setattr(run, "measure_speed", lambda cfg: measured.append(measure_speed(cfg)) or measured[-1])
    monkeypatch.setattr("maskrcnn_plus.apps.finetune.timing._STEPS", 1)
    monkeypatch.setattr("maskrcnn_plus.apps.finetune.timing._WARM_UP", 0)
    output = tmp_path / "out"
    small = ["train.max_iter=3", "train.device=cpu", "train.log_period=1", "dataset.scale=1.0", "dataset.max_objects=9"]
    small += ["model.proposal_generator.post_nms_topk=[40,40]", "dataloader.train.total_batch_size=2"]
    assert finetune.main(["--data", str(folder), "--output", str(output), *small]) == 0
    assert measured[0].step > 0
    printed = capsys.readouterr().out
    assert "labelme" in printed
    assert "The median diameter of the objects is 20 pixels" in printed
    cfg = get_config(str(output / "config.py"))
    assert cfg.dataset.thing_classes == ["square"]
    metrics = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert any("val_loss" in entry and "segm/AP" in entry for entry in metrics)
    predictor = Predictor(str(output / "model_best.pth"))
    assert predictor.class_names == ["square"]
    threshold = float(re.search(r"recommended score threshold (\S+):", printed)[1])
    assert predictor.score_threshold == cfg.dataset.score_threshold == threshold
    predictor.predict(str(folder / "photo 1.png"))
    assert "<html" in (output / "report.html").read_text()
    assert f"Predict:  python tools/predict.py --weights {output}/model_best.pth" in printed

    assert finetune.main(["--data", str(folder), "--output", str(output)]) == 1
    assert "--resume" in capsys.readouterr().err
    grown, second = tmp_path / "grown", tmp_path / "second"
    shutil.copytree(folder, grown)
    for index in range(12):
        pixels = np.asarray(Image.open(folder / f"photo {index % 3}.png"))[::-1, :: (-1) ** index]
        Image.fromarray(np.roll(pixels, 9 * index, 1)).save(grown / f"new {index}.png")
        content = (folder / f"photo {index % 3}.json").read_text()
        (grown / f"new {index}.json").write_text(content.replace(f"photo {index % 3}", f"new {index}"))
    weights = str(output / "model_best.pth")
    assert finetune.main(["--data", str(grown), "--output", str(second), "--weights", weights, "--dry-run"]) == 0
    assert re.search(r"the weights know \d+ images: (\d+) by which", capsys.readouterr().out)
    names = [
        {os.path.basename(each["file_name"]) for each in DatasetCatalog.get(instantiate(path.names))}
        for path in (get_config(str(each / "config.py")).dataloader.test.dataset for each in (output, second))
    ]
    assert names[0] < names[1]
    assert all(name.startswith("new") for name in names[1] - names[0])

    moved, log = tmp_path / "moved", output / "log.txt"
    monkeypatch.chdir(tmp_path.parent)
    command = ["--data", str(folder), "--output", str(output), "--resume"]
    assert finetune.main(command) == 0
    assert "is finished" in log.read_text()
    assert (output / "config.py").read_text().count("dataset.score_threshold") == 1
    shutil.copytree(output, moved)
    assert finetune.main([*command[:3], str(moved), "--resume", "train.max_iter=4", "optimizer.lr=1e-5"]) == 0
    logs = [(each / "metrics.json").read_text().splitlines() for each in (output, moved)]
    assert [max(json.loads(line)["iteration"] for line in log) for log in logs] == [3, 4]
    assert "optimizer.lr" in (moved / "log.txt").read_text().partition("Changed in the config")[2]
    assert finetune.main([*command, "train.max_itr=5"]) == 1


@pytest.mark.usefixtures("quick")
def test_classes_before_overrides_and_mappings(folder, tmp_path):
    given = ["--dry-run", "--classes", "square", "train.max_iter=7", "optimizer={lr: 0.002}"]
    assert finetune.main(["--data", str(folder), "--output", str(tmp_path / "out"), *given]) == 0
    cfg = get_config(str(tmp_path / "out" / "config.py"))
    assert (cfg.dataset.thing_classes, cfg.train.max_iter, cfg.optimizer.lr) == (["square"], 7, 0.002)
    assert cfg.train.output_dir == str(tmp_path / "out")


@pytest.mark.usefixtures("quick")
def test_a_dry_run_writes_config_and_page_alone(folder, tmp_path):
    output = tmp_path / "out"
    assert finetune.main(["--data", str(folder), "--output", str(output), "--dry-run", "--hours", "2"]) == 0
    assert {path.name for path in output.iterdir()} == {"config.py", "data_report.html"}
    cfg = get_config(str(output / "config.py"))
    assert 10000 < cfg.train.max_iter < 14400
    assert cfg.dataset.negatives is True


@pytest.fixture
def single(tmp_path):
    """One image of 700 x 600 with a label image of 63 discs."""
    y, x = np.mgrid[:600, :700]
    labels = np.where((x % 80 - 40) ** 2 + (y % 80 - 40) ** 2 < 400, 1 + x // 80 + 9 * (y // 80), 0).astype(np.uint16)
    for name, pixels in (("images", np.where(labels, 200, 30).astype(np.uint8)), ("labels", labels)):
        (tmp_path / "one" / name).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "one" / name / "a.png")
    return tmp_path / "one"


@pytest.mark.usefixtures("quick")
def test_a_single_image_becomes_tiles(single, tmp_path, capsys):
    output = tmp_path / "out"
    assert finetune.main(["--data", str(single), "--output", str(output), "--dry-run"]) == 0
    assert "Tiles of at most 256 pixels" in capsys.readouterr().out
    assert {path.name for path in output.iterdir()} == {"config.py", "data_report.html", "tiles"}
    cfg = get_config(str(output / "config.py"))
    assert cfg.dataset.root == str(output / "tiles")
    train, val = (
        DatasetCatalog.get(instantiate(names))
        for names in (cfg.dataloader.train.dataset.dataset.names, cfg.dataloader.test.dataset.names)
    )
    assert (len(train), len(val)) == (7, 2)
    masks = [each["segmentation"] for record in (*train, *val) for each in record["annotations"]]
    assert rle_areas(masks).sum() == np.count_nonzero(Image.open(single / "labels" / "a.png"))


def test_tiles_of_a_run_that_fails_go_with_it(single, tmp_path, monkeypatch):
    def interrupted(cfg):
        raise KeyboardInterrupt

    output = tmp_path / "out"
    monkeypatch.setattr(run, "measure_speed", interrupted)
    assert finetune.main(["--data", str(single), "--output", str(output), "--dry-run"]) == 130
    assert not (output / "tiles").exists()
    (output / "tiles").mkdir(parents=True)
    (output / "tiles" / "mine.txt").touch()
    assert finetune.main(["--data", str(single), "--output", str(output), "--dry-run"]) == 1
    assert (output / "tiles" / "mine.txt").exists()


@pytest.mark.usefixtures("quick")
def test_tiles_that_a_config_names_stay_when_the_page_of_the_data_fails(single, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    output = tmp_path / "out"
    monkeypatch.setattr(run, "write_data_report", interrupted)
    assert finetune.main(["--data", str(single), "--output", str(output), "--dry-run"]) == 130
    assert finetune.main(["--data", str(single), "--output", str(output), "--dry-run"]) == 1
    assert "go on with --resume" in capsys.readouterr().err
    cfg = get_config(str(output / "config.py"))
    assert DatasetCatalog.get(instantiate(cfg.dataloader.train.dataset.dataset.names))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "missing"], "missing does not exist"),
        (["--hours", "-1"], "--hours -1"),
        (["--val", "20"], "--val 20"),
        (["--classes", "squares"], "has no class squares, but circle, square. Did you mean square?"),
        (["--classes", "square", "cell"], "has no class cell"),
        (["--classes", "square", "train.max_itr=3"], "train.max_iter"),
        (["dataloader={train: {num_workers: x}}"], "num_workers"),
        (["--resume"], "there is no"),
        (["--weights", "nothing.pth"], "nothing.pth"),
        (["train.max_itr=3"], "train.max_iter"),
        (["--format", "cocoo"], "coco"),
    ],
)
def test_what_cannot_be_is_one_line(folder, tmp_path, capsys, arguments, message):
    given = ["--data", str(folder), "--output", str(tmp_path / "out"), "--dry-run"]
    if arguments[0] == "--classes":  # of two classes, of which neither has this name
        extra = tmp_path / "two"
        extra.mkdir()
        for path in folder.iterdir():
            (extra / path.name).write_bytes(path.read_bytes().replace(b'"square"', b'"circle"', 1))
        given[1] = str(extra)
    assert finetune.main([*given, *arguments]) == 1
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out" / "config.py").exists()


@pytest.mark.usefixtures("quick")
def test_folders_are_told_apart_in_one_process(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    for name, data in (("a", folder), ("b", other)):
        assert finetune.main(["--data", str(data), "--output", str(tmp_path / name), "--dry-run"]) == 0
        cfg = get_config(str(tmp_path / name / "config.py"))
        assert all(each["file_name"].startswith(str(data)) for each in instantiate(cfg.dataloader.test.dataset))


@pytest.mark.usefixtures("quick")
def test_one_image_is_too_few(folder, tmp_path, capsys):
    single = tmp_path / "single"
    single.mkdir()
    for name in ("photo 1.png", "photo 1.json"):
        (single / name).write_bytes((folder / name).read_bytes())
    assert finetune.main(["--data", str(single), "--output", str(tmp_path / "out")]) == 1
    assert re.search(r"at least two annotated images .*more than 256 pixels", capsys.readouterr().err)
