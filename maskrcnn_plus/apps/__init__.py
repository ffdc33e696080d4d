"""Whole jobs, as the command lines run them; nothing else imports them."""

import sys


def command_line(tool: str) -> str:
    """How a person who called a tool calls another one: where the package is installed there is no folder tools."""
    installed = sys.argv[0].startswith("maskrcnn-plus ")  # as `tools/command.py` sets it
    return f"maskrcnn-plus {'train' if tool == 'train_net' else tool}" if installed else f"python tools/{tool}.py"
