"""Files of `torch.save` as data: its zip archives, and the sequence of pickles before PyTorch 1.6.

Every tensor is a view of a storage whose bytes were read from the file; nothing else makes one. PyTorch's own loader
also takes `torch.Tensor(1000)` and storages that the file never delivers, whose numbers are whatever was in memory.

Layout: torch/serialization.py (`_save`, `_legacy_save`) and torch/_utils.py (`_rebuild_tensor_v2` and the others).
"""

from __future__ import annotations

import io
import math
import sys
import zipfile
import zlib
from collections import Counter
from functools import partial
from typing import IO, Any

import torch
from torch import Tensor

from maskrcnn_plus.weights.pickle_reader import Function, Globals, Part, PickleReader, UnsafePickleError, fill
from maskrcnn_plus.weights.safe_pickle import check_shape, plain_globals

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The pickled number with which a file before PyTorch 1.6 begins."""

_LOCAL_HEADER = 30  # bytes of a zip record's header before its name


def read_zip(file: IO[bytes]) -> Any:
    """The content of an archive of `torch.save`.

    Args:
        file: opened for reading bytes, without a buffer that reserves what is asked for, such as `mmap`.

    Raises:
        UnsafePickleError: it holds anything but data, or claims more than it has.
        zipfile.BadZipFile, ValueError and others of `MALFORMED`: it is malformed or truncated.
    """
    size = file.seek(0, 2) or file.tell()
    with zipfile.ZipFile(file) as archive:
        records = {record.filename: record for record in archive.infolist()}
        claimed = sum(record.file_size for record in archive.infolist())
    pickled = next((name for name in records if name.endswith("/data.pkl")), None)
    if pickled is None:
        raise ValueError("it is a zip archive, but none of torch.save")
    root = pickled.removesuffix("data.pkl")
    if f"{root}constants.pkl" in records:
        raise UnsafePickleError(
            "it is a TorchScript program, not weights: save the model's state_dict() with torch.save"
        )
    packed = [name for name, record in records.items() if record.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise UnsafePickleError(f"torch.save does not compress, but its record {packed[0]} is")
    if claimed > size:
        raise UnsafePickleError("its records claim to be larger than the file")

    def record_bytes(name: str) -> bytearray:
        record = records[name]
        file.seek(record.header_offset)
        header = file.read(_LOCAL_HEADER)
        if header[:4] != b"PK\x03\x04":
            raise ValueError(f"its record {name} is not where it should be")
        skipped = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        file.seek(record.header_offset + _LOCAL_HEADER + skipped)
        return _read_exactly(file, record.file_size)

    def is_sound(name: str, content: bytearray) -> bool:
        return zlib.crc32(content) == records[name].CRC

    head = record_bytes(pickled)
    has_checksums = is_sound(pickled, head)  # torch.save can be told to write none
    order = f"{root}byteorder"
    foreign = order in records and bytes(record_bytes(order)) != sys.byteorder.encode()
    storages: dict[str, _Storage] = {}

    def storage(reference: Any) -> _Storage:
        dtype, key, _ = _reference(reference)
        if key not in storages:
            name = f"{root}data/{key}"
            if name not in records:
                raise UnsafePickleError(f"it refers to a storage {key[:40]!r} that it does not hold")
            content = record_bytes(name)
            if has_checksums and not is_sound(name, content):
                raise ValueError(f"it is damaged: the checksum of its record {name} is another")
            storages[key] = _Storage(content)
            if foreign and len(content):
                storages[key].bytes.untyped_storage().byteswap(dtype)
        return storages[key].as_type(dtype)

    return PickleReader(io.BytesIO(head), _globals(size), storage).read()


def read_legacy(file: IO[bytes]) -> Any:
    """The content of a file of `torch.save` before PyTorch 1.6; arguments and errors as for `read_zip`."""
    size = file.seek(0, 2) or file.tell()
    file.seek(len(LEGACY_MAGIC))
    storages: dict[str, _Storage] = {}
    left = size

    def storage(reference: Any) -> _Storage:
        nonlocal left
        dtype, key, count = _reference(reference)
        if key not in storages:
            left -= count * dtype.itemsize
            if left < 0:
                raise UnsafePickleError("its storages claim to be larger than the file")
            storages[key] = _Storage(bytearray(count * dtype.itemsize), dtype)
        return storages[key].as_type(dtype)

    plain = plain_globals(size)
    version, system = PickleReader(file, plain).read(), PickleReader(file, plain).read()
    if version != 1001 or not isinstance(system, dict):
        raise ValueError("it is of another version of torch.save")
    content = PickleReader(file, _globals(size), storage).read()
    keys = PickleReader(file, plain).read()
    if not isinstance(keys, list) or set(map(str, keys)) != set(storages) or len(keys) != len(storages):
        raise UnsafePickleError("its tensors refer to storages that it does not hold")
    for key in map(str, keys):
        target = storages[key]
        count = int.from_bytes(_read_exactly(file, 8), "little")
        if count * target.dtype.itemsize != target.bytes.numel():
            raise ValueError(f"its storage {key[:40]!r} is of another length than it says")
        target.bytes.copy_(
            torch.frombuffer(_read_exactly(file, target.bytes.numel()) or bytearray(1), dtype=torch.uint8)
        )
    if system.get("little_endian", True) is not (sys.byteorder == "little"):
        for each in storages.values():
            each.bytes.untyped_storage().byteswap(each.dtype)
    return content


class _Storage(Part):
    """Bytes of a file [B], read as numbers of a type."""

    def __init__(self, content: bytearray | Tensor, dtype: torch.dtype = torch.uint8) -> None:
        if isinstance(content, bytearray):
            content = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
        self.bytes, self.dtype = content, dtype

    def as_type(self, dtype: torch.dtype) -> _Storage:
        return _Storage(self.bytes, dtype)


class _StorageType(Part):
    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


def _reference(reference: Any) -> tuple[torch.dtype, str, int]:
    """Type of numbers, key and count of numbers of a storage that a pickle refers to; the device does not matter."""
    if not isinstance(reference, tuple) or not 5 <= len(reference) <= 6 or reference[0] != "storage":
        raise UnsafePickleError("it refers to something that is no storage of numbers")
    kind, key, _, count, *view = reference[1:]
    if (
        not isinstance(kind, _StorageType)
        or not isinstance(key, str)
        or type(count) is not int
        or not 0 <= count < 2**62
    ):
        raise ValueError("a storage is malformed")
    if any(view):
        raise UnsafePickleError("it is of PyTorch before 0.4: load it there and save it again")
    return kind.dtype, key, count


def _globals(size: int) -> Globals:
    """The globals of a file of so many bytes."""
    dtypes = [value for value in vars(torch).values() if isinstance(value, torch.dtype)]
    return {
        **plain_globals(size),
        ("collections", "Counter"): Function(lambda counts: Counter(fill({}, _flat(counts)))),
        ("builtins", "set"): Function(_set),
        ("__builtin__", "set"): Function(_set),
        ("torch", "Size"): Function(_size),
        ("torch", "device"): Function(torch.device),
        ("torch", "Tensor"): Function(),
        ("torch.nn.parameter", "Parameter"): Function(),
        **{("torch", str(dtype).removeprefix("torch.")): dtype for dtype in dtypes},
        **{("torch", name): _StorageType(dtype) for name, dtype in _STORAGES.items()},
        ("torch.storage", "UntypedStorage"): _StorageType(torch.uint8),
        ("torch._utils", "_rebuild_tensor"): Function(_tensor),
        ("torch._utils", "_rebuild_tensor_v2"): Function(_tensor),
        ("torch._utils", "_rebuild_tensor_v3"): Function(_tensor_of_type),
        ("torch._utils", "_rebuild_parameter"): Function(_parameter),
        ("torch._utils", "_rebuild_parameter_with_state"): Function(_parameter),
        ("torch._tensor", "_rebuild_from_type_v2"): Function(_strip_subclass),
        **{("torch._utils", name): Function(partial(_refuse, name)) for name in _OTHER_TENSORS},
        ("torch.serialization", "_get_layout"): Function(partial(_refuse, "of another layout")),
    }


_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
_OTHER_TENSORS = (
    "_rebuild_sparse_tensor",
    "_rebuild_sparse_csr_tensor",
    "_rebuild_nested_tensor",
    "_rebuild_qtensor",
    "_rebuild_meta_tensor_no_storage",
    "_rebuild_wrapper_subclass",
    "_rebuild_device_tensor_from_numpy",
    "_rebuild_device_tensor_from_cpu_tensor",
)


def _tensor(
    storage: _Storage, offset: int, size: tuple, stride: tuple, *_: Any, dtype: torch.dtype | None = None
) -> Tensor:
    """A view of a storage, within it."""
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor has no storage")
    dtype = dtype or storage.dtype
    check_shape(size)
    check_shape(stride)
    if len(size) != len(stride) or type(offset) is not int or offset < 0:
        raise ValueError("a tensor's size, stride or offset is malformed")
    count, stored = math.prod(size), storage.bytes.numel() // dtype.itemsize
    if count == 0:
        return torch.empty(size, dtype=dtype)
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if last >= stored or count > stored:
        raise UnsafePickleError(f"a tensor claims {max(count, last + 1)} numbers, more than are stored ({stored})")
    return torch.empty(0, dtype=dtype).set_(storage.bytes.untyped_storage(), offset, size, stride)


def _tensor_of_type(
    storage: _Storage, offset: int, size: tuple, stride: tuple, _grad: Any, _hooks: Any, dtype: torch.dtype, *_: Any
) -> Tensor:
    if not isinstance(dtype, torch.dtype):
        raise ValueError("a tensor has no type")
    return _tensor(storage, offset, size, stride, dtype=dtype)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise ValueError("a parameter is no tensor")
    return data


def _strip_subclass(function: Function, _class: Any, arguments: tuple, _state: Any) -> Tensor:
    """A tensor with attributes or of a subclass, without them."""
    if not isinstance(function, Function) or function.call not in (_tensor, _tensor_of_type, _parameter):
        raise UnsafePickleError("it makes a tensor in an unknown way")
    return function.call(*arguments)


def _refuse(name: str, *_: Any) -> Tensor:
    raise UnsafePickleError(f"it holds what is no plain tensor ({name})")


def _size(sides: tuple) -> torch.Size:
    check_shape(sides)
    return torch.Size(sides)


def _set(members: list) -> set:
    if not isinstance(members, (list, tuple)):
        raise ValueError("a set is not made of a list")
    return set(fill({}, [value for member in members for value in (member, None)]))


def _flat(counts: dict) -> list[Any]:
    if not isinstance(counts, dict):
        raise ValueError("a Counter is not made of a dict")
    return [value for item in counts.items() for value in item]


def _read_exactly(file: IO[bytes], count: int) -> bytearray:
    data = bytearray(file.read(count))
    if len(data) != count:
        raise ValueError(f"it ends {count - len(data)} bytes early")
    return data
