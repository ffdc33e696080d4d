"""Films of objects with known identities, a stand-in for a detector, and how well tracks keep identities."""

from collections import Counter

import cv2
import numpy as np
import torch
from detectron2.config import LazyCall as L
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf
from scipy.optimize import linear_sum_assignment
from torch import nn

from maskrcnn_plus.data.mapper import InstanceMapper
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.masks.label_map import label_map_to_rles
from maskrcnn_plus.masks.measure import rle_boxes
from maskrcnn_plus.masks.rle_masks import RLEMasks


class BrightPieces(nn.Module):
    """Finds connected bright pieces; those wider than high are of class 1."""

    def __init__(self) -> None:
        super().__init__()
        self._calls = 0  # not a setting of the model

    def forward(self, batch):
        return [{"instances": self.find(**example)} for example in batch]

    def find(self, image, height, width, **_):
        self._calls += 1
        count, labels = cv2.connectedComponents((image[0].numpy() > 100).astype(np.uint8))
        found, _ = found_in(labels, range(1, count))
        found.pred_masks = found.pred_masks_rle.to_dense()
        found.remove("pred_masks_rle")
        sides = found.pred_boxes.tensor[:, 2:] - found.pred_boxes.tensor[:, :2]
        found.pred_classes = (sides[:, 0] > sides[:, 1]).long()
        return found


def piece_predictor():
    """A Predictor that finds bright pieces, of the classes "high" and "wide"."""
    mapper = L(InstanceMapper)(is_train=False, augmentations=[])
    config = {
        "model": L(BrightPieces)(),
        "dataloader": {"test": {"mapper": mapper}},
        "train": {"device": "cpu"},
        "dataset": {"thing_classes": ["high", "wide"]},
    }
    return Predictor(OmegaConf.create(config, flags={"allow_objects": True}), "random")


def found_in(labels, values=None):
    """What a perfect detector finds in a label image [H, W], and the value of each object."""
    values = [value for value in np.unique(labels).tolist() if value] if values is None else list(values)
    rles = label_map_to_rles(labels, values)
    boxes = torch.from_numpy(rle_boxes(rles).astype(np.float32).reshape(-1, 4))
    found = Instances(labels.shape, pred_boxes=Boxes(boxes), scores=torch.full((len(values),), 0.9))
    found.pred_classes = torch.zeros(len(values), dtype=torch.int64)
    found.pred_masks_rle = RLEMasks(rles, labels.shape)
    return found, values


def follow(tracker, films, seed=0, dropped=0.0, jitter=0.0):
    """Track what is found in label images [H, W].

    Args:
        dropped: share of the objects that are not found.
        jitter: standard deviation by which the others are displaced, pixels.

    Returns:
        Identities in each frame, and pairs (true, computed) of what was found.
    """
    rng = np.random.default_rng(seed)
    truth, tracked = [], []
    for labels in films:
        found, values = found_in(labels)
        truth.append(values)
        kept = np.flatnonzero(rng.random(len(values)) >= dropped)
        found, values = found[kept], [values[k] for k in kept]
        if jitter:
            masks = found.pred_masks_rle.to_dense().numpy()
            moved = [np.roll(m, np.rint(jitter * rng.standard_normal(2)).astype(int), (0, 1)) for m in masks]
            found.pred_masks_rle = RLEMasks.from_dense(np.array(moved).reshape(masks.shape))
            found.pred_boxes = Boxes(
                torch.from_numpy(rle_boxes(found.pred_masks_rle).astype(np.float32).reshape(-1, 4))
            )
        tracked.append(list(zip(values, tracker.update(found).tolist(), strict=True)))
    return truth, tracked


def identity_scores(truth, tracked):
    """IDF1 and identity switches, of what `follow` returns.

    IDF1 by Ristani et al., "Performance Measures and a Data Set for Multi-Target, Multi-Camera Tracking" (2016), Sec.
    3: true and computed trajectories are matched one to one such that they agree in most frames; IDTP are these, and
    IDF1 = 2 IDTP / (true + computed objects of all frames). A switch is a true trajectory that goes on under another
    identity.
    """
    true_count = Counter(each for frame in truth for each in frame)
    pairs = Counter(pair for frame in tracked for pair in frame if pair[1])
    computed_count = Counter(pair[1] for frame in tracked for pair in frame if pair[1])
    rows, columns = sorted(true_count), sorted(computed_count)
    agreement = np.array([[pairs[row, column] for column in columns] for row in rows]).reshape(len(rows), len(columns))
    matched = agreement[linear_sum_assignment(agreement, maximize=True)].sum()
    last, switches = {}, 0
    for true, computed in (pair for frame in tracked for pair in frame if pair[1]):
        switches += last.get(true, computed) != computed
        last[true] = computed
    return 2 * matched / (true_count.total() + computed_count.total()), switches
