"""The notebook of the guides does what it says."""

import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from maskrcnn_plus import zoo

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "first_steps.ipynb"


def test_the_cells_run_in_turn_and_find_the_nuclei(tmp_path, monkeypatch):
    if "nuclei" not in zoo.read_table():
        pytest.skip("no model of nuclei is shipped")
    pytest.importorskip("pandas")
    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)
    names = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), names)
    found, truth, large = names["r"], names["truth"], names["large"]
    covered = found.pred_masks.any(0).numpy()
    assert (covered & (truth > 0)).sum() > 0.6 * (covered | (truth > 0)).sum()
    assert len(found) == pytest.approx(truth.max(), rel=0.4)
    assert abs(len(large) - len(found) / 2) <= 1
    assert np.asarray(Image.open(tmp_path / "large.png")).shape == (256, 320, 3)
    assert [picture.shape[2] for picture in names["pictures"]] == [4] * len(large)
