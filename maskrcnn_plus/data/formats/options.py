"""What a person may say of annotations beside where they are; one value that goes to every reader."""

from __future__ import annotations

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class ReadOptions:
    """How annotations are read.

    Attributes:
        attribute: which of several attributes of an object names its class; None takes the one that most objects have.
        merge_numbered: classes that differ in a number at their end (cell_1, cell_2, ...) are one class.
        split_components: of masks of foreground or of classes, each connected piece is an object.
    """

    attribute: str | None = None
    merge_numbered: bool = False
    split_components: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the format and what `ReadOptions` has to a command line."""
    parser.add_argument("--format", help="format of the annotations, where it is not found by itself")
    parser.add_argument("--attribute", metavar="NAME", help="which of several attributes of an object names its class")
    parser.add_argument("--merge-numbered", action="store_true", help="cell_1, cell_2, ... are one class")
    text = "each connected piece of a mask of foreground is an object (touching ones are one)"
    parser.add_argument("--split-components", action="store_true", help=text)


def from_arguments(args: argparse.Namespace) -> ReadOptions:
    """The options of a command line that `add_arguments` was called for."""
    return ReadOptions(
        attribute=args.attribute, merge_numbered=args.merge_numbered, split_components=args.split_components
    )
