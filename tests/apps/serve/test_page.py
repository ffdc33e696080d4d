"""The requests of the page: progress, outlines, and downloads that are the files of tools/predict.py."""

import io
import zipfile

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from served_models import draw, finished, make_predictor, png, serving, tiff, wait_until

from maskrcnn_plus.apps.predict_files.run import predict_files
from maskrcnn_plus.apps.serve.answers import DOWNLOADS, write_download
from maskrcnn_plus.apps.serve.archive import MISSING, zip_files

FOLDERS = {"overlay": "overlays"}


def add(client, content, name="a.png"):
    return [each["id"] for each in client.post("/page/images", params={"name": name}, content=content).json()["images"]]


def files_of(folder, kind, name):
    (path,) = (folder / FOLDERS.get(kind, kind)).glob(f"{name}.[!t]*" if kind == "imagej" else f"{name}.*")
    return path.read_bytes()


@pytest.mark.parametrize("kind", DOWNLOADS)
def test_downloads_are_the_files_of_the_command_line(client, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.tif").write_bytes(tiff(draw(), resolution=(5000, 5000), resolutionunit="CENTIMETER"))
    predict_files(make_predictor(), "a.tif", "out", formats=[kind])
    (key,) = add(client, (tmp_path / "a.tif").read_bytes(), "a.tif")
    assert finished(client, key)["state"] == "done"
    answer = client.get(f"/page/images/{key}/download/{kind}")
    assert answer.content == files_of(tmp_path / "out", kind, "a")
    assert f"filename*=UTF-8''a_{kind}." in answer.headers["content-disposition"]
    assert answer.headers["content-type"].startswith(DOWNLOADS[kind])


def test_downloads_have_what_the_sliders_leave(client, tmp_path):
    image = draw()
    (tmp_path / "a.png").write_bytes(png(image))
    found = make_predictor().predict(image)
    threshold = round(float(found.scores[2]), 4)
    (key,) = add(client, png(image))
    finished(client, key)
    table = client.get(f"/page/images/{key}/download/csv?min_score={threshold}").text.splitlines()
    assert len(table) == 1 + 3
    least = int(found.pred_masks.flatten(1).sum(1).max())
    answer = client.get(f"/page/images/{key}/download/labels?min_area={least}").content
    labels = cv2.imdecode(np.frombuffer(answer, np.uint8), cv2.IMREAD_UNCHANGED)
    largest = found.pred_masks[int(found.pred_masks.flatten(1).sum(1).argmax())].numpy()
    assert ((labels > 0) == largest).all()
    assert len(predictor_calls(client)) == 1


def test_one_zip_has_the_downloads_of_all_images(client):
    stack = tiff(np.stack([draw(3), draw(4)]), photometric="minisblack", metadata={"axes": "TYX"}, ome=True)
    noise = png(np.random.default_rng(0).integers(0, 255, (300, 300), dtype=np.uint8))
    files = [("a.png", png(draw(1))), ("a.png", png(draw(2))), ("A.png", png(draw(5))), ("s.tif", stack)]
    keys = [key for name, content in files for key in add(client, content, name)]
    (cut,) = add(client, noise[: len(noise) // 2], "cut.png")
    for key in (*keys, cut):
        finished(client, key)
    query = {"min_score": 0.6, "min_area": 20}
    for kind in DOWNLOADS:
        options = {"ids": ",".join([keys[0], cut, *keys[1:], "gone"]), **query}
        answer = client.get(f"/page/download/{kind}.zip", params=options)
        assert answer.headers["content-disposition"].endswith(f"''{kind}.zip")
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            *names, last = archive.namelist()
            found = [archive.read(name) for name in names]
            problems = archive.read(MISSING).decode().splitlines()
        singles = [client.get(f"/page/images/{key}/download/{kind}", params=query) for key in keys]
        assert found == [single.content for single in singles]
        suffix = names[0].removeprefix(f"a_{kind}")
        beginnings = [f"a_{kind}", f"a_{kind}_2", f"A_{kind}_3", f"s_p0001_{kind}", f"s_p0002_{kind}"]
        assert names == [f"{each}{suffix}" for each in beginnings]
        assert (last, len(problems)) == (MISSING, 2)
        assert problems[0].startswith("cut.png: there is no result, it is failed: ")
        assert "not kept any more" in problems[1]
    assert client.get("/page/download/exe.zip?ids=a").status_code == 422


def test_a_zip_is_sent_while_it_is_written():
    """Of many files one is in memory."""
    asked = []

    def write(key):
        asked.append(key)
        return "labels.png", np.random.default_rng(len(asked)).bytes(100_000)

    pieces = zip_files([str(number) for number in range(20)], write)
    for number in range(1, 21):
        assert 100_000 < len(next(pieces)) < 110_000
        assert len(asked) == number
    assert len(next(pieces)) < 10_000
    assert next(pieces, None) is None


def predictor_calls(client):
    return client.app.service.predictor.model.calls


def test_outlines_cover_the_masks(client):
    image = draw()
    found = make_predictor().predict(image)
    (key,) = add(client, png(image))
    finished(client, key)
    answer = client.get(f"/page/images/{key}/outlines").json()
    assert [each["name"] for each in answer["classes"]] == ["nucleus", "speck"]
    assert [each[0] for each in answer["objects"]] == found.pred_classes.tolist()
    assert [each[1] for each in answer["objects"]] == [round(score, 4) for score in found.scores.tolist()]
    for (_, _, area, rings), rle in zip(answer["objects"], found.pred_masks_rle, strict=True):
        mask = coco_mask.decode(rle)
        assert area == mask.sum()
        signed = sum(shoelace(np.array(ring).reshape(-1, 2)) for ring in rings)  # holes turn the other way
        assert signed == area


def shoelace(corners):
    x, y = corners.T
    return (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2


def test_the_picture_is_the_image_reduced_where_it_is_large(client):
    (key,) = add(client, png(draw(0, 20, 5000)))
    picture = cv2.imdecode(np.frombuffer(client.get(f"/page/images/{key}/picture").content, np.uint8), 1)
    assert picture.shape == (10, 2500, 3)
    flat = np.full((16, 16), 100, np.uint8)
    (key,) = add(client, png(flat))
    picture = cv2.imdecode(np.frombuffer(client.get(f"/page/images/{key}/picture").content, np.uint8), 1)
    assert (picture == 100).all()


@pytest.mark.parametrize("error", [MemoryError(), cv2.error("dims <= CV_CN_MAX"), OSError("cut")])
def test_an_image_that_cannot_be_drawn_ends_no_zip(predictor, monkeypatch, error):
    with serving(predictor) as (client, _):
        keys = [*add(client, png(draw(0))), *add(client, png(draw(1)))]
        for key in keys:
            finished(client, key)
        writes = iter([error])

        def write(*args):
            for error in writes:
                raise error
            return write_download(*args)

        monkeypatch.setattr("maskrcnn_plus.apps.serve.page.write_download", write)
        answer = client.get(f"/page/download/csv.zip?ids={','.join(keys)}")
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            assert archive.namelist() == ["a_csv.csv", "missing.txt"]


def test_tiles_are_counted_and_can_be_given_up(predictor):
    with serving(predictor, tile=64) as (client, service):
        predictor.model.gate.clear()
        (key,) = add(client, png(draw(0, 200, 200)))
        wait_until(lambda: len(predictor.model.calls) == 1)
        state = client.get(f"/page/images/{key}").json()
        assert state["state"] == "running"
        assert (state["tiles"][0], state["tiles"][1] > 8) == (0, True)
        assert client.delete(f"/page/images/{key}").status_code == 204
        predictor.model.gate.set()
        wait_until(lambda: service.worker.num_taken == 0)
        assert len(predictor.model.calls) == 1
        assert not list(service.folder.iterdir())
        assert client.get(f"/page/images/{key}").status_code == 404
        assert 'images_total{outcome="cancelled"} 1.0' in client.get("/metrics").text


def test_each_page_of_a_stack_is_an_image(client, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = tiff(np.stack([draw(1), draw(2)]), photometric="minisblack", metadata={"axes": "TYX"}, ome=True)
    (tmp_path / "s.tif").write_bytes(content)
    predict_files(make_predictor(), "s.tif", "out", formats=["csv", "coco"])
    keys = add(client, content, "s.tif")
    assert len(keys) == 2
    for number, key in enumerate(keys, start=1):
        assert finished(client, key)["state"] == "done"
        for kind in ("csv", "coco"):
            answer = client.get(f"/page/images/{key}/download/{kind}").content
            assert answer == files_of(tmp_path / "out", kind, f"s_p000{number}")
    client.delete(f"/page/images/{keys[0]}")
    assert client.get(f"/page/images/{keys[1]}/download/csv").status_code == 200
    client.delete(f"/page/images/{keys[1]}")
    assert not list(client.app.service.folder.iterdir())


def test_a_broken_file_is_told_at_once_or_when_it_is_decoded(client):
    assert client.post("/page/images", content=b"rubbish").status_code == 400
    body = png(np.random.default_rng(0).integers(0, 255, (300, 300), dtype=np.uint8))
    (key,) = add(client, body[: len(body) // 2], "cut.png")
    state = finished(client, key)
    assert (state["state"], "cut.png" in state["error"]) == ("failed", True)
    assert str(client.app.service.folder) not in state["error"]
    assert client.get(f"/page/images/{key}/outlines").status_code == 409
    assert client.get(f"/page/images/{key}/download/csv").status_code == 409


def test_what_nobody_looks_at_is_forgotten(predictor):
    with serving(predictor, max_kept=2) as (client, service):
        keys = []
        for seed in range(4):
            keys += add(client, png(draw(seed)))
            finished(client, keys[-1])
        assert [client.get(f"/page/images/{key}").status_code for key in keys] == [404, 404, 200, 200]
        assert len(list(service.folder.iterdir())) == 2
        service.get(keys[2]).used -= 4000
        service.forget_old()
        assert client.get(f"/page/images/{keys[2]}").status_code == 404
        assert client.get(f"/page/images/{keys[3]}").status_code == 200
        assert "again" in client.get("/page/images/nothing").json()["detail"]


def test_examples_are_there_for_models_of_nuclei_only(client, predictor):
    examples = client.get("/page/config").json()["examples"]
    assert len(examples) == 2
    assert client.get(f"/page/examples/{examples[0]}.png").content[:4] == b"\x89PNG"
    assert client.get("/page/examples/none.png").status_code == 404
    predictor.classes.names[:] = ["car", "bus"]
    assert client.get("/page/config").json()["examples"] == []
