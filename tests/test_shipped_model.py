"""The shipped model of nuclei on real images: what its float16 numbers cost.

Any float32 model that would be rounded to the shipped one lies within half a step of float16 around it. Such a model,
drawn by chance, stands for the one that was trained.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from maskrcnn_plus import zoo
from maskrcnn_plus.data.images import read_label_map
from maskrcnn_plus.evaluation.matching import count_matches, matched_average_precision, visible_masks
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.masks.label_map import label_map_to_rles
from maskrcnn_plus.weights.files import read_weights

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SETS = ("nuclei_fluo", "nuclei_rgb", "nuclei_he")
THRESHOLDS = tuple(percent / 100 for percent in range(50, 91))  # many, so that one that an object crosses counts little


@pytest.fixture(scope="module")
def images():
    """Image and RLEs of the objects of one validation image of each set, of those of at most 0.4 Mpx the fullest."""
    if "nuclei" not in zoo.read_table():
        pytest.skip("no model of nuclei is shipped")
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not there")
    chosen = []
    for folder in (DATA / name for name in SETS):
        maps = {
            name: read_label_map(str(folder / "labels" / f"{name}.png"))
            for name in json.loads((folder / "splits.json").read_text())["val"]
        }
        name = max((name for name in maps if maps[name].size <= 4e5), key=lambda name: maps[name].max())
        labels = np.unique(maps[name])
        rles = label_map_to_rles(maps[name], labels[labels > 0].tolist())
        chosen.append((str(folder / "images" / f"{name}.png"), rles))
    return chosen


def average_precision(predictor, images):
    """Pooled AP of the nuclei papers, mean over the thresholds."""
    counts = []
    for path, truth in images:
        found = predictor.predict(path)
        rles, _ = visible_masks(list(found.pred_masks_rle), found.scores.tolist(), *found.image_size)
        counts.append(count_matches(rles, [0] * len(rles), truth, [0] * len(truth), [False] * len(truth), THRESHOLDS))
    return matched_average_precision(np.stack(counts), THRESHOLDS)["mAP"]


def test_rounding_to_float16_costs_next_to_nothing(images):
    """Of some hundred objects those next to a threshold of score or IoU decide some thousandths, up or down.

    On all images for validation the AP is that of the trained checkpoint to 0.001 (docs/models.md).
    """
    source = "maskrcnn_plus://nuclei"
    stored = read_weights(str(zoo.find_model_file("nuclei"))).tensors
    rounded = Predictor(source, device="cpu", optimize=False)
    before = average_precision(rounded, images)
    generator, total, moved = torch.Generator().manual_seed(0), 0, 0
    state = rounded.model.state_dict()
    for name, tensor in stored.items():
        if tensor.dtype == torch.float16:
            step = torch.finfo(torch.float16).eps * 2.0 ** tensor.float().abs().clamp(min=2**-14).log2().floor()
            state[name] += step * (torch.rand(tensor.shape, generator=generator) - 0.5)
            total, moved = total + tensor.numel(), moved + int((state[name].half() != tensor).sum())
    assert total > 0
    assert moved < 1e-3 * total  # at powers of two the steps below are shorter
    assert before > 0.4
    assert average_precision(rounded, images) == pytest.approx(before, abs=1e-2)
