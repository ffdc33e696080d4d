"""The log file of a run, `log.txt` in its output folder: what is too long for the console goes there alone."""

from __future__ import annotations

import logging
import os

LOGGER = "maskrcnn_plus"


def log_to_file(message: str, level: int = logging.INFO) -> str | None:
    """Write a message to the log file and not to the console.

    Args:
        message: of any number of lines.
        level: of the standard library's `logging`.

    Returns:
        Path of the log file; None where no run has opened one (`detectron2.utils.logger.setup_logger`).
    """
    path = None
    for handler in logging.getLogger(LOGGER).handlers:
        name = getattr(getattr(handler, "stream", None), "name", None)
        if isinstance(name, str) and os.path.isfile(name):
            handler.handle(logging.LogRecord(LOGGER, level, __file__, 0, message, None, None))
            path = name
    return path
