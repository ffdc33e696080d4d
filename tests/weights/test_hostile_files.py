"""Files made to do harm are refused by name: no crash, no hang, no memory that they claim, no number that they lack.

Each is read in a process of its own, with bounded memory and time. This file is the program of these processes.
"""

import io
import json
import os
import pickle
import random
import resource
import select
import signal
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from fork_server import Script

from maskrcnn_plus.checkpoints import WeightsError
from maskrcnn_plus.weights.files import read_weights

MEMORY = 2 << 30  # bytes more than the process has before
SECONDS = 10  # for a file
LONG = 120  # seconds, for all changed files
FUZZED = 1000  # files
ROOM = bytes(8000)  # in a file that claims less than it has


def _text(text):
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _global(module, name):
    return f"c{module}\n{name}\n".encode()


def _float_type():
    """float32, memoised as 9."""
    return (
        _global("numpy", "dtype")
        + _text("f4")
        + b"K\x00K\x01\x87R(K\x03"
        + _text("<")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbq\x09"
    )


def _array(count, data):
    """An array of `count` float32 whose numbers are `data`, opcodes."""
    head = (
        _global("numpy.core.multiarray", "_reconstruct")
        + _global("numpy", "ndarray")
        + b"K\x00\x85"
        + _text("b")
        + b"\x87R"
    )
    return head + b"(K\x01K" + bytes([count]) + b"\x85h\x09\x89" + data + b"tb"


def _bytes(data):
    return b"B" + struct.pack("<I", len(data)) + data


def _named(opcodes, name="a.b"):
    return b"\x80\x03}(" + _text(name) + opcodes + b"u."


def _doubled(depth, kind):
    """A container of two of the same, of two of the same, ..., as opcodes."""
    pair = {"tuple by memo": b"q\x01h\x01\x86", "tuple by dup": b"2\x86", "list": b"q\x010]h\x01ah\x01a"}[kind]
    return (b")" if kind != "list" else b"]") + pair * depth


def _torch_zip(opcodes, storages=(), head=None):
    """An archive of {"a.b": what the opcodes make}; `head` in place of the opcodes before."""
    content = head or b"\x80\x02}(" + _text("a.b")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a/data.pkl", content + opcodes + b"u.")
        archive.writestr("a/version", "3\n")
        for key, data in storages:
            archive.writestr(f"a/data/{key}", data)
    return buffer.getvalue()


def _storage(count, key, view):
    reference = _text("storage") + _global("torch", "FloatStorage") + _text(key) + _text("cpu") + _integer(count)
    return b"(" + reference + view + b"tQ"


def _integer(value):
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def _tensor(count, offset, size, stride, key="0", view=b""):
    hooks = _global("collections", "OrderedDict") + b")R"
    shape = b"(" + b"".join(map(_integer, size)) + b"t(" + b"".join(map(_integer, stride)) + b"t"
    arguments = _storage(count, key, view) + _integer(offset) + shape + b"\x89" + hooks
    return _global("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def _legacy(count, keys, storages=b""):
    """A file of before PyTorch 1.6 with a tensor of storage "0", and more bytes than that takes."""
    opcodes = _tensor(count, 0, (min(count, 1000),), (1,), view=b"N")
    parts = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    head = b"".join(pickle.dumps(part, 2) for part in parts)
    return head + b"\x80\x02}(" + _text("a.b") + opcodes + b"u." + pickle.dumps(keys, 2) + storages + ROOM


def _view_of_freed_memory():
    """An array's numbers as the buffer of another one; then the first gets others, and the view is written to."""
    first = _array(64, _bytes(b"\0" * 256)) + b"q\x05"
    view = _global("numpy.core.numeric", "_frombuffer") + b"(h\x05h\x09" + b"K\x40\x85" + _text("C") + b"tRq\x06"
    again = b"h\x05(K\x01K\x01\x85h\x09\x89" + _bytes(b"\0" * 4) + b"tb0"
    return _named(
        _float_type() + b"0" + first + b"0" + view + b"0" + again + b"h\x06(K\x00G\x40\x09\x21\xfb\x54\x44\x2d\x18u"
    )


HOSTILE = {
    "view of freed memory": _view_of_freed_memory(),
    "array as a buffer": _named(
        _float_type() + b"0" + _global("numpy.core.numeric", "_frombuffer")
        + b"(" + _array(4, _bytes(b"\0" * 16)) + b"h\x09K\x04\x85" + _text("C") + b"tR"
    ),
    "state twice": _named(
        _float_type() + b"0" + _array(4, _bytes(b"\0" * 16)) + b"(K\x01K\x01\x85h\x09\x89" + _bytes(b"\0" * 4) + b"tb"
    ),
    "items of an array": _named(_float_type() + b"0" + _array(4, _bytes(b"\0" * 16)) + b"(K\x00G\0\0\0\0\0\0\0\0u"),
    "items of a function": _named(_global("_codecs", "encode") + b"(K\x00K\x00u"),
    "array without numbers": _named(
        _global("numpy.core.multiarray", "_reconstruct")
        + _global("numpy", "ndarray") + b"I4\n\x85" + _text("f") + b"\x87R"
    ),
    "4 GB in 12 bytes": b"\x80\x05\x96" + struct.pack("<Q", (1 << 32) - 8) + b".",
    "4 GB of text": b"\x80\x04\x8d" + struct.pack("<Q", (1 << 32) - 8) + b".",
    "a frame of 4 GB": b"\x80\x04\x95" + struct.pack("<Q", (1 << 32) - 8) + b"}.",
    "2 GB of an integer": b"\x80\x02\x8b" + struct.pack("<i", (1 << 31) - 1) + b".",
    "long integer as a name": b"\x80\x02}(\x8b" + struct.pack("<i", 4000) + b"\x7f" * 4000 + _float_type() + b"0"
    + _array(1, _bytes(b"\0" * 4)) + b"u.",
    "long name of several lines": _named(_text("os") + _text("fine\n" * 9999) + b"\x93"),
    "hash of nested tuples": b"\x80\x02}" + _doubled(60, "tuple by memo") + b"Ns.",
    "hash of doubled tuples": b"\x80\x02}" + _doubled(60, "tuple by dup") + b"Ns.",
    "hash in a set": b"\x80\x04\x8f(" + _doubled(60, "tuple by dup") + b"\x90.",
    "hash of nested tuples, zip": _torch_zip(
        _doubled(60, "tuple by memo") + b"Nu", (), b"\x80\x02}(" + _text("x") + b"}("
    ),
    "endless class names": _torch_zip(
        _tensor(4, 0, (4,), (1,)) + _text("class_names") + _doubled(60, "list"), [("0", b"\0" * 16)]
    ),
    "memory without a storage": _torch_zip(_global("torch", "Tensor") + _integer(1000) + b"\x85R", [("0", ROOM)]),
    "memory of a type": _torch_zip(_global("torch", "FloatTensor") + _integer(1000) + b"\x85R", [("0", ROOM)]),
    "storage of a type": _torch_zip(_global("torch", "FloatStorage") + _integer(1000) + b"\x85R", [("0", ROOM)]),
    "storage that is not there": _torch_zip(_tensor(4, 0, (4,), (1,), "7"), [("0", b"\0" * 16)]),
    "offset beyond the storage": _torch_zip(_tensor(4, 2, (4,), (1,)), [("0", b"\0" * 16)]),
    "stride beyond the storage": _torch_zip(_tensor(4, 0, (2,), (1 << 40,)), [("0", b"\0" * 16)]),
    "negative stride": _torch_zip(_tensor(4, 3, (4,), (-1,)), [("0", b"\0" * 16)]),
    "negative offset": _torch_zip(_tensor(4, -1, (4,), (1,)), [("0", b"\0" * 16)]),
    "size that overflows": _torch_zip(_tensor(4, 0, (1 << 40, 1 << 40), (0, 0)), [("0", b"\0" * 16)]),
    "legacy storage that is not there": _legacy(1000, []),
    "legacy storage of 1 TB": _legacy(1 << 38, ["0"], struct.pack("<q", 1 << 38)),
    "legacy storage that is shorter": _legacy(4, ["0"], struct.pack("<q", 2) + b"\0" * 8),
    "legacy storage of others": _legacy(4, ["1"], struct.pack("<q", 4) + b"\0" * 16),
}  # fmt: skip
SPECIAL = ("pipe", "device", "link to a device")
SOUND = {
    "array": _named(_float_type() + b"0" + _array(4, _bytes(b"\0\0\x80\x3f" * 4))),
    "tensor": _torch_zip(_tensor(6, 1, (2, 2), (2, 1)), [("0", np.arange(6, dtype=np.float32).tobytes())]),
    "legacy": _legacy(4, ["0"], struct.pack("<q", 4) + np.ones(4, np.float32).tobytes()),
}


def _fuzz_seeds():
    weights = {"conv.weight": torch.arange(24.0).reshape(2, 3, 2, 2), "n": torch.tensor(3), "h": torch.ones(5).half()}
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    for new in (True, False):
        buffer = io.BytesIO()
        torch.save({"model": weights, "class_names": ["a", "b"]}, buffer, _use_new_zipfile_serialization=new)
        yield buffer.getvalue()
    yield from (pickle.dumps({"model": arrays, "__author__": "x"}, protocol) for protocol in (2, 5))
    yield safetensors.torch.save(weights)


def _mutated(data, chance):
    """The bytes with some of them changed, cut, doubled or put elsewhere."""
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        i, j = sorted((chance.randrange(len(data)), chance.randrange(len(data))))
        j = min(j, i + 40)
        kind = chance.randrange(6)
        if kind < 2:
            data[i] = chance.randrange(256)
        elif kind == 2:
            data[i] ^= 1 << chance.randrange(8)
        elif kind == 3 and len(data) > 100:
            del data[i:j]
        elif kind == 4:
            data[i:i] = data[i:j]
        else:
            data[i : i + 4] = struct.pack("<i", chance.choice((-1, 0, 1 << 30, (1 << 31) - 1, -(1 << 31))))
    return bytes(data)


def _outcome(path):
    """What reading a file gives, in words: "refused: ...", "read: ..." or what else was raised."""
    try:
        file = read_weights(str(path))
        names = file.metadata.get("class_names")
        size = sum(tensor.nbytes for tensor in file.tensors.values())
        return f"read: {len(file.tensors)} tensors of {size} bytes, {len(str(names))} letters"
    except WeightsError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _fuzz(folder):
    """Outcomes of mutated files that are neither read within their size nor refused by name."""
    chance, seeds, bad = random.Random(0), list(_fuzz_seeds()), []
    path = Path(folder, "fuzzed.pth")
    for number in range(FUZZED):
        data = _mutated(seeds[number % len(seeds)], chance)
        path.write_bytes(data)
        outcome = _outcome(path)
        sound = outcome.startswith("read: ") and int(outcome.split()[4]) <= len(data)
        if not sound and not (outcome.startswith("refused: ") and str(path) in outcome):
            bad.append(f"{number}: {outcome[:200]}")
    path.unlink()
    return "; ".join(bad) or "nothing"


def _in_child(function, argument, seconds):
    """What a function gives, in a process of its own that may die or hang."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, function(argument).encode(errors="replace")[:60000])
        os._exit(0)
    os.close(writing)
    answer = b"it took too long"
    if select.select([reading], [], [], seconds)[0]:
        answer = os.read(reading, 65536) or b"the process died"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return answer.decode()


def _main(folder):
    """Read all files of a folder, and print a line for each."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    for path in sorted(Path(folder).iterdir()):
        print(json.dumps([path.name, _in_child(_outcome, path, SECONDS)]), flush=True)
    print(json.dumps(["changed files", _in_child(_fuzz, folder, LONG)]), flush=True)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Name of a file -> what reading it gave."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, data in (HOSTILE | SOUND).items():
        (folder / f"{name}.pth").write_bytes(data)
    os.mkfifo(folder / "pipe")
    os.symlink("/dev/zero", folder / "device")
    os.symlink(folder / "device", folder / "link to a device")
    text = Script(__file__, folder).communicate(timeout=3 * LONG)
    lines = [line for line in text.splitlines() if line.startswith("[")]
    return {name.removesuffix(".pth"): outcome for name, outcome in map(json.loads, lines)}


@pytest.mark.parametrize("name", [*HOSTILE, *SPECIAL])
def test_it_is_refused_by_name_in_no_time(outcomes, name):
    assert outcomes[name].startswith("refused: ")
    assert name in outcomes[name]
    assert "MemoryError" not in outcomes[name]
    assert "\n" not in outcomes[name]
    assert len(outcomes[name]) < 3000


@pytest.mark.parametrize("name", SOUND)
def test_the_opcodes_that_hostile_files_are_made_of_are_read_in_sound_ones(outcomes, name):
    assert outcomes[name] == "read: 1 tensors of 16 bytes, 4 letters"


def test_a_changed_file_is_read_within_its_size_or_refused_by_name(outcomes):
    assert outcomes["changed files"] == "nothing"


def test_a_view_of_a_storage_keeps_its_numbers(tmp_path):
    (tmp_path / "w.pth").write_bytes(SOUND["tensor"])
    assert read_weights(str(tmp_path / "w.pth")).tensors["a.b"].tolist() == [[1, 2], [3, 4]]


def test_a_changed_number_in_an_archive_is_found_by_its_checksum(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"w": torch.full((1000,), 1.5)}, path)
    data = path.read_bytes()
    place = data.index(struct.pack("<f", 1.5) * 4)
    path.write_bytes(data[:place] + b"\x01" + data[place + 1 :])
    with pytest.raises(WeightsError, match=r"w\.pth .*damaged.*checksum"):
        read_weights(str(path))


if __name__ == "__main__":
    _main(sys.argv[1])
