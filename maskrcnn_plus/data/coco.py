"""Data sets in COCO's format, registered from a config."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

from detectron2.data.datasets.coco import load_coco_json

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.registration import register_source


def register_coco(name: str, json_file: str, image_root: str) -> str:
    """Register a COCO json like Detectron2's `register_coco_instances`, but as a value in a LazyConfig.

    Registering the same again changes nothing; the file is read when the data set is first used.

    Args:
        name: name in DatasetCatalog and MetadataCatalog.
        json_file: COCO instances json with polygons, RLE and crowds.
        image_root: folder that its `file_name`s are relative to.

    Returns:
        `name`, so that it can stand for the data set: `names=L(register_coco)(...)`.

    Raises:
        DataError: the name is taken by another data set, or, when it is used, the file is missing or damaged.
    """
    source = _CocoFile(name, str(json_file), str(image_root))
    return register_source(
        name, source, json_file=source.json_file, image_root=source.image_root, evaluator_type="coco"
    )


@dataclass(frozen=True)
class _CocoFile:
    name: str
    json_file: str
    image_root: str

    def __call__(self) -> list[dict]:
        for path, what in ((self.json_file, "annotation file"), (self.image_root, "image folder")):
            if not Path(path).exists():
                raise DataError(
                    f"Data set '{self.name}': its {what} {path} does not exist. Set dataset.* of the config."
                )
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
                return load_coco_json(self.json_file, self.image_root, self.name)
        except (json.JSONDecodeError, KeyError, TypeError, AssertionError, IndexError) as error:
            raise DataError(
                f"Data set '{self.name}': {self.json_file} is no valid COCO file ({type(error).__name__}: {error})."
            ) from error
