"""A small COCO data set of discs without a fault, and what is needed to plant some."""

import json

import cv2
import numpy as np
from PIL import Image

SIDE = 160
COUNTS = {"train": 12, "val": 6}


def disc(x, y, radius, points=24):
    """Polygon of a disc."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1).round(2).ravel().tolist()


def rle_of(mask):
    """RLE of a mask, not compressed."""
    flat = mask.ravel(order="F").astype(np.int8)
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


class DataSet:
    """Discs on a 4 x 3 grid, in images that all differ, as COCO content by split that a test may change."""

    def __init__(self, root):
        self.root = root
        self.content = {}
        rng = np.random.default_rng(0)
        for split, count in COUNTS.items():
            (root / split).mkdir(parents=True)
            images, annotations = [], []
            for number in range(1, count + 1):
                name = f"{split}{number}.png"
                images.append({"id": number, "file_name": name, "height": SIDE, "width": SIDE})
                picture = rng.normal(30, 5, (SIDE, SIDE)).astype(np.float32)
                for cell in range(12):
                    x, y = 24 + 37 * (cell % 4) + rng.uniform(-5, 5), 30 + 48 * (cell // 4) + rng.uniform(-8, 8)
                    radius = rng.uniform(7, 11)
                    polygon = disc(x, y, radius)
                    points = np.array(polygon).reshape(-1, 2)
                    cv2.fillPoly(picture, [np.rint(points).astype(np.int32)], float(rng.uniform(90, 220)))
                    annotations.append(self.annotation(len(annotations) + 1, number, [polygon], 1 + cell % 2))
                Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(root / split / name)
            categories = [{"id": 1, "name": "round"}, {"id": 2, "name": "disc"}]
            self.content[split] = {"images": images, "annotations": annotations, "categories": categories}

    @staticmethod
    def annotation(number, image, segmentation, category=1):
        """An annotation whose box is that of its mask."""
        if isinstance(segmentation, dict):
            y, x = np.nonzero(decode(segmentation))
            low, high = np.array([x.min(), y.min()]), np.array([x.max() + 1, y.max() + 1])
        else:
            points = np.concatenate([np.array(each).reshape(-1, 2) for each in segmentation])
            low, high = points.min(0), points.max(0)
        return {
            "id": number,
            "image_id": image,
            "category_id": category,
            "segmentation": segmentation,
            "bbox": [*low.tolist(), *(high - low).tolist()],
            "area": float((high - low).prod()),
            "iscrowd": 0,
        }

    def add(self, segmentation, image=1, category=1, split="train", **changes):
        """Add an annotation, and return its number in its image."""
        entries = self.content[split]["annotations"]
        entries.append({**self.annotation(len(entries) + 1, image, segmentation, category), **changes})
        return sum(each["image_id"] == image for each in entries) - 1

    def repeat(self, number, category, split="train"):
        """Draw an annotation of the first image once more, not quite the same; return its number in its image."""
        polygon = self.content[split]["annotations"][number]["segmentation"][0]
        return self.add([[value + 0.1 for value in polygon]], category=category, split=split)

    def write(self):
        """Write the files, and return the folder."""
        for split, content in self.content.items():
            (self.root / split / "_annotations.coco.json").write_text(json.dumps(content))
        return self.root


def decode(rle):
    """Mask of an RLE that is not compressed."""
    flat = np.repeat(np.arange(len(rle["counts"])) % 2, rle["counts"])
    return flat.reshape(rle["size"][::-1]).T.astype(bool)
