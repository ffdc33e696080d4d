#!/usr/bin/env python3
"""Train or evaluate what a LazyConfig describes.

Examples:
    python tools/train_net.py --config-file configs/demo/mask_rcnn_lite0_fpn.py
    python tools/train_net.py --config-file configs/nuclei/mask_rcnn_lite0_fpn.py dataset.root=datasets/nuclei
    python tools/train_net.py --config-file ... --resume
    python tools/train_net.py --config-file ... --eval-only train.init_checkpoint=output/nuclei/model_best.pth
    torchrun --nproc-per-node 2 tools/train_net.py --config-file ...
"""

from __future__ import annotations

import argparse
import sys

import maskrcnn_plus  # noqa: F401 - before PyTorch, see maskrcnn_plus.threads

# isort: split

from detectron2.engine import default_argument_parser

from maskrcnn_plus.checkpoints import WeightsError
from maskrcnn_plus.config import find_config, get_config
from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.images import ImageReadError
from maskrcnn_plus.overrides import apply_overrides
from maskrcnn_plus.training import launch, run


def main(args: argparse.Namespace) -> None:
    cfg = apply_overrides(get_config(args.config_file), args.opts)
    try:
        run(args, cfg)
    except (DataError, ImageReadError, WeightsError, FloatingPointError) as error:
        sys.exit(f"train_net: {error}")


if __name__ == "__main__":
    parser = default_argument_parser(epilog=__doc__)
    args = parser.parse_args()
    if not args.config_file:
        parser.error("--config-file is missing")
    try:
        args.config_file = find_config(args.config_file)
        apply_overrides(get_config(args.config_file), args.opts)  # a misspelt key ends here, before anything starts
    except (ValueError, KeyError, FileNotFoundError) as error:
        sys.exit(f"train_net: {error}")
    launch(main, args)
