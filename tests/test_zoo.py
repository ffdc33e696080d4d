"""Models that come with the package: found by name, checked by hash, and the package's own table is right."""

import hashlib
import re
import shutil
from pathlib import Path

import pytest

from maskrcnn_plus import zoo
from maskrcnn_plus.apps.ship import MOST_BYTES
from maskrcnn_plus.checkpoints import WeightsError, read_classes
from maskrcnn_plus.checkpoints.sources import folder_of, local_path
from maskrcnn_plus.inference.predictor import Predictor

ROOT = Path(__file__).resolve().parents[1]


def test_a_name_is_a_file_of_the_package(nuclei_zoo):
    assert local_path("maskrcnn_plus://nuclei") == str(nuclei_zoo / "nuclei.safetensors")
    assert read_classes("maskrcnn_plus://nuclei").names == ["nucleus"]
    assert Predictor("maskrcnn_plus://nuclei", device="cpu").class_names == ["nucleus"]


@pytest.mark.parametrize(("name", "hint"), [("nucleii", "Did you mean maskrcnn_plus://nuclei"), ("", "Those that do")])
def test_unknown_names_are_told_with_the_known(nuclei_zoo, name, hint):
    with pytest.raises(WeightsError, match=rf"no such model.*{hint}.*: maskrcnn_plus://nuclei\."):
        local_path(f"maskrcnn_plus://{name}")


def test_a_name_alone_is_told_what_it_lacks_unless_a_file_has_it(nuclei_zoo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"nuclei does not exist\. Did you mean maskrcnn_plus://nuclei\?"):
        local_path("nuclei")
    (tmp_path / "nuclei").touch()
    assert local_path("nuclei") == "nuclei"


def test_names_are_no_paths(nuclei_zoo):
    for name in ("../nuclei", "nuclei.safetensors", "zoo.json", "/etc/passwd"):
        with pytest.raises(WeightsError, match="no such model"):
            local_path(f"maskrcnn_plus://{name}")


def test_without_models_it_says_so(empty_zoo):
    with pytest.raises(WeightsError, match="Those that do: none"):
        Predictor("maskrcnn_plus://nuclei")


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\1"), "SHA-256 [0-9a-f]{64}, [0-9a-f]{64} of"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "of 1000 bytes"),
        (lambda path: path.unlink(), "cannot be read"),
    ],
    ids=["changed", "truncated", "missing"],
)
def test_another_file_than_the_shipped_one_is_refused(nuclei_zoo, tmp_path, monkeypatch, damage, found):
    folder = tmp_path / "copy"
    shutil.copytree(nuclei_zoo, folder)
    monkeypatch.setattr(zoo, "FOLDER", folder)
    local_path("maskrcnn_plus://nuclei")  # its hash is remembered
    damage(folder / "nuclei.safetensors")
    with pytest.raises(WeightsError, match=rf"maskrcnn_plus://nuclei: its file .*{found}.*Install maskrcnn_plus again"):
        local_path("maskrcnn_plus://nuclei")


def test_the_folder_of_weights_elsewhere_is_the_current_one():
    assert folder_of("maskrcnn_plus://nuclei") == folder_of("https://example.org/a/w.pth") == Path()
    assert folder_of("output/mine/model_best.pth") == Path("output/mine")


@pytest.mark.parametrize("name", sorted(zoo.read_table()) or [None])
def test_the_packages_own_models_are_as_the_table_says(name):
    if name is None:
        pytest.skip("no model is shipped")
    model = zoo.read_table()[name]
    content = (zoo.FOLDER / model.file).read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (model.size, model.sha256)
    assert len(content) <= MOST_BYTES
    about = zoo.find_model_file(name)
    assert about.is_relative_to(ROOT)
    assert model.description
    assert model.licence
    assert f"maskrcnn_plus://{name}" in (ROOT / "docs" / "models.md").read_text()
    notice = re.sub(r"\s+", " ", (ROOT / "NOTICE").read_text())
    assert [credit for credit in model.credits if credit not in notice] == []
