"""Runs over many files: what is done is not done again, what broke off is made whole, what is not ours stays."""

import fcntl
import functools
import json
import os
import shutil

import cv2
import numpy as np
import pytest
import tifffile
from detectron2.config import LazyCall as L
from grey_values import GreyValues
from omegaconf import OmegaConf

from maskrcnn_plus.apps.predict_files.run import predict_files
from maskrcnn_plus.data.classes import Classes
from maskrcnn_plus.data.mapper import InstanceMapper
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.inference.tile_choice import TileChoice


def predictor_of(parameter=0.0, **mapper):
    return Predictor(
        OmegaConf.create(
            {
                "model": L(GreyValues)(parameter=parameter),
                "dataloader": {"test": {"mapper": L(InstanceMapper)(is_train=False, augmentations=[], **mapper)}},
                "train": {"device": "cpu"},
                "dataset": {"thing_classes": ["cell"]},
            },
            flags={"allow_objects": True},
        ),
        "random",
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with in/a.png, in/b.png and in/c.png of 1, 2 and 3 objects."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for k, name in enumerate("abc", start=1):
        image = np.zeros((30, 40), dtype=np.uint8)
        for j in range(k):
            image[8 * j : 8 * j + 5, 3:9] = 100 + 50 * j
        cv2.imwrite(str(tmp_path / f"in/{name}.png"), image)
    return tmp_path


def contents(folder):
    """Results by name, without the records."""
    paths = [path for path in folder.rglob("*") if path.is_file() and ".records" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


class Killed(BaseException):
    """Nothing catches it."""


def test_in_three_lines(folder):
    predictor = predictor_of()
    summary = predict_files(predictor, "in", "out", formats=["labels", "csv"])
    assert (summary.num_images, summary.num_objects, summary.failures) == (3, 6, [])
    names = [f"{sub}/{name}.{suffix}" for sub, suffix in (("csv", "csv"), ("labels", "png")) for name in "abc"]
    assert sorted(contents(folder / "out")) == sorted([*names, "predictions.csv"])


def test_a_run_killed_at_any_step_goes_on_to_the_same_results(folder, monkeypatch):
    """Before and after each file comes into place: all results are made once more or kept, and none is broken."""
    predictor, kinds = predictor_of(), ("labels", "coco", "cvat")
    predict_files(predictor, "in", "whole", formats=kinds, report={})
    expected = contents(folder / "whole")
    replace, steps = os.replace, []
    monkeypatch.setattr(os, "replace", lambda *paths: steps.append(paths) or replace(*paths))
    predict_files(predictor, "in", "counted", formats=kinds, report={})
    of_image = len(kinds) + 1 + 1  # results, image beside annotations, record
    assert len(steps) == 1 + 3 * of_image + 3  # settings, images, json, xml and report

    for last in range(len(steps)):
        for in_place in (False, True):
            output = folder / f"out_{last}_{in_place}"
            done = []

            def killed(source, target, last=last, in_place=in_place, done=done):
                if len(done) < last or in_place:
                    replace(source, target)
                done.append(target)
                if len(done) > last:
                    raise Killed

            monkeypatch.setattr(os, "replace", killed)
            with pytest.raises(Killed):
                predict_files(predictor, "in", output, formats=kinds, report={})
            broken = contents(output)
            assert all(broken[name] == expected[name] for name in broken)
            monkeypatch.setattr(os, "replace", replace)
            summary = predict_files(predictor, "in", output, formats=kinds, report={})
            recorded = max(last + in_place - 1, 0) // of_image  # after the step of the settings
            assert summary.num_before == min(recorded, 3)
            assert (summary.num_before + summary.num_images, summary.num_objects) == (3, 6)
            assert contents(output) == expected
            shutil.rmtree(output)


def test_only_what_is_missing_or_changed_is_predicted_again(folder):
    predictor = predictor_of()

    def run(**options):
        summary = predict_files(predictor, "in", "out", **{"formats": ["labels", "coco"], **options})
        return summary.num_images, summary.num_before

    assert run() == (3, 0)
    assert run() == (0, 3)
    (folder / "out/labels/a.png").unlink()
    assert run() == (1, 2)
    (folder / "out/coco/b.json").write_text("[")  # cut short by whatever
    assert run() == (1, 2)
    for damaged in ("{", "[]", "5", "{}", '{"results": 1}'):
        (folder / "out/.records/images/c.json").write_text(damaged)
        assert run() == (1, 2)
    record = json.loads((folder / "out/.records/images/c.json").read_text())
    for results in (None, [], dict.fromkeys(record["results"]), {kind: {} for kind in record["results"]}):
        (folder / "out/.records/images/c.json").write_text(json.dumps({**record, "results": results}))
        assert run() == (1, 2)
    os.utime(folder / "in/a.png", (1, 1))
    assert run() == (1, 2)
    shutil.copy(folder / "in/c.png", folder / "in/a.png")
    assert run() == (1, 2)
    assert len(json.loads((folder / "out/predictions.json").read_text())) == 3 + 2 + 3
    shutil.copy(folder / "in/c.png", folder / "in/d.png")
    assert run() == (1, 3)
    assert run(formats=["labels", "coco", "csv"]) == (4, 0)
    assert run(formats=["csv"]) == (0, 4)
    assert run(report={}) == (4, 0)
    assert run(report={}) == (0, 4)
    assert run(overwrite=True) == (4, 0)


def test_the_report_is_the_same_with_and_without_overlay_files(folder):
    for output, formats in (("with", ["overlay"]), ("without", ["labels"])):
        predict_files(predictor_of(), "in", output, formats=formats, report={})
    assert "image/jpeg" in (folder / "with/report.html").read_text()
    assert (folder / "with/report.html").read_bytes() == (folder / "without/report.html").read_bytes()


def test_leftovers_of_a_killed_run_are_removed(folder):
    for name in ("out/labels", "out/.records/images/sub"):
        (folder / name).mkdir(parents=True)
        (folder / name / ".1234_x.png.maskrcnn_plus.tmp").touch()
    (folder / "out/.1234_predictions.json.maskrcnn_plus.tmp").touch()
    predict_files(predictor_of(), "in", "out", formats=["labels", "coco"], overwrite=True)
    assert not list(folder.rglob("*.tmp"))


def test_what_no_run_wrote_is_not_replaced(folder):
    (folder / "out/labels").mkdir(parents=True)
    shutil.copy(folder / "in/c.png", folder / "out/labels/a.png")  # drawn by hand, for training
    before = contents(folder / "out")
    with pytest.raises(ValueError, match="labels is there already"):
        predict_files(predictor_of(), "in", "out")
    assert contents(folder / "out") == before
    assert predict_files(predictor_of(), "in", "out", formats=["csv"]).num_images == 3  # in another place
    assert contents(folder / "out").items() >= before.items()
    with pytest.raises(ValueError, match="among the results"):
        predict_files(predictor_of(), "out/labels/a.png", "out", formats=["labels"])
    assert predict_files(predictor_of(), "in", "out", overwrite=True).num_images == 3
    assert contents(folder / "out")["labels/a.png"] != before["labels/a.png"]


@pytest.mark.parametrize("other", [{"parameter": 1.0}, {"percentiles": (1, 99)}, {"channels": 1}])
def test_results_of_another_model_are_refused(folder, other):
    predict_files(predictor_of(), "in", "out")
    before = contents(folder / "out")
    assert predict_files(predictor_of(), "in", "out").num_before == 3  # the same, made anew
    with pytest.raises(ValueError, match="other settings: model and weights"):
        predict_files(predictor_of(**other), "in", "out")
    assert contents(folder / "out") == before
    assert predict_files(predictor_of(**other), "in", "out", overwrite=True).num_images == 3


def test_formats_of_their_own_settings_are_added_to_results(folder):
    predict_files(predictor_of(), "in", "out", formats=["csv"])
    added = {"formats": ["csv", "cutouts", "geojson"], "object_type": "annotation"}
    assert predict_files(predictor_of(), "in", "out", **added).num_images == 3
    assert predict_files(predictor_of(), "in", "out", formats=["csv"]).num_before == 3
    assert predict_files(predictor_of(), "in", "out", **added).num_before == 3
    with pytest.raises(ValueError, match=r"other settings: soft \(False before, True now\)"):
        predict_files(predictor_of(), "in", "out", **added, soft=True)
    with pytest.raises(ValueError, match=r"other settings: geojson's objects"):
        predict_files(predictor_of(), "in", "out", formats=["geojson"])
    predict_files(predictor_of(), "in/a.png", "out", **added, soft=True, overwrite=True)
    again = predict_files(predictor_of(), "in", "out", **added, soft=True)
    assert (again.num_before, again.num_images) == (1, 2)  # b and c had hard edges


def test_results_with_other_names_of_classes_are_refused(folder):
    predict_files(predictor_of(), "in", "out", formats=["csv"])
    renamed = predictor_of()
    renamed.classes = Classes(["nucleus"], None)
    with pytest.raises(ValueError, match=r"other settings: classes \(cell before, nucleus now\)"):
        predict_files(renamed, "in", "out", formats=["csv", "labelme"])


def test_planes_are_in_the_order_of_the_stack_however_they_were_predicted(folder):
    """A plane that is predicted by tiles ends before those that wait for their batch."""
    planes = np.zeros((3, 30, 40), dtype=np.uint8)
    for k in range(3):
        planes[k, 4:9, 3 + 9 * k : 9 + 9 * k] = 200
    tifffile.imwrite("stack.tif", planes, imagej=True, metadata={"axes": "TYX"})
    predict_files(predictor_of(), "stack.tif", "one", formats=["label-tiff"])
    with pytest.MonkeyPatch.context() as patch:
        options = TileChoice.options
        seen = []
        patch.setattr(
            TileChoice,
            "options",
            lambda self, *size: seen.append(size) or ({"tile_size": 32} if len(seen) == 2 else options(self, *size)),
        )
        predict_files(predictor_of(), "stack.tif", "four", formats=["label-tiff"], batch_size=4)
    assert (folder / "four/label-tiff/stack.tif").read_bytes() == (folder / "one/label-tiff/stack.tif").read_bytes()


def test_another_order_or_choice_of_inputs_mixes_nothing_up(folder):
    (folder / "more").mkdir()
    shutil.copy(folder / "in/c.png", folder / "more/a.png")
    predict_files(predictor_of(), ["in", "more"], "out")
    assert predict_files(predictor_of(), ["more", "in"], "out").num_before == 2  # both a.png have changed places
    entries = json.loads((folder / "out/predictions.json").read_text())
    counts = {name: sum(entry["name"] == name for entry in entries) for name in ("a", "in_a", "b", "c")}
    assert counts == {"a": 3, "in_a": 1, "b": 2, "c": 3}
    assert cv2.imread(str(folder / "out/labels/a.png"), cv2.IMREAD_UNCHANGED).max() == 3


def test_two_runs_do_not_share_a_folder(folder):
    predict_files(predictor_of(), "in", "out")
    with open(folder / "out/.records/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="another run is writing to this folder"):
            predict_files(predictor_of(), "in", "out")
    assert predict_files(predictor_of(), "in", "out").num_before == 3


def test_a_folder_that_is_removed_while_a_run_goes_on_is_named(folder):
    predictor, predict, calls = predictor_of(), Predictor.predict, []

    def remove_before_the_last(images, **options):
        calls.append(images)
        if len(calls) == 3:
            shutil.rmtree("out")
        return predict(predictor, images, **options)

    predictor.predict = remove_before_the_last
    with pytest.raises(FileNotFoundError, match=r"out: the record of a in .records was removed"):
        predict_files(predictor, "in", "out", formats=["csv"])
    predictor.predict = functools.partial(predict, predictor)
    assert predict_files(predictor, "in", "out", formats=["csv"], overwrite=True).num_images == 3


@pytest.mark.parametrize(("tile", "tiled"), [("auto", ["in/large.png"]), ("off", []), (64, None)])
def test_large_images_are_tiled(folder, monkeypatch, tile, tiled):
    seen = []

    def predict_tiled(predictor, source, tile_size, diameter, **options):
        seen.append(source.name)
        assert (tile_size, diameter) == (None if tile == "auto" else 64, None)
        return predictor.predict(source.name)

    monkeypatch.setattr("maskrcnn_plus.apps.predict_files.image_predictor.predict_tiled", predict_tiled)
    monkeypatch.setattr("maskrcnn_plus.inference.tiling.INPUT_SIDE", 32)
    cv2.imwrite(str(folder / "in/large.png"), np.zeros((70, 65), dtype=np.uint8))
    predict_files(predictor_of(), "in", "out", tile=tile)
    everything = [os.path.join("in", f"{name}.png") for name in ("a", "b", "c", "large")]
    assert seen == (everything if tiled is None else tiled)


def test_arguments_out_of_range_are_refused(folder):
    predictor = predictor_of()
    with pytest.raises(ValueError, match="no format 'png'"):
        predict_files(predictor, "in", "out", formats=["png"])
    with pytest.raises(ValueError, match="tile is 'Auto'"):
        predict_files(predictor, "in", "out", tile="Auto")
    with pytest.raises(ValueError, match="pixel_size is nan"):
        predict_files(predictor, "in", "out", pixel_size=float("nan"))
    with pytest.raises(ValueError, match="input nowhere"):
        predict_files(predictor, "nowhere", "out")
    assert not (folder / "out").exists()


def test_no_object_in_any_image_is_said_with_likely_causes(folder, capsys):
    for name in "abc":
        cv2.imwrite(str(folder / f"in/{name}.png"), np.zeros((30, 40), dtype=np.uint8))
    for _ in range(2):  # also where all is done already
        predict_files(predictor_of(), "in", "out", formats=["csv"])
        said = capsys.readouterr().err
        assert "0 objects in all 3 images" in said
        assert all(cause in said for cause in ("--score-threshold", "dataset.scale", "channel"))
    cv2.imwrite(str(folder / "in/a.png"), np.full((30, 40), 200, dtype=np.uint8))
    predict_files(predictor_of(), "in", "out", formats=["csv"])
    assert "0 objects" not in capsys.readouterr().err
