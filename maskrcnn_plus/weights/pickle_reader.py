"""An interpreter of pickles that makes data and nothing else.

Python's own unpickler calls whatever a file names. Here the opcodes are walked one by one, by an interpreter that makes
only what it knows:

- Containers are those that it made itself, of exactly the types list, dict, OrderedDict, tuple and set.
- A global is one of a table: a value, or a function of this package that gets what the file says as mere arguments.
- What such a function began (an array waits for its numbers) is completed once and is in no container before.
- Keys are text, bytes or small integers: hashing nested tuples takes time exponential in the length of the file.
- Time and memory are bounded by the length of the file and by `MAX_OPCODES`, whatever it claims.

Opcodes: Python's pickletools.py.
"""

from __future__ import annotations

import codecs
import pickletools
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any

MAX_OPCODES = 2_000_000
"""Of a pickle. A checkpoint of a training has about a hundred for each of its tensors."""

MAX_BITS = 256
"""Of an integer."""


_LONGEST = 200  # characters of a name in a message


class UnsafePickleError(ValueError):
    """The file asks for something else than data."""


class Part:
    """What objects are made of while a file is read: never part of the result."""


class Function(Part):
    """A global of a file that is called with arguments of the file; `call` None for one that is an argument only."""

    def __init__(self, call: Callable[..., Any] | None = None) -> None:
        self.call = call


class Pending(Part):
    """An object that waits for its state, which `complete` turns into the object itself."""

    def __init__(self, complete: Callable[[Any], Any]) -> None:
        self.complete: Callable[[Any], Any] | None = complete
        self.value: Any = None


class _Arguments(tuple, Part):
    """A tuple with parts in it."""


Globals = Mapping[tuple[str, str], Any]
"""(module, name) -> `Function` or a value."""


class PickleReader:
    """Reads one pickle."""

    def __init__(self, file: IO[bytes], table: Globals, persistent: Callable[[Any], Any] | None = None) -> None:
        """Take the file.

        Args:
            file: at the first byte of the pickle, of a whole file in memory or `mmap`: reading beyond its end gives
                what there is. It is left behind the last byte.
            table: the globals that a file may name.
            persistent: makes a value of the file's reference to something outside the pickle.
        """
        self.file, self.table, self.persistent = file, table, persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []  # lengths of the stack
        self.memo: dict[int, Any] = {}

    def read(self) -> Any:
        """The pickled object.

        Raises:
            UnsafePickleError: it refers to anything else than data.
            Errors of `MALFORMED`: it is malformed or truncated.
        """
        for _ in range(MAX_OPCODES):
            code = self.file.read(1)
            opcode = _OPCODES.get(code)
            if opcode is None:
                raise ValueError(f"unknown opcode {code!r}" if code else "it ends early")
            name = opcode.name
            if name == "STOP":
                return _require_complete(self.stack.pop())
            self._step(
                name, _read_string(self.file) if name == "STRING" else opcode.arg and opcode.arg.reader(self.file)
            )
        raise UnsafePickleError(f"it has more than {MAX_OPCODES} opcodes, as no weights file does")

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _LITERALS:
            if type(argument) is int and argument.bit_length() > MAX_BITS:
                raise UnsafePickleError(f"it holds an integer of {argument.bit_length()} bits")
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self._marked()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if argument is None else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            value = self.memo[argument]
            stack.append(value.value if isinstance(value, Pending) and value.complete is None else value)
        elif name == "TUPLE":
            stack.append(_tuple(self._marked()))
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [_tuple(self._popped(_TUPLES[name], keep=True))]
        elif name == "LIST":
            stack.append([_require_complete(value) for value in self._marked()])
        elif name == "DICT":
            stack.append(fill({}, self._marked()))
        elif name in ("FROZENSET", "ADDITEMS"):
            members = {_key(value) for value in self._marked()}
            stack.append(members) if name == "FROZENSET" else _target(stack[-1], set).update(members)
        elif name == "APPEND":
            (value,) = self._popped(1)
            _target(stack[-1], list).append(_require_complete(value))
        elif name == "APPENDS":
            values = self._marked()
            _target(stack[-1], list).extend(map(_require_complete, values))
        elif name == "SETITEM":
            items = self._popped(2)
            fill(_target(stack[-1], dict, OrderedDict), items)
        elif name == "SETITEMS":
            items = self._marked()
            fill(_target(stack[-1], dict, OrderedDict), items)
        elif name == "GLOBAL":
            stack.append(self._find(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            stack.append(self._find(*self._popped(2)))
        elif name == "INST":
            raise UnsafePickleError(_refers_to(*argument.split(" ", 1)))
        elif name == "REDUCE":
            function, arguments = self._popped(2)
            if not isinstance(function, Function) or not function.call or not isinstance(arguments, tuple):
                raise UnsafePickleError("it calls what is no function of a data file")
            stack.append(function.call(*arguments))
        elif name == "BUILD":
            self._build()
        elif name == "BINPERSID" and self.persistent:
            stack.append(self.persistent(stack.pop()))
        else:
            raise UnsafePickleError(f"it has the opcode {name}, which data need not have")

    def _marked(self) -> list[Any]:
        """Take what lies above the last mark."""
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def _popped(self, count: int, keep: bool = False) -> list[Any]:
        """Take, or look at, the last `count` values."""
        if len(self.stack) < count:
            raise ValueError("a value is missing")
        values = self.stack[-count:]
        if not keep:
            del self.stack[-count:]
        return values

    def _find(self, module: Any, name: Any) -> Any:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("the name of a global is no text")
        if (module, name) not in self.table:
            raise UnsafePickleError(_refers_to(module, name))
        return self.table[module, name]

    def _build(self) -> None:
        """Complete the object before the state, once; attributes of an OrderedDict are dropped."""
        target, state = self._popped(2)
        if isinstance(target, Pending):
            if target.complete is None:
                raise UnsafePickleError("it changes an array that is complete")
            complete, target.complete = target.complete, None
            target.value = complete(state)
            target = target.value
        elif type(target) is not OrderedDict:
            kind = "function" if isinstance(target, Function) else type(target).__name__
            raise UnsafePickleError(f"it changes a {kind}")
        self.stack.append(target)


_OPCODES = {opcode.code.encode("latin1"): opcode for opcode in pickletools.opcodes}
_LITERALS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_LITERALS |= {"STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
_LITERALS |= {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}

MALFORMED = (
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    MemoryError,
    OverflowError,
    RecursionError,
    struct.error,
)
"""Errors of a malformed pickle, which come from wherever it ends or has a value of another type."""


def _read_string(file: IO[bytes]) -> str:
    """Argument of STRING: quoted, with escapes; text of Python 2, which may be the numbers of an array."""
    line = file.readline()
    if len(line) < 3 or line[-1:] != b"\n" or line[:1] not in (b"'", b'"') or line[-2:-1] != line[:1]:
        raise ValueError("a text is not closed")
    return codecs.escape_decode(line[1:-2])[0].decode("latin1")


def _require_complete(value: Any) -> Any:
    """The value, which must be no part of another one."""
    if isinstance(value, Part):
        raise UnsafePickleError("it keeps a part of an object or a function")
    return value


def _tuple(values: list[Any]) -> tuple:
    return _Arguments(values) if any(isinstance(value, Part) for value in values) else tuple(values)


def _key(value: Any) -> Any:
    """The value, if its hash takes little time and is not chosen by the file."""
    if value is None or type(value) in (str, bytes, bool) or (type(value) is int and value.bit_length() < 60):
        return value
    raise UnsafePickleError(f"a key or member of a set is a {type(value).__name__}")


def fill(target: dict, items: Iterable[Any]) -> dict:
    """Put keys and values, in turn, into a dict."""
    items = list(items)
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[_key(key)] = _require_complete(value)
    return target


def _target(value: Any, *kinds: type) -> Any:
    """The container, which must be one of those that the interpreter makes."""
    if type(value) not in kinds:
        raise UnsafePickleError(f"it puts items into a {type(value).__name__}")
    return value


def _refers_to(module: str, name: str) -> str:
    shown = repr(f"{module}.{name}"[:_LONGEST])[1:-1]  # the file chose it: it may be long, or of several lines
    return f"it refers to {shown}, which is not plain data; nothing of it was run"
