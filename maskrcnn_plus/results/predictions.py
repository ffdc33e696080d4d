"""Predicted instances that know their image, what their classes are called and the size of a pixel."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.data.channels import ChannelRule
from maskrcnn_plus.data.windows import open_windows
from maskrcnn_plus.masks.measure import move_rles
from maskrcnn_plus.masks.rle_masks import RLEMasks, encode_masks, instance_masks

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

_OF_THE_IMAGE = ("class_names", "category_ids", "pixel_size", "image", "object_diameter", "region", "channel_rule")


class Predictions(Instances):
    """Detectron2's `Instances` of one image with facts of the image beside its fields.

    Parts by an index, copies on another device and what `Predictions.cat` joins know them too. `Instances.cat` gives
    Detectron2's type, which has the fields only.

    Attributes:
        class_names: a name a class, in the order of `pred_classes`; None where they are not known.
        category_ids: an id a class, of the COCO file that the model was trained on; None where it is not known.
        pixel_size: micrometres a pixel; None where it is not known.
        image: what was predicted: an array [H, W] or [H, W, C] in RGB order, or the path of a file; None where it is
            not known.
        object_diameter: median diameter of the objects, pixels of the image, that the scale follows from, estimated or
            given; None of a model whose scale does not depend on it.
        region: (x, y, width, height) of the part of the image that was predicted, pixels; None for all of it.
        channel_rule: which channels and planes of the image were predicted; None takes it as it is.
    """

    class_names: Sequence[str] | None
    category_ids: Sequence[int | float | str] | None
    pixel_size: float | None
    image: np.ndarray | str | None
    object_diameter: float | None
    region: tuple[int, int, int, int] | None
    channel_rule: ChannelRule | None

    def __init__(
        self,
        image_size: tuple[int, int],
        *,
        class_names: Sequence[str] | None = None,
        category_ids: Sequence[int | float | str] | None = None,
        pixel_size: float | None = None,
        image: np.ndarray | str | None = None,
        object_diameter: float | None = None,
        region: tuple[int, int, int, int] | None = None,
        channel_rule: ChannelRule | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(image_size, **fields)
        self.class_names, self.category_ids, self.pixel_size = class_names, category_ids, pixel_size
        self.image, self.object_diameter, self.region = image, object_diameter, region
        self.channel_rule = channel_rule

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OF_THE_IMAGE:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def has(self, name: str) -> bool:
        """Whether there is a field; `pred_masks` is made of the run-length codes where it is asked for."""
        return super().has(name) or (name == "pred_masks" and super().has("pred_masks_rle"))

    @property
    def pred_masks(self) -> torch.Tensor:
        """Masks, bool [N, H, W], as Detectron2's `Visualizer` reads them; made at each call unless they are a field."""
        fields = self.get_fields()
        if "pred_masks" in fields:
            return fields["pred_masks"]
        if "pred_masks_rle" not in fields:
            raise AttributeError("The model predicts no masks.")
        return instance_masks(self).to_dense()

    def draw(self, colour_by: str | None = None) -> np.ndarray:
        """The image with all objects drawn in, [h, w, 3] uint8 RGB; a huge one reduced.

        Args:
            colour_by: "class" or "instance"; None decides by the number of classes.

        Raises:
            ValueError: the image is not known, or not to be read any more.
        """
        from maskrcnn_plus.results import figures

        return figures.draw(self._known_image(), self, colour_by=colour_by)

    def plot(self, ax: Axes | None = None, colour_by: str | None = None) -> Axes:
        """Draw image and objects in axes of matplotlib, see `figures.plot`."""
        from maskrcnn_plus.results import figures

        return figures.plot(self._known_image(), self, ax, colour_by=colour_by)

    def show(self, colour_by: str | None = None) -> None:
        """`plot`, and show the figure."""
        from maskrcnn_plus.results import figures

        figures.show(self._known_image(), self, colour_by=colour_by)

    def save(self, path: str | os.PathLike, colour_by: str | None = None) -> None:
        """Write the image with all objects drawn in, in the format of the suffix (.png, .jpg, .tif, .webp).

        Raises:
            ValueError: the image is not known, or pictures are not written with this suffix.
            OSError: it cannot be written.
        """
        picture = Image.fromarray(self.draw(colour_by))
        kind = Image.registered_extensions().get(os.path.splitext(path)[1].lower())
        if kind is None:
            raise ValueError(f"{os.fspath(path)}: give the picture a name that ends with .png, .jpg, .tif or .webp")
        buffer = io.BytesIO()
        picture.save(buffer, format=kind)
        write_atomically(path, buffer.getvalue())

    def cutouts(self, soft: bool = True) -> list[np.ndarray]:
        """Each object cut out, RGBA [h, w, 4] uint8, see `results.cutouts.cut_out`."""
        from maskrcnn_plus.results import cutouts, figures

        return cutouts.cut_out(figures.picture(self._known_image(), self.channel_rule), self, soft)

    def to_df(self) -> pandas.DataFrame:
        """The table of `results.table.object_table`, a row an object.

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas

        from maskrcnn_plus.results.table import object_table

        with contextlib.ExitStack() as stack:
            image = None
            if self.image is not None:
                image = stack.enter_context(open_windows(self.image, rule=self.channel_rule))
            name = self.image if isinstance(self.image, str) else ""
            table = object_table(encode_masks(self), name, image, self.class_names, self.pixel_size)
        return pandas.read_csv(io.BytesIO(table))

    def _known_image(self) -> np.ndarray | str:
        if self.image is None:
            raise ValueError(
                "these predictions do not know their image: use maskrcnn_plus.results.figures with it, or write_results"
            )
        return self.image

    def placed(self, x: int, y: int, height: int, width: int) -> Predictions:
        """The objects in an image of which theirs is the part whose upper left pixel is at x, y.

        Args:
            x, y: column and row, pixels.
            height, width: of the whole image, pixels.
        """
        facts = {name: getattr(self, name) for name in _OF_THE_IMAGE}
        facts |= {"image": None, "region": (x, y, *self.image_size[::-1])}
        fields = encode_masks(self).get_fields()
        fields["pred_masks_rle"] = RLEMasks(move_rles(fields["pred_masks_rle"], x, y, height, width), (height, width))
        boxes = self.pred_boxes.tensor
        fields["pred_boxes"] = Boxes(boxes + boxes.new_tensor([x, y, x, y]))
        return Predictions((height, width), **facts, **fields)

    def to(self, *args: Any, **kwargs: Any) -> Predictions:
        """A copy with all fields that have a device on the given one."""
        return self._with_facts(super().to(*args, **kwargs))

    def __getitem__(self, item: Any) -> Predictions:
        return self._with_facts(super().__getitem__(item))

    @staticmethod
    def cat(instance_lists: Sequence[Instances]) -> Instances:
        """Join instances of one image; the facts are those of the first."""
        joined, first = Instances.cat(instance_lists), instance_lists[0]
        return first._with_facts(joined) if isinstance(first, Predictions) else joined

    def _with_facts(self, instances: Instances) -> Predictions:
        facts = {name: getattr(self, name) for name in _OF_THE_IMAGE}
        return Predictions(instances.image_size, **facts, **instances.get_fields())


def coco_fields(entries: Sequence[dict[str, Any]], classes: Sequence[int], size: tuple[int, int]) -> dict[str, Any]:
    """Fields of `Instances` from entries with `bbox` (XYWH), `score` and `segmentation`, as `coco_results` has them.

    Args:
        entries: of the N objects of an image.
        classes: index of the class of each.
        size: (height, width) of the image.

    Raises:
        ValueError: a mask is corrupt, or of another size than the image.
    """
    boxes = torch.tensor([entry["bbox"] for entry in entries], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return {
        "pred_boxes": Boxes(boxes),
        "scores": torch.tensor([entry["score"] for entry in entries], dtype=torch.float32),
        "pred_classes": torch.tensor(classes, dtype=torch.int64),
        "pred_masks_rle": RLEMasks([entry["segmentation"] for entry in entries], size),
    }
