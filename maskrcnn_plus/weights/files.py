"""Weights files as data: recognised by their content, checked, and read without running code from them.

Formats: `torch.save` archives of today (zip) and of before torch 1.6, pickled numpy arrays (`.pkl` of the model zoos of
Detectron and Detectron2), and safetensors.
"""

from __future__ import annotations

import json
import mmap
import os
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from maskrcnn_plus.special_files import refuse_special_file
from maskrcnn_plus.weights.conversion import WeightsError, WeightsFile
from maskrcnn_plus.weights.pickle_reader import MALFORMED, UnsafePickleError
from maskrcnn_plus.weights.prefixes import strip_wrappers
from maskrcnn_plus.weights.safe_pickle import load_pickle
from maskrcnn_plus.weights.torch_file import LEGACY_MAGIC, read_legacy, read_zip

# Entries under which training programs keep the weights; the averaged ones (EMA) first.
_AVERAGED = ("ema", "model_ema", "state_dict_ema", "ema_state", "ema_model")
_WRAPPERS = (*_AVERAGED, "model", "state_dict", "model_state_dict", "model_state", "blobs", "module")
_LONGEST_HEADER = 2**22  # bytes of a safetensors file, for the names of ten thousands of tensors

ABOUT = "maskrcnn_plus"
"""Key of a safetensors file's metadata: what a checkpoint has beside its tensors, as JSON."""

MAX_NODES = 500_000
"""Values of a file, counted as often as they are referred to; 64 characters of a text count as one."""

_COUNTERS = {"n_averaged", "num_updates"}  # beside averaged weights
_DEPTH = 4  # of entries within entries

# Reads a file whose reader does not know a class that it names, in the environment that does.
_EXTRACT = (
    "w = next((c[k] for k in ({wrappers}) if c.get(k)), c) if hasattr(c, 'get') else c; "
    "w = w.state_dict() if hasattr(w, 'state_dict') else w; "
    "m = c.get('meta') or {{}} if hasattr(c, 'get') else {{}}; "
    "meta = {{k: m.get(k) for k in ('dataset_meta', 'CLASSES', 'mmdet_version')}}; "
    "w = {{k: torch.as_tensor(v) for k, v in w.items() if hasattr(v, 'shape')}}; "
    "torch.save({{'state_dict': w, 'meta': meta}}, 'weights.pth')"
)


def read_file(path: str) -> dict[str, Any]:
    """The whole content of a weights file, as stored.

    Args:
        path: a local file; its format is told by its content.

    Returns:
        The dict in the file: of tensors or arrays, or with a training's other states beside them. Of a safetensors
        file {"model": tensors, **metadata}, in which `ABOUT` is unfolded.

    Raises:
        WeightsError: naming the file and the reason: missing, empty, truncated, of no known format, claiming more than
            it holds, or with anything but data in it, whose name is then given. Nothing of it is run.
    """
    content = _read(path, _recognise(path))
    _check_unrolled(content, path)
    return content


def read_weights(path: str) -> WeightsFile:
    """The tensors of a weights file by name, and what else it says about itself.

    The averaged weights (EMA) are taken where the file has some. Names lose the components of DistributedDataParallel
    and torch.compile (`strip_wrappers`), and momenta of Caffe2 are left out.

    Args:
        path: as for `read_file`.

    Raises:
        WeightsError: as `read_file`, and where names are no strings or values are no plain tensors.
    """
    kind = _recognise(path)
    content = _read(path, kind)
    wrapper, entries, averaged = _find_entries(content)
    for name in entries:
        if not isinstance(name, str):
            raise WeightsError(f"{path}: the name of a tensor is {_short(name)}, not a string.")
    if averaged or not wrapper:
        entries = {name: value for name, value in entries.items() if _is_array(value)}
    if averaged:
        entries = {name: value for name, value in entries.items() if name not in _COUNTERS}
    if not entries:
        found = ", ".join(_short(name) for name in list(content)[:8]) or "nothing"
        raise WeightsError(
            f'{path} holds no named tensors, neither at its top nor in an entry "model" or "state_dict"; '
            f"its entries: {found}."
        )
    metadata = {name: value for name, value in content.items() if name != wrapper and name not in entries}
    metadata = {name: value for name, value in metadata.items() if isinstance(name, str) and name not in _WRAPPERS}
    _check_unrolled(metadata, path)
    # The same tests as Detectron2's, which takes every pickle without an author for one of Caffe2.
    if kind == "pickle" and "__author__" not in content and not any("." in name for name in entries):
        metadata |= {"__author__": "Caffe2", "matching_heuristics": True}
    if metadata.get("__author__") == "Caffe2":
        entries = {name: value for name, value in entries.items() if not name.endswith("_momentum")}
    _check_sizes(entries.values(), path)
    new_names = strip_wrappers(entries)
    tensors = {new_names[name]: _tensor(value, name, path) for name, value in entries.items()}
    return WeightsFile(path, tensors, metadata)


def _find_entries(content: Mapping[Any, Any]) -> tuple[str | None, dict[Any, Any], bool]:
    """The entry at the top that holds the weights (None: the top does), the weights, and whether they are averaged."""
    top, entries, averaged = None, content, False
    for _ in range(_DEPTH):
        found = [name for name in _WRAPPERS if isinstance(entries.get(name), dict) and entries[name]]
        if not found or (top and any(map(_is_array, entries.values()))):
            break
        name = next((name for name in found if _holds_arrays(entries[name])), found[0])
        top, entries, averaged = top or name, entries[name], averaged or name in _AVERAGED
    return top, entries, averaged


def _holds_arrays(entries: Mapping[Any, Any], depth: int = _DEPTH) -> bool:
    """Whether it holds tensors, or an entry that keeps weights does."""
    if any(map(_is_array, entries.values())):
        return True
    inner = [entries[name] for name in _WRAPPERS if isinstance(entries.get(name), dict)]
    return depth > 0 and any(_holds_arrays(each, depth - 1) for each in inner)


def _recognise(path: str) -> str:
    """The format of a file by its first bytes: "zip", "legacy", "safetensors" or "pickle"."""
    if os.path.isdir(path):
        raise WeightsError(f"{path} is a folder, not a weights file.")
    try:
        refuse_special_file(path)
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
    if head.startswith(LEGACY_MAGIC):
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


def _read(path: str, kind: str) -> dict[str, Any]:
    """The content of a file whose format is known."""
    try:
        if kind == "safetensors":
            content = _read_safetensors(path)
        else:
            with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                if kind == "pickle":
                    content = load_pickle(data, path)
                else:
                    content = read_zip(data) if kind == "zip" else read_legacy(data)
    except UnsafePickleError as error:
        reason = str(error).removeprefix(f"{path} is refused: ").removesuffix(".")
        raise WeightsError(f"{path} is refused: {reason}.{_remedy(path, kind, reason)}") from error
    except WeightsError:
        raise
    except (*MALFORMED, RuntimeError, OSError, zipfile.BadZipFile, safetensors.SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            reason if path in reason else f"{path} cannot be read as weights (truncated or damaged): {reason}."
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a dict of tensors.")
    return content


def _read_safetensors(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > os.path.getsize(path) - 8:
        raise WeightsError(f"{path} is truncated or no safetensors file: its header would have {length} bytes.")
    if length > _LONGEST_HEADER:
        raise WeightsError(f"{path} is refused: a header of {length} bytes is longer than names of tensors take.")
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata() or {})
    about = _unfold(metadata.pop(ABOUT, "{}"), path)
    return {**metadata, **about, "model": safetensors.torch.load_file(path)}


def _unfold(text: str, path: str) -> dict[str, Any]:
    """What a checkpoint says of itself, from JSON."""
    try:
        about = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise WeightsError(f"{path} is damaged: what it says of itself is no JSON ({reason}).") from error
    if not isinstance(about, dict):
        raise WeightsError(f"{path} is damaged: what it says of itself is a {type(about).__name__}, no mapping.")
    return about


def _remedy(path: str, kind: str, reason: str) -> str:
    """How to get at the weights beside objects, such as those that Lightning, MMDetection and many others save."""
    if "is not plain data" not in reason:
        return ""
    name = os.path.basename(path)
    load = f"c = torch.load({name!r}, map_location='cpu', weights_only=False)"
    if kind == "pickle":
        load = f"c = pickle.load(open({name!r}, 'rb'), encoding='latin1')"
    keys = ", ".join(map(repr, _WRAPPERS))
    return (
        " Many training programs save such objects beside the weights. If you trust it, keep the weights alone, in the "
        f"environment that wrote it: `import pickle, torch; {load}; {_EXTRACT.format(wrappers=keys)}`. Then take "
        "weights.pth."
    )


def _check_unrolled(content: Any, path: str) -> None:
    """Refuse a value that contains itself, or one so often that who walks through it would never end."""
    waiting, count = [content], 0
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set)):
            waiting += value
        count += 1 + (len(value) // 64 if isinstance(value, (str, bytes)) else 0)
        if count + len(waiting) > MAX_NODES:
            raise WeightsError(f"{path} is refused: some of its values contain themselves or one another too often.")


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
