"""Evaluation results on disk."""

import json
import os
from typing import Any


def write_json(content: Any, folder: str, file_name: str) -> None:
    """Write `folder/file_name` whole or not at all: a reader, or a killed run, never sees half a file.

    Raises:
        OSError: the folder cannot be made or written.
    """
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, file_name)
    temporary = f"{path}.{os.getpid()}.tmp"  # in the same folder: os.replace is atomic within one file system only
    try:
        with open(temporary, "w") as file:
            json.dump(content, file)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
