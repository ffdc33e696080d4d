"""napari: a widget that makes a layer of labels, with a table of its objects, from an image layer.

`napari.yaml` beside this file tells napari of it; the entry point `napari.manifest` tells where that is.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskrcnn_plus import model_folder
from maskrcnn_plus.apps.bridges.detector import Detector
from maskrcnn_plus.masks.label_map import rles_to_label_map

if TYPE_CHECKING:
    import napari
    import pandas
    from magicgui.widgets import ComboBox, Container

SHIPPED = "maskrcnn_plus://nuclei"


def label_image(
    pixels: Any, detect: Callable[[np.ndarray], Any], rgb: bool = False
) -> tuple[np.ndarray, pandas.DataFrame]:
    """Labels of an image or of each plane of a stack, and a table of the objects.

    Args:
        pixels: [..., Y, X], with `rgb` [..., Y, X, 3 or 4]: an array, or what gives one for each plane (dask, zarr).
        detect: gives the `Predictions` of a plane, such as a `Detector`.
        rgb: whether the last axis is colour.

    Returns:
        labels: int32 [..., Y, X]; no two objects have a value in common, also in different planes.
        table: a row an object: `index` (its value), `class`, `score`, its box, area, centroid and perimeter in pixels,
            its mean intensity and, of a stack, `axis 0`, ... (the place of its plane).
    """
    import pandas

    shape = pixels.shape[:-1] if rgb else pixels.shape
    labels, tables = np.zeros(shape, dtype=np.int32), []
    count = 0
    for place in np.ndindex(*shape[:-2]):
        found = detect(np.asarray(pixels[place]))
        plane = rles_to_label_map(found.pred_masks_rle, found.scores, *shape[-2:]).astype(np.int32)
        labels[place] = np.where(plane > 0, plane + count, 0)
        table = found.to_df().drop(columns="image").rename(columns={"id": "index"})
        table["index"] += count
        tables.append(table.assign(**{f"axis {axis}": index for axis, index in enumerate(place)}))
        count += len(found)
    return labels, pandas.concat(tables, ignore_index=True)


def load(weights: str, diameter: float | None) -> Detector:
    """The model, loaded once, and anew where its file has changed, as after another training."""
    path = Path(weights, model_folder.FILE_NAME) if os.path.isdir(weights) else Path(weights)
    return _load(weights, diameter, path.stat().st_mtime_ns if path.is_file() else None)


@lru_cache(maxsize=1)
def _load(weights: str, diameter: float | None, changed: int | None) -> Detector:
    return Detector(weights, diameter=diameter)


def find_objects(
    layer: napari.layers.Image, weights: str = SHIPPED, score: float = 0.5, diameter: float = 0.0
) -> tuple[np.ndarray, dict[str, Any], str]:
    """A layer of labels for an image layer, of whose pyramid the largest image is taken.

    Args:
        layer: the image.
        weights: of `Detector`.
        score: least score of an object.
        diameter: median diameter of the objects in pixels; 0 estimates it.

    Returns:
        Data, options and kind of the layer, as napari's plugins give them.
    """
    pixels = layer.data[0] if layer.multiscale else layer.data
    detector = load(weights, diameter or None)
    labels, table = label_image(pixels, lambda plane: detector(plane, score), layer.rgb)
    place = {"scale": layer.scale[-labels.ndim :], "translate": layer.translate[-labels.ndim :]}
    return labels, {"name": f"{layer.name}: objects", "features": table, **place}, "labels"


def make_widget() -> Container:
    """The widget of the current viewer, which predicts beside its thread and adds the layer when it is there."""
    import napari
    from magicgui.widgets import ComboBox, Container, FloatSpinBox, LineEdit, PushButton
    from napari.qt.threading import thread_worker

    viewer = napari.current_viewer()

    def list_images(_: ComboBox) -> list[napari.layers.Image]:
        return [layer for layer in viewer.layers if isinstance(layer, napari.layers.Image)]

    image = ComboBox(label="image", choices=list_images)
    for event in ("inserted", "removed", "reordered"):
        getattr(viewer.layers.events, event).connect(image.reset_choices)
    weights = LineEdit(value=SHIPPED, label="weights")
    score = FloatSpinBox(value=0.5, min=0, max=1, step=0.05, label="least score")
    diameter = FloatSpinBox(value=0, min=0, max=10000, label="diameter, px (0: estimated)")
    button = PushButton(text="Find objects")

    def add(layer: tuple[np.ndarray, dict[str, Any], str]) -> None:
        labels, options, _ = layer
        viewer.add_labels(labels, **options)

    def start() -> None:
        if image.value is None:
            napari.utils.notifications.show_warning("Open an image first.")
            return
        button.enabled = False
        worker = thread_worker(find_objects, progress=True)(image.value, weights.value, score.value, diameter.value)
        worker.returned.connect(add)
        worker.finished.connect(lambda: setattr(button, "enabled", True))
        worker.start()  # what it raises, napari shows

    button.changed.connect(start)
    return Container(widgets=[image, weights, score, diameter, button])
