"""The HTTP API: what it answers is what the predictor finds, whoever asks beside."""

import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import tifffile
from served_models import draw, make_predictor, png, serving, tiff, wait_until

from maskrcnn_plus.apps.predict_files.run import predict_files


def expected(image):
    return make_predictor().predict(image)


def check_objects(answer, found):
    objects = answer["objects"]
    assert [each["segmentation"] for each in objects] == list(found.pred_masks_rle)
    assert [each["score"] for each in objects] == found.scores.tolist()
    assert [each["box"] for each in objects] == found.pred_boxes.tensor.tolist()
    assert [each["class"] for each in objects] == [["nucleus", "speck"][k] for k in found.pred_classes]
    assert [each["id"] for each in objects] == list(range(1, len(found) + 1))
    assert [each["area"] for each in objects] == found.pred_masks.flatten(1).sum(1).tolist()
    assert (answer["height"], answer["width"]) == found.image_size


def test_a_body_and_a_form_give_the_objects_of_the_predictor(client):
    image = draw()
    found = expected(image)
    assert len(found) > 3
    answer = client.post("/v1/predict?name=plate/a%20b.png", content=png(image)).json()
    check_objects(answer, found)
    assert answer["image"] == "a b.png"
    answer = client.post("/v1/predict", files={"file": ("../../etc/x.png", png(image))}).json()
    check_objects(answer, found)
    assert answer["image"] == "x.png"
    assert client.post("/v1/predict", content=png(image * 0)).json()["objects"] == []


def test_objects_below_thresholds_are_left_out(client):
    image = draw()
    found = expected(image)
    areas = found.pred_masks.flatten(1).sum(1)
    threshold = round(float(found.scores[2]), 4)
    answer = client.post(f"/v1/predict?min_score={threshold}", content=png(image)).json()
    check_objects(answer, found[:3])
    least = int(areas.sort().values[2])
    answer = client.post(f"/v1/predict?min_area={least}", content=png(image)).json()
    check_objects(answer, found[areas >= least])
    for wrong in ("min_score=2", "min_area=-1", "format=png", "page=0"):
        assert client.post(f"/v1/predict?{wrong}", content=png(image)).status_code == 422


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_geojson_is_the_file_of_the_command_line(client, tmp_path, suffix):
    measured = {"imagej": True, "resolution": (4, 4), "metadata": {"unit": "um"}}
    content = png(draw()) if suffix == "png" else tiff(draw(), **measured)
    (tmp_path / f"a.{suffix}").write_bytes(content)
    predict_files(make_predictor(), str(tmp_path / f"a.{suffix}"), tmp_path, formats=["geojson"])
    answer = client.post(f"/v1/predict?format=geojson&name=a.{suffix}", content=content)
    assert answer.headers["content-type"] == "application/geo+json"
    assert answer.content == (tmp_path / "geojson/a.geojson").read_bytes()


def test_a_stack_wants_a_page(client):
    pages = np.stack([draw(seed) for seed in range(3)])
    content = tiff(pages, photometric="minisblack", metadata={"axes": "TYX"}, ome=True)
    answer = client.post("/v1/predict?name=s.tif", content=content)
    assert answer.status_code == 400
    assert "3 images" in answer.json()["detail"]
    assert client.post("/v1/predict?name=s.tif&page=4", content=content).status_code == 400
    check_objects(client.post("/v1/predict?name=s.tif&page=2", content=content).json(), expected(pages[1]))


def test_16_bits_and_dicom_are_read_as_by_the_predictor(client, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    image = (draw() // 50).astype(np.uint16) * 257
    check_objects(client.post("/v1/predict", content=tiff(image)).json(), expected(image))
    data = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    del data.RescaleSlope, data.RescaleIntercept
    data.Rows, data.Columns, data.PixelData = 60, 80, image.tobytes()
    data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 15, 0
    data.save_as(tmp_path / "x.dcm")
    content = (tmp_path / "x.dcm").read_bytes()
    check_objects(client.post("/v1/predict", content=content).json(), expected(image))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no image"),
        (b"no image at all", "damaged, truncated"),
        (png(draw())[:200], "x.png"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "x.png"),
        (tiff(draw())[:100], "x.png"),
    ],
)
def test_a_broken_file_is_named_without_its_place(predictor, content, reason):
    with serving(predictor) as (client, service):
        answer = client.post("/v1/predict?name=x.png", content=content)
        assert answer.status_code == 400
        assert reason in answer.json()["detail"]
        assert str(service.folder) not in answer.text
        assert client.post("/v1/predict", content=png(draw())).status_code == 200
        wait_until(lambda: service.worker.num_taken == 0)
        assert not list(service.folder.iterdir())


def test_a_form_without_a_file_or_with_rubbish_is_refused(client):
    head = {"content-type": "multipart/form-data; boundary=x"}
    for body in (
        b"",
        b"rubbish",
        b"--x\r\n\r\n",
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n',
    ):
        answer = client.post("/v1/predict", content=body, headers=head)
        assert (answer.status_code, "form" in answer.json()["detail"]) == (400, True)
    answer = client.post("/v1/predict", content=b"", headers={"content-type": "multipart/form-data"})
    assert answer.status_code == 400
    two = [("file", ("a.png", png(draw()))), ("file", ("b.png", png(draw())))]
    assert client.post("/v1/predict", files=two).status_code == 400


@pytest.mark.parametrize("name", ["film.mp4", "film.AVI"])
def test_videos_are_refused(client, name):
    answer = client.post(f"/v1/predict?name={name}", content=png(draw()))
    assert (answer.status_code, "tools/predict.py" in answer.json()["detail"]) == (400, True)


def test_an_animation_is_refused(client):
    from PIL import Image

    file = io.BytesIO()
    frames = [Image.fromarray(draw(seed)) for seed in range(3)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    answer = client.post("/v1/predict?name=a.gif", content=file.getvalue())
    assert (answer.status_code, "animation" in answer.json()["detail"]) == (400, True)


def test_those_who_ask_together_get_each_their_own(predictor):
    """What waits shares a batch, a broken file between others spoils none of them, and nothing is lost."""
    images = [draw(seed, height=40 + 4 * (seed % 3)) for seed in range(12)]
    bodies = [png(image) for image in images]
    bodies[5] = bodies[5][: len(bodies[5]) // 2]
    with serving(predictor, batch_size=4) as (client, service), ThreadPoolExecutor(12) as pool:
        predictor.model.gate.clear()
        answers = [pool.submit(client.post, "/v1/predict", content=bodies[0])]
        wait_until(lambda: len(service.worker._running) == 1)
        answers += [pool.submit(client.post, "/v1/predict", content=body) for body in bodies[1:]]
        wait_until(lambda: len(service.worker._waiting) == len(bodies) - 1)
        predictor.model.gate.set()
        answers = [answer.result() for answer in answers]
        assert max(predictor.model.calls) > 1
        for index, (answer, image) in enumerate(zip(answers, images, strict=True)):
            if index == 5:
                assert answer.status_code == 400
            else:
                check_objects(answer.json(), expected(image))
        text = client.get("/metrics").text
    assert 'maskrcnn_plus_requests_total{path="/v1/predict",status="200"} 11.0' in text
    assert 'maskrcnn_plus_requests_total{path="/v1/predict",status="400"} 1.0' in text
    assert 'maskrcnn_plus_images_total{outcome="done"} 11.0' in text
    assert (
        f"maskrcnn_plus_objects_total {float(sum(len(answer.json().get('objects', [])) for answer in answers))}" in text
    )
    assert "process_resident_memory_bytes" in text


def test_a_hundred_requests_of_four_clients_lose_nothing(predictor):
    images = [draw(seed, 30, 30, 3) for seed in range(10)]
    rles = [list(expected(image).pred_masks_rle) for image in images]
    with serving(predictor, max_waiting=4) as (client, service), ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda k: client.post("/v1/predict", content=png(images[k % 10])), range(100)))
        assert [answer.status_code for answer in answers] == [200] * 100
        for index, answer in enumerate(answers):
            assert [each["segmentation"] for each in answer.json()["objects"]] == rles[index % 10]
        wait_until(lambda: service.worker.num_taken == 0)
        assert not list(service.folder.iterdir())


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("no kernel image is available\nmore"), "no kernel image"),
        (MemoryError(), "not enough memory"),  # Python's own says nothing
        (AssertionError(), "AssertionError"),
        (cv2.error("dims <= CV_CN_MAX"), "dims"),
    ],
)
def test_an_error_of_the_model_is_told_and_ends_nothing(predictor, error, told):
    with serving(predictor) as (client, _):
        predictor.model.error = error
        answer = client.post("/v1/predict", content=png(draw()))
        assert (answer.status_code, told in answer.json()["detail"]) == (500, True)
        predictor.model.error = None
        assert client.post("/v1/predict", content=png(draw())).status_code == 200


def test_large_images_are_predicted_by_tiles(predictor, tmp_path):
    image = draw(3, 150, 170, 20)
    (tmp_path / "a.png").write_bytes(png(image))
    predict_files(make_predictor(), str(tmp_path / "a.png"), tmp_path, formats=["coco"], tile=64)
    rles = [each["segmentation"] for each in json.loads((tmp_path / "predictions.json").read_text())]
    with serving(predictor, tile=64) as (client, _):
        answer = client.post("/v1/predict", content=png(image)).json()
    assert [each["segmentation"] for each in answer["objects"]] == rles
    assert len(predictor.model.calls) > 4


def test_a_client_that_goes_away_is_not_waited_for(predictor):
    """The connection is closed while the model is busy with another image."""
    from maskrcnn_plus.apps.serve import service as module

    with serving(predictor) as (client, service):
        predictor.model.gate.clear()
        first = threading.Thread(target=client.post, args=("/v1/predict",), kwargs={"content": png(draw())})
        first.start()
        wait_until(lambda: predictor.model.calls)

        class Gone:
            async def is_disconnected(self):
                return True

        async def wait():
            job = module.Job(None, (10, 10))
            service.worker.reserve()
            service.worker.submit([job])
            with pytest.raises(module.HTTPException, match="went away"):
                await service.wait_for(Gone(), None, job)
            return job

        job = client.portal.call(wait)
        assert job.state == "cancelled"
        predictor.model.gate.set()
        first.join()
        wait_until(lambda: service.worker.num_taken == 0)


def test_the_openapi_page_is_complete_and_loads_from_here(client):
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/v1/predict", "/healthz", "/metrics"}
    post = schema["paths"]["/v1/predict"]["post"]
    assert {"200", "400", "401", "413", "429"} <= set(post["responses"])
    assert set(post["requestBody"]["content"]) == {"application/octet-stream", "multipart/form-data"}
    answer = client.post("/v1/predict", content=png(draw())).json()
    assert set(answer["objects"][0]) == set(schema["components"]["schemas"]["FoundObject"]["properties"])
    assert set(answer) == set(schema["components"]["schemas"]["Prediction"]["properties"])
    page = client.get("/docs").text
    assert "https://" not in page
    assert client.get("/static-offline-docs/swagger-ui-bundle.js").status_code == 200


def test_an_image_that_was_written_by_others_is_not_a_path(predictor, tmp_path):
    """The client's name chooses no place: what it names stays within the temporary folder."""
    from maskrcnn_plus.apps.serve.uploads import safe_name

    names = [
        "../../x.png",
        "/etc/passwd",
        "C:\\a\\b.tif",
        "..",
        ".",
        "",
        ".hidden",
        "a\0b\n.png",
        "x" * 400 + ".tiff",
        "日本.png",
    ]
    for name in names:
        found = safe_name(name)
        assert 1 <= len(found.encode()) <= 130
        assert not set(found) & set("/\\")
        assert found.isprintable()
        assert not found.startswith(".")
    assert safe_name("日本.png") == "日本.png"
    assert safe_name("x" * 400 + ".tiff").endswith("x.tiff")
    with serving(predictor) as (client, _):
        for name in names:
            assert client.post("/v1/predict", params={"name": name}, content=png(draw())).status_code == 200


def test_what_is_read_again_is_what_was_sent(client):
    """A TIFF that says its resolution and one whose white is 0, as the predictor reads them."""
    image = draw()
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(255 - image, photometric="miniswhite")
    check_objects(client.post("/v1/predict", content=file.getvalue()).json(), expected(image))
