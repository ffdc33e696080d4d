"""Pickle files as data: numpy arrays of numbers, plain containers and scalars, nothing that could run code.

The model zoos of Detectron and Detectron2 store weights as `.pkl`; Python's own unpickler would call whatever such a
file names. Here a global of a file becomes one of the few functions below, which make data and nothing else.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any, ClassVar

import numpy as np


class UnsafePickleError(ValueError):
    """The file asks for something else than data."""


def _dtype(code: Any, *_: Any) -> np.dtype:
    dtype = np.dtype(code, copy=True) if isinstance(code, str) else np.dtype("O")
    if dtype.kind not in "biufc":
        raise UnsafePickleError(f"it holds an array of {dtype} values instead of numbers")
    return dtype


def _array(cls: Any, shape: tuple[int, ...], code: Any) -> np.ndarray:
    return np.ndarray((0,), np.uint8)  # shape, type and numbers follow as its state


def _array_class() -> None:
    raise UnsafePickleError("it makes an array without numbers")


def _array_of_buffer(buffer: bytes, dtype: np.dtype, shape: tuple[int, ...], order: str, *_: Any) -> np.ndarray:
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


def _scalar(dtype: np.dtype, data: bytes | str = b"") -> np.generic:
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, dtype, count=1)[0]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise UnsafePickleError(f"it uses the text encoding {encoding!r}")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    return b""


_DATA: dict[tuple[str, str], Callable] = {
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _empty_bytes,
    ("builtins", "bytes"): _empty_bytes,
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "dtype"): _dtype,
    ("numpy", "ndarray"): _array_class,
    **{(f"numpy.{core}.numeric", "_frombuffer"): _array_of_buffer for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
}


# The unpickler in Python: the one in C reserves as much memory as a few bytes of the file demand.
class _DataUnpickler(pickle._Unpickler):
    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="latin1")
        start = file.tell()
        self.bytes_left = file.seek(0, 2) or file.tell()  # arrays together cannot be larger than the file
        file.seek(start)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _DATA:
            raise UnsafePickleError(f"it refers to {module}.{name}, which is not plain data; nothing of it was run")
        return _DATA[module, name]

    def load_build(self) -> None:
        """Set the state of an array or of a number type; attributes of anything else are dropped or refused."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, np.ndarray):
            target.__setstate__(state)
            self.bytes_left -= target.nbytes
            if self.bytes_left < 0:
                raise UnsafePickleError("its arrays claim to be larger than the file")
        elif isinstance(target, np.dtype):
            target.__setstate__((3, state[1], None, None, None, -1, -1, 0))  # the byte order is all that numbers have
        elif not isinstance(target, OrderedDict):
            raise UnsafePickleError(f"it changes a {type(target).__name__}")

    dispatch[pickle.BUILD[0]] = load_build


def load_pickle(file: IO[bytes], name: str) -> Any:
    """Read one pickled object of plain data.

    Args:
        file: opened for reading bytes.
        name: what error messages call the file.

    Raises:
        UnsafePickleError: the file names a global outside numpy's arrays and plain containers, or holds arrays of
            anything but numbers.
        ValueError: it is not a pickle file, truncated, or claims to hold more than it does.
    """
    try:
        return _DataUnpickler(file).load()
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{name} is refused: {error}.") from None
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        AssertionError,
        MemoryError,
        OverflowError,
        RecursionError,
    ) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{name} is not a readable pickle file (truncated or of another format): {reason}") from error
