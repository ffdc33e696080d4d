#!/usr/bin/env python3
"""Serve a model as a page in the browser and an HTTP API.

Usage: python tools/serve.py --weights maskrcnn_plus://nuclei, then open http://127.0.0.1:7860

Drop images on the page, see their objects, filter them and download them in the formats of tools/predict.py. Programs
post images to /v1/predict; /docs describes it, docs/serve.md has examples. Other machines reach the server with
--host 0.0.0.0 only; give it a token then, in the environment variable MASKRCNN_PLUS_TOKEN or by --token.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from collections.abc import Sequence

from tuning import keep_memory_on_cpu, shorten_thread_waits

shorten_thread_waits()  # before PyTorch is loaded

# isort: split

from maskrcnn_plus.apps.predictor_source import PredictorSource
from maskrcnn_plus.apps.serve.settings import Settings
from maskrcnn_plus.errors import UserError, run_tool
from maskrcnn_plus.inference.precision import PRECISIONS
from maskrcnn_plus.inference.tile_choice import tile_size

TOKEN = "MASKRCNN_PLUS_TOKEN"
LOCAL = ("127.0.0.1", "localhost", "::1")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Settings()
    parser.add_argument(
        "--weights", required=True, help="checkpoint, exported folder, maskrcnn_plus://nuclei, or torchvision://NAME"
    )
    parser.add_argument("--config-file", help="a LazyConfig file, or the name of a shipped config")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen at; 0 takes a free one (default: 7860)")
    parser.add_argument("--token", help=f"what clients must know (default: that in {TOKEN}; else everybody is let in)")
    parser.add_argument(
        "--score-threshold", type=float, help="least score of an object (default: the config's, or 0.5)"
    )
    parser.add_argument(
        "--diameter", type=float, metavar="PX", help="median diameter of the objects, as for predict.py"
    )
    parser.add_argument("--tile", type=tile_size, default="auto", metavar="SIZE|auto|off", help="as for predict.py")
    parser.add_argument(
        "--max-mb", type=float, default=default.max_bytes / 2**20, help="of a file (default: %(default)g)"
    )
    parser.add_argument(
        "--max-pixels", type=int, default=default.max_pixels, metavar="N", help="of an image (default: %(default)s)"
    )
    parser.add_argument(
        "--max-waiting", type=int, default=default.max_waiting, metavar="N", help="uploads at a time; more get 429"
    )
    parser.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="waiting images of up to 1024 x 1024 pixels that are predicted at once (default: 8 on a GPU, 1 on a CPU)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the config's train.device)")
    parser.add_argument("--precision", choices=PRECISIONS, help="of the networks, as for predict.py")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY=VALUE", help="changes to the config")
    args = parser.parse_args(argv)
    for name in ("max_mb", "max_pixels", "max_waiting", "batch"):
        if getattr(args, name) is not None and not 0 < getattr(args, name) < math.inf:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: a number above 0 is needed")
    if not 0 <= args.port <= 65535:
        parser.error(f"--port {args.port}: 0 to 65535 is needed")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_tool("serve", lambda: run(args), overrides=args.opts)


def run(args: argparse.Namespace) -> None:
    """Load the model and serve it until the process is told to end."""
    try:
        from maskrcnn_plus.apps.serve.app import serve
    except ImportError as error:
        raise UserError(f"{error.name} is missing: pip install 'maskrcnn_plus[web]'") from error

    source = args.weights, args.config_file, tuple(args.opts), args.score_threshold
    predictor = PredictorSource(*source, args.device, args.diameter, args.precision).build()
    keep_memory_on_cpu(predictor.device)
    predictor.warm_up()
    token = (args.token or os.environ.get(TOKEN) or "").strip() or None
    settings = Settings(
        max_bytes=int(args.max_mb * 2**20),
        max_pixels=args.max_pixels,
        max_waiting=args.max_waiting,
        batch_size=args.batch or (1 if predictor.device.type == "cpu" else 8),
        tile=args.tile,
        token=token,
        only_local=args.host in LOCAL,
    )
    if token is None and args.host not in LOCAL:
        print(
            f"serve: everybody who reaches this machine may use the model; set {TOKEN} to ask for a token.",
            file=sys.stderr,
        )
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which the server takes, and ends the process by when it has closed
    serve(
        predictor,
        settings,
        host=args.host,
        port=args.port,
        title=args.weights,
        on_start=lambda url: print(f"Open {url}", flush=True),
    )


if __name__ == "__main__":
    sys.exit(main())
