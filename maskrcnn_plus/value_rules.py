"""Rules for a value of a config, and how they are put together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig


class Rule(NamedTuple):
    """What a value may be.

    Attributes:
        wanted: in words.
        convert: gives the value as it is meant (1e3 is the whole number 1000), or raises TypeError or ValueError.
    """

    wanted: str
    convert: Callable[[Any], Any]


def integer(least: int, most: int = 2**31 - 1) -> Rule:
    """An integer in a range, both ends included."""

    def convert(value: Any) -> int:
        return int(_accept(value, _is_number(value) and int(value) == value and least <= value <= most))

    return Rule(
        f"a whole number from {least} to {most}" if most < 2**31 - 1 else f"a whole number from {least} on", convert
    )


def number(least: float = -math.inf, most: float = math.inf, ends: bool = True) -> Rule:
    """A finite number in a range, with or without its ends."""

    def convert(value: Any) -> float:
        value = float(value) if isinstance(value, str) else value  # YAML reads 1e-4 as text
        inside = _is_number(value) and (least <= value <= most if ends else least < value < most)
        return _accept(value, inside)

    words = f"in {least:g}..{most:g}" if most < math.inf else f"{'of at least' if ends else 'above'} {least:g}"
    return Rule(f"a number {words if ends or most == math.inf else f'between {least:g} and {most:g}'}", convert)


def flag() -> Rule:
    """True or false."""
    return Rule("true or false", lambda value: bool(_accept(value, value in (True, False))))


def text(*choices: str) -> Rule:
    """Text, one of the choices where there are any."""
    words = f"one of {', '.join(map(repr, choices))}" if choices else "text"
    return Rule(words, lambda value: _accept(value, isinstance(value, str) and (not choices or value in choices)))


def filled() -> Rule:
    """Text that is not empty."""
    return Rule("a name", lambda value: _accept(value, isinstance(value, str) and bool(value)))


def optional(rule: Rule) -> Rule:
    """Null, or what another rule accepts."""
    return Rule(f"{rule.wanted}, or null", lambda value: None if value is None else rule.convert(value))


def sequence(rule: Rule, least: int = 0, most: float = math.inf, increasing: bool = False) -> Rule:
    """A list of what another rule accepts, with a number of items in a range."""

    def convert(value: Any) -> list:
        items = [rule.convert(item) for item in _accept(value, isinstance(value, ListConfig))]
        ordered = not increasing or all(a < b for a, b in itertools.pairwise(items))
        return _accept(items, least <= len(items) <= most and ordered)

    count = "" if least == 0 else f"{least} or more, " if most == math.inf else f"{least}, " if least == most else ""
    return Rule(f"a list ({count}{'increasing, ' if increasing else ''}each {rule.wanted})", convert)


def mapping(rule: Rule) -> Rule:
    """A mapping of names to what another rule accepts."""

    def convert(value: Any) -> DictConfig:
        _accept(value, isinstance(value, DictConfig))
        return _accept(value, all(rule.convert(item) is not None for item in value.values()))

    return Rule(f"a mapping of names to {rule.wanted}", convert)


def either(*rules: Rule) -> Rule:
    """What one of the rules accepts."""

    def convert(value: Any) -> Any:
        for rule in rules[:-1]:
            try:
                return rule.convert(value)
            except (TypeError, ValueError):
                continue
        return rules[-1].convert(value)

    return Rule(", or ".join(rule.wanted for rule in rules), convert)


def component() -> Rule:
    """A callable with its arguments, as LazyCall makes it, or a mapping of which only a part is used."""
    return Rule("a component (_target_ and its arguments)", lambda value: _accept(value, isinstance(value, DictConfig)))


def part() -> Rule:
    """What `component` takes, None, or an object of the user's: no number or text."""
    return Rule(component().wanted, lambda value: _accept(value, not isinstance(value, int | float | str)))


def _accept(value: Any, accepted: bool) -> Any:
    if not accepted:
        raise ValueError(value)
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
