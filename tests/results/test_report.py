"""The report: complete, self-contained, bounded, and safe for any file name."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from maskrcnn_plus.results import report
from maskrcnn_plus.results.report import ReportEntry, ReportSection, report_entry, write_report, write_sections


class Page(HTMLParser):
    """Tags (with attributes) and text of a page; fails on tags that do not nest."""

    VOID = ("meta", "img", "line", "rect")

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "line"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def named(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def make_entry(name="a.png", count=3, height=60, width=90, pictures=True):
    instances = Instances((height, width))
    instances.pred_masks = torch.zeros(count, height, width, dtype=torch.bool)
    for k in range(count):
        instances.pred_masks[k, : k + 2, :3] = True
    instances.scores = torch.linspace(0.9, 0.6, count)
    instances.pred_classes = torch.arange(count) % 2
    instances.pred_boxes = Boxes(torch.zeros(count, 4))
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return report_entry(name, instances, *((image, image // 2) if pictures else ()))


def page_of(tmp_path, entries, **options):
    write_report(tmp_path / "report.html", entries, options.pop("title", "Predictions"), **options)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    return Page((tmp_path / "report.html").read_text("utf-8"))


def test_entry_has_the_figures_of_the_predictions():
    entry = make_entry(count=3)
    assert (entry.height, entry.width) == (60, 90)
    assert entry.areas == [6, 9, 12]
    assert entry.classes == [0, 1, 0]
    assert entry.scores == pytest.approx([0.9, 0.75, 0.6])
    assert make_entry(count=0).areas == []


def test_page_shows_names_figures_and_failures(tmp_path):
    page = page_of(
        tmp_path,
        [make_entry("first.png"), make_entry("second.png", count=1), make_entry("third.png", count=0)],
        details={"Weights": "model_best.pth"},
        failures=[("broken.png", "the file is empty")],
        class_names=["round", "lobed"],
    )
    words = page.words
    for expected in ("first.png", "second.png", "third.png", "model_best.pth", "broken.png", "0 objects", "1 object"):
        assert expected in words
    assert " the file is empty" in words
    assert words.index("broken.png") < words.index("first.png") < words.index("second.png")
    assert words[words.index("objects") - 1] == "4"
    assert words[words.index("images") - 1] == "3"
    assert "round 3" in words  # over all images
    assert "round 2" in words  # in the first
    assert "scores 0.60 to 0.90" in words


def test_sections_keep_their_own_figures_and_classes(tmp_path):
    first = ReportSection("First <model>", [make_entry("a.png", count=3)], {"Weights": "a.pth"}, class_names=["cell"])
    second = ReportSection("Second", [make_entry("b.png", count=1)], class_names=["round", "lobed"])
    write_sections(tmp_path / "report.html", "Both", [first, second, ReportSection("None", [])], note="1 < 2")
    words = Page((tmp_path / "report.html").read_text("utf-8")).words
    places = [words.index(word) for word in ("1 < 2", "First <model>", "a.pth", "a.png", "Second", "b.png", "None")]
    assert places == sorted(places)
    objects = [words[index - 1] for index, word in enumerate(words) if word == "objects"]
    assert objects == ["3", "1", "0"]
    assert "round 1" in words
    assert "round 3" not in words


def test_histogram_bars_count_every_object(tmp_path):
    page = page_of(tmp_path, [make_entry(count=7), make_entry(count=4)])
    counts = [int(word.rsplit(": ", 1)[1]) for word in page.words if re.fullmatch(r"\S+ to \S+: \d+", word)]
    assert sum(counts) == 2 * 11


def test_any_name_is_shown_as_text(tmp_path):
    names = ["a<b>&.png", '"><script>alert(1)</script>', "été\udcff.png"]
    page = page_of(
        tmp_path,
        [make_entry(name) for name in names],
        title="<i>",
        details={"<u>": "</dl>"},
        failures=[("<s>.png", "<img src=x>")],
        class_names=["<em>", "b"],
    )
    assert {tag for tag, _ in page.tags}.isdisjoint({"b>", "script", "i", "u", "s", "em", "iframe"})
    text = "".join(page.words)
    for name in [*names[:2], "été?.png", "<s>.png", "<img src=x>", "<em> 2"]:
        assert name in text
    assert len(page.named("img")) == 6


def test_nothing_is_fetched(tmp_path):
    page = page_of(tmp_path, [make_entry(), make_entry()], failures=[("a", "b")], details={"a": "b"})
    assert {"link", "script", "iframe", "object"}.isdisjoint(tag for tag, _ in page.tags)
    sources = [value for _, attrs in page.tags for key, value in attrs.items() if key in ("src", "href", "srcset")]
    assert len(sources) == 4
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r"https?://|url\(|@import", text)


@pytest.mark.parametrize("size", [(1000, 2500), (3000, 2), (40, 30)])
def test_thumbnails_are_small_and_keep_proportions(tmp_path, size):
    page = page_of(tmp_path, [make_entry(height=size[0], width=size[1])])
    for attrs in page.named("img"):
        picture = Image.open(io.BytesIO(base64.b64decode(attrs["src"].split(",")[1])))
        assert picture.format == "JPEG"
        scale = min(640 / max(size), 1)
        assert picture.size == (max(round(scale * size[1]), 1), max(round(scale * size[0]), 1))


def test_pictures_are_limited_and_the_page_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MAX_PICTURES", 2)
    page = page_of(tmp_path, [make_entry(f"{k}.png", count=1) for k in range(5)])
    assert len(page.named("img")) == 4
    assert len(page.named("article")) == 5
    assert any("3 images after the first 2" in word for word in page.words)


def test_empty_report_is_a_page(tmp_path):
    page = page_of(tmp_path, [])
    assert "0" in page.words
    assert page.named("rect") == []


@pytest.mark.parametrize("areas", [[5], [0, 0], [7, 7, 7], [0, 10**9]])
def test_areas_of_any_range_have_a_histogram(tmp_path, areas):
    entry = ReportEntry("a.png", 10, 10, [0.5] * len(areas), areas, [0] * len(areas))
    page = page_of(tmp_path, [entry])
    assert len(page.named("svg")) == 2
    assert all("nan" not in value for attrs in page.named("rect") for value in attrs.values())


def test_areas_have_the_unit_of_the_table(tmp_path):
    entries = [make_entry(name) for name in ("a.png", "b.png")]
    for entry in entries:
        entry.pixel_size = 0.1
    page = page_of(tmp_path, entries)
    words = " ".join(page.words)
    assert "median area (µm²)" in words
    assert "0.09" in words  # 9 px of 0.1 x 0.1 um
    assert "Object areas (µm²" in words
    assert "(px" not in words
    entries[0].pixel_size = None  # of one image it is not known
    assert "median area (px)" in " ".join(page_of(tmp_path, entries).words)
