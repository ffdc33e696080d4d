"""The demo: one page with what the shipped model found, and what was trained here."""

import re
import shutil

import pytest
from shipped_nuclei import write_checkpoint

from maskrcnn_plus.apps import demo
from maskrcnn_plus.errors import UserError
from maskrcnn_plus.results.report import ReportSection


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Instead of a training its weights are put where it puts them."""
    weights, calls = write_checkpoint(tmp_path), []

    def train(config, resume, overrides):
        calls.append((config, resume, overrides))
        shutil.copy(weights, tmp_path / "out" / "model_final.pth")

    monkeypatch.setattr(demo, "train", train)
    (tmp_path / "out").mkdir()
    return calls


def run(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_SIDE", 64)
    monkeypatch.setattr(demo, "_SAMPLES", 1)
    monkeypatch.setattr(demo, "_CELLS", 1)
    said = []
    page = demo.run_demo(tmp_path / "out", ["train.max_iter=3"], said.append)
    return page.read_text(), said


@pytest.mark.usefixtures("nuclei_zoo")
def test_the_page_shows_both_models(trained, tmp_path, monkeypatch):
    page, said = run(tmp_path, monkeypatch)
    assert trained == [("demo/mask_rcnn_lite0_fpn", True, [f"train.output_dir={tmp_path / 'out'}", "train.max_iter=3"])]
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert [heading.split(",")[0] for heading in headings] == ["The shipped model of nuclei", "A model trained here"]
    first, second = page.split("<h2>")[1:]
    assert "maskrcnn_plus://nuclei" in first
    assert re.findall(r"(\w+)\.png", first)[::1] == ["fluorescence_0", "tissue_0"]
    assert "model_final.pth" in second
    assert re.findall(r"(\w+)\.png", second) == ["cells_0000"]
    assert page.count("data:image/jpeg") == 6
    assert said[-1] == f"Open {tmp_path / 'out' / 'report.html'}"


@pytest.mark.usefixtures("empty_zoo", "trained")
def test_without_a_shipped_model_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_predict", lambda *arguments: ReportSection("Trained", []))
    page, said = run(tmp_path, monkeypatch)
    assert "No model" in said[0]
    assert "No model" in page
    assert len(re.findall("<h2>", page)) == 1


@pytest.mark.usefixtures("empty_zoo")
def test_a_mistake_in_the_command_is_told_before_anything_is_trained(tmp_path):
    with pytest.raises(UserError, match="max_itre"):
        demo.run_demo(tmp_path / "out", ["train.max_itre=3"], lambda line: None)
