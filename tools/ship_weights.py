#!/usr/bin/env python3
"""Put the weights of a trained checkpoint into the package, as maskrcnn_plus://NAME.

Example:
    python tools/ship_weights.py --weights output/generalist/model_best.pth --name nuclei \\
        --description "Nuclei in micrographs" --licence Apache-2.0 --credits "Data set, authors, licence"

The file has float16 numbers and no states of the training. It and the table go to maskrcnn_plus/zoo/. Options that are
left out stay as they are in the table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from maskrcnn_plus.apps.ship import ship
from maskrcnn_plus.errors import run_tool


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="checkpoint of a training, such as model_best.pth")
    parser.add_argument("--name", required=True, help="of the model")
    parser.add_argument("--description", default="", help="what it finds, in a line")
    parser.add_argument("--licence", default="", help="of the weights")
    parser.add_argument("--credits", nargs="+", default=[], help="data that it learned from, a text each")
    parser.add_argument("--score-threshold", type=float, help="least score of a detection (default: its config's)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    given = args.weights, args.name, args.description, args.licence, args.credits, args.score_threshold
    return run_tool("ship_weights", lambda: print(ship(*given)), failure=1)


if __name__ == "__main__":
    sys.exit(main())
