"""What a server refuses: too much at a time, too large, from elsewhere, without the token."""

import asyncio
import http.client
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from served_models import draw, listening, png, serving, tiff, wait_until

from maskrcnn_plus.apps.serve.access import is_token


def test_a_full_queue_is_told_and_nothing_that_was_taken_is_lost(predictor):
    body = png(draw())
    with serving(predictor, max_waiting=2) as (client, service), ThreadPoolExecutor(2) as pool:
        predictor.model.gate.clear()
        taken = [pool.submit(client.post, "/v1/predict", content=body) for _ in range(2)]
        wait_until(lambda: service.worker.num_taken == 2)
        for path in ("/v1/predict", "/page/images"):
            answer = client.post(path, content=body)
            assert (answer.status_code, int(answer.headers["retry-after"]) >= 1) == (429, True)
            assert "full" in answer.json()["detail"]
        assert client.get("/healthz").json() == {"status": "ok"}
        predictor.model.gate.set()
        assert [answer.result().status_code for answer in taken] == [200, 200]
        wait_until(lambda: service.worker.num_taken == 0)
        assert client.post("/v1/predict", content=body).status_code == 200


def test_bytes_are_limited_whether_their_number_is_said_or_not(predictor):
    image = np.random.default_rng(0).integers(0, 255, (100, 100), dtype=np.uint8)  # does not compress
    body = tiff(image)
    with serving(predictor, max_bytes=5000) as (client, service):
        answers = [
            client.post("/v1/predict", content=body),
            client.post("/v1/predict", content=(body[k : k + 1000] for k in range(0, len(body), 1000))),
            client.post("/v1/predict", files={"file": ("a.tif", body)}),
            client.post("/page/images", content=body),
        ]
        assert [(each.status_code, "MB" in each.json()["detail"]) for each in answers] == [(413, True)] * 4
        assert service.worker.num_taken == 0
        assert not list(service.folder.iterdir())
        assert client.post("/v1/predict", content=png(draw())).status_code == 200


def test_a_client_that_sends_much_sees_why_it_is_refused(predictor):
    """It reads no answer before all is sent, as simple clients do; then its connection must still be there."""
    body = bytes(20_000_000)
    with listening(predictor, max_bytes=1000, max_waiting=1) as (url, service):
        host = url.removeprefix("http://")

        def post():
            connection = http.client.HTTPConnection(host)
            connection.request("POST", "/v1/predict", body)
            return connection.getresponse().status

        assert post() == 413
        service.worker.reserve()
        assert post() == 429
        service.worker.release()


def test_a_full_disk_of_the_server_is_told(predictor, monkeypatch):
    body = png(draw())
    with serving(predictor) as (client, service):
        with monkeypatch.context() as full:
            full.setattr("maskrcnn_plus.apps.serve.uploads.safe_name", lambda name: "/dev/full")
            for path in ("/v1/predict", "/page/images"):
                for answer in (client.post(path, content=body), client.post(path, files={"file": ("a.png", body)})):
                    assert answer.status_code == 507
                    assert "No space left on device" in answer.json()["detail"]
        assert service.worker.num_taken == 0
        assert not list(service.folder.iterdir())
        assert client.post("/v1/predict", content=body).status_code == 200


@pytest.mark.parametrize("write", [png, tiff])
def test_pixels_are_limited_by_the_header(predictor, write):
    with serving(predictor, max_pixels=4800) as (client, service):
        answer = client.post("/v1/predict", content=write(draw(0, 61, 80)))
        assert (answer.status_code, "80 x 61" in answer.json()["detail"]) == (413, True)
        assert client.post("/v1/predict", content=write(draw(0, 60, 80))).status_code == 200
        assert predictor.model.calls == [1]
        assert not list(service.folder.iterdir())


def test_a_header_that_claims_more_than_the_file_holds_is_refused(client):
    body = bytearray(png(draw()))
    body[16:24] = (20000).to_bytes(4, "big") + (5000).to_bytes(4, "big")
    assert client.post("/v1/predict", content=bytes(body)).status_code in (400, 413)


def test_stacks_are_limited(predictor):
    body = tiff(np.zeros((70, 8, 8), np.uint8), photometric="minisblack", metadata={"axes": "TYX"}, ome=True)
    with serving(predictor) as (client, _):
        answer = client.post("/page/images?name=s.tif", content=body)
        assert (answer.status_code, "64" in answer.json()["detail"]) == (413, True)


def test_an_upload_that_stops_is_given_up(predictor):
    """A body whose next piece never comes: the slot is free again."""
    from starlette.requests import Request

    with serving(predictor, receive_seconds=0.05) as (client, service):

        async def post():
            async def receive():
                await asyncio.sleep(60)

            scope = {"type": "http", "method": "POST", "headers": [], "path": "/v1/predict", "query_string": b""}
            from fastapi import HTTPException

            with pytest.raises(HTTPException) as error:
                await service.submit(Request(scope, receive), "x.png")
            return error.value.status_code

        assert client.portal.call(post) == 408
        assert service.worker.num_taken == 0
        assert not list(service.folder.iterdir())


def test_the_token_guards_everything_but_health(predictor):
    body = png(draw())
    with serving(predictor, token="sésame", only_local=False) as (client, _):
        assert client.get("/healthz").status_code == 200
        for path in ("/metrics", "/docs", "/openapi.json", "/page/config", "/static/main.js", "/page/images/x"):
            assert client.get(path).status_code == 401
        assert client.post("/v1/predict", content=body).status_code == 401
        for wrong in ("Bearer sesame", "Bearer ", "Basic sésame", "Bearer sésame2"):
            answer = client.post("/v1/predict", content=body, headers={"authorization": wrong.encode()})
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        right = {"authorization": "Bearer sésame".encode()}
        assert client.post("/v1/predict", content=body, headers=right).status_code == 200
        assert client.get("/metrics", headers=right).status_code == 200


def test_a_person_gets_in_by_the_form(predictor):
    with serving(predictor, token="sésame") as (client, _):
        answer = client.get("/", headers={"accept": "text/html"})
        assert (answer.url.path, "Token" in answer.text) == ("/login", True)
        assert client.get("/static/style.css").status_code == 200
        assert client.post("/login", data={"token": "wrong"}).status_code == 401
        assert client.post("/login", data={}).status_code == 401
        assert client.get("/page/config").status_code == 401
        answer = client.post("/login", data={"token": "sésame"})
        assert (answer.url.path, "Choose images" in answer.text) == ("/", True)
        cookie = answer.history[0].headers["set-cookie"]
        assert {"HttpOnly", "SameSite=strict"} <= set(cookie.split("; "))
        assert "sésame" not in cookie
        assert client.get("/page/config").status_code == 200
        login = cookie.partition(";")[0]
        client.cookies.clear()
        assert client.get("/page/config", headers={"cookie": login[:-64] + "0" * 64}).status_code == 401
        for other in ('consent={"a":1}', "seen=May 3", "plain", "a=[b]; theme=dark"):  # of other programs of the host
            assert client.get("/page/config", headers={"cookie": f"{other}; {login}"}).status_code == 200


def test_servers_at_two_ports_of_a_host_keep_their_visitors(predictor):
    """A browser shows the cookies of a host to all of its ports."""
    names = set()
    for token in ("first", "second"):
        with serving(predictor, token=token) as (client, _):
            names.add(client.post("/login", data={"token": token}).history[0].headers["set-cookie"].partition("=")[0])
    assert len(names) == 2


def test_a_path_above_the_application_changes_nothing(predictor):
    """As where another application mounts it, or its server is told the path of a proxy."""
    with serving(predictor, root_path="/seg", token="sesame") as (client, _):
        assert client.get("/seg/healthz").status_code == 200
        assert client.get("/seg/page/config").status_code == 401
        answer = client.get("/seg/", headers={"accept": "text/html"})
        assert (answer.url.path, "Token" in answer.text) == ("/seg/login", True)
        assert client.post("/seg/login", data={"token": "sesame"}).url.path == "/seg/"
        assert "'unsafe-inline'" in client.get("/seg/docs").headers["content-security-policy"]
        assert client.post("/seg/v1/predict", content=png(draw())).status_code == 200
        assert '{path="/v1/predict",status="200"} 1.0' in client.get("/seg/metrics").text
        assert client.get("/seg/page/config").status_code == 200
        client.base_url = "http://127.0.0.1/other"  # of the same host: it is shown no cookie
        assert "cookie" not in client.build_request("GET", "/").headers


@pytest.mark.parametrize(("given", "same"), [("token", True), ("token ", False), ("", False), ("tökén", False)])
def test_tokens_are_compared_whole(given, same):
    assert is_token(given, "token") is same


def test_only_this_machine_is_answered_and_no_other_site(predictor):
    body = png(draw())
    with serving(predictor) as (client, _):
        for host, status in (("localhost:7860", 200), ("[::1]:7860", 200), ("evil.example", 403), ("", 403)):
            assert client.get("/healthz", headers={"host": host}).status_code == status
        for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
            assert client.post("/v1/predict", content=body, headers={"sec-fetch-site": site}).status_code == status
    with serving(predictor, only_local=False) as (client, _):
        assert client.get("/healthz", headers={"host": "lab.example"}).status_code == 200


def test_the_page_may_load_nothing_from_elsewhere(client):
    answer = client.get("/")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "http" not in answer.headers["content-security-policy"]
    for path in ("", "static/style.css", "static/main.js", "static/viewer.js", "static/panel.js", "login", "docs"):
        answer = client.get(f"/{path}")
        assert answer.status_code == 200
        text = answer.text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search("https?://", text)


def test_what_is_running_is_given_up_when_the_server_ends(predictor):
    with ThreadPoolExecutor(1) as pool:
        with serving(predictor) as (client, service):
            predictor.model.gate.clear()
            keys = [client.post("/page/images", content=png(draw())).json()["images"][0]["id"] for _ in range(2)]
            wait_until(lambda: client.get(f"/page/images/{keys[0]}").json()["state"] == "running")
            waiting = {"state": "waiting", "tiles": None, "note": "", "ahead": 0}
            assert client.get(f"/page/images/{keys[1]}").json() == waiting
            opened = pool.submit(lambda: (wait_until(lambda: not service.worker.is_alive), predictor.model.gate.set()))
        opened.result()
    assert predictor.model.calls == [1]  # the other was not predicted
