"""The results of many images as Parquet: a row an object with COCO's columns, and a row an image beside it.

    objects/shard-000003.parquet    image_id, file_name, name, label_id, category_id, class, score, bbox (XYWH, pixels),
                                    area (pixels of the mask), segmentation {size, counts}
    images/shard-000003.parquet     image_id, file_name, name, part, height, width, objects, pixel_size (micrometres),
                                    object_diameter (pixels)
    failures/shard-000003.parquet   file_name, part, reason

`image_id` is the place of the file in the plan, from 1, and for page or frame k of a file 2**32 * k more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from detectron2.structures import Instances

from maskrcnn_plus.arrays import as_array
from maskrcnn_plus.errors import UserError, first_line
from maskrcnn_plus.masks.measure import rle_areas
from maskrcnn_plus.results.overlay import class_label
from maskrcnn_plus.results.predictions import Predictions, coco_fields

if TYPE_CHECKING:
    from maskrcnn_plus.apps.cluster.stores import Store

_OF_FILE = 1 << 32

IMAGES = pa.schema(
    [
        ("image_id", pa.int64()),
        ("file_name", pa.string()),
        ("name", pa.string()),
        ("part", pa.string()),
        ("height", pa.int64()),
        ("width", pa.int64()),
        ("objects", pa.int64()),
        ("pixel_size", pa.float64()),
        ("object_diameter", pa.float64()),
    ]
)
FAILURES = pa.schema([("file_name", pa.string()), ("part", pa.string()), ("reason", pa.string())])


def get_image_id(position: int, number: int) -> int:
    """Of the file at a position from 0, and its page or frame from 1 (0 for a whole file)."""
    return position + 1 + number * _OF_FILE


def image_order(image_id: int) -> tuple[int, int]:
    """Sort key: the files in the order of the plan, their pages and frames within."""
    number, position = divmod(image_id - 1, _OF_FILE)
    return position, number


def objects_schema(category_ids: Sequence[int | float | str] | None) -> pa.Schema:
    """Of the table of objects; ids that are not all whole numbers become text."""
    numbers = all(type(each) is int for each in category_ids or ())
    return pa.schema(
        [
            ("image_id", pa.int64()),
            ("file_name", pa.string()),
            ("name", pa.string()),
            ("label_id", pa.int32()),
            ("category_id", pa.int64() if numbers else pa.string()),
            ("class", pa.string()),
            ("score", pa.float32()),
            ("bbox", pa.list_(pa.float32())),
            ("area", pa.int64()),
            ("segmentation", pa.struct([("size", pa.list_(pa.int64())), ("counts", pa.string())])),
        ]
    )


class Rows:
    """The rows of one shard."""

    def __init__(self, class_names: Sequence[str], category_ids: Sequence[int | float | str] | None) -> None:
        self.class_names, self.category_ids = class_names, category_ids
        self.objects: list[pa.Table] = []
        self.images: list[dict[str, Any]] = []
        self.failures: list[dict[str, Any]] = []
        self._schema = objects_schema(category_ids)

    def add(
        self, instances: Instances, image_id: int, file_name: str, name: str, part: str, pixel_size: float | None
    ) -> None:
        """Take the results of an image."""
        boxes = as_array(instances.pred_boxes.tensor).copy()  # [N, 4]
        boxes[:, 2:] -= boxes[:, :2]  # xyxy -> XYWH
        classes, count = instances.pred_classes.tolist(), len(instances)
        rles = list(instances.pred_masks_rle)
        ids = [self.category_ids[k] for k in classes] if self.category_ids else classes
        columns = {
            "image_id": [image_id] * count,
            "file_name": [file_name] * count,
            "name": [name] * count,
            "label_id": range(1, count + 1),
            "category_id": ids if self._schema.field("category_id").type == pa.int64() else list(map(str, ids)),
            "class": [class_label(self.class_names, k) for k in classes],
            "score": as_array(instances.scores),
            "bbox": list(boxes),
            "area": rle_areas(rles),
            "segmentation": [{"size": rle["size"], "counts": rle["counts"]} for rle in rles],
        }
        self.objects.append(pa.table(columns, schema=self._schema))
        height, width = instances.image_size
        diameter = getattr(instances, "object_diameter", None)
        row = (image_id, file_name, name, part, height, width, count, pixel_size, diameter)
        self.images.append(dict(zip(IMAGES.names, row, strict=True)))

    def fail(self, file_name: str, part: str, reason: str) -> None:
        """Take an image that cannot be predicted."""
        self.failures.append({"file_name": file_name, "part": part, "reason": reason})

    def content(self, kind: str) -> bytes:
        """A Parquet file of the "objects", "images" or "failures"."""
        if kind == "objects":
            table = pa.concat_tables(self.objects) if self.objects else self._schema.empty_table()
        elif kind == "images":
            table = pa.Table.from_pylist(self.images, schema=IMAGES)
        else:
            table = pa.Table.from_pylist(self.failures, schema=FAILURES)
        return to_parquet(table)


def to_parquet(table: pa.Table, row_group_size: int | None = None) -> bytes:
    """The bytes of a Parquet file."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd", row_group_size=row_group_size)
    return buffer.getvalue().to_pybytes()


def read_table(store: Store, name: str) -> pa.Table:
    """The table of a Parquet file of a store.

    Raises:
        UserError: it is damaged.
        OSError: it cannot be read.
    """
    content = store.read(name)
    try:
        return pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        remedy = f"remove images/{name.rpartition('/')[2]} there, and give the command of the job again"
        raise UserError(f"{store.child(name)} is damaged ({first_line(error)}): {remedy}") from error


def iterate_images(objects: pa.Table, images: pa.Table) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each image's row with the rows of its objects, in the order of the plan.

    Raises:
        UserError: an image has not as many objects as its row says.
    """
    ids = objects.column("image_id").to_numpy()
    order = np.argsort(ids, kind="stable")
    rows = sorted(images.to_pylist(), key=lambda row: image_order(row["image_id"]))
    for row in rows:
        first, last = np.searchsorted(ids, [row["image_id"], row["image_id"] + 1], sorter=order)
        if last - first != row["objects"]:
            raise UserError(
                f"{row['file_name']}: {row['objects']} objects were found in it, and the table of objects has "
                f"{last - first}: the tables are not of one job, or not whole"
            )
        yield row, objects.take(order[first:last]).to_pylist()


def to_predictions(
    image: dict[str, Any],
    objects: Sequence[dict[str, Any]],
    class_names: Sequence[str],
    category_ids: Sequence[int | float | str] | None,
) -> Predictions:
    """The predictions of an image from its rows.

    Raises:
        UserError: a mask is corrupt or of another size than the image, or a value is missing or of another kind.
    """
    size = image["height"], image["width"]
    classes = {class_label(class_names, k): k for k in range(len(class_names))}
    try:
        fields = coco_fields(objects, [classes[row["class"]] for row in objects], size)
    except (ValueError, LookupError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{image['file_name']}: its objects in the tables of predictions cannot be used "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
    return Predictions(
        size,
        class_names=class_names,
        category_ids=category_ids,
        pixel_size=image["pixel_size"],
        object_diameter=image["object_diameter"],
        **fields,
    )
