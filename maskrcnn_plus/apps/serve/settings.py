"""What a server allows; the defaults are for one model on one machine that a few people share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Limits of a server.

    Attributes:
        max_bytes: of an uploaded file.
        max_pixels: of an image, whatever its format.
        max_waiting: uploads that are received, wait or are predicted at a time; more are answered with 429.
        batch_size: small images that the network sees at once, where so many wait.
        tile: as `--tile` of tools/predict.py.
        max_kept: images whose results the page keeps.
        keep_seconds: for how long it keeps them after they were last looked at.
        receive_seconds: without a byte of an upload until it is given up.
        token: that clients must know; None lets all in that reach the port.
        only_local: answer requests to `localhost` and loopback addresses only, so that no web page of another origin
            can read through a name that it points here (DNS rebinding).
    """

    max_bytes: int = 2**28
    max_pixels: int = 2**27
    max_waiting: int = 32
    batch_size: int = 1
    tile: int | str = "auto"
    max_kept: int = 64
    keep_seconds: float = 3600
    receive_seconds: float = 30
    token: str | None = None
    only_local: bool = True
