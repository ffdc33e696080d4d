"""The arguments of tools/predict.py for films."""

from __future__ import annotations

import argparse

from maskrcnn_plus.apps.track_files.run import TRACKERS, TrackOptions


def add_film_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --track and what belongs to it."""
    group = parser.add_argument_group("films")
    group.add_argument("--track", action="store_true", help="follow objects through the frames of a film or stack")
    group.add_argument(
        "--tracker",
        choices=TRACKERS,
        default="masks",
        help="by masks, or ByteTrack on boxes (pip install 'maskrcnn_plus[video]') (default: masks)",
    )
    group.add_argument("--divisions", action="store_true", help="objects are cells that divide")
    group.add_argument(
        "--track-memory",
        type=int,
        default=30,
        metavar="FRAMES",
        help="an object that is not seen for longer is a new one (default: 30)",
    )
    group.add_argument(
        "--count-line",
        type=_numbers,
        action="append",
        default=[],
        metavar="X0,Y0,X1,Y1",
        help="count what crosses this line, to either side; may be given several times",
    )
    group.add_argument(
        "--count-zone",
        type=_corners,
        action="append",
        default=[],
        metavar="X,Y,X,Y,X,Y",
        help="count what is in this polygon; may be given several times",
    )


def check_film_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the program where arguments do not go together."""
    used = [name for name in ("count_line", "count_zone", "divisions") if getattr(args, name)]
    if used and not args.track:
        parser.error(f"--{used[0].replace('_', '-')} needs --track")
    if args.track and (args.shard or args.merge):
        parser.error("--track needs all frames in one run: --shard and --merge do not go with it")


def track_options(args: argparse.Namespace) -> TrackOptions:
    """What the arguments say."""
    places = tuple(args.count_line), tuple(args.count_zone)
    return TrackOptions(args.tracker, args.track_memory, args.divisions, *places)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))


def _corners(text: str) -> tuple[tuple[float, float], ...]:
    numbers = _numbers(text)
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


_numbers.__name__, _corners.__name__ = "list of numbers", "list of x, y"  # how argparse calls them in an error
