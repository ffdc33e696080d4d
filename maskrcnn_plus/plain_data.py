"""Plain data of a JSON file as dataclasses, every value checked against the type of its field."""

from __future__ import annotations

import dataclasses
import sys
import types
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def from_plain(value: Any, kind: type[T], where: str = "") -> T:
    """Make a value of a type.

    Args:
        value: dicts, lists, texts, numbers, True, False and None.
        kind: a dataclass, `str`, `int`, `float`, `bool`, `Any`, `Literal` of texts, a tuple, a dict with keys of text,
            or a union of these.
        where: the key of the value, for errors.

    Raises:
        ValueError: a key is missing or unknown, or a value is of another type; the message has the key.
    """
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _dataclass(value, kind, where)
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        for part in parts:
            try:
                return from_plain(value, part, where)
            except ValueError:
                continue
    elif origin is tuple and isinstance(value, list):
        kinds = [parts[0]] * len(value) if parts[-1] is ... else parts
        if len(kinds) == len(value):
            return tuple(from_plain(v, k, f"{where}[{i}]") for i, (v, k) in enumerate(zip(value, kinds, strict=True)))
    elif origin is dict and isinstance(value, dict):
        return {key: from_plain(item, parts[1], f"{where}.{key}") for key, item in value.items()}
    elif origin is Literal:
        if isinstance(value, str) and value in parts:
            return value
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) <= sys.float_info.max:  # JSON has integers that are larger
            return float(value)
    elif type(value) is kind:
        return value
    raise ValueError(f"{where} cannot be {str(value)[:80]!r}")


def _dataclass(value: Any, kind: type[T], where: str) -> T:
    prefix = f"{where}." if where else ""
    if not isinstance(value, dict):
        raise ValueError(f"{where or 'the content'} is no mapping")
    fields = {each.name: each for each in dataclasses.fields(kind)}
    if unknown := sorted(value.keys() - fields.keys()):
        raise ValueError(f"{prefix}{unknown[0]} is not known")
    needed = {name for name, each in fields.items() if each.default is each.default_factory is dataclasses.MISSING}
    if missing := sorted(needed - value.keys()):
        raise ValueError(f"{prefix}{missing[0]} is missing")
    hints = get_type_hints(kind)
    return kind(**{name: from_plain(item, hints[name], f"{prefix}{name}") for name, item in value.items()})
