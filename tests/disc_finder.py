"""A stand-in for a detector that learned discs of about one size, and images of discs."""

import cv2
import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

LEARNED = 22.0
"""Diameter of the discs that it learned, pixels of its input."""


def draw_discs(height, width, diameters, seed=0):
    """Bright discs on black that do not touch, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    image, placed = np.zeros((height, width, 3), np.uint8), np.zeros((0, 3))
    for radius in sorted(np.array(diameters) / 2, reverse=True):
        tries = rng.uniform(radius + 2, np.array([width, height]) - radius - 2, (3000, 2))
        apart = np.linalg.norm(tries[:, None] - placed[None, :, :2], axis=2) > radius + placed[:, 2] + 2
        x, y = tries[apart.all(axis=1)][0]
        placed = np.vstack([placed, (x, y, radius)])
        cv2.circle(image, (round(x * 16), round(y * 16)), round(radius * 16), (230, 230, 230), -1, cv2.LINE_AA, shift=4)
    return image


class DiscFinder(nn.Module):
    """Finds bright pieces, surely those of about the learned diameter and less surely smaller and larger ones.

    What is below a third of it is not seen, and of what is above three times it, specks of the learned diameter are
    seen instead.
    """

    def __init__(self, junk: float = 0.7) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 3, 3, 3))
        self.junk = junk  # score of the specks
        self.seen = []  # [h, w] of each input

    def forward(self, batch):
        return [{"instances": self._find(**example)} for example in batch]

    def _find(self, image, height, width, **_):
        size = tuple(image.shape[1:])
        self.seen.append(size)
        bright = (image[0].numpy() > 115).astype(np.uint8)
        _, pieces, stats, _ = cv2.connectedComponentsWithStats(bright)
        boxes, scores, masks = [], [], []
        for index, (x, y, w, h, area) in enumerate(stats[1:], start=1):
            octaves = np.log2(2 * np.sqrt(area / np.pi) / LEARNED)
            if octaves < -1.6:
                continue
            if octaves <= 1.6:
                boxes.append((x, y, x + w, y + h))
                scores.append(0.98 - 0.25 * max(abs(octaves) - 0.4, 0))
                masks.append(pieces == index)
                continue
            for left in range(x, x + w - int(LEARNED), int(4 * LEARNED)):
                boxes.append((left, y + h // 2, left + LEARNED, y + h // 2 + LEARNED))
                scores.append(self.junk)
                masks.append(np.zeros(size, bool))
        found = Instances((height, width))
        found.pred_boxes = Boxes(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
            * torch.tensor([width / size[1], height / size[0]]).repeat(2)
        )
        found.scores = torch.tensor(scores, dtype=torch.float32)
        found.pred_classes = torch.zeros(len(scores), dtype=torch.int64)
        scaled = [cv2.resize(mask.astype(np.uint8), (width, height), interpolation=0) > 0 for mask in masks]
        found.pred_masks = torch.from_numpy(np.stack(scaled)) if scaled else torch.zeros(0, height, width).bool()
        return found
