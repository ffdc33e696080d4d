"""An optimizer's state from a checkpoint, under the settings of the config as it is now.

What an optimizer has learned (moments, counts of steps) is restored; its settings (learning rate, weight decay, betas,
which parameter is in which group) are the config's. Where the config did not change, both are those of the checkpoint.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_plus.weights.conversion import WeightsError

# What optimizers keep in the shape of the parameter.
_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
_NO_SETTINGS = ("params", "lr", "initial_lr", "param_names")


def get_parameters(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, bool]:
    """The names in a model of an optimizer's parameters, in its order, and whether it has a state of each."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {names[parameter]: parameter in optimizer.state for parameter in parameters}


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    stored: Mapping[str, Any],
    stored_parameters: Mapping[str, bool] | None,
) -> list[str]:
    """Load the state of a checkpoint and keep the optimizer's own settings.

    Args:
        optimizer: as the config built it, before its first step.
        model: that it is of.
        stored: `state_dict` of the checkpoint's optimizer.
        stored_parameters: of it, by `get_parameters`; None of checkpoints without them, whose parameters are taken in
            their order.

    Returns:
        The settings that are others than in the checkpoint: "optimizer.lr 0.001 -> 0.0001".

    Raises:
        WeightsError: the state is of other parameters or of another optimizer, or is damaged.
    """
    fresh = optimizer.state_dict()
    groups, state = stored["param_groups"], stored["state"]
    _check_kind(fresh["param_groups"], groups)
    sizes = [[len(group["params"]) for group in part] for part in (fresh["param_groups"], groups)]
    parameters = dict(model.named_parameters())
    names = list(get_parameters(optimizer, model))
    if stored_parameters is None:
        if sizes[0] != sizes[1]:
            raise WeightsError(f"the optimizer had groups of {sizes[1]} parameters, and now has groups of {sizes[0]}.")
        stored_parameters = {name: index in state for index, name in enumerate(names)}
    elif set(stored_parameters) != set(names):
        raise WeightsError(_other_parameters(names, list(stored_parameters)))
    stored_names = list(stored_parameters)
    lacking = [name for index, name in enumerate(stored_names) if stored_parameters[name] and index not in state]
    if lacking:
        raise WeightsError(f"the optimizer's state of {len(lacking)} parameters is missing ({lacking[0]}, ...).")
    indices = {name: index for index, name in enumerate(stored_names) if index in state}
    restored = {index: state[indices[name]] for index, name in enumerate(names) if name in indices}
    for index, values in restored.items():
        _check_shapes(values, parameters[names[index]], names[index])
    before = {stored_names[index]: group for group in groups for index in group["params"]}
    changes = _changes(before, {names[i]: group for group in fresh["param_groups"] for i in group["params"]})
    for group in fresh["param_groups"]:
        group["initial_lr"] = group["lr"]  # a schedule multiplies it
    optimizer.load_state_dict({"state": restored, "param_groups": fresh["param_groups"]})
    return changes


def _check_kind(fresh: Sequence[Mapping], stored: Sequence[Mapping]) -> None:
    """Another optimizer has other settings; a newer PyTorch only has more."""
    now, then = set(fresh[0]) - {*_NO_SETTINGS}, set(stored[0]) - {*_NO_SETTINGS}
    if now - then and then - now:
        raise WeightsError(
            f"it is of another optimizer, with {', '.join(sorted(then - now))} and without "
            f"{', '.join(sorted(now - then))}: optimizer._target_ was changed."
        )


def _check_shapes(state: Mapping[str, Any], parameter: Tensor, name: str) -> None:
    for key in _MOMENTS:
        value = state.get(key)
        if isinstance(value, Tensor) and value.shape != parameter.shape:
            raise WeightsError(f"the optimizer's {key} of {name} has the shape {list(value.shape)}.")


def _other_parameters(now: Sequence[str], then: Sequence[str]) -> str:
    parts = []
    for text, names in (("frozen now", set(then) - set(now)), ("frozen then", set(now) - set(then))):
        if names:
            first = ", ".join(sorted(names)[:5])
            parts.append(f"{len(names)} are {text} ({first}{', ...' if len(names) > 5 else ''})")
    return f"it trained other parameters: {'; '.join(parts)}."


def _changes(before: Mapping[str, Mapping], now: Mapping[str, Mapping]) -> list[str]:
    """The settings that differ, each once with its commonest change."""
    found: defaultdict[str, Counter[tuple]] = defaultdict(Counter)
    for name, group in now.items():
        old = before[name]
        pairs = {key: (old[key], group[key]) for key in group if key in old and key not in _NO_SETTINGS}
        pairs["lr"] = (old.get("initial_lr", old["lr"]), group["lr"])
        for key, (was, value) in pairs.items():
            was = tuple(was) if isinstance(was, list) else was
            if was != value:
                found[key][was, value] += 1
    changes = []
    for key, counts in found.items():
        (((was, value), number),) = counts.most_common(1)
        part = "" if number == len(now) else f" (of {number} of {len(now)} parameters)"
        changes.append(f"optimizer.{key} {was} -> {value}{part}")
    return changes
