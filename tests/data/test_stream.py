"""TrainingStream: order and augmentation are a function of (seed, position), whatever the workers."""

import gc
import itertools
import os
import random
import signal

import numpy as np
import pytest
import torch
from detectron2.data import build_detection_train_loader
from detectron2.utils import comm

from maskrcnn_plus.data.stream import TrainingStream

DATASET = [{"image_id": i, "annotations": []} for i in range(7)]


def draw(entry):
    """Stands for an augmenting mapper: a number from each generator that one may use."""
    return {"image_id": entry["image_id"], "random": random.random(), "numpy": float(np.random.uniform())}  # noqa: NPY002


def batches(num_batches, num_workers=0, mapper=draw, batch_size=3, **kwargs):
    """The first batches of Detectron2's loader over the stream."""
    stream = TrainingStream(DATASET, total_batch_size=batch_size, **kwargs)
    loader = build_detection_train_loader(
        dataset=stream,
        mapper=mapper,
        total_batch_size=batch_size,
        aspect_ratio_grouping=False,
        num_workers=num_workers,
    )
    return list(itertools.islice(iter(loader), num_batches))


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_number_of_workers_changes_nothing(num_workers):
    expected = batches(8, num_workers=0, seed=5)
    assert [len(batch) for batch in expected] == [3] * 8
    assert batches(8, num_workers=num_workers, seed=5) == expected


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("start_iter", [1, 4, 5])
def test_resumed_stream_is_the_tail_of_an_uninterrupted_one(num_workers, start_iter):
    whole = batches(8, seed=5)
    assert batches(8 - start_iter, num_workers, seed=5, start_iter=start_iter) == whole[start_iter:]


def test_every_epoch_shows_each_image_once_in_a_new_order():
    stream = iter(TrainingStream(DATASET, total_batch_size=3, seed=1))
    epochs = [[next(stream)["image_id"] for _ in DATASET] for _ in range(5)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_without_shuffling_the_order_is_that_of_the_list():
    stream = iter(TrainingStream(DATASET, total_batch_size=2, shuffle=False))
    assert [next(stream)["image_id"] for _ in range(9)] == [0, 1, 2, 3, 4, 5, 6, 0, 1]


def test_seeds_differ_and_a_position_never_repeats_its_draw():
    first, second = batches(6, seed=0), batches(6, seed=1)
    draws = [entry["numpy"] for batch in first + second for entry in batch]
    assert len(set(draws)) == len(draws)
    assert [e["image_id"] for b in first for e in b] != [e["image_id"] for b in second for e in b]


def test_ranks_share_the_positions_of_one_process(monkeypatch):
    alone = batches(4, batch_size=6, seed=3)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        stream = TrainingStream(DATASET, total_batch_size=6, seed=3)
        monkeypatch.undo()  # a worker has no process group
        iterator = iter(stream)
        shares.append([[draw(next(iterator)) for _ in range(3)] for _ in range(4)])
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="total_batch_size=5 cannot be shared equally by 2"):
        TrainingStream(DATASET, total_batch_size=5)
    assert [left + right for left, right in zip(*shares, strict=True)] == alone


def torch_draw(entry):
    return {"image_id": entry["image_id"], "torch": float(torch.rand(()))}


def test_workers_seed_torch_too_and_the_main_process_keeps_its_own():
    assert batches(4, num_workers=1, mapper=torch_draw) == batches(4, num_workers=2, mapper=torch_draw)
    state = torch.get_rng_state()
    next(iter(TrainingStream(DATASET, total_batch_size=1)))
    assert torch.equal(torch.get_rng_state(), state)


def sigint_ignored(entry):
    return {"ignored": signal.getsignal(signal.SIGINT) is signal.SIG_IGN}


def test_only_workers_ignore_ctrl_c():
    handler = signal.getsignal(signal.SIGINT)
    assert batches(1, num_workers=1, mapper=sigint_ignored)[0] == [{"ignored": True}] * 3
    assert batches(1, num_workers=0, mapper=sigint_ignored)[0] == [{"ignored": handler is signal.SIG_IGN}] * 3
    assert signal.getsignal(signal.SIGINT) is handler


def test_changing_a_yielded_dict_leaves_the_data_set_alone():
    dataset = [{"image_id": 0}]
    stream = iter(TrainingStream(dataset, total_batch_size=1))
    next(stream).pop("image_id")
    assert next(stream) == {"image_id": 0}


@pytest.mark.parametrize(
    ("dataset", "kwargs", "message"),
    [
        ([], {"total_batch_size": 1}, "empty"),
        (DATASET, {"total_batch_size": 0}, "total_batch_size"),
        (DATASET, {"total_batch_size": 1.5}, "total_batch_size"),
        (DATASET, {"total_batch_size": 1, "seed": -1}, "seed"),
        (DATASET, {"total_batch_size": 1, "start_iter": -2}, "start_iter"),
    ],
)
def test_bad_arguments_are_named(dataset, kwargs, message):
    with pytest.raises(ValueError, match=message):
        TrainingStream(dataset, **kwargs)


def test_a_data_set_is_kept_as_one_piece_of_memory_whatever_its_length():
    """Each Python object would be copied into the memory of every worker, as its references are counted."""
    counts = {}
    for length in (10, 2000):
        streams = TrainingStream([{"image_id": k, "annotations": [{"bbox": [k]}]} for k in range(length)], 1)
        gc.collect()
        counts[length] = len(gc.get_objects())
        assert next(iter(streams))["annotations"][0]["bbox"]
    assert counts[2000] < counts[10] + 200


def test_what_is_yielded_may_be_changed_without_harm():
    stream = TrainingStream([{"image_id": 0, "annotations": [{"bbox": [1]}]}], 1)
    iterator = iter(stream)
    next(iterator)["annotations"][0]["bbox"][0] = 7
    assert next(iterator)["annotations"] == [{"bbox": [1]}]


def terminated(entry):
    os.kill(os.getpid(), signal.SIGTERM)
    return entry


def test_a_signal_to_the_whole_group_leaves_workers_to_the_main_process():
    assert batches(4, num_workers=1, mapper=terminated) == batches(4, mapper=lambda entry: entry)
