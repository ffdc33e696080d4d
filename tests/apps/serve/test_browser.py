"""The page in a real browser: what a person drops, sees, slides, clicks and downloads."""

import re
import shutil
import zipfile

import cv2
import numpy as np
import pytest
from served_models import draw, listening, make_predictor, png, tiff, wait_until

from maskrcnn_plus.apps.predict_files.run import predict_files

sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt install chromium")

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Open an address as a new person; whoever it is, nothing may come from another host, and nothing go wrong."""
    contexts, problems = [], []

    def visit(url, expected=(), **options):
        context = chromium.new_context(**{"viewport": {"width": 1000, "height": 640}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        ours = (re.match("http://[^/]+/?", url)[0], "data:", "blob:")
        page.on("request", lambda request: request.url.startswith(ours) or problems.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "console",
            lambda line: (
                line.type != "error" or any(each in line.text for each in expected) or problems.append(line.text)
            ),
        )
        page.goto(url)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not problems


def drop(page, *files):
    page.set_input_files("#files", [{"name": name, "mimeType": "", "buffer": content} for name, content in files])


def point(page, x, y):
    """Where a point of the image is on the page."""
    scale, left, top = map(float, page.locator("#canvas").get_attribute("data-view").split())
    box = page.locator("#canvas").bounding_box()
    return box["x"] + left + x * scale, box["y"] + top + y * scale


def rectangles():
    """Three objects, of 200, 48 and 30 pixels, with scores 1, 0.8 and 0.4."""
    image = np.zeros((60, 80), np.uint8)
    image[5:15, 10:30], image[30:36, 40:48], image[50:55, 70:76] = 255, 204, 102
    return image


def test_see_point_slide_and_click(visit, predictor):
    with listening(predictor) as (url, _):
        page = visit(url)
        drop(page, ("a.png", png(rectangles())))
        page.wait_for_selector("#rows tr")
        assert page.inner_text("#count") == "3 objects"
        assert page.locator("#rows tr").all_inner_texts() == [
            "1\tspeck\t1.00\t200",
            "2\tnucleus\t0.80\t48",
            "3\tnucleus\t0.40\t30",
        ]
        page.mouse.move(*point(page, 44, 33))
        assert page.inner_text("#tip") == "nucleus · score 0.80 · 48 px"
        page.mouse.move(*point(page, 60, 10))
        assert page.locator("#tip").is_hidden()
        page.mouse.click(*point(page, 20, 10))
        assert page.locator("tr.selected").inner_text().startswith("1\t")
        page.locator("#rows tr").nth(2).click()
        assert page.locator("tr.selected").inner_text().startswith("3\t")

        page.fill("#score", "0.5")
        assert page.inner_text("#count") == "2 of 3 objects"
        page.mouse.move(*point(page, 73, 52))
        assert page.locator("#tip").is_hidden()  # no longer there
        page.fill("#area", "60")
        assert page.locator("#rows tr").all_inner_texts() == ["1\tspeck\t1.00\t200"]
        bars = [
            int(re.search(r": (\d+) of", title)[1]) for title in page.locator("svg .kept title").all_text_contents()
        ]
        assert sum(bars) == 1
        page.fill("#area", "0")
        page.fill("#score", "0")
        page.get_by_role("button", name="area").click()
        page.get_by_role("button", name="area").click()
        assert [text.split("\t")[0] for text in page.locator("#rows tr").all_inner_texts()] == ["3", "2", "1"]
        assert predictor.model.calls == [1]
        page.reload()
        page.wait_for_selector("#rows tr")
        assert predictor.model.calls == [1]


def test_objects_are_where_they_are_drawn(visit, predictor):
    """A click in the middle of each object of a crowded image selects that object, also when zoomed."""
    image = draw(5, 90, 120, 12)
    found = make_predictor().predict(image)
    with listening(predictor) as (url, _):
        page = visit(url)
        drop(page, ("a.png", png(image)))
        page.wait_for_selector("#rows tr")
        for zoomed in (False, True):
            for index, mask in enumerate(found.pred_masks.numpy()):
                inner = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L1, 3)[1:-1, 1:-1]
                y, x = np.unravel_index(inner.argmax(), inner.shape)
                place = point(page, x + 0.5, y + 0.5)
                box = page.locator("#canvas").bounding_box()
                if (
                    box["x"] < place[0] < box["x"] + box["width"]
                    and box["y"] + 60 < place[1] < box["y"] + box["height"]
                ):
                    page.mouse.click(*place)
                    assert page.locator("tr.selected").get_attribute("data-index") == str(index)
            if not zoomed:
                page.mouse.move(*point(page, 60, 45))
                page.mouse.wheel(0, -300)
                page.wait_for_timeout(100)


def test_downloads_are_those_of_the_command_line(visit, predictor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = draw().astype(np.uint16) * 257
    (tmp_path / "a.tif").write_bytes(tiff(image))
    predict_files(make_predictor(), "a.tif", "out", formats=["labels", "csv"])
    with listening(predictor) as (url, _):
        page = visit(url)
        page.set_input_files("#files", "a.tif")
        page.wait_for_selector("#rows tr")

        def download(name):
            with page.expect_download() as waiting:
                page.get_by_role("link", name=name).click()
            return waiting.value.path().read_bytes(), waiting.value.suggested_filename

        assert download("Label image") == ((tmp_path / "out/labels/a.png").read_bytes(), "a_labels.png")
        table = (tmp_path / "out/csv/a.csv").read_bytes()
        assert download("CSV") == (table, "a_csv.csv")
        page.fill("#score", "0.8")
        left = int(page.inner_text("#count").split()[0])
        assert 0 < left < len(table.splitlines()) - 1
        assert len(download("CSV")[0].splitlines()) == 1 + left


def test_all_images_are_downloaded_as_one_zip(visit, predictor):
    with listening(predictor) as (url, _):
        page = visit(url, expected=["400"])
        drop(page, ("a.png", png(rectangles())))
        page.wait_for_selector("#rows tr")
        assert page.locator("#all").is_hidden()  # there is one image
        drop(page, ("b.png", png(draw())), ("cut.png", png(draw())[:150]))
        page.wait_for_selector(".chip.failed")
        page.wait_for_selector(".chip.done >> nth=1")
        assert page.inner_text("#all").startswith("All images, one zip: 2, 1 failed")
        page.fill("#score", "0.5")
        with page.expect_download() as waiting:
            page.locator("#all").get_by_role("link", name="CSV").click()
        assert waiting.value.suggested_filename == "csv.zip"
        with zipfile.ZipFile(waiting.value.path()) as archive:
            assert archive.namelist() == ["a_csv.csv", "b_csv.csv", "missing.txt"]
            assert len(archive.read("a_csv.csv").splitlines()) == 1 + 2
            assert archive.read("missing.txt").startswith(b"cut.png: ")


def test_a_file_that_is_given_before_the_server_has_answered_is_not_lost(visit, predictor):
    with listening(predictor) as (url, _):
        page, held = visit(url), []
        page.route("**/page/config", lambda route: held.append(route))
        page.reload()
        drop(page, ("a.png", png(rectangles())))
        held[0].continue_()
        page.wait_for_selector("#rows tr")
        assert page.inner_text("#count") == "3 objects"


def test_a_folder_that_is_dropped_is_told(visit, predictor, tmp_path):
    (tmp_path / "photos").mkdir()
    with listening(predictor) as (url, _):
        page = visit(url, expected=["ERR_"])
        page.wait_for_selector("#examples")
        devtools = page.context.new_cdp_session(page)
        data = {"items": [], "files": [str(tmp_path / "photos")], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            devtools.send("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 200, "data": data})
        page.wait_for_selector(".chip.failed")
        assert page.inner_text("#doing").startswith("photos: failed: It cannot be read: it is a folder")


def test_a_network_that_is_away_for_a_moment_costs_no_result(visit, predictor):
    with listening(predictor) as (url, _):
        page, asked = visit(url, expected=["ERR_FAILED"]), []
        page.route("**/outlines", lambda route: asked.append(route) or (route.abort, route.continue_)[len(asked) > 1]())
        drop(page, ("a.png", png(rectangles())))
        page.wait_for_selector("#rows tr")
        assert (len(asked), page.inner_text("#count")) == (2, "3 objects")


def test_a_broken_file_is_told_and_the_others_go_on(visit, predictor):
    with listening(predictor) as (url, _):
        page = visit(url, expected=["400"])
        drop(page, ("bad.png", b"rubbish"), ("cut.png", png(draw())[:150]), ("good.png", png(draw())))
        page.wait_for_selector(".chip.done")
        page.wait_for_selector(".chip.failed >> nth=1")
        page.get_by_role("button", name="bad.png").click()
        assert "damaged" in page.inner_text("#doing")
        page.get_by_role("button", name="good.png").click()
        page.wait_for_selector("#rows tr")
        page.locator(".chip.failed .remove").first.click()
        assert page.locator(".chip").count() == 2


def test_two_people_at_once_see_each_their_own(visit, predictor):
    images = [draw(seed, count=count) for seed, count in ((1, 3), (2, 7))]
    with listening(predictor) as (url, service):
        pages = [visit(url), visit(url)]
        predictor.model.gate.clear()
        for page, image in zip(pages, images, strict=True):
            drop(page, ("mine.png", png(image)))
        wait_until(lambda: service.worker.num_taken == 2)
        pages[1].wait_for_selector("text=waiting")
        predictor.model.gate.set()
        for page, image in zip(pages, images, strict=True):
            page.wait_for_selector("#rows tr")
            assert page.locator(".chip").count() == 1
            assert page.inner_text("#count") == f"{len(make_predictor().predict(image))} objects"


def test_tiles_are_shown_and_can_be_cancelled(visit, predictor):
    with listening(predictor, tile=64) as (url, service):
        page = visit(url)
        predictor.model.gate.clear()
        drop(page, ("large.png", png(draw(0, 200, 200, 20))))
        page.wait_for_selector("text=/large.png: tile 1 of \\d+/")
        with page.expect_response(lambda response: response.request.method == "DELETE"):
            page.get_by_role("button", name="Cancel").click()
        assert page.locator(".chip").count() == 0
        predictor.model.gate.set()
        wait_until(lambda: service.worker.num_taken == 0)
        assert len(predictor.model.calls) == 1
        drop(page, ("large.png", png(draw(0, 200, 200, 20))))
        page.wait_for_selector("#rows tr")


def test_a_full_queue_is_waited_for(visit, predictor):
    with listening(predictor, max_waiting=1) as (url, service):
        page = visit(url, expected=["429"])
        predictor.model.gate.clear()
        drop(page, *((f"{seed}.png", png(draw(seed))) for seed in range(3)))
        page.wait_for_selector("text=waiting for the server")
        predictor.model.gate.set()
        page.wait_for_selector(".chip.done >> nth=2")
        wait_until(lambda: service.worker.num_taken == 0)
        assert sum(predictor.model.calls) == 3  # each once, however often it was turned away


def test_on_a_phone_all_is_within_its_width(visit, predictor):
    with listening(predictor) as (url, _):
        page = visit(url, **PHONE)
        drop(page, ("a name that is far too long for a phone of this width, is it not.png", png(rectangles())))
        page.wait_for_selector("#rows tr")
        assert page.evaluate("() => document.documentElement.scrollWidth") == 390
        small = page.evaluate(
            "() => [...document.querySelectorAll('button, .button, .links a')].filter((each) => each.offsetHeight"
            " && each.offsetHeight < 30).map((each) => each.outerHTML)"
        )
        assert small == []
        page.touchscreen.tap(*point(page, 44, 33))
        page.wait_for_timeout(200)
        assert page.locator("#tip").is_visible()
        assert page.inner_text("#tip").startswith("nucleus · score 0.80")
        page.touchscreen.tap(*point(page, 60, 10))
        page.locator("#tip").wait_for(state="hidden")


def test_a_token_is_asked_for_once(visit, predictor):
    with listening(predictor, token="sésame") as (url, _):
        page = visit(url, expected=["401"])
        page.fill("input[name=token]", "wrong")
        page.click("text=Go on")
        assert page.locator("input[name=token]").is_visible()
        page.fill("input[name=token]", "sésame")
        page.click("text=Go on")
        page.wait_for_selector("#examples button")
        drop(page, ("a.png", png(rectangles())))
        page.wait_for_selector("#rows tr")


def test_the_openapi_page_works_without_another_host(visit, predictor):
    with listening(predictor) as (url, _):
        page = visit(f"{url}/docs")
        path = page.get_by_text("/v1/predict").first
        path.wait_for()
        assert path.is_visible()


def test_everything_works_below_a_path_of_a_proxy(visit, predictor, tmp_path):
    with listening(predictor, below="/seg", token="sesame") as (url, _):
        page = visit(f"{url}/", expected=["401"])
        requests = []
        page.on("request", lambda request: requests.append(request.url))
        page.fill("input[name=token]", "sesame")
        page.click("text=Go on")
        page.wait_for_selector("#examples img")
        drop(page, ("a.png", png(rectangles())), ("b.png", png(rectangles())))
        page.wait_for_selector(".chip.done >> nth=1")
        page.wait_for_selector("#rows tr")
        for block in ("#links", "#all-links"):
            with page.expect_download() as waiting:
                page.locator(block).get_by_role("link", name="CSV").click()
            assert waiting.value.path().stat().st_size > 100
        page.reload()
        page.wait_for_selector("#rows tr")
        assert [cookie["path"] for cookie in page.context.cookies()] == ["/seg"]

        page.click("text=HTTP API")
        page.get_by_text("/v1/predict").first.click()
        page.get_by_role("button", name="Try it out").click()
        (tmp_path / "a.png").write_bytes(png(rectangles()))
        page.set_input_files("input[type=file]", tmp_path / "a.png")
        page.get_by_role("button", name="Execute").click()
        page.wait_for_selector(".live-responses-table .response-col_status >> text=200")
        assert f"{url}/v1/predict?" in page.inner_text(".request-url")
        assert len(requests) > 15
        assert [each for each in requests if not each.startswith((f"{url}/", "data:", "blob:"))] == []
