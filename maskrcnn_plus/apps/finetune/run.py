"""Reads a folder, configures a Mask R-CNN for it, and trains."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from maskrcnn_plus.apps import command_line
from maskrcnn_plus.apps.check_data.diagnosis import WARNING, diagnose
from maskrcnn_plus.apps.check_data.report import write_data_report
from maskrcnn_plus.apps.convert import convert
from maskrcnn_plus.apps.finetune import rules
from maskrcnn_plus.apps.finetune.budget import fit_into
from maskrcnn_plus.apps.finetune.plan import Plan
from maskrcnn_plus.apps.finetune.shipped import find_shipped
from maskrcnn_plus.apps.finetune.tiles import choose_tile_side
from maskrcnn_plus.apps.finetune.timing import measure_speed
from maskrcnn_plus.apps.finetune.weights import choose_start
from maskrcnn_plus.config import find_config, load_config
from maskrcnn_plus.data.check import DataError, check_dataset, report_problems
from maskrcnn_plus.data.coco import class_key
from maskrcnn_plus.data.folder import FolderData, choose_classes, load_folder
from maskrcnn_plus.data.formats import ReadOptions
from maskrcnn_plus.data.learned_images import read_learned
from maskrcnn_plus.data.limits import reading_by_parts
from maskrcnn_plus.data.statistics import Statistics, measure, sample_pixels
from maskrcnn_plus.errors import UserError
from maskrcnn_plus.training import launch, run

BASE = "common/any_data"
CONFIG, DATA_PAGE, TILES = "config.py", "data_report.html", "tiles"


@dataclass(frozen=True)
class Request:
    """What a person asks for.

    Attributes:
        data: folder or annotation file.
        output: folder of the training.
        hours: for training and evaluation.
        weights: to start from: a file or a source of weights; None for the shipped model of this domain, or those of
            the backbone where there is none.
        classes: names of the classes to learn; None for all with objects.
        format, options: how the annotations are read; see `load_folder`.
        val: part of the images for validation, where there is no such split.
        orientation: "any", "upright" or None to guess.
        on_error: what images and annotations do that cannot be used, "skip" or "raise".
        overrides: `key=value` for the config.
    """

    data: Path
    output: Path
    hours: float = 1.0
    weights: str | None = None
    classes: Sequence[str] | None = None
    format: str | None = None
    options: ReadOptions = field(default_factory=ReadOptions)
    val: float = 0.2
    orientation: str | None = None
    on_error: str = "skip"
    overrides: Sequence[str] = ()


def configure(request: Request, say: Callable[[str], None] = print) -> Path:
    """Write the config of a training that follows from the data, and a page of what the data are.

    Args:
        request: what is asked for.
        say: is told each decision.

    Returns:
        Path of `config.py` in the output folder.

    Raises:
        UserError: the data, the weights or the overrides cannot be used, or the output folder holds a config.
    """
    start = time.monotonic()
    path = request.output / CONFIG
    if path.exists():
        raise UserError(
            f"{path} exists: go on with --resume, train it as it is with {_training(path)}, or give another --output."
        )
    if not request.hours > 0:
        raise UserError(f"--hours {request.hours}: it must be more than 0.")
    if not 0 < request.val < 1:
        raise UserError(f"--val {request.val}: it must be between 0 and 1, such as 0.2.")
    if request.weights and os.path.exists(request.weights):
        request = replace(request, weights=os.path.abspath(request.weights))  # the config may be run from elsewhere
    with _removed_on_failure(request.output / TILES, unless=path):
        return _write_config(_cut_images(request, say), path, start, say)


def _training(path: Path) -> str:
    return f"{command_line('train_net')} --config-file {shlex.quote(str(path))}"


def _write_config(request: Request, path: Path, start: float, say: Callable[[str], None]) -> Path:
    data, names, train, num_val = _read(request, say)
    plan = Plan(BASE, request.overrides)
    plan.decide(_location(request, data), f"{request.data}, read as {data.format}.")
    measured = measure(train, names, sample_pixels(train))
    _check_pixels(measured, request)
    shipped = None if request.weights else find_shipped(plan, measured)
    choose_start(plan, *(shipped or (request.weights,)))
    for rule in rules.RULES:
        rule = functools.partial(rule, chosen=request.orientation) if rule is rules.orientation else rule
        rule(plan, measured)
    seconds = 3600 * request.hours - (time.monotonic() - start)
    say("Measuring a training step and an evaluation on this machine ...")
    fit_into(plan, seconds, len(train), num_val, measure_speed)
    plan.decide({"train.output_dir": os.path.abspath(request.output)}, f"Trains in {request.output}.")
    request.output.mkdir(parents=True, exist_ok=True)
    about = [
        f"A Mask R-CNN for {request.data}, configured from its training images. Change what you like, and train with",
        f"    {_training(path)}",
    ]
    plan.write(path, about)
    try:
        load_config(str(path))
    except BaseException:  # what cannot be read is in nobody's way
        path.unlink()
        raise
    for line in plan.lines():
        say(f"  {line}")
    page = request.output / DATA_PAGE
    diagnosis = diagnose(request.data, request.format, None, request.options)
    write_data_report(page, diagnosis)
    warnings = sum(finding.severity == WARNING for finding in diagnosis.findings)
    say(f"The data: {diagnosis.num_problems} problems, {warnings} kinds of warnings; {page} has them, with pictures.")
    for sentence in diagnosis.advice:
        say(f"  {sentence}")
    say(f"The config: {path}")
    return path


def train(config: Path | str, resume: bool = False, overrides: Sequence[str] = (), output: Path | None = None) -> None:
    """Train what a config says, in this process.

    Args:
        config: of `configure`, or another file or name of a config.
        resume: go on from the last checkpoint.
        overrides: `key=value` for it.
        output: folder of the training, where it is not, or no longer, the one that the config names.
    """
    path = find_config(str(config))
    args = argparse.Namespace(
        config_file=path, resume=resume, eval_only=False, num_gpus=1, num_machines=1, machine_rank=0, dist_url=""
    )
    cfg = load_config(path, overrides)
    if output is not None:
        cfg.train.output_dir = str(output)
    launch(run, args, cfg)


def _cut_images(request: Request, say: Callable[[str], None]) -> Request:
    """The request, for tiles in its output folder where the images cannot be taken as they are."""
    data = None
    with contextlib.suppress(UserError):
        data = _load(request)
    if data is None or data.problems:  # an image may only be too large to be decoded at once
        with reading_by_parts():
            data = _load(request)
    side, why = choose_tile_side(data.splits)
    if side is None:
        return request
    tiles = request.output / TILES
    say(f"{request.data}: {why}. Tiles of at most {side} pixels are made of what is there, in {tiles}:")
    for line in convert(
        request.data, tiles, "coco", request.format, request.val, request.on_error, request.options, tile=side
    ):
        say(f"  {line}")
    return replace(request, data=tiles, format="coco", options=ReadOptions())


def _load(request: Request) -> FolderData:
    where = {"val": request.val, "split_of": _split_of(request)}
    return load_folder(request.data, request.format, **where, **asdict(request.options))


def _split_of(request: Request) -> str | None:
    """The weights to start from, where they know images of their training."""
    return request.weights if read_learned(request.weights) else None


@contextlib.contextmanager
def _removed_on_failure(folder: Path, unless: Path) -> Iterator[None]:
    """What ends this block takes a folder with it that is made in it, so that the same command can be given again.

    It stays once the file is there that names it.
    """
    existed = folder.exists()
    try:
        yield
    except BaseException:
        if not existed and not unless.exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _read(request: Request, say: Callable[[str], None]) -> tuple[FolderData, list[str], list[dict[str, Any]], int]:
    """The folder, the classes to learn, the training images that can be used, and the number of those of validation."""
    data = _load(request)
    say(f"{request.data}: {data.format}")
    for note in data.notes:
        say(f"  {note}")
    report_problems(data.problems, request.on_error)
    if "val" not in data.splits:
        raise DataError(
            f"{request.data}: at least two annotated images that do not belong together are needed, one to learn from "
            "and one to judge by. A single one is cut into tiles where it has a side of more than 256 pixels and "
            "of more than three objects."
        )
    names = _choose_names(request, data)
    if not names:
        raise DataError(f"{request.data}: no image has an object that can be used.")
    splits = {}
    for split in ("train", "val"):
        records = choose_classes(data, split, names, str(request.data))
        splits[split] = check_dataset(records, on_error=request.on_error, num_classes=len(names))
    if not any(record["annotations"] for record in splits["train"]):
        raise DataError(f"{request.data}: no training image has an object that can be used.")
    return data, names, splits["train"], len(splits["val"])


def _choose_names(request: Request, data: FolderData) -> list[str]:
    """The classes to learn; those that are asked for must be of the data, but for a new name of an only one."""
    used = data.used_classes()
    asked = list(request.classes or ())
    known = {class_key(name): name for name in data.class_names}
    unknown = [name for name in asked if class_key(name) not in known]
    if unknown and not len(asked) == len(used) == 1:
        near = difflib.get_close_matches(class_key(unknown[0]), list(known), 1)
        hint = f" Did you mean {known[near[0]]}?" if near else ""
        raise DataError(f"{request.data} has no class {', '.join(unknown)}, but {', '.join(data.class_names)}.{hint}")
    return asked or used


def _location(request: Request, data: FolderData) -> dict[str, Any]:
    """Keys of the config that say where the data are and how they are read."""
    values = {"root": str(request.data.resolve()), "format": data.format, "val": request.val}
    if split_of := _split_of(request):
        values["split_of"] = split_of
    defaults = asdict(ReadOptions())
    values |= {key: value for key, value in asdict(request.options).items() if value != defaults[key]}
    if request.on_error != "skip":
        values["on_error"] = request.on_error
    return {f"dataset.{key}": value for key, value in values.items()}


def _check_pixels(data: Statistics, request: Request) -> None:
    if not data.pixels.num_images:
        raise DataError(f"{request.data}: no image can be read. The first: {data.pixels.unreadable[0]}")
    chosen = any(entry.startswith("dataset.channels=") for entry in request.overrides)
    if not chosen and len(data.pixels.channels) > 1 and set(data.pixels.channels) - {1, 3}:
        found = ", ".join(f"{count} of {channels} channels" for channels, count in data.pixels.channels.items())
        raise DataError(
            f"{request.data}: images have different numbers of channels ({found}). Say which are used, for example "
            "dataset.channels=[0,1,2]."
        )
