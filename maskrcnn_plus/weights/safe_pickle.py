"""Pickle files as data: numpy arrays of numbers, plain containers and scalars, nothing that could run code.

The model zoos of Detectron and Detectron2 store weights as `.pkl`.
"""

from __future__ import annotations

import io
import itertools
import math
import tokenize
from collections import OrderedDict
from functools import partial
from typing import IO, Any

import numpy as np

from maskrcnn_plus.weights.pickle_reader import (
    MALFORMED,
    Function,
    Globals,
    Pending,
    PickleReader,
    UnsafePickleError,
    fill,
)

_PATHS_IN, _PATHS = ("pathlib", "pathlib._local"), ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
_NUMBERS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"}


def load_pickle(file: IO[bytes], name: str) -> Any:
    """Read one pickled object of plain data.

    Args:
        file: bytes in memory or `mmap`, see `PickleReader`.
        name: what error messages call the file.

    Raises:
        UnsafePickleError: the file names a global outside numpy's arrays and plain containers, or holds arrays of
            anything but numbers.
        ValueError: it is not a pickle file, truncated, or claims to hold more than it does.
    """
    start = file.tell()
    size = file.seek(0, 2) or file.tell()
    file.seek(start)
    try:
        return PickleReader(file, plain_globals(size)).read()
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{name} is refused: {error}.") from None
    except MALFORMED as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{name} is not a readable pickle file (truncated or of another format): {reason}") from error


def load_npy(file: IO[bytes], name: str) -> Any:
    """Read a .npy file: an array of numbers, or one of Python objects of plain data as the list of its elements.

    Format: NumPy's NEP 1; an array of objects is a pickle behind the header.

    Args:
        file, name: as for `load_pickle`.

    Raises:
        UnsafePickleError, ValueError: as of `load_pickle`.
    """
    size = file.seek(0, 2) or file.tell()
    file.seek(0)
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = read_header(file)
        if not dtype.hasobject:
            file.seek(0)
            return np.load(io.BytesIO(file.read()), allow_pickle=False)
        return PickleReader(file, plain_globals(size, objects=True)).read()
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{name} is refused: {error}.") from None
    except (*MALFORMED, SyntaxError, tokenize.TokenError) as error:  # its header is Python's text of a dict
        reason = str(error) or type(error).__name__
        raise ValueError(f"{name} is not a readable .npy file (truncated or of another format): {reason}") from error


def plain_globals(size: int, objects: bool = False) -> Globals:
    """Functions for numpy's arrays and numbers, bytes of old protocols, and OrderedDict.

    Args:
        size: of the file in bytes; what they make of it cannot exceed it.
        objects: take arrays of objects, as lists of their elements, and paths, as text.
    """
    arrays = _Arrays(size, objects)
    cores = ("numpy.core", "numpy._core")
    paths = itertools.product(_PATHS_IN, _PATHS) if objects else ()
    return {
        **{each: Function(arrays.path) for each in paths},
        ("_codecs", "encode"): Function(arrays.encode),
        ("__builtin__", "bytes"): Function(lambda: b""),
        ("builtins", "bytes"): Function(lambda: b""),
        ("collections", "OrderedDict"): Function(_ordered_dict),
        ("numpy", "dtype"): Function(partial(_dtype, objects=objects)),
        ("numpy", "ndarray"): Function(),
        **{(f"{core}.numeric", "_frombuffer"): Function(arrays.from_buffer) for core in cores},
        **{(f"{core}.multiarray", "_reconstruct"): Function(arrays.pending) for core in cores},
        **{(f"{core}.multiarray", "scalar"): Function(_scalar) for core in cores},
    }


def check_shape(shape: Any) -> None:
    """Refuse what is no tuple of sides."""
    sides = type(shape) is tuple and len(shape) <= 64
    if not sides or any(type(side) is not int or not 0 <= side < 2**62 for side in shape):
        raise ValueError("the shape of an array is none")


class _Arrays:
    """Arrays of a file, all of them together no larger than it."""

    def __init__(self, size: int, objects: bool = False) -> None:
        self.left = self.text_left = size
        self.objects = objects

    def encode(self, text: str, encoding: str = "latin1") -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise UnsafePickleError(f"it uses the text encoding {str(encoding)[:40]!r}")
        self._count(text)
        return text.encode("latin1")

    def path(self, *parts: str) -> str:
        """A path as text; of Windows its first part ends with a backslash."""
        self._count(*parts)
        return "/".join(part.rstrip("\\/") for part in parts)

    def _count(self, *texts: str) -> None:
        self.text_left -= sum(len(text) + 1 for text in texts)
        if self.text_left < 0:
            raise UnsafePickleError("its text claims to be larger than the file")

    def pending(self, _class: Any, _shape: Any, _code: Any) -> Pending:
        """An array whose shape, type and numbers follow as its state."""

        def complete(state: tuple) -> np.ndarray:
            _, shape, dtype, fortran, data = state
            return self.from_buffer(data, dtype, shape, "F" if fortran else "C")

        return Pending(complete)

    def from_buffer(
        self, data: bytes | str, dtype: np.dtype, shape: tuple[int, ...], order: str, *_: Any
    ) -> np.ndarray | list:
        """An array with memory of its own; one of objects is the list of them."""
        if self.objects and isinstance(data, list) and isinstance(dtype, np.dtype) and dtype.hasobject:
            return data
        if isinstance(data, list):
            raise UnsafePickleError(f"it holds an array of {dtype} values instead of numbers")
        if not isinstance(data, (bytes, bytearray, str)) or not isinstance(dtype, np.dtype):
            raise ValueError("the numbers of an array are no bytes")
        check_shape(shape)
        data = data.encode("latin1") if isinstance(data, str) else data
        if math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError(f"an array of shape {shape} has {len(data)} bytes")
        self.left -= len(data)
        if self.left < 0:
            raise UnsafePickleError("its arrays claim to be larger than the file")
        if not data:
            return np.empty(shape, dtype)
        return np.frombuffer(data, dtype).reshape(shape, order="F" if order == "F" else "C").copy(order="K")


def _dtype(code: Any, *_: Any, objects: bool = False) -> Pending:
    """A type of numbers, whose byte order follows as its state."""
    if objects and code in ("O", "O4", "O8"):
        return Pending(lambda _: np.dtype(object))
    if not isinstance(code, str) or code not in _NUMBERS:
        raise UnsafePickleError(f"it holds an array of {_type_name(code)} values instead of numbers")

    def complete(state: tuple) -> np.dtype:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if not isinstance(order, str) or order not in ("<", ">", "=", "|"):
            raise ValueError("the byte order of an array is none")
        return np.dtype(code) if order == "|" else np.dtype(code).newbyteorder(order)

    return Pending(complete)


def _type_name(code: Any) -> str:
    """numpy's name of a type that is no number, for people."""
    try:
        return str(np.dtype(code)) if isinstance(code, str) and len(code) < 10 else "other"
    except TypeError:
        return "other"


def _scalar(dtype: np.dtype, data: bytes | str = b"") -> np.generic:
    data = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(data, bytes) or not isinstance(dtype, np.dtype) or len(data) != dtype.itemsize:
        raise ValueError("a number has no bytes")
    return np.frombuffer(data, dtype)[0]


def _ordered_dict(pairs: list[list[Any]] | tuple = ()) -> OrderedDict:
    if not isinstance(pairs, (list, tuple)) or any(type(pair) not in (list, tuple) or len(pair) != 2 for pair in pairs):
        raise ValueError("an OrderedDict is not made of pairs")
    return fill(OrderedDict(), [value for pair in pairs for value in pair])
