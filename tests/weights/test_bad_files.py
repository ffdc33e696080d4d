"""What is no sound weights file is refused by its name with the reason, and nothing in a file is run."""

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

from maskrcnn_plus.checkpoints import WeightsError
from maskrcnn_plus.weights.files import read_weights
from maskrcnn_plus.weights.safe_pickle import UnsafePickleError, load_pickle

MEBI = 1 << 20


class _Runs:
    """Runs code when it is unpickled by Python's own unpickler."""

    def __reduce__(self):
        return (os.system, ("touch code_ran",))


def _save_zip(path, names_and_data, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in names_and_data:
            archive.writestr(name, data)


def _records(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def _torch_bytes(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def _torch_pickle(*globals_and_reduce):
    return b"\x80\x02}X\x01\x00\x00\x00a" + b"".join(globals_and_reduce) + b"s."


def _run(module, name, argument):
    """Pickle opcodes that call module.name(argument)."""
    text = argument.encode()
    return f"c{module}\n{name}\n".encode() + b"X" + struct.pack("<I", len(text)) + text + b"\x85R"


def _malicious(path, case):
    command = "open('code_ran', 'w').close()"
    if case == "torch zip, os.system":
        path.write_bytes(_torch_bytes({"model": _Runs()}))
        return r"posix\.system"
    if case == "torch zip, eval":
        _save_zip(path, [("a/data.pkl", _torch_pickle(_run("builtins", "eval", command))), ("a/version", "3\n")])
        return r"builtins\.eval"
    if case == "torch legacy, os.system":
        path.write_bytes(_torch_bytes({"model": _Runs()}, _use_new_zipfile_serialization=False))
        return r"posix\.system"
    if case == "pickle, os.system":
        path.write_bytes(pickle.dumps({"model": _Runs()}))
        return r"posix\.system"
    if case == "pickle, protocol 0":
        path.write_bytes(b"cos\nsystem\n(S'touch code_ran'\ntR.")
        return r"os\.system"
    if case == "pickle, exec":
        path.write_bytes(_torch_pickle(_run("builtins", "exec", command)))
        return r"builtins\.exec"
    if case == "pickle, INST":
        path.write_bytes(b"(S'touch code_ran'\nios\nsystem\n.")
        return r"os\.system"
    if case == "pickle, attribute of an allowed module":
        name = b"multiarray.os.system"
        path.write_bytes(b"\x80\x04\x8c\x0bnumpy._core\x8c" + bytes([len(name)]) + name + b"\x93\x8c\x01x\x85R.")
        return r"numpy\._core\.multiarray\.os\.system"
    if case == "pickle, objects in an array":
        path.write_bytes(pickle.dumps({"model": np.array([_Runs()], dtype=object), "__author__": "x"}))
        return "object values|posix"
    if case == "pickle, numpy's loader":
        path.write_bytes(_torch_pickle(_run("numpy.lib._npyio_impl", "load", "x.npy")))
        return r"numpy\.lib\._npyio_impl\.load"
    raise AssertionError(case)


@pytest.mark.parametrize(
    "case",
    [
        "torch zip, os.system",
        "torch zip, eval",
        "torch legacy, os.system",
        "pickle, os.system",
        "pickle, protocol 0",
        "pickle, exec",
        "pickle, INST",
        "pickle, attribute of an allowed module",
        "pickle, objects in an array",
        "pickle, numpy's loader",
    ],
)
def test_files_that_would_run_code_are_refused_by_its_name(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    pattern = _malicious(path, case)
    with pytest.raises(WeightsError, match=rf"evil\.pth is refused: .*({pattern})"):
        read_weights(str(path))
    assert os.listdir(tmp_path) == ["evil.pth"]


def test_allowed_functions_of_a_pickle_cannot_be_changed(tmp_path):
    # BUILD with a state of (None, {attribute: value}) sets attributes of whatever stands before it.
    opcodes = b"\x80\x02c_codecs\nencode\nN}X\x0c\x00\x00\x00__defaults__X\x01\x00\x00\x00as\x86b."
    with pytest.raises(UnsafePickleError, match="changes a function"):
        load_pickle(io.BytesIO(opcodes), "evil.pkl")
    assert load_pickle(io.BytesIO(pickle.dumps(b"\xff", 2)), "good.pkl") == b"\xff"


def _array_pickle(shape, data, dtype="f4"):
    """A pickled array that claims `shape`."""
    good = np.zeros(1, dtype)
    function, arguments, (version, _, descr, order, _) = good.__reduce__()

    class Claims:
        def __reduce__(self):
            return function, arguments, (version, shape, descr, order, data)

    return pickle.dumps({"model": {"a": Claims()}, "__author__": "x"}, 2)


def _broken(path, case):
    good = _torch_bytes({"w": torch.ones(100)})
    strided = torch.ones(1).expand(1 << 40)
    writers = {
        "empty": lambda: path.write_bytes(b""),
        "text": lambda: path.write_bytes(b"hello world\n"),
        "web page": lambda: path.write_bytes(b"\n<!DOCTYPE html><html>404</html>"),
        "git lfs": lambda: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
        "folder": path.mkdir,
        "missing": lambda: None,
        "truncated zip": lambda: path.write_bytes(good[:-40]),
        "truncated legacy": lambda: path.write_bytes(
            _torch_bytes({"w": torch.ones(100)}, _use_new_zipfile_serialization=False)[:-40]
        ),
        "truncated pickle": lambda: path.write_bytes(_array_pickle((1,), b"\0\0\0\0")[:-20]),
        "other zip": lambda: _save_zip(path, [("a.txt", b"x")]),
        "compressed": lambda: _save_zip(path, [("a/data.pkl", b"\0" * MEBI)], zipfile.ZIP_DEFLATED),
        "stride trick": lambda: path.write_bytes(_torch_bytes({"w": strided})),
        "size beyond the storage": lambda: _save_zip(
            path, [(name, data.replace(b"Kd\x85", b"J\0\0\0\x10\x85")) for name, data in _records(good)]
        ),
        "list": lambda: path.write_bytes(_torch_bytes([torch.ones(1)])),
        "no tensors": lambda: path.write_bytes(_torch_bytes({"epoch": 3, "net": {"w": torch.ones(1)}})),
        "not a tensor": lambda: path.write_bytes(_torch_bytes({"model": {"w": [1.0, 2.0]}})),
        "name of a number": lambda: path.write_bytes(_torch_bytes({"model": {3: torch.ones(1)}})),
        "sparse": lambda: path.write_bytes(_torch_bytes({"w": torch.ones(2, 2).to_sparse()})),
        "meta": lambda: path.write_bytes(_torch_bytes({"w": torch.ones(2, device="meta")})),
        "itself": lambda: path.write_bytes(b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s."),
        "huge bytes": lambda: path.write_bytes(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"abc."),
        "huge bytearray": lambda: path.write_bytes(b"\x80\x05\x96" + struct.pack("<Q", 1 << 62) + b"abc."),
        "huge memo": lambda: path.write_bytes(b"\x80\x02}r" + struct.pack("<I", (1 << 32) - 1) + b"N."),
        "huge shape": lambda: path.write_bytes(_array_pickle((1 << 40,), b"\0\0\0\0")),
        "overflowing shape": lambda: path.write_bytes(_array_pickle((1 << 40, 1 << 40), b"")),
        "negative shape": lambda: path.write_bytes(_array_pickle((-1,), b"\0\0\0\0")),
        "array of text": lambda: path.write_bytes(pickle.dumps({"model": {"a": np.array(["x"])}, "__author__": ""})),
        "safetensors header": lambda: path.write_bytes(struct.pack("<Q", 1 << 60) + b'{"a":1}'),
        "safetensors offsets": lambda: path.write_bytes(
            (header := b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}')
            and struct.pack("<Q", len(header)) + header + b"\0\0\0\0"
        ),
        "truncated safetensors": lambda: path.write_bytes(safetensors.torch.save({"w": torch.ones(9)})[:-4]),
    }
    writers[case]()


BROKEN = {
    "empty": "is empty",
    "text": "no weights file",
    "web page": "web page",
    "git lfs": "git lfs pull",
    "folder": "is a folder",
    "missing": "does not exist",
    "truncated zip": "truncated",
    "truncated legacy": "truncated",
    "truncated pickle": "truncated",
    "other zip": "none of torch.save",
    "compressed": "does not compress",
    "stride trick": "more than are stored",
    "size beyond the storage": "more than are stored",
    "list": "holds a list",
    "no tensors": "no named tensors.*epoch.*net",
    "not a tensor": "w is a list",
    "name of a number": "name of a tensor is 3",
    "sparse": "no plain tensor",
    "meta": "no plain tensor",
    "itself": "model is a dict, not a tensor",
    "huge bytes": "cannot be read|not a readable",
    "huge bytearray": "cannot be read|not a readable",
    "huge memo": "holds a NoneType|no named tensors",
    "huge shape": "not a readable",
    "overflowing shape": "not a readable",
    "negative shape": "not a readable",
    "array of text": "array of <U1 values",
    "safetensors header": "header would have",
    "safetensors offsets": "cannot be read",
    "truncated safetensors": "cannot be read",
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_named_with_the_reason(tmp_path, case):
    path = tmp_path / "weights.pth"
    _broken(path, case)
    with pytest.raises(WeightsError, match=rf"weights\.pth.*({BROKEN[case]})"):
        read_weights(str(path))


def test_a_pickle_cannot_claim_more_arrays_than_it_has_bytes(tmp_path):
    data, one = b"\0" * MEBI, np.zeros(1, np.uint8)
    function, arguments, (version, _, descr, order, _) = one.__reduce__()

    class Shares:
        def __reduce__(self):
            return function, arguments, (version, (MEBI,), descr, order, data)

    (tmp_path / "w.pkl").write_bytes(pickle.dumps({f"a.{k}": Shares() for k in range(50)}, 5))
    assert (tmp_path / "w.pkl").stat().st_size < 2 * MEBI
    with pytest.raises(WeightsError, match="larger than the file"):
        read_weights(str(tmp_path / "w.pkl"))
