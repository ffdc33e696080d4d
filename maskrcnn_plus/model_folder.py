"""The description of an exported model, `model.json` in its folder: all that a program needs beside the graphs.

    description = read_model_folder("output/model_onnx")   # checked, the files too
    write_model_folder("output/model_onnx", description, ["model.onnx"])

It is data: nothing in it names code. Standard library only, so that it is read where PyTorch is not installed.

Shape shorthand: H, W image height and width in pixels, [h, w] the image as the network sees it, C channels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.errors import UserError
from maskrcnn_plus.plain_data import from_plain

FILE_NAME = "model.json"
FORMAT, VERSION = "maskrcnn_plus exported model", 1
_MOST_BYTES = 1 << 22  # of model.json
_RUN_BY = {
    "whole": "maskrcnn_plus.runtime.ExportedModel and python -m maskrcnn_plus.apps.run_exported run it.",
    "hybrid": "Predictor and tools/predict.py run it.",
}


class ModelFolderError(UserError):
    """An exported model that cannot be used."""


@dataclass(frozen=True)
class Resize:
    """The size that an image is brought to, and how.

    Attributes:
        rule: "none"; "scale", `scale` times its size (`ScaleImage`: OpenCV, by areas where it shrinks); or the shorter
            side to `short_side` by the rule and the pixels of "detectron2" (`ResizeShortestEdge`), "torchvision"
            (`InterpolateShortestEdge`) or "mmcv" (`MMCVResize`); or "config", of a hybrid model alone: what
            the mapper of its config does, which cannot be told in other words.
        scale: factor, of "scale".
        short_side: pixels; of "scale" the size that `scale` multiplies, None for that of the image.
        max_size: most pixels of the longer side.
    """

    rule: Literal["none", "scale", "detectron2", "torchvision", "mmcv", "config"]
    scale: float = 1.0
    short_side: int | None = None
    max_size: int | None = None

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of an image of height x width pixels.

        Raises:
            ModelFolderError: the rule is "config".
        """
        if self.rule == "config":
            raise ModelFolderError("this model's resizing is told by its config alone, which Predictor reads.")
        if self.rule == "none":
            return height, width
        shorter, longer, limit = min(height, width), max(height, width), self.max_size or math.inf
        if self.rule == "scale":
            factor = min(self.scale * (self.short_side / shorter if self.short_side else 1.0), limit / longer)
            return max(round(height * factor), 1), max(round(width * factor), 1)
        if self.rule == "torchvision":
            factor = min(self.short_side / shorter, limit / longer)
            return max(int(height * factor), 1), max(int(width * factor), 1)
        if self.rule == "mmcv":  # the larger number limits the longer side, whichever of the two it is
            factor = min(max(self.short_side, limit) / longer, min(self.short_side, limit) / shorter)
            return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)
        factor = self.short_side / shorter
        sides = (self.short_side, factor * width) if height < width else (factor * height, self.short_side)
        if max(sides) > limit:
            factor = limit / max(sides)
            sides = (sides[0] * factor, sides[1] * factor)
        return int(sides[0] + 0.5), int(sides[1] + 0.5)


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input.

    Attributes:
        channels: C.
        color_order: of three channels that are not selected; "L" for one channel.
        select, projection: see `ChannelRule`.
        percentiles: of an image's values that become 0 and 255; None keeps 8 bits, divides 16 bits by 257 and
            multiplies floats in 0..1 by 255.
        eight_bit: values are rounded to whole grey levels before the resizing (Detectron2's `DatasetMapper`).
        resize: the size.
        pixel_mean, pixel_std: [C], of values in 0..255.
        pad_to_multiple: of both sides, right and below, after the normalisation, with 0.
        pad_to_square: least length of both sides after it, pixels; 0 for none.
        inside_graph: whether the graph normalises and pads; else its input is normalised and padded.
    """

    channels: int
    color_order: Literal["RGB", "BGR", "L"]
    resize: Resize
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    pad_to_multiple: int = 1
    pad_to_square: int = 0
    inside_graph: bool = True
    eight_bit: bool = False
    select: tuple[int | str, ...] | None = None
    projection: Literal["max", "mean"] | None = None
    percentiles: tuple[float, float] | None = None


@dataclass(frozen=True)
class Postprocessing:
    """How the outputs of the network become objects.

    Attributes:
        score_threshold: least score of an object; None takes all that come out.
        max_objects: most objects of an image.
        nms_inside: whether the graph suppresses doubles.
        has_masks: whether there are masks.
        mask_threshold: a pixel belongs to an object from this probability on.
        mask_pasting: the rule of `paste_masks_rle`.
        min_mask_area: objects of fewer pixels are dropped.
        max_covered: objects are dropped of which better ones cover more than this share, see `suppress_covered`.
    """

    max_objects: int
    score_threshold: float | None = None
    nms_inside: bool = True
    has_masks: bool = True
    mask_threshold: float = 0.5
    mask_pasting: Literal["detectron2", "torchvision"] = "detectron2"
    min_mask_area: int = 0
    max_covered: float = 1.0


@dataclass(frozen=True)
class ModelFile:
    """A file of the folder: its SHA-256 in hexadecimal digits, and its bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class ModelDescription:
    """An exported model.

    Attributes:
        kind: "whole", one graph from image to objects; "hybrid", graphs with operators of this package between them.
        precision: of the weights: "fp32", "fp16", "bf16" or "int8".
        class_names: a name a class.
        category_ids: an id a class, of the COCO file of the training data; None where they are not known.
        preprocessing, postprocessing: what a program does before and after the graph.
        packages: versions of what made the export, by name.
        details: plain data of a kind's own.
        files: of the folder, by name; `write_model_folder` fills it.
    """

    kind: Literal["whole", "hybrid"]
    precision: Literal["fp32", "fp16", "bf16", "int8"]
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    postprocessing: Postprocessing
    category_ids: tuple[int | float | str, ...] | None = None
    packages: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    files: dict[str, ModelFile] = field(default_factory=dict)


def is_model_folder(path: str | os.PathLike) -> bool:
    """Whether a path is a folder with a `model.json`."""
    return (Path(path) / FILE_NAME).is_file()


def write_model_folder(folder: str | Path, description: ModelDescription, files: Sequence[str]) -> ModelDescription:
    """Write `model.json` of a folder whose files are there, last of all: a folder without it is no model.

    Args:
        folder: of the model.
        description: its `files` are replaced.
        files: names in the folder.

    Returns:
        The description as written.

    Raises:
        OSError: a file cannot be read or written.
    """
    folder = Path(folder)
    described = {name: _measure(folder / name) for name in files}
    description = dataclasses.replace(description, files=described)
    content = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(description)}
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / FILE_NAME, f"{text}\n".encode())
    return description


def read_model_folder(
    folder: str | os.PathLike, kind: str | None = None, *, check_files: bool = True
) -> ModelDescription:
    """Read and check the description of an exported model, and its files.

    Args:
        folder: of the model.
        kind: that is wanted; None takes either.
        check_files: read all files and compare their hashes; else they are not looked at.

    Raises:
        ModelFolderError: it is no exported model, of another version or kind, or a file is missing or changed.
    """
    folder = Path(folder)
    content = _read_json(folder)
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise ModelFolderError(f"{folder / FILE_NAME} does not describe a model that maskrcnn_plus exported.")
    if (version := content.pop("version", None)) != VERSION:
        raise ModelFolderError(
            f"{folder / FILE_NAME} is of version {version!r}, this maskrcnn_plus reads version {VERSION}: export the "
            "model again, or use the maskrcnn_plus that made it."
        )
    try:
        description = from_plain(content, ModelDescription)
        _check_values(description)
    except ValueError as error:
        raise ModelFolderError(f"{folder / FILE_NAME}: {error}") from error
    if kind not in (None, description.kind):
        raise ModelFolderError(
            f"{folder} is a {description.kind} model, a {kind} one is needed. {_RUN_BY[description.kind]}"
        )
    for name, known in description.files.items() if check_files else ():
        if not (folder / name).is_file():
            raise ModelFolderError(f"{folder}: {name} is missing. Copy the whole folder, or export the model again.")
        if _measure(folder / name) != known:
            raise ModelFolderError(
                f"{folder / name} is not the file that was exported: it is damaged, or of another export. Copy the "
                "whole folder again, or export the model again."
            )
    return description


def _read_json(folder: Path) -> Any:
    path = folder / FILE_NAME
    if not folder.is_dir():
        raise ModelFolderError(f"{folder} is no folder; an exported model is a folder with a {FILE_NAME}.")
    if not path.is_file():
        raise ModelFolderError(f"{folder} has no {FILE_NAME}: it is no exported model, or its export did not end.")
    if path.stat().st_size > _MOST_BYTES:
        raise ModelFolderError(f"{path} has more than {_MOST_BYTES} bytes, which no export writes.")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelFolderError(f"{path} is damaged: {error}") from error


def _measure(path: Path) -> ModelFile:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return ModelFile(digest, file.tell())


def _check_values(description: ModelDescription) -> None:
    """Raise a ValueError for values that fit their types and make no sense."""
    pre, post, resize = description.preprocessing, description.postprocessing, description.preprocessing.resize
    low, high = pre.percentiles or (0, 100)
    for good, problem in (
        (description.class_names, "class_names are missing"),
        (description.files, "files are missing"),
        (all(map(_is_plain_name, description.files)), "a name in files is a path"),
        (len(description.category_ids or description.class_names) == len(description.class_names), "category_ids"),
        (1 <= pre.channels == len(pre.pixel_mean) == len(pre.pixel_std), "channels, pixel_mean and pixel_std"),
        (min(pre.pixel_std, default=1) > 0, "pixel_std"),
        (1 <= pre.pad_to_multiple <= 4096 and 0 <= pre.pad_to_square <= 65536, "pad_to_multiple or pad_to_square"),
        (0 <= low < high <= 100, "percentiles"),
        (resize.rule in ("none", "scale", "config") or resize.short_side, "resize.short_side is missing"),
        (resize.scale > 0 and 0 < (resize.short_side or 1) <= 65536 and (resize.max_size or 1) > 0, "resize"),
        (post.max_objects >= 1 and post.min_mask_area >= 0 and 0 <= post.max_covered <= 1, "postprocessing"),
        (0 <= (post.score_threshold or 0) <= 1 and 0 <= post.mask_threshold <= 1, "a threshold of postprocessing"),
    ):
        if not good:
            raise ValueError(problem if "missing" in problem or "path" in problem else f"{problem}: out of range")


def _is_plain_name(name: str) -> bool:
    return name not in ("", ".", "..", FILE_NAME) and not set(name) & set("/\\:\0")
