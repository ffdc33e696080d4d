"""An endless training stream whose order and augmentations depend on (seed, position) alone, so it can be resumed.

Position shorthand: iteration b of rank r out of R holds the positions (b * R + r) * batch_size + j, j < batch_size.
Position p shows image perm(p // n)[p % n] of the n images, where perm(e) is the shuffled order of epoch e.
"""

from __future__ import annotations

import itertools
import random
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import IterableDataset, get_worker_info

from maskrcnn_plus.arguments import check_arguments

SKIPPED = "skipped"
"""Key of a dict whose image a mapper could not use, with the reason; in examples see `TrainingStream`."""

MAX_SKIPPED = 100  # images in turn that cannot be used, before something else must be wrong

_SECONDS_TO_END = 60  # of a worker, which by then no process waits for


class TrainingStream(IterableDataset):
    """Dataset dicts for `build_detection_train_loader`, the same whatever the number of workers.

    Just before a dict is yielded, the global generators of `random` and `numpy` (in worker processes torch's too) are
    seeded from (seed, position), so that any mapper draws the same augmentation for the same position. A run resumed
    with `start_iter=k` therefore sees what an uninterrupted run sees from iteration k on. With 0 workers a mapper that
    draws from torch's generator is not covered: that one belongs to the model.

    Use it with `aspect_ratio_grouping=False` and the loader's own `total_batch_size`. A mapper that cannot use an image
    puts the reason into the dict under `SKIPPED` and returns None: another image, a function of (seed, position) too,
    takes the position, and its dict has (file, reason) of those that it stands for under `SKIPPED`.
    """

    def __init__(
        self,
        dataset: list[dict[str, Any]],
        total_batch_size: int,
        seed: int = 0,
        start_iter: int = 0,
        shuffle: bool = True,
    ) -> None:
        """Remember the data set and this process's rank; workers inherit the rank.

        Args:
            dataset: dataset dicts; a packed copy is kept, which data loading workers share, and fresh dicts are
                yielded.
            total_batch_size: images an iteration, of all processes together.
            seed: start of the random numbers, the same on every rank.
            start_iter: first iteration, counted from 0.
            shuffle: shuffle each epoch anew; False keeps the order of the list.

        Raises:
            ValueError: an empty data set, or a number out of range.
        """
        super().__init__()
        if len(dataset) == 0:
            raise ValueError("The training data set is empty: check its name, its split and its filters.")
        numbers = {"total_batch_size": (total_batch_size, 1), "seed": (seed, 0), "start_iter": (start_iter, 0)}
        for name, (value, least) in numbers.items():
            check_arguments(**{name: (value, int(value) == value >= least, f"a whole number of at least {least}")})
        # Packed: Python's counting of references would copy a list of dicts into the memory of each worker.
        self.dataset = DatasetFromList(list(dataset), copy=False)
        self.seed = seed
        self.start_iter = start_iter
        self.shuffle = shuffle
        # Workers have no process group to ask.
        self.rank = comm.get_rank()
        self.world_size = comm.get_world_size()
        self.batch_size, rest = divmod(total_batch_size, self.world_size)
        if rest:
            raise ValueError(
                f"total_batch_size={total_batch_size} cannot be shared equally by {self.world_size} processes: make it "
                "a multiple of their number."
            )
        self._order: tuple[int, np.ndarray] | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the dicts of this worker's iterations: the loader asks its workers in turn for one batch each."""
        worker = get_worker_info()
        if worker is None:
            iterations = itertools.count(self.start_iter)
        else:
            # Signals to the whole group, as Ctrl-C, `timeout` and SLURM send them, are for the main process, which ends
            # its iteration before it stops its workers.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_SECONDS_TO_END))
            iterations = itertools.count(self.start_iter + worker.id, worker.num_workers)
        for iteration in iterations:
            first = (iteration * self.world_size + self.rank) * self.batch_size
            for position in range(first, first + self.batch_size):
                yield from self._entries(position, with_torch=worker is not None)

    def _entries(self, position: int, with_torch: bool) -> Iterator[dict[str, Any]]:
        """Yield the dict of a position, and others for as long as the mapper marks them as skipped."""
        entry = self.dataset[self._index(position)]
        self._seed_generators(position, with_torch)
        yield entry
        if SKIPPED not in entry:
            return
        skipped: list[tuple[str, str]] = []
        for index in np.random.default_rng((self.seed, position, 1)).permutation(len(self.dataset))[:MAX_SKIPPED]:
            skipped.append((str(entry.get("file_name", entry.get("image_id"))), entry[SKIPPED]))
            entry = self.dataset[int(index)]
            entry[SKIPPED] = tuple(skipped)
            self._seed_generators(position, with_torch)
            yield entry
            if not isinstance(entry[SKIPPED], str):
                return
        raise ValueError(
            f"None of {len(skipped)} images in turn can be used for training, the last: {entry[SKIPPED]} "
            "Repair the data set, or set dataset.on_error=raise to see where it begins."
        )

    def _index(self, position: int) -> int:
        """Return the index of the image at a position."""
        epoch, place = divmod(position, len(self.dataset))
        if not self.shuffle:
            return place
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.dataset))
            self._order = (epoch, order)
        return int(self._order[1][place])

    def _seed_generators(self, position: int, with_torch: bool) -> None:
        words = np.random.SeedSequence((self.seed, position)).generate_state(4)
        random.seed(words.tobytes())
        np.random.seed(words)  # noqa: NPY002 - Detectron2's augmentations draw from the global generator
        if with_torch:
            torch.manual_seed(int(words[0]))
