"""A checkpoint becomes a shipped model: whole, in the table, and never too large."""

import hashlib

import pytest
import ship_weights
from shipped_nuclei import CREDITS, write_checkpoint

from maskrcnn_plus import zoo
from maskrcnn_plus.apps import ship as shipping
from maskrcnn_plus.apps.ship import ship
from maskrcnn_plus.checkpoints.sources import local_path
from maskrcnn_plus.errors import UserError
from maskrcnn_plus.inference.predictor import Predictor

ABOUT = ["--description", "Nuclei", "--licence", "Apache-2.0", "--credits", *CREDITS, "Set B"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("trained"))


def test_the_command_writes_file_and_table(checkpoint, empty_zoo, capsys):
    assert ship_weights.main(["--weights", checkpoint, "--name", "nuclei", *ABOUT]) == 0
    assert "maskrcnn_plus://nuclei" in capsys.readouterr().out
    model = zoo.read_table()["nuclei"]
    content = (empty_zoo / "nuclei.safetensors").read_bytes()
    assert model == zoo.ShippedModel(
        "nuclei.safetensors", len(content), hashlib.sha256(content).hexdigest(), "Nuclei", "Apache-2.0",
        [*CREDITS, "Set B"],
    )  # fmt: skip
    assert {path.name for path in empty_zoo.iterdir()} == {"nuclei.safetensors", "zoo.json"}

    assert ship_weights.main(["--weights", checkpoint, "--name", "nuclei", "--description", "Better"]) == 0
    assert zoo.read_table()["nuclei"].description == "Better"
    assert zoo.read_table()["nuclei"].credits == [*CREDITS, "Set B"]
    local_path("maskrcnn_plus://nuclei")
    assert ship_weights.main(["--weights", checkpoint, "--name", "nuclei", "--score-threshold", "0.37"]) == 0
    assert Predictor("maskrcnn_plus://nuclei", device="cpu").score_threshold == 0.37


def test_what_is_too_large_leaves_the_earlier_model(checkpoint, empty_zoo, monkeypatch):
    ship(checkpoint, "nuclei", "Nuclei", "Apache-2.0", CREDITS)
    before = {path: path.read_bytes() for path in empty_zoo.iterdir()}
    monkeypatch.setattr(shipping, "MOST_BYTES", 1_000_000)
    with pytest.raises(UserError, match=r"model_best\.pth would take [\d.]+ MB in the package, more than 1 MB"):
        ship(checkpoint, "nuclei")
    assert {path: path.read_bytes() for path in empty_zoo.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--name", "nuclei"], "nuclei is new in the table: give its description and licence and credits"),
        (["--name", "../nuclei", *ABOUT], "no name for a model"),
        (["--name", "nuclei", *ABOUT, "--score-threshold", "60"], "score threshold is 60"),
        (["--name", "nuclei", *ABOUT, "--weights", "nowhere.pth"], "nowhere.pth does not exist"),
    ],
)
def test_what_cannot_be_shipped_is_told(checkpoint, empty_zoo, capsys, arguments, reason):
    assert ship_weights.main(["--weights", checkpoint, *arguments]) == 1
    assert reason in capsys.readouterr().err
    assert [path.name for path in empty_zoo.iterdir()] == ["zoo.json"]
