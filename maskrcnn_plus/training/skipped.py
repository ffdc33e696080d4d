"""Images that the training left out, because their pixels or annotations cannot be used (`dataset.on_error=skip`)."""

import logging
from collections.abc import Iterable

logger = logging.getLogger(__name__)

_MAX_LISTED = 50


class SkippedImages:
    """Names each image in the log when it is first met, and all of them at the end."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    def add(self, skipped: Iterable[tuple[str, str]]) -> None:
        """Note (file, reason) of images that others stood in for."""
        for file, reason in skipped:
            if file not in self._reasons:
                self._reasons[file] = reason
                logger.warning(f"Left out of the training, another image takes its place: {reason}")

    def report(self) -> None:
        """Log how many images were left out, and which; nothing where there was none."""
        if not self._reasons:
            return
        lines = [f"  - {reason}" for reason in list(self._reasons.values())[:_MAX_LISTED]]
        if len(self._reasons) > _MAX_LISTED:
            lines.append(f"  ... and {len(self._reasons) - _MAX_LISTED} more, named above")
        count = len(self._reasons)
        logger.warning(
            "\n".join([f"{count} image{'s were' if count > 1 else ' was'} left out of this training:", *lines])
        )
