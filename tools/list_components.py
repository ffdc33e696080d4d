#!/usr/bin/env python3
"""List the components of maskrcnn_plus that a config can name, with their options and defaults.

Examples:
    python tools/list_components.py
    python tools/list_components.py --registry BACKBONE
    python tools/list_components.py --json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import textwrap
from collections.abc import Sequence

from maskrcnn_plus.components import REGISTRIES, Component, list_components
from maskrcnn_plus.errors import run_tool


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", type=str.upper, choices=list(REGISTRIES), help="only what is in this registry")
    parser.add_argument("--json", action="store_true", help="a JSON list of objects instead of text")
    return parser.parse_args(argv)


def as_text(components: Sequence[Component]) -> str:
    """One paragraph a component: where it is, what it is, its options."""
    lines, group = [], ""
    for component in components:
        heading = component.registry or "in no registry: name them by path"
        if heading != group:
            lines += [heading, ""]
            group = heading
        options = ", ".join(name if value is None else f"{name}={value}" for name, value in component.options.items())
        lines.append(f"  {component.name} ({component.path})")
        lines += [f"      {component.summary}"] if component.summary else []
        lines += textwrap.wrap(options, 110, initial_indent=" " * 6, subsequent_indent=" " * 6, break_long_words=False)
        lines.append("")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_tool("list_components", lambda: print_components(args))


def print_components(args: argparse.Namespace) -> None:
    components = [c for c in list_components() if args.registry in (None, c.registry)]
    if args.json:
        print(json.dumps([dataclasses.asdict(component) for component in components], indent=2))
    elif components:
        print(as_text(components))
    else:
        print(f"maskrcnn_plus has nothing in the registry {args.registry}.")


if __name__ == "__main__":
    sys.exit(main())
