#!/usr/bin/env python3
"""Write synthetic cells as a label-map data set: images/, labels/ and splits.json, an example of your own data.

Usage: python tools/synthetic_cells.py --output datasets/cells --images 40 --val 8

With --style fluorescence or tissue they are nuclei, grey on black, or stained as in histology. With --film 60, instead:
film.tif of nuclei that move, cross and divide, and labels.tif, in which the value of a pixel is the nucleus's identity.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Sequence

import numpy as np
import tifffile
from PIL import Image

from maskrcnn_plus.arguments import output_folder
from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.data.moving_nuclei import film_nuclei
from maskrcnn_plus.data.synthetic import render_cells
from maskrcnn_plus.data.synthetic_nuclei import STAINS, render_nuclei
from maskrcnn_plus.errors import run_tool


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=output_folder, help="folder of the data set")
    parser.add_argument("--images", type=int, default=40, help="number of images (default 40)")
    parser.add_argument("--val", type=int, default=8, help="how many of them are for validation (default 8)")
    parser.add_argument("--size", type=int, default=256, help="side of an image in pixels (default 256)")
    parser.add_argument("--seed", type=int, default=2, help="start of the random numbers (default 2)")
    parser.add_argument("--style", choices=("cells", *STAINS), default="cells", help="of the images (default cells)")
    parser.add_argument("--film", type=int, metavar="FRAMES", help="write a film of so many frames")
    args = parser.parse_args(argv)
    if args.film is not None and args.film < 1:
        parser.error(f"--film {args.film}: at least one frame")
    if not 0 <= args.val <= args.images:
        parser.error(f"--val {args.val} of --images {args.images}: at most all of them can be for validation")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_tool("synthetic_cells", lambda: write_cells(args) if args.film is None else write_film(args))


def write_film(args: argparse.Namespace) -> None:
    """Write the film that the arguments describe."""
    args.output.mkdir(parents=True, exist_ok=True)
    frames = list(film_nuclei(args.seed, args.film, args.size, args.size))
    for name, part in (("film", 0), ("labels", 1)):
        stack = np.stack([frame[part] for frame in frames])
        save = functools.partial(tifffile.imwrite, data=stack, imagej=True, metadata={"axes": "TYX"})
        write_atomically(args.output / f"{name}.tif", save)
    print(f"{args.film} frames in {args.output / 'film.tif'}, {stack.max()} nuclei in all")


def write_cells(args: argparse.Namespace) -> None:
    """Write the data set that the arguments describe."""
    for folder in ("images", "labels"):
        (args.output / folder).mkdir(parents=True, exist_ok=True)
    names = [f"{args.style}_{index:04d}" for index in range(args.images)]
    for index, name in enumerate(names):
        place = (args.seed, index, args.size, args.size)
        image, label_map = render_cells(*place)[:2] if args.style == "cells" else render_nuclei(args.style, *place)
        for folder, pixels in (("images", image), ("labels", label_map)):
            save = functools.partial(Image.fromarray(pixels).save, format="png")
            write_atomically(args.output / folder / f"{name}.png", save)
    first_val = args.images - args.val
    splits = {"train": names[:first_val], "val": names[first_val:]}
    write_atomically(args.output / "splits.json", json.dumps(splits, indent=1).encode())
    print(f"{args.images} images in {args.output}, {args.val} of them for validation")


if __name__ == "__main__":
    sys.exit(main())
