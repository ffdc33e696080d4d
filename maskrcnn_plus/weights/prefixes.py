"""Names of tensors without what programs put before and between them: wrappers of modules, and modules around a model.

A model within DistributedDataParallel, torch.compile, FSDP or activation checkpointing has a component more in its
names ("module.", "_orig_mod."), anywhere. A model within another module, as in Lightning, has that one's attribute
before them ("model.", "net.", "student.detector."), beside whatever else the module holds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable

from maskrcnn_plus.weights.conversion import WeightsFile

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_AVERAGED = re.compile(r"(^|[._])(ema|averaged|teacher|shadow)([._]|$)")
_DEPTH = 5  # components of a prefix at most
_SHARE = 0.1  # of all names, that begin with it at least


def strip_wrappers(names: Collection[str]) -> dict[str, str]:
    """Name -> name without the components of wrappers; all as they are where two would become one."""
    new = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in names}
    return new if len(set(new.values())) == len(new) and all(new.values()) else {name: name for name in names}


def find_prefix(file: WeightsFile, count: Callable[[WeightsFile], int]) -> str:
    """The prefix of names in a file below which most of its tensors find their place in a model.

    Args:
        file: a weights file.
        count: tensors of a file that find their place.

    Returns:
        A prefix with its last dot; "" where most tensors find their place as they are, or none does better. Of several
        that do as well (a model and its average, a student and its teacher) the averaged one, else the shortest.
    """
    plain = count(file)
    if 2 * plain >= len(file.tensors):
        return ""
    found = {prefix: count(select_prefix(file, prefix)) for prefix in _prefixes(file.tensors)}
    best = max(found.values(), default=0)
    if best <= plain:
        return ""
    equal = [prefix for prefix, number in found.items() if number == best]
    return min(equal, key=lambda prefix: (not _AVERAGED.search(prefix), len(prefix)))


def select_prefix(file: WeightsFile, prefix: str) -> WeightsFile:
    """The file with the tensors below a prefix only, without it in their names."""
    tensors = {name.removeprefix(prefix): tensor for name, tensor in file.tensors.items() if name.startswith(prefix)}
    return file._replace(tensors=tensors)


def match_by_suffix(targets: Iterable[str], names: Collection[str]) -> dict[str, str]:
    """Target -> the longest of `names` that is equal to it or ends it after a dot; only names with one target."""
    matched = {}
    for target in targets:
        parts = target.split(".")
        suffixes = (".".join(parts[i:]) for i in range(len(parts)))
        if name := next((suffix for suffix in suffixes if suffix in names), None):
            matched[target] = name
    count = Counter(matched.values())
    return {target: name for target, name in matched.items() if target == name or count[name] == 1}


def _prefixes(names: Collection[str]) -> list[str]:
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")[:-1]
        counts.update(".".join(parts[:depth]) + "." for depth in range(1, min(len(parts), _DEPTH) + 1))
    return [prefix for prefix, number in counts.items() if number >= _SHARE * len(names)]
