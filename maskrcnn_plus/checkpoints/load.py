"""Reading weight files and loading a model with them."""

from __future__ import annotations

import pickle
import struct
import zipfile
from typing import Any, NamedTuple

import torch
from detectron2.utils.file_io import PathManager
from torch import nn

from maskrcnn_plus.checkpoints.safe_pickle import load_pickle


class WeightsError(ValueError):
    """A weights file is missing, unreadable, unsafe, or does not fit the model."""


class LoadReport(NamedTuple):
    """What a load did: names of tensors."""

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    other_shape: list[str]

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        for words, names in (
            ("missing in the file", self.missing),
            ("of another shape", self.other_shape),
            ("left over in the file", self.unexpected),
        ):
            if names:
                shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
                parts.append(f"{len(names)} {words} ({shown})")
        return "; ".join(parts)


def read_file(path: str) -> dict[str, Any]:
    """Read a weights file as data, without running code from it.

    Args:
        path: a local `.pth`/`.pt` (torch.save) or `.pkl` (model zoo) file.

    Returns:
        A dict with at least "model": name -> tensor or array; further entries of the file as they are.

    Raises:
        WeightsError: naming the file and the reason.
    """
    try:
        if path.endswith(".pkl"):
            with open(path, "rb") as file:
                data = load_pickle(file, path)
        else:
            data = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"Weights file {path} does not exist.") from None
    except ValueError as error:
        text = str(error)
        raise WeightsError(text if path in text else f"{path} cannot be read as weights: {text}") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{path} is refused: it is no plain weights file ({str(error).splitlines()[0]}).") from error
    except (
        RuntimeError,
        EOFError,
        OSError,
        LookupError,
        TypeError,
        AttributeError,
        struct.error,
        zipfile.BadZipFile,
    ) as error:
        raise WeightsError(f"{path} cannot be read as weights (truncated or of another format): {error}") from error
    if not isinstance(data, dict):
        raise WeightsError(f"{path} holds a {type(data).__name__}, not a dict of tensors.")
    if path.endswith(".pkl") and not ("model" in data and "__author__" in data):
        blobs = data.get("blobs", data)  # Caffe2 / Detectron1
        blobs = {name: value for name, value in blobs.items() if not name.endswith("_momentum")}
        return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}
    return data if "model" in data else {"model": data}


def load_weights(model: nn.Module, source: str, *, strict: bool = True) -> LoadReport:
    """Load a model's weights; the averaged ones (EMA) where the checkpoint has them.

    Args:
        model: any Detectron2 model.
        source: a local file or any path that Detectron2's path manager knows (`detectron2://`, `https://`).
        strict: every tensor of the model must be in the file, in its shape. Otherwise at least one must.

    Raises:
        WeightsError: naming the file, what does not fit, and the likely cause.
    """
    from maskrcnn_plus.checkpoints.checkpointer import Checkpointer

    path = PathManager.get_local_path(source)
    data = read_file(path)
    ema = data.get("ema")
    if ema:
        prefix = "module."
        data["model"] = {name.removeprefix(prefix): t for name, t in ema.items() if name.startswith(prefix)}
    incompatible = Checkpointer(model)._load_model({k: v for k, v in data.items() if k != "ema"})
    other_shape = [name for name, *_ in incompatible.incorrect_shapes]
    absent = set(incompatible.missing_keys) | set(other_shape)
    report = LoadReport(
        loaded=[name for name in model.state_dict() if name not in absent],
        missing=[name for name in incompatible.missing_keys if name not in other_shape],
        unexpected=list(incompatible.unexpected_keys),
        other_shape=other_shape,
    )
    if not report.loaded or (strict and absent):
        raise WeightsError(
            f"{source} does not fit the model: {report}. Is it the checkpoint of this config "
            "(same backbone, channels, number of classes)?"
        )
    return report
