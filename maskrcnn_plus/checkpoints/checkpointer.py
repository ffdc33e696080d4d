"""Checkpoints on disk: written atomically, read as data only, resumed from as a whole or not at all."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.checkpoints.config_record import changed_keys
from maskrcnn_plus.checkpoints.description import DESCRIPTION
from maskrcnn_plus.errors import listed
from maskrcnn_plus.special_files import refuse_special_file
from maskrcnn_plus.weights.conversion import WeightsError
from maskrcnn_plus.weights.files import read_file

_OF_A_RUN = re.compile(r"model_(\d{7}|final)\.pth")


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with atomic writes, a choice of what to mark as the last one, and strict reading."""

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        class_names: Sequence[str] | None = None,
        category_ids: Sequence[int | float | str] | None = None,
        config: Mapping[str, Any] | None = None,
        description: Mapping[str, Any] | None = None,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ) -> None:
        """Take the parts.

        Args:
            model, save_dir, save_to_disk, checkpointables: as Detectron2's.
            class_names: of the model, in the order of its rows; written into every checkpoint.
            category_ids: of these classes in the data set's own file, written beside them.
            config: of the training, by `flatten_config`; written into every checkpoint.
            description: by `describe`; written into every checkpoint, with the `metrics` of the last evaluation.
        """
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.class_names = [str(name) for name in class_names] if class_names else None
        self.category_ids = list(category_ids) if category_ids else None
        self.config = dict(config) if config else None
        self.description = dict(description) if description else None
        self.metrics: dict[str, float] = {}

    def save(self, name: str, *, tag: bool = True, only_model: bool = False, **kwargs: Any) -> None:
        """Write `<save_dir>/<name>.pth`.

        Args:
            name: file name without its ending.
            tag: a later `--resume` continues from this file.
            only_model: leave out optimizer, schedule and the other states.
            kwargs: further entries; "model" replaces the model's own weights.

        Raises:
            OSError: naming the file, when it cannot be written (no space, no permission, no folder).
        """
        if not self.save_dir or not self.save_to_disk:
            return
        states = {} if only_model else {key: value.state_dict() for key, value in self.checkpointables.items()}
        about = {"class_names": self.class_names, "category_ids": self.category_ids, "config": self.config}
        about[DESCRIPTION] = self.description and {**self.description, "metrics": self.metrics}
        about = {key: value for key, value in about.items() if value}
        data = {"model": self.model.state_dict(), **about, **states, **kwargs}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        try:
            write_atomically(path, lambda file: torch.save(data, file), durable=True)
        except RuntimeError as error:
            raise OSError(f"The checkpoint {path} could not be written ({error}).") from error
        if tag:
            self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Mark a file of `save_dir` as the one to resume from."""
        write_atomically(self._tag, last_filename_basename.encode(), durable=True)

    @property
    def _tag(self) -> Path:
        return Path(self.save_dir, "last_checkpoint")

    def load_last(self) -> bool:
        """Load the checkpoint that is marked as the last one.

        Returns:
            Whether there is one; False where the folder holds no checkpoint of a training at all.

        Raises:
            WeightsError: it, or the mark, is damaged, or it does not fit; names the newest checkpoint that does.
        """
        found = self._checkpoints()
        refuse_special_file(self._tag)
        try:
            name = self._tag.read_bytes().decode(errors="replace").strip()
        except FileNotFoundError:
            if not found:
                return False
            name = ""
        path = Path(self.save_dir, name)
        if not re.fullmatch(r"[\w.-]+\.pth", name) or not path.is_file():
            says = f"names {name!r}, which is no checkpoint" if name else "is empty or missing"
            raise WeightsError(
                f"{self._tag}, which names the checkpoint to resume from, {says}. "
                + (self._advice(found) or "No whole checkpoint is left: start anew without --resume.")
            )
        try:
            self.load(str(path))
        except WeightsError as error:
            advice = self._advice([other for other in found if other != path])
            raise WeightsError(f"{error} {advice}".rstrip()) from error
        return True

    def _checkpoints(self) -> list[Path]:
        """Those of a training in the folder, the newest first."""
        paths = [path for path in Path(self.save_dir).glob("model_*.pth") if _OF_A_RUN.fullmatch(path.name)]
        return sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)

    def _advice(self, paths: Sequence[Path]) -> str:
        """How to resume from the first of these checkpoints that is whole and fits; "" if none is."""
        for path in paths:
            try:
                self._check(self._load_file(str(path)), str(path), self.checkpointables)
            except WeightsError:
                continue
            return (
                f"{path} is whole: to go on from it, write its name into that file (`echo {path.name} > {self._tag}`) "
                "and use --resume again."
            )
        return ""

    def load(self, path: str, checkpointables: Sequence[str] | None = None) -> dict[str, Any]:
        """Load the checkpoint of a training: each tensor of the model, and the states of the checkpointables.

        Args:
            path: of the file; "" loads nothing.
            checkpointables: their names; None for all.

        Returns:
            What else is in the file.

        Raises:
            WeightsError: the file is damaged, lacks something, or is of another model, whose differences are listed
                together with the keys of the config that differ. The model is then as it was.
        """
        if not path:
            return {}
        self.logger.info(f"Loading checkpoint {path}")
        content = self._load_file(path)
        keys = list(self.checkpointables) if checkpointables is None else list(checkpointables)
        self._check(content, path, keys)
        changed = changed_keys(content.get("config") or self.config or {}, self.config or {})
        if changed:
            self.logger.info(f"Changed in the config since this checkpoint was written: {', '.join(changed)}.")
        for split in self.changed_data(content):
            self.logger.warning(
                f"The {split} data are not those that {path} was trained with: images or annotations have changed, or "
                "another part of them was drawn for validation, so that figures of before cannot be compared."
            )
        for key in keys:
            try:
                self.checkpointables[key].load_state_dict(content.pop(key))
            except WeightsError as error:
                raise WeightsError(f"{path} cannot be resumed from: {error}{self._cause(content)}") from error
            except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                reason = f"{type(error).__name__}: {error}"
                raise WeightsError(
                    f'{path} cannot be resumed from: its entry "{key}" is damaged ({reason}).'
                ) from error
        self.model.load_state_dict(content.pop("model"))
        self.metrics = dict((content.get(DESCRIPTION) or {}).get("metrics") or {})
        return content

    def changed_data(self, content: Mapping[str, Any]) -> list[str]:
        """The splits of which a checkpoint describes other data than those of this training: "train", "test"."""
        before, now = ((each or {}).get("data") or {} for each in (content.get(DESCRIPTION), self.description))
        name = "fingerprint"
        return [split for split in before if split in now and before[split].get(name) != now[split].get(name)]

    def _load_file(self, filename: str) -> dict[str, Any]:
        """A checkpoint of a training; weights of other origin are for `load_weights`.

        Raises:
            WeightsError: it cannot be read, is damaged, or has no entry "model".
        """
        data = read_file(filename)
        if damaged := _damaged_record(filename):
            raise WeightsError(f"{filename} is damaged: its record {damaged} is not what was written.")
        if not isinstance(data.get("model"), dict):
            raise WeightsError(
                f"{filename} is no checkpoint of a training, which cannot be resumed from it: start a new one with "
                "train.init_checkpoint."
            )
        return data

    def _check(self, content: Mapping[str, Any], path: str, keys: Sequence[str]) -> None:
        """Refuse what lacks an entry, or does not hold each tensor of the model and of other modules."""
        missing = [key for key in keys if key not in content]
        if missing:
            raise WeightsError(
                f"{path} cannot be resumed from: it holds no {' and no '.join(missing)}. It has only weights, or is of "
                f"a training with other settings.{self._cause(content)}"
            )
        modules = {key: self.checkpointables[key] for key in keys if isinstance(self.checkpointables[key], nn.Module)}
        for key, module in {"model": self.model, **modules}.items():
            if differences := _differences(module.state_dict(), content[key]):
                raise WeightsError(
                    f"{path} cannot be resumed from: its {key} is not that of the config. {differences}."
                    f"{self._cause(content)} Resume with the run's own config, or start a new run from these weights: "
                    f"train.init_checkpoint={path} and another train.output_dir."
                )
        before, now = content.get("class_names") or [], self.class_names or []
        if any(name in before and before.index(name) != now.index(name) for name in now):
            raise WeightsError(
                f"{path} cannot be resumed from: it was trained for the classes {', '.join(before)}, in this order, "
                f"and dataset.thing_classes has {', '.join(now)}."
            )

    def _cause(self, content: Mapping[str, Any]) -> str:
        """The keys that the layers and the parameters under training depend on, where they have changed."""
        if not content.get("config") or not self.config:
            return " A changed dataset.num_classes, backbone, freeze_at or optimizer does this."
        changed = changed_keys(content["config"], self.config)
        changed = [key for key in changed if key.startswith(("model.", "dataset.", "optimizer.", "train.ema."))]
        return f" The config was changed: {', '.join(changed)}." if changed else ""


def _damaged_record(path: str) -> str | None:
    """Name of the first record of an archive that is not what its checksum says; `torch.load` does not look."""
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        return str(error)


def _differences(own: Mapping[str, Any], stored: Any) -> str:
    """Tensors that are missing, of another shape or type, or too many, in words; "" if there are none."""
    if not isinstance(stored, Mapping):
        return f"It is a {type(stored).__name__}"
    own = {name: value for name, value in own.items() if isinstance(value, Tensor)}
    found = {name: value for name, value in stored.items() if isinstance(value, Tensor)}
    missing = [name for name in own if name not in found]
    others = [
        f"{name} {_kind(found[name])} there, {_kind(value)} here"
        for name, value in own.items()
        if name in found and _kind(found[name]) != _kind(value)
    ]
    surplus = [name for name in found if name not in own]
    parts = (
        (missing, f"{len(missing)} of {len(own)} tensors are missing"),
        (others, f"{len(others)} of {len(own)} are others"),
        (surplus, f"{len(surplus)} are not in the model"),
    )
    return "; ".join(f"{text} ({listed(names, 10)})" for names, text in parts if names)


def _kind(tensor: Tensor) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"{list(tensor.shape)}" if kind == "float32" else f"{kind} {list(tensor.shape)}"
