"""Which channels of an image go into the network, and in which order.

Shape shorthand: H, W image height and width, C channels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskrcnn_plus.data.read_error import ImageReadError

logger = logging.getLogger(__name__)

PROJECTIONS = {"max": np.max, "mean": np.mean}


@dataclass(frozen=True)
class ChannelRule:
    """How channels are chosen; the same in training, evaluation and prediction, for files and arrays.

    Attributes:
        count: C of the network; None takes an image as it is.
        select: `dataset.channels`: index (from 0) or name (of OME or ImageJ) of the file's channel for each channel of
            the network, of which one may stand several times. None takes grey, colour and images of exactly `count`
            channels; what the file says is alpha is left out where there is one channel too many.
        projection: `dataset.projection`: "max" or "mean" over the planes of a z stack; None refuses stacks where one
            image is wanted.

    Raises:
        ValueError: a value out of range.
    """

    count: int | None = 3
    select: tuple[int | str, ...] | None = None
    projection: str | None = None

    def __post_init__(self) -> None:
        """Check the values and bring `select` to a tuple."""
        if self.count is not None and self.count < 1:
            raise ValueError(f"channels={self.count}: the number of image channels must be at least 1.")
        if self.projection not in (None, *PROJECTIONS):
            raise ValueError(f"dataset.projection={self.projection!r}: 'max', 'mean' or null is needed.")
        if self.select is None:
            return
        single = isinstance(self.select, int | str)
        chosen = (self.select,) if single else tuple(self.select)
        if not chosen or not all(isinstance(each, str) or _is_index(each) for each in chosen):
            raise ValueError(
                f"dataset.channels={self.select!r}: a list of indices (from 0) or names of channels is needed, such as "
                "[0, 0, 2] or [DAPI, GFP, GFP]."
            )
        object.__setattr__(self, "select", chosen)

    def indices(self, name: str, total: int, alpha: Sequence[int] = (), names: Sequence[str] = ()) -> list[int]:
        """Channels to take of an image, in order: 1 or 3 or `count` of them.

        Args:
            name: of the image in errors.
            total: its number of channels.
            alpha: indices of those that it says are alpha.
            names: a name a channel, as far as it names them.

        Raises:
            ImageReadError: they cannot be chosen; the message names the option that does.
        """
        if self.select is not None:
            return self._selected(name, total, names)
        if self.count in (None, total):
            return list(range(total))
        colours = [index for index in range(total) if index not in alpha]
        if len(colours) == self.count or {len(colours), self.count} == {1, 3}:
            return colours
        named = f" or name ({', '.join(names)})" if names else ""
        raise ImageReadError(
            f"{name}: the image has {total} channels where {self.count} are wanted. dataset.channels picks them by "
            f"index (0..{total - 1}){named}, one may be repeated; grey "
            "and RGB become 1 or 3 channels by themselves."
        )

    def _selected(self, name: str, total: int, names: Sequence[str]) -> list[int]:
        """Indices of the channels of `select`."""
        found = []
        for each in self.select:
            if isinstance(each, str):
                same = [index for index, known in enumerate(names) if known.strip().lower() == each.strip().lower()]
                if len(same) != 1:
                    known = f"its channels are {', '.join(map(repr, names))}" if names else "it names no channels"
                    what = "several channels" if same else "no channel"
                    raise ImageReadError(
                        f"{name}: dataset.channels: {what} of the name {each!r}, {known}. An index, from 0, does too."
                    )
                found.append(same[0])
            elif each < total:
                found.append(int(each))
            else:
                raise ImageReadError(
                    f"{name}: dataset.channels picks channel {each} (from 0), the image has {total} channels."
                )
        if self.count in (None, len(found)) or (len(found), self.count) == (1, 3):
            return found
        raise ImageReadError(
            f"{name}: dataset.channels picks {len(found)} channels, the network takes {self.count}: repeat some "
            f"(as in [0, 0, 1]), or set model.pixel_mean, model.pixel_std and the backbone to {len(found)}."
        )


def as_rule(channels: int | ChannelRule | None) -> ChannelRule:
    """The rule that takes images of so many channels, or the rule itself."""
    return channels if isinstance(channels, ChannelRule) else ChannelRule(channels)


def get_rule(mapper: Any) -> ChannelRule:
    """The rule of a mapper; that of three channels where it has none."""
    return getattr(mapper, "rule", None) or ChannelRule(getattr(mapper, "channels", 3))


def get_array_alpha(name: str, pixels: np.ndarray, rule: ChannelRule) -> tuple[int, ...]:
    """Channels of an array [H, W, C] that are taken for alpha, as nothing in it says so.

    The fourth of four channels of 8 bits where the network takes fewer (what image libraries call RGBA), and no other.
    A transparency that is lost by that is said.
    """
    if pixels.shape[2] != 4 or pixels.dtype != np.uint8 or rule.select is not None or rule.count in (None, 4):
        return ()
    if (pixels[:, :, 3] != 255).any():
        logger.warning(
            "%s: the fourth channel is taken for the alpha of RGBA and left out; dataset.channels picks others.",
            name,
        )
    return (3,)


def project(pixels: np.ndarray, axes: Sequence[int], projection: str) -> np.ndarray:
    """Project an array along `axes`, in its own type."""
    reduced = PROJECTIONS[projection](pixels, axis=tuple(axes))
    return np.rint(reduced).astype(pixels.dtype) if pixels.dtype.kind in "iu" else reduced.astype(pixels.dtype)


def _is_index(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 0
