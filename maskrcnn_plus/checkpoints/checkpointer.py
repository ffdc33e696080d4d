"""Checkpoints on disk: written atomically, read as data only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.checkpoints.conversion import WeightsError
from maskrcnn_plus.checkpoints.files import read_file


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with atomic writes, a choice of what to mark as the last one, and safe reading.

    Args:
        model, save_dir, save_to_disk, checkpointables: as Detectron2's.
        class_names: of the model, in the order of its rows; written into every checkpoint.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        class_names: Sequence[str] | None = None,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.class_names = [str(name) for name in class_names] if class_names else None

    def save(self, name: str, *, tag: bool = True, only_model: bool = False, **kwargs: Any) -> None:
        """Write `<save_dir>/<name>.pth`.

        Args:
            name: file name without its ending.
            tag: a later `--resume` continues from this file.
            only_model: leave out optimizer, schedule and the other states.
            kwargs: further entries; "model" replaces the model's own weights.

        Raises:
            OSError: naming the folder, when it cannot be written (no space, no permission).
        """
        if not self.save_dir or not self.save_to_disk:
            return
        states = {} if only_model else {key: value.state_dict() for key, value in self.checkpointables.items()}
        names = {"class_names": self.class_names} if self.class_names else {}
        data = {"model": self.model.state_dict(), **names, **states, **kwargs}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        try:
            write_atomically(path, lambda file: torch.save(data, file), durable=True)
        except (OSError, RuntimeError) as error:
            raise OSError(f"The checkpoint {path} could not be written ({error}); earlier ones are intact.") from error
        if tag:
            self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Mark a file of `save_dir` as the one to resume from."""
        path = os.path.join(self.save_dir, "last_checkpoint")
        write_atomically(path, last_filename_basename.encode(), durable=True)

    def _load_file(self, filename: str) -> dict[str, Any]:
        """A checkpoint of a training; weights of other origin are for `load_weights`.

        Raises:
            WeightsError: it cannot be read, or has no entry "model".
        """
        data = read_file(filename)
        if "model" not in data:
            raise WeightsError(
                f"{filename} is no checkpoint of a training, which cannot be resumed from it: start a new one with "
                "train.init_checkpoint."
            )
        return data
