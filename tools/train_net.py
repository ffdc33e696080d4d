#!/usr/bin/env python3
"""Train or evaluate what a LazyConfig describes.

Examples:
    python tools/train_net.py --config-file configs/demo/mask_rcnn_lite0_fpn.py
    python tools/train_net.py --config-file configs/nuclei/mask_rcnn_lite0_fpn.py dataset.root=datasets/nuclei
    python tools/train_net.py --config-file ... --resume
    python tools/train_net.py --config-file ... --eval-only train.init_checkpoint=output/nuclei/model_best.pth
    torchrun --nproc-per-node 2 tools/train_net.py --config-file ...

Exit code: 0 finished, 1 the config, the data or something else made it impossible (the last line says what), 2 the
command cannot be understood, 128 + N stopped by signal N after a checkpoint was written (130 for Ctrl-C).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tuning import keep_memory_on_cpu, shorten_thread_waits

shorten_thread_waits()  # before PyTorch is loaded

# isort: split

import maskrcnn_plus  # noqa: F401  # first: without the warnings of Detectron2's own imports

# isort: split

from detectron2.engine import default_argument_parser
from omegaconf import DictConfig

from maskrcnn_plus.config import find_config, load_config
from maskrcnn_plus.errors import run_tool
from maskrcnn_plus.training import launch, run


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="a LazyConfig file, or the name of a shipped config")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of train.output_dir")
    parser.add_argument("--eval-only", action="store_true", help="evaluate train.init_checkpoint")
    parser.add_argument("--num-gpus", type=int, default=1, help="of this machine (default: 1)")
    parser.add_argument("--num-machines", type=int, default=1, help="(default: 1)")
    parser.add_argument("--machine-rank", type=int, default=0, help="number of this machine, from 0 on (default: 0)")
    parser.add_argument(
        "--dist-url",
        default=default_argument_parser().get_default("dist_url"),
        help="where several processes meet (default: %(default)s)",
    )
    parser.add_argument("opts", nargs="*", metavar="key=value", help="changes to the config")
    return parser.parse_intermixed_args(argv)


def train(args: argparse.Namespace, loaded: DictConfig | None) -> None:
    """Train or evaluate in this process; what goes wrong ends it with a line."""

    def work() -> None:
        cfg = load_config(args.config_file, args.opts) if loaded is None else loaded
        keep_memory_on_cpu(cfg.train.device)
        run(args, cfg)

    if code := run_tool("train_net", work, overrides=args.opts, failure=1):
        sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)

    def start() -> None:
        args.config_file = find_config(args.config_file)
        cfg = load_config(args.config_file, args.opts)  # a misspelt key ends here, before anything starts
        launch(train, args, cfg)

    return run_tool("train_net", start, overrides=args.opts, failure=1)


if __name__ == "__main__":
    sys.exit(main())
