#!/usr/bin/env python3
"""The command `maskrcnn-plus`: one word for each of these tools.

Usage: maskrcnn-plus predict --weights model_best.pth --input images --output predictions

Nothing is imported before the word is known, so that the list of them comes at once.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
WORDS = {"check_data": "check", "train_net": "train"}
NOT_PIPS = {"detectron2": "Detectron2", "cv2": "OpenCV"}  # which `pip install` of this package does not bring
TOOL = re.compile(r"python tools/(\w+)\.py")
FIRST = ("finetune", "check", "train", "predict", "serve", "evaluate", "export", "convert")


def find_commands() -> dict[str, tuple[str, str]]:
    """Word -> (module, first sentence of its docstring) of each tool that is there, those of every day first."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        has_main = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
        if has_main and path.stem != Path(__file__).stem:
            line = (ast.get_docstring(tree) or "").partition("\n")[0]
            found[WORDS.get(path.stem, path.stem).replace("_", "-")] = path.stem, line
    return {word: found[word] for word in [*FIRST, *found] if word in found}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a tool; gives its exit code.

    Args:
        argv: word and arguments; None takes those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = find_commands()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, commands))
        print("Usage: maskrcnn-plus COMMAND ...   (maskrcnn-plus COMMAND --help says more)\n")
        print("\n".join(f"  {word:<{width}}  {line}" for word, (_, line) in commands.items()))
        return 0
    word, *rest = arguments
    if word not in commands:
        close = difflib.get_close_matches(word, commands, n=2)
        hint = f"Did you mean {' or '.join(close)}?" if close else f"There are {', '.join(commands)}."
        print(f"maskrcnn-plus: there is no command {word!r}. {hint}", file=sys.stderr)
        return 2
    # As of `python tools/NAME.py`: the modules of the folder import one another by their names, and other processes
    # find functions by the same names.
    sys.path.insert(0, str(FOLDER))
    sys.argv = [f"maskrcnn-plus {word}", *rest]
    try:
        tool = importlib.import_module(commands[word][0])
    except ModuleNotFoundError as error:
        if error.name not in NOT_PIPS:
            raise
        remedy = "Run: maskrcnn-plus install-detectron2"
        print(f"maskrcnn-plus: {NOT_PIPS[error.name]} is missing. {remedy}", file=sys.stderr)
        return 2
    words = {module: word for word, (module, _) in commands.items()}
    tool.__doc__ = TOOL.sub(lambda found: f"maskrcnn-plus {words.get(found[1], found[1])}", tool.__doc__ or "")
    return tool.main() or 0


if __name__ == "__main__":
    sys.exit(main())
