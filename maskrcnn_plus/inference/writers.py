"""Predictions to disk: overlays, label images and one COCO results file, each file whole or not there at all.

Shape shorthand: N objects of one image of H x W pixels.
"""

import io
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import tifffile
from detectron2.structures import Instances

from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.inference.overlay import draw_overlay, encode_masks
from maskrcnn_plus.masks.label_map import rles_to_label_map


class PredictionWriter:
    """Writes the predictions of many images below one folder.

    - `overlays/NAME.png`: the image with its masks drawn in;
    - `labels/NAME.png`: 16-bit label image, 0 background, value k = the image's k-th object; a pixel belongs to the
      object with the highest score. With more than 65535 objects a 32-bit `labels/NAME.tif`;
    - `predictions.json`, written by `close`: a COCO results list (`pycocotools.coco.COCO.loadRes` takes it). Besides
      COCO's keys an entry has `file_name` and `label_id`, its value in the label image. `category_id` is the index
      of the class from 0, `image_id` the running number of the image from 1.

    NAME is the file name without extension. Where two images would get the same, the later one's has its extension
    (same folder), its parent folders or a number added. Use it as a context manager: `predictions.json` is then
    written even when an exception ends the work early.

    Args:
        output_folder: made if it is not there. Files of an earlier run with the same names are replaced.
        class_names: class names for the labels of overlays.

    Raises:
        OSError: the folder cannot be made or written to.
    """

    def __init__(self, output_folder: str | Path, class_names: Sequence[str] | None = None):
        self.folder = Path(output_folder)
        self.class_names = class_names
        self.results: list[dict] = []
        self.num_images = 0
        self._folder_of_name: dict[str, str] = {}
        for name in ("overlays", "labels"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.close()  # an output folder without write permission shows here, not after an hour of work

    def __enter__(self) -> "PredictionWriter":
        """Return the writer itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Write `predictions.json`, whatever ended the block."""
        self.close()

    def write(self, path: str, image: np.ndarray, instances: Instances) -> np.ndarray:
        """Write overlay and label image of one image and keep its results for `predictions.json`.

        Args:
            path: the file that the image came from; results name it and output files are named after it.
            image: [H, W, 3] uint8 RGB.
            instances: `pred_boxes`, `scores`, `pred_classes` and `pred_masks` [N, H, W] bool or `pred_masks_rle`.

        Returns:
            The overlay, [H, W, 3] uint8 RGB.

        Raises:
            ValueError: the sizes of image and instances differ, there are no masks, or an output file would replace
                the input.
            OSError: a file cannot be written.
        """
        instances = encode_masks(instances)
        overlay = draw_overlay(image, instances, self.class_names)
        labels = rles_to_label_map(instances.pred_masks_rle, instances.scores.numpy(), *instances.image_size)

        name = self._unique_name(str(path))
        suffix, encode = (".png", encode_png) if labels.dtype == np.uint16 else (".tif", _encode_tiff)
        targets = self.folder / "overlays" / f"{name}.png", self.folder / "labels" / f"{name}{suffix}"
        if any(target.exists() and Path(path).exists() and target.samefile(path) for target in targets):
            raise ValueError(f"{path}: predictions would replace this input; choose another output folder")
        write_atomically(targets[0], encode_png(overlay))
        write_atomically(targets[1], encode(labels))
        self.num_images += 1
        self.results += _coco_results(self.num_images, str(path), instances)
        return overlay

    def close(self) -> None:
        """Write `predictions.json` with everything written so far."""
        write_atomically(self.folder / "predictions.json", json.dumps(self.results).encode())

    def _unique_name(self, path: str) -> str:
        """Reserve a file name without extension for the image at `path`, different from all before."""
        pure = PurePosixPath(path.split("://", 1)[-1].replace(os.sep, "/"))
        folder, parents = str(pure.parent), [part for part in pure.parent.parts if part not in ("/", ".", "..")]
        taken = self._folder_of_name
        if taken.get(pure.stem.lower()) == folder:
            longer = [f"{pure.stem}_{pure.suffix.lstrip('.')}"]
        else:
            longer = ["_".join([*parents[-depth:], pure.stem]) for depth in range(1, len(parents) + 1)]
        longer = [name for name in longer if len(name.encode()) < 200]  # file systems take 255 bytes
        numbered = (f"{pure.stem}_{k}" for k in itertools.count(2))
        # compared without case, for file systems that do not see it
        name = next(name for name in itertools.chain([pure.stem], longer, numbered) if name.lower() not in taken)
        taken[name.lower()] = folder
        return name


def encode_png(image: np.ndarray) -> bytes:
    """PNG file of an array: [H, W, 3] uint8 RGB, or [H, W] uint8 or uint16."""
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    encoded, content = cv2.imencode(".png", image)
    if not encoded:
        raise ValueError(f"OpenCV cannot encode an image {image.shape} of {image.dtype} as PNG")
    return content.tobytes()


def _encode_tiff(labels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, labels, compression="zlib")
    return buffer.getvalue()


def _coco_results(image_id: int, file_name: str, instances: Instances) -> list[dict]:
    boxes = instances.pred_boxes.tensor.clone()  # [N, 4]
    boxes[:, 2:] -= boxes[:, :2]  # xyxy -> XYWH
    columns = boxes, instances.scores, instances.pred_classes
    fields = zip(*(column.tolist() for column in columns), instances.pred_masks_rle, strict=True)
    return [
        {
            "image_id": image_id,
            "file_name": file_name,
            "label_id": label_id,
            "category_id": category,
            "bbox": box,
            "score": score,
            "segmentation": rle,
        }
        for label_id, (box, score, category, rle) in enumerate(fields, start=1)
    ]
