"""Files that end the process which predicts them, by its memory or by a fault of a decoder, are found and left out.

A process that dies has no time to say why, and is started again with the same files. So each attempt at a shard leaves
a note, from the second one on also before each file; a file at which two attempts ended is not tried again but named as
a failure.
"""

from __future__ import annotations

import json
from collections import Counter

from maskrcnn_plus.apps.cluster.stores import Store

ATTEMPT = "attempt-"
"""How the names of the notes begin. They are beside the plan: pyarrow writes objects that stand for emptied folders."""

DEADLY = 2
"""Attempts that ended at a file, from which on it is not tried again."""


class Attempt:
    """An attempt at a part of a job; a file that ends it is known to the next one.

    Attributes:
        number: of attempts before this one.
    """

    def __init__(self, store: Store, part: str) -> None:
        """Note that it begins.

        Args:
            store: of the results.
            part: name of the part of the job.
        """
        self._store, self._name = store, f"{ATTEMPT}{part}.json"
        try:
            earlier = json.loads(store.read(self._name))
            self.number, ended = int(earlier["number"]), Counter({int(k): n for k, n in earlier["ended"].items()})
            if earlier["at"] is not None:
                ended[int(earlier["at"])] += 1
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            self.number, ended = 0, Counter()
        self._ended = ended
        self._write(None)

    def may_try(self, position: int) -> bool:
        """Note that the file at a position is next; False for one that has ended too many attempts."""
        if self._ended[position] >= DEADLY:
            return False
        if self.number:
            self._write(position)
        return True

    def end(self) -> None:
        """Forget it: the part is done."""
        self._store.delete(self._name)

    def _write(self, at: int | None) -> None:
        content = {"number": self.number + 1, "at": at, "ended": self._ended}
        self._store.write(self._name, json.dumps(content).encode())
