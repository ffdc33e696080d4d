"""Pickle files as data: numpy arrays, plain containers and scalars, nothing that could run code.

The model zoos of Detectron and Detectron2 store weights as `.pkl`; Python's own unpickler would call whatever such a
file names.
"""

from __future__ import annotations

import pickle
from typing import IO, Any

_ALLOWED = {
    ("_codecs", "encode"),
    ("__builtin__", "bytes"),
    ("builtins", "bytes"),
    ("collections", "OrderedDict"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
}


class UnsafePickleError(ValueError):
    """The file asks for something else than data."""


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        raise UnsafePickleError(f"it refers to {module}.{name}, which is not plain data; nothing of it was run")


def load_pickle(file: IO[bytes], name: str) -> Any:
    """Read one pickled object of plain data.

    Args:
        file: opened for reading bytes.
        name: what error messages call the file.

    Raises:
        UnsafePickleError: the file names a global outside numpy's arrays and plain containers.
        ValueError: it is not a pickle file, or truncated.
    """
    try:
        return _DataUnpickler(file, encoding="latin1").load()
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{name} is refused: {error}.") from None
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{name} is not a readable pickle file (truncated or of another format): {error}") from error
