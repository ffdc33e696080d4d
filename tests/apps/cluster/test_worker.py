"""What an actor does, without Ray: tables of shards, huge images by tiles, attempts that ended, and the plan."""

import dataclasses
import json
import os

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cluster_images import MODEL, draw

from maskrcnn_plus.apps.cluster.attempts import Attempt
from maskrcnn_plus.apps.cluster.inputs import list_files
from maskrcnn_plus.apps.cluster.job import RESULTS, Job, plan_job, read_manifest, read_shard
from maskrcnn_plus.apps.cluster.merge import merge_predictions
from maskrcnn_plus.apps.cluster.stores import Store
from maskrcnn_plus.apps.cluster.tables import get_image_id, image_order, to_parquet
from maskrcnn_plus.apps.cluster.tiles import read_spread
from maskrcnn_plus.apps.cluster.worker import Part, Worker
from maskrcnn_plus.apps.predict_files.prediction_loop import FileOptions
from maskrcnn_plus.apps.predictor_source import PredictorSource
from maskrcnn_plus.errors import UserError

SOURCE = PredictorSource("weights.pth", "config.py")
TABLES_ALONE = FileOptions(())


def start(output, inputs=("in",), options=TABLES_ALONE, **settings):
    """The worker and the number of shards of a new job, or of one that goes on."""
    job = Job(SOURCE, options, str(output), os.getcwd(), shard_size=4, patience=120.0, **settings)
    manifest = plan_job(job.store(), list_files(inputs, False, 20.0), {"tile": "auto"}, 4, (["cell"], None), False)
    return Worker(job, manifest), manifest.shards


def rows(output, kind):
    return [row for path in sorted((output / kind).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def finish(worker, shards):
    results = [worker.do(Part(k)) for k in range(shards)]
    store = worker.store
    for file in store.list("spread"):
        for image in read_spread(store.read("spread/" + file.address.rpartition("/")[2])):
            results += [worker.do(Part(group, image)) for group in range(image.groups)]
            results.append(worker.do(Part(None, image)))
    return {key: sum(result[key] for result in results) for key in ("images", "objects", "failures")}


def test_tables_of_shards_are_the_results_of_one_run(folder, tool, capsys):
    worker, shards = start("tables")
    assert shards == 3
    assert finish(worker, shards) == {"images": 10, "objects": 55, "failures": 1}
    assert tool("predict", *MODEL, "--input", "in", "--output", "whole", "--format", "coco", "counts", "labels") == 1
    capsys.readouterr()
    assert tool("merge_predictions", "--input", "tables", "--output", "merged", "--format", "counts", "labels") == 0
    assert capsys.readouterr().out.startswith("10 images, 55 objects, 1 failed")
    for name in ("predictions.json", "counts.csv", "labels/7.png"):
        assert (folder / "merged" / name).read_bytes() == (folder / "whole" / name).read_bytes()
    objects, images, failures = (rows(folder / "tables", kind) for kind in ("objects", "images", "failures"))
    assert [row["objects"] for row in images] == [
        sum(o["image_id"] == row["image_id"] for o in objects) for row in images
    ]
    assert {row["class"] for row in objects} == {"cell"}
    assert objects[0]["area"] == 40
    (failure,) = failures
    assert failure["file_name"] == os.path.join("in", "bad.png")
    assert failure["reason"].startswith("cannot be read")
    assert json.loads((folder / "merged/failures.json").read_text()) == failures


def test_a_shard_is_done_once_and_one_that_was_cut_short_again(folder):
    worker, shards = start("tables")
    finish(worker, shards)
    before = {path: path.read_bytes() for path in (folder / "tables").rglob("*.parquet")}
    again, _ = start("tables")
    again.predictor = None  # nothing is predicted
    assert finish(again, shards) == {"images": 10, "objects": 55, "failures": 1}
    # Killed between the tables: what the rest is worth is seen by the table of images.
    (folder / "tables/images/shard-000001.parquet").unlink()
    (folder / "tables/objects/shard-000001.parquet").write_bytes(b"half")
    with pytest.raises(UserError, match=r"not finished: shards or huge images 1 are missing"):
        merge_predictions("tables", "merged")
    worker.do(Part(1))
    assert {path: path.read_bytes() for path in (folder / "tables").rglob("*.parquet")} == before
    assert not list((folder / "tables").glob("attempt-*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content: content[: len(content) // 2],
            "objects/shard-000001.parquet is damaged .* images/shard-000001",
        ),
        (lambda content: b"", "objects/shard-000001.parquet is damaged .* images/shard-000001"),
        (lambda content: edited(content, lambda rows: rows[:-1]), "7.png: 8 objects were found in it, .* has 7"),
        (lambda content: edited(content, lambda rows: [{**row, "score": None} for row in rows]), "4.png: its objects"),
        (lambda content: edited(content, lambda rows: [{**row, "class": "cat"} for row in rows]), "4.png: its objects"),
    ],
)
def test_damaged_tables_are_named_with_the_remedy(folder, change, message):
    worker, shards = start("tables")
    finish(worker, shards)
    path = folder / "tables/objects/shard-000001.parquet"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        merge_predictions("tables", "merged", ["labels"])


def edited(content, change):
    """A table of which some rows are others."""
    table = pq.read_table(pa.BufferReader(content))
    return to_parquet(pa.Table.from_pylist(change(table.to_pylist()), schema=table.schema))


def test_inputs_and_results_on_an_object_store(folder, s3, tool):
    source = Store("s3://bucket/plates/one")
    for path in (folder / "in").iterdir():
        source.write(path.name, path.read_bytes())
    source.write("readme.txt", b"not an image")
    options = FileOptions(("counts", "labels"))
    worker, shards = start("s3://bucket/results", ["s3://bucket/plates/one"], options)
    assert finish(worker, shards) == {"images": 10, "objects": 55, "failures": 1}
    assert Store("s3://bucket/results").read("formats/labels/7.png").startswith(b"\x89PNG")
    merge_predictions("s3://bucket/results", "merged")
    entries = json.loads((folder / "merged/predictions.json").read_text())
    assert {entry["file_name"] for entry in entries} == {f"s3://bucket/plates/one/{k}.png" for k in range(10)}
    (failure,) = json.loads((folder / "merged/failures.json").read_text())
    assert failure["file_name"] == "s3://bucket/plates/one/bad.png"
    assert "/tmp" not in failure["reason"]
    tool("predict", *MODEL, "--input", "in", "--output", "whole", "--format", "coco")
    whole = json.loads((folder / "whole/predictions.json").read_text())
    assert [{**entry, "file_name": ""} for entry in entries] == [{**entry, "file_name": ""} for entry in whole]


def test_a_list_of_addresses_names_what_is_gone(folder, s3):
    Store("s3://bucket").write("a.png", (folder / "in/3.png").read_bytes())
    Store("s3://bucket").write("texts/a.txt", b"")
    (folder / "files.txt").write_text("s3://bucket/a.png\ns3://bucket/gone.png\nin/0.png\n")
    worker, shards = start("tables", ["@files.txt"])
    assert finish(worker, shards) == {"images": 2, "objects": 5, "failures": 1}
    (failure,) = rows(folder / "tables", "failures")
    assert failure["file_name"] == "s3://bucket/gone.png"
    with pytest.raises(UserError, match="s3://bucket/nothing/: no such file"):
        list_files(["s3://bucket/nothing/"], False, 20.0)
    with pytest.raises(UserError, match="none of its 1 files has the name of an image"):
        list_files(["s3://bucket/texts"], False, 20.0)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_job_that_writes_below_its_input_sees_the_same_files_again(folder, scheme):
    top = folder / "plates"
    for name in ("a.png", "one/b.png", "one/._b.png", "tables/formats/overlays/a.png", "tables/c.png"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes((folder / "in/0.png").read_bytes())
    results = [Store(f"{scheme}{top}/tables").child(kind) for kind in RESULTS]
    found = list_files([f"{scheme}{top}", f"{top}/one/../one/b.png"][: 1 if scheme else 2], True, 20.0, results)
    assert [file.name for file in found] == ["a", "one/b", "tables/c"]
    meant = list_files([f"{scheme}{top}/tables/formats"], True, 20.0, results)  # an input is no result
    assert [file.name for file in meant] == ["overlays/a"]


def test_pages_and_tiles_of_a_huge_image_are_those_of_one_process(folder, tool):
    huge = np.zeros((180, 200), dtype=np.uint8)
    corners = [(20 * (k // 9) + 3, 22 * (k % 9) + 4) for k in range(72)]
    for k, (y, x) in enumerate(corners):
        huge[y : y + 9, x : x + 10] = 100 + 29 * k % 73
    cv2.imwrite(str(folder / "in/huge.png"), huge)
    options = FileOptions(("labels",), tile=64)
    worker, shards = start("tables", options=options, spread=3)
    found = finish(worker, shards)
    assert found == {"images": 11, "objects": 55 + 72, "failures": 1}
    names = ["--input", "in", "--output", "whole", "--tile", "64", "--format", "coco", "labels"]
    tool("predict", *MODEL, *names)
    merge_predictions("tables", "merged")
    assert (folder / "merged/predictions.json").read_bytes() == (folder / "whole/predictions.json").read_bytes()
    assert (folder / "tables/formats/labels/huge.png").read_bytes() == (folder / "whole/labels/huge.png").read_bytes()
    assert not list((folder / "tables/tiles").rglob("*.jsonl"))
    assert len(list((folder / "tables/images").glob("image-*"))) == 1


def test_a_huge_image_is_not_joined_before_its_tiles_are_there(folder):
    cv2.imwrite(str(folder / "huge.png"), np.zeros((180, 200), dtype=np.uint8))
    worker, _ = start("tables", ["huge.png"], FileOptions((), tile=64), spread=3)
    worker.do(Part(0))
    (image,) = read_spread(worker.store.read("spread/shard-000000.json"))
    corners = [corner for group in range(image.groups) for corner in image.corners(group)]
    assert len(corners) == len(set(corners)) == len(image.tops) * len(image.lefts) > 3
    assert all(0 < len(image.corners(group)) <= 3 for group in range(image.groups))
    with pytest.raises(UserError, match=r"not finished: shards or huge images huge.png are missing"):
        merge_predictions("tables", "merged")
    worker.do(Part(0, image))
    with pytest.raises(FileNotFoundError):
        worker.do(Part(None, image))


def test_a_file_at_which_two_attempts_ended_is_left_out(folder):
    store = Store("tables")
    for _ in range(3):  # processes that ended at the second file; the first one had no reason to note where it was
        attempt = Attempt(store, "shard-000000")
        assert attempt.may_try(0)
        assert attempt.may_try(1)
    last = Attempt(store, "shard-000000")
    assert last.number == 3
    assert not last.may_try(1)
    assert last.may_try(0)
    worker, shards = start("tables")
    assert finish(worker, shards) == {"images": 9, "objects": 55 - 2, "failures": 2}
    failure = next(row for row in rows(folder / "tables", "failures") if "bad" not in row["file_name"])
    assert failure["file_name"] == os.path.join("in", "1.png")
    assert "ended twice" in failure["reason"]
    assert not store.exists("attempt-shard-000000.json")


def test_a_plan_of_other_inputs_or_settings_is_refused_by_name(folder):
    job = Job(SOURCE, TABLES_ALONE, "tables", os.getcwd())
    store, files = job.store(), list_files(["in"], False, 5.0)
    classes = (["cell"], None)
    plan = plan_job(store, files, {"tile": "auto"}, 4, classes, overwrite=False)
    assert plan_job(store, files, {"tile": "auto"}, 4, classes, overwrite=False) == plan == read_manifest(store)
    assert [len(read_shard(store, k)) for k in range(plan.shards)] == [4, 4, 3] == [plan.size_of(k) for k in range(3)]
    with pytest.raises(UserError, match=r"other settings: tile \(auto before, off now\)"):
        plan_job(store, files, {"tile": "off"}, 4, classes, overwrite=False)
    with pytest.raises(UserError, match=r"other settings: shard_size \(4 before, 5 now\)"):
        plan_job(store, files, {"tile": "auto"}, 5, classes, overwrite=False)
    with pytest.raises(UserError, match=r"other inputs: 11 files before, 10 now"):
        plan_job(store, files[1:], {"tile": "auto"}, 4, classes, overwrite=False)
    draw(folder / "in/0.png", 240, 241, 242)
    changed = list_files(["in"], False, 5.0)
    with pytest.raises(UserError, match=r"other inputs: some files changed"):
        plan_job(store, changed, {"tile": "auto"}, 4, classes, overwrite=False)
    store.write("images/shard-000000.parquet", b"")
    plan_job(store, changed, {"tile": "off"}, 5, classes, overwrite=True)
    assert store.list("images") == []
    forged = json.dumps({**dataclasses.asdict(plan), "shard_size": 0}).encode()
    for content in (b"{}", forged):
        store.write("manifest.json", content)
        with pytest.raises(UserError, match=r"manifest.json is damaged"):
            read_manifest(store)
    store.delete("manifest.json")
    store.write("images/shard-000000.parquet", b"")
    with pytest.raises(UserError, match="has tables but no plan"):
        plan_job(store, changed, {"tile": "off"}, 5, classes, overwrite=False)


def test_ids_of_images_tell_files_and_pages_apart_and_keep_their_order():
    places = [(0, 0), (1, 1), (1, 2), (2, 0), (10**6, 7)]
    ids = [get_image_id(*place) for place in places]
    assert len(set(ids)) == len(ids)
    assert ids[0] == 1
    assert [image_order(each) for each in ids] == places
    assert max(ids) < 2**63


def test_weights_of_other_classes_on_another_machine_are_refused(folder):
    job = Job(SOURCE, TABLES_ALONE, "tables", os.getcwd())
    manifest = plan_job(job.store(), list_files(["in"], False, 5.0), {}, 4, (["nucleus"], None), False)
    with pytest.raises(UserError, match="has the classes cell on this machine and nucleus where"):
        Worker(job, manifest)


def test_tables_are_evaluated_as_weights_are(folder, tool, capsys):
    coco = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "cell"}]}
    for k in range(4):
        coco["images"].append({"id": k + 1, "file_name": f"{k}.png", "height": 60, "width": 60})
        for j in range(k + 1):
            box = [5, 3 * j, 20, 2]
            entry = {"id": 10 * k + j + 1, "image_id": k + 1, "category_id": 7, "bbox": box, "area": 40, "iscrowd": 0}
            x0, y0, x1, y1 = 5, 3 * j, 25, 3 * j + 2
            coco["annotations"].append({**entry, "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]})
    (folder / "in/annotations.json").write_text(json.dumps(coco))
    (folder / "copies").mkdir()
    for k in range(10):  # the job saw the images at another place
        (folder / f"copies/{k}.png").write_bytes((folder / f"in/{k}.png").read_bytes())
    worker, shards = start("tables", ["copies"])
    finish(worker, shards)
    assert tool("evaluate", "--predictions", "tables", "--data", "in/annotations.json", "--report", "page.html") == 0
    of_tables = capsys.readouterr().out
    assert tool("evaluate", *MODEL, "--data", "in/annotations.json") == 0
    figures = [line for line in capsys.readouterr().out.splitlines() if " AP" in line]
    assert figures
    assert [line for line in of_tables.splitlines() if " AP" in line] == figures
    assert "AP 100.0" in figures[0]
    assert (folder / "page.html").stat().st_size
    coco["images"][0]["file_name"] = "other.png"
    (folder / "in/annotations.json").write_text(json.dumps(coco))
    (folder / "in/other.png").write_bytes((folder / "in/0.png").read_bytes())
    assert tool("evaluate", "--predictions", "tables", "--data", "in/annotations.json") == 1
    assert "tables has no image of this name" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        ("--tile", "0", "tile_size is 0"),
        ("--pixel-size", "-1", "pixel_size is -1"),
        ("--spread", "-1", "--spread is -1"),
        ("--patience", "-1", "--patience is -1"),
    ],
)
def test_options_that_cannot_be_are_refused_before_ray_starts(wrong, folder, tool, capsys, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed (the extra cluster)")
    monkeypatch.setattr("maskrcnn_plus.apps.cluster.run.RayConnection", None)
    option, value, message = wrong
    assert tool("predict_cluster", *MODEL, "--input", "in", "--output", "tables", option, value) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "tables").exists()
