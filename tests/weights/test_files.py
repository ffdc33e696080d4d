"""Weights files: every format is read."""

import io
import os
import pickle
from collections import Counter, OrderedDict

import numpy as np
import pytest
import safetensors.torch
import torch

from maskrcnn_plus.checkpoints import WeightsError
from maskrcnn_plus.weights.files import read_file, read_weights
from maskrcnn_plus.weights.safe_pickle import load_pickle


class HistoryBuffer:
    """Stands for the class of MMEngine that its checkpoints hold."""


HistoryBuffer.__module__ = "mmengine.logging.history_buffer"


def _weights():
    generator = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(4, 3, 2, 2, generator=generator),
        "half": torch.randn(5, generator=generator).half(),
        "steps": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "none": torch.zeros(0, 4),
    }


def _assert_equal(tensors, expected):
    assert list(tensors) == list(expected)
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor), name


@pytest.mark.parametrize("ending", [".pth", ".bin", ".pkl"])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle2", "pickle5", "safetensors"])
def test_formats_are_told_by_content_not_by_the_name(tmp_path, form, ending):
    path, weights = str(tmp_path / f"w{ending}"), _weights()
    if form in ("zip", "legacy"):
        torch.save(weights, path, _use_new_zipfile_serialization=form == "zip")
    elif form == "safetensors":
        safetensors.torch.save_file(weights, path, metadata={"origin": "here"})
    else:
        with open(path, "wb") as file:
            pickle.dump({"model": {k: v.numpy() for k, v in weights.items()}, "__author__": "x"}, file, int(form[-1]))
    file = read_weights(path)
    _assert_equal(dict(sorted(file.tensors.items())), dict(sorted(weights.items())))
    assert file.metadata == {"safetensors": {"origin": "here"}, "pickle2": {"__author__": "x"}}.get(
        form.replace("5", "2"), {}
    )


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_state_dict", "ema", "model_ema"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappers_and_the_prefix_of_distributed_training_are_removed(tmp_path, wrapper, prefix):
    weights = {prefix + name: tensor for name, tensor in _weights().items()}
    extra = {"n_averaged": torch.tensor(3)} if wrapper in ("ema", "model_ema") else {}
    others = {"model": {"conv.weight": torch.zeros(1)}} if extra else {}
    content = {**others, wrapper: {**extra, **weights}, "meta": {"CLASSES": ("a", "b")}, "epoch": 3}
    torch.save(content if wrapper else {**weights, "epoch": 3}, tmp_path / "w.pth")
    file = read_weights(str(tmp_path / "w.pth"))
    _assert_equal(file.tensors, _weights())
    assert file.metadata == ({"meta": {"CLASSES": ("a", "b")}, "epoch": 3} if wrapper else {"epoch": 3})


def test_caffe2_pickles_lose_their_momenta(tmp_path):
    arrays = {"conv1_w": np.ones((2, 3), np.float32), "conv1_w_momentum": np.zeros((2, 3), np.float32)}
    for content in (arrays, {"blobs": arrays, "cfg": "text"}):
        (tmp_path / "w.pkl").write_bytes(pickle.dumps(content, 2))
        file = read_weights(str(tmp_path / "w.pkl"))
        assert list(file.tensors) == ["conv1_w"]
        assert file.metadata["__author__"] == "Caffe2"


def test_arrays_of_foreign_byte_order_and_scalars_keep_their_numbers(tmp_path):
    numbers = np.array([1.5, -2.25, 1e30])
    content = {f"a.{order}{kind}": numbers.astype(f"{order}{kind}") for order in "<>" for kind in ("f4", "f8")}
    content |= {"b.int": np.arange(-3, 3, dtype=">i4"), "c.scalar": np.float32(2.5)}
    for protocol in range(2, 6):
        (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": content, "__author__": "x"}, protocol))
        tensors = read_weights(str(tmp_path / "w.pkl")).tensors
        for name, array in content.items():
            assert np.array_equal(tensors[name].numpy(), array), (name, protocol)


def test_a_training_state_comes_back_bit_for_bit(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": 5}, tmp_path / "w.pth")
    content = read_file(str(tmp_path / "w.pth"))
    assert content["iteration"] == 5
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            assert torch.equal(content["optimizer"]["state"][number][name], value)


def test_a_checkpoint_of_mmdetection_comes_with_the_way_to_its_weights(tmp_path, monkeypatch):
    module = type(os)("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer
    for name, value in (("mmengine", os), ("mmengine.logging", os), (module.__name__, module)):
        monkeypatch.setitem(__import__("sys").modules, name, value)
    path = str(tmp_path / "epoch_12.pth")
    content = {"meta": {"dataset_meta": {"classes": ("a",)}}, "state_dict": _weights(), "message_hub": HistoryBuffer()}
    torch.save(content, path)
    with pytest.raises(WeightsError, match=r"mmengine\.logging\.history_buffer\.HistoryBuffer") as caught:
        read_weights(path)
    # What it tells to run in the other environment makes a file that is read here.
    monkeypatch.chdir(tmp_path)
    advice = str(caught.value).split("`")[1]
    exec(advice, {"torch": torch})
    file = read_weights("weights.pth")
    _assert_equal(file.tensors, _weights())
    assert file.metadata["meta"]["dataset_meta"] == {"classes": ("a",)}


def test_pickled_containers_and_scalars_are_read():
    data = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": [1, 2.5, "x", None, (True, b"y")]}
    data["c"] = OrderedDict(d=np.float64(3.5), e=np.zeros((0, 4), dtype=np.int64))
    data["f"] = np.asfortranarray(np.arange(6).reshape(2, 3))
    for protocol in (2, 4, 5):
        loaded = load_pickle(io.BytesIO(pickle.dumps(data, protocol=protocol)), "x.pkl")
        assert np.array_equal(loaded["a"], data["a"])
        assert np.array_equal(loaded["f"], data["f"])
        assert loaded["b"] == data["b"]
        assert loaded["c"]["d"] == 3.5
        assert loaded["c"]["e"].shape == (0, 4)


def _everything():
    base = torch.arange(24.0).reshape(4, 6)
    dtypes = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8]
    dtypes += [torch.uint8, torch.bool, torch.complex64, torch.complex128, torch.uint16, torch.float8_e4m3fn]
    content = {str(dtype): torch.arange(6).to(dtype).reshape(2, 3) for dtype in dtypes}
    content |= {"view": base[1:3, 2:], "transposed": base.t(), "step": base[::2, ::3], "whole": base, "row": base[3]}
    content |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "parameter": torch.nn.Parameter(torch.ones(2))}
    content |= {"channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)}
    content["state"] = OrderedDict(a=[1, 2.5, None, True, "text", b"\xff\x00", -(2**40), 2**100, float("inf")])
    content["state"]["b"] = (
        torch.Size([2, 3]),
        torch.float16,
        torch.device("cuda", 1),
        {"x", "y"},
        Counter({3: 1}),
        (),
    )
    content["state"][7] = {"nested": [[{}], [], {"tensor": torch.ones(3)}]}
    return content


def _assert_alike(found, expected):
    assert type(found) is (torch.Tensor if isinstance(expected, torch.Tensor) else type(expected))
    if isinstance(expected, torch.Tensor):
        assert (found.dtype, found.shape, found.stride()) == (expected.dtype, expected.shape, expected.stride())
        assert torch.equal(
            found.view(torch.uint8) if found.dtype == torch.float8_e4m3fn else found,
            (expected.view(torch.uint8) if found.dtype == torch.float8_e4m3fn else expected.detach()),
        )
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            _assert_alike(found[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            _assert_alike(one, other)
    else:
        assert found == expected


@pytest.mark.parametrize(("zipped", "protocol"), [(True, 2), (True, 4), (True, 5), (False, 2)])
def test_all_that_a_training_saves_is_read_as_pytorch_reads_it(tmp_path, zipped, protocol):
    path, content = str(tmp_path / "w.pth"), _everything()
    if not zipped:  # PyTorch itself does not read these types from such files
        del content["torch.uint16"], content["torch.float8_e4m3fn"]
    torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    found = read_file(path)
    _assert_alike(found, content)
    if protocol == 2:  # all that PyTorch reads with weights_only
        _assert_alike(
            found, torch.load(path, map_location="cpu", weights_only=True) | {"parameter": found["parameter"]}
        )
    storages = {found[name].untyped_storage().data_ptr() for name in ("view", "transposed", "step", "whole", "row")}
    assert len(storages) == 1  # still one memory


def test_an_archive_without_checksums_is_read(tmp_path):
    path = str(tmp_path / "w.pth")
    try:
        torch.serialization.set_crc32_options(False)
        torch.save(_weights(), path)
    finally:
        torch.serialization.set_crc32_options(True)
    _assert_equal(read_weights(path).tensors, _weights())
