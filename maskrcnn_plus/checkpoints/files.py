"""Weights files as data: recognised by their content, checked, and read without running code from them.

Formats: `torch.save` archives of today (zip) and of before torch 1.6, pickled numpy arrays (`.pkl` of the model zoos of
Detectron and Detectron2), and safetensors.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Iterable
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from maskrcnn_plus.checkpoints.conversion import WeightsError, WeightsFile
from maskrcnn_plus.checkpoints.safe_pickle import load_pickle

# Entries under which training programs keep the weights; the averaged ones (EMA) first.
_AVERAGED = ("ema", "model_ema", "state_dict_ema")
_WRAPPERS = (*_AVERAGED, "model", "state_dict", "model_state_dict", "model_state", "blobs")
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number with which such a file begins


def read_file(path: str) -> dict[str, Any]:
    """The whole content of a weights file, as stored.

    Args:
        path: a local file; its format is told by its content.

    Returns:
        The dict in the file: of tensors or arrays, or with a training's other states beside them. Of a safetensors
        file {"model": tensors, **metadata}.

    Raises:
        WeightsError: naming the file and the reason: missing, empty, truncated, of no known format, claiming more than
            it holds, or with anything but data in it, whose name is then given. Nothing of it is run.
    """
    kind = _recognise(path)
    try:
        if kind == "zip":
            content = _read_zip(path)
        elif kind == "legacy":
            content = torch.load(path, map_location="cpu", weights_only=True)
        elif kind == "safetensors":
            content = _read_safetensors(path)
        else:
            with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                content = load_pickle(data, path)
    except pickle.UnpicklingError as error:
        raise WeightsError(_refusal(path, kind, error)) from error
    except WeightsError:
        raise
    except (
        ValueError,
        RuntimeError,  # torch's own readers
        EOFError,
        OSError,
        LookupError,
        TypeError,
        AttributeError,
        AssertionError,
        MemoryError,
        OverflowError,
        struct.error,
        zipfile.BadZipFile,
        safetensors.SafetensorError,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            reason if path in reason else f"{path} cannot be read as weights (truncated or of another format): {reason}"
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a dict of tensors.")
    return content


def read_weights(path: str) -> WeightsFile:
    """The tensors of a weights file by name, and what else it says about itself.

    The averaged weights (EMA) are taken where the file has some. Names lose the "module." of a model that was saved
    inside DistributedDataParallel, and momenta of Caffe2 are left out.

    Args:
        path: as for `read_file`.

    Raises:
        WeightsError: as `read_file`, and where names are no strings or values are no plain tensors.
    """
    content = read_file(path)
    wrapper = next((name for name in _WRAPPERS if isinstance(content.get(name), dict) and content[name]), None)
    entries = content[wrapper] if wrapper else content
    for name in entries:
        if not isinstance(name, str):
            raise WeightsError(f"{path}: the name of a tensor is {_short(name)}, not a string.")
    if wrapper in _AVERAGED:
        entries = {name: value for name, value in entries.items() if name != "n_averaged"}
    if not wrapper:
        entries = {name: value for name, value in entries.items() if _is_array(value)}
    if not entries:
        found = ", ".join(_short(name) for name in list(content)[:8]) or "nothing"
        raise WeightsError(
            f'{path} holds no named tensors, neither at its top nor in an entry "model" or "state_dict"; '
            f"its entries: {found}."
        )
    metadata = {name: value for name, value in content.items() if name != wrapper and name not in entries}
    metadata = {name: value for name, value in metadata.items() if isinstance(name, str) and name not in _WRAPPERS}
    # The same tests as Detectron2's, which takes every pickle without an author for one of Caffe2.
    if _recognise(path) == "pickle" and "__author__" not in content and not any("." in name for name in entries):
        metadata |= {"__author__": "Caffe2", "matching_heuristics": True}
    if metadata.get("__author__") == "Caffe2":
        entries = {name: value for name, value in entries.items() if not name.endswith("_momentum")}
    _check_sizes(entries.values(), path)
    tensors = {name: _tensor(value, name, path) for name, value in entries.items()}
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return WeightsFile(path, tensors, metadata)


def _recognise(path: str) -> str:
    """The format of a file by its first bytes: "zip", "legacy", "safetensors" or "pickle"."""
    if os.path.isdir(path):
        raise WeightsError(f"{path} is a folder, not a weights file.")
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise WeightsError(f"Weights file {path} does not exist.") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"Weights file {path} cannot be opened: {error}") from error
    if not head:
        raise WeightsError(f"Weights file {path} is empty.")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith(_LEGACY_TORCH):
        return "legacy"
    if head.lstrip().startswith((b"<", b"\xef\xbb\xbf<")):
        raise WeightsError(f"{path} is a web page, not a weights file: its download failed. Get the file itself.")
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a pointer of Git LFS, not the weights: run `git lfs pull` where it came from.")
    if head[8:10] in (b'{"', b"{}") or path.endswith(".safetensors"):
        return "safetensors"
    if head[:1] in (b"\x80", b"(", b"}", b"c"):  # protocols 2 and above, and the two before
        return "pickle"
    raise WeightsError(f"{path} is no weights file: neither of torch.save nor a pickle nor safetensors.")


def _read_zip(path: str) -> Any:
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if not any(record.filename.endswith("/data.pkl") for record in records):
        raise WeightsError(f"{path} is a zip archive, but none of torch.save.")
    packed = [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise WeightsError(f"{path} is refused: torch.save does not compress, but its record {packed[0]} is.")
    if sum(record.file_size for record in records) > os.path.getsize(path):
        raise WeightsError(f"{path} is refused: its records claim to be larger than the file.")
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > os.path.getsize(path) - 8:
        raise WeightsError(f"{path} is truncated or no safetensors file: its header would have {length} bytes.")
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    return {**metadata, "model": safetensors.torch.load_file(path)}


def _refusal(path: str, kind: str, error: pickle.UnpicklingError) -> str:
    """What to say of a torch file with more than data in it."""
    names = re.findall(r"GLOBAL ([\w.]+)", str(error))
    if kind == "zip":
        # For the message only: where the scan fails, what torch.load said remains.
        with contextlib.suppress(ValueError, RuntimeError, EOFError, LookupError, pickle.UnpicklingError):
            names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)) or names
    if not names:
        return f"{path} is refused: it is no plain weights file ({str(error).splitlines()[0]}). Nothing of it was run."
    message = f"{path} is refused: it refers to {', '.join(names[:8])}, which is not plain data; nothing of it was run."
    if any(name.startswith(("mmengine.", "mmcv.", "mmdet.", "numpy.")) for name in names):
        message += (
            " A training's checkpoint of MMDetection is one of these. If you trust it, keep its weights alone, in the "
            "environment that wrote it: "
            f'`c = torch.load("{os.path.basename(path)}", map_location="cpu", weights_only=False); '
            'meta = {k: c["meta"].get(k) for k in ("dataset_meta", "CLASSES", "mmdet_version")}; '
            'torch.save({"state_dict": c["state_dict"], "meta": meta}, "weights.pth")`.'
        )
    return message


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray | np.generic)


def _tensor(value: Any, name: str, path: str) -> Tensor:
    """A stored value as a plain tensor on the CPU."""
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        try:
            if array.dtype.kind not in "biufc":
                raise TypeError(f"values of type {array.dtype}")
            native = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
            return torch.from_numpy(native)
        except (TypeError, ValueError) as error:
            raise WeightsError(f"{path}: {name} is an array that torch cannot hold ({error}).") from error
    if not isinstance(value, Tensor):
        raise WeightsError(f"{path}: {name} is a {type(value).__name__}, not a tensor.")
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu" or value.is_nested:
        kind = "quantized" if value.is_quantized else f"{value.layout} on {value.device.type}"
        raise WeightsError(f"{path}: {name} is no plain tensor ({kind}).")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise WeightsError(f"{path} is refused: {name} claims {value.numel()} numbers, more than are stored.")
    return value.detach()


def _check_sizes(values: Iterable[Any], path: str) -> None:
    """Nothing in a file is compressed, so that its numbers cannot take more bytes than the file has."""
    storages, arrays = {}, 0
    for value in values:
        if isinstance(value, np.ndarray):
            arrays += value.nbytes
        elif isinstance(value, Tensor) and value.layout == torch.strided:
            storage = value.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    if sum(storages.values()) + arrays > os.path.getsize(path):
        raise WeightsError(f"{path} is refused: its tensors claim to be larger than the file.")


def _short(value: Any) -> str:
    return repr(value)[:40] if isinstance(value, str | int | float) else f"a {type(value).__name__}"
