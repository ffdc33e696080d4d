"""What a finished training is worth on its validation images, and what to do next."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from maskrcnn_plus.apps import command_line
from maskrcnn_plus.apps.evaluate import EvaluationData, evaluate_records, figures_table, write_report
from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.build import build
from maskrcnn_plus.checkpoints.description import DESCRIPTION
from maskrcnn_plus.config import load_config
from maskrcnn_plus.data.check import checked_dicts
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.weights.files import read_file

_MARK = "# Of the best F1 on the validation images."


def report(config: Path, overrides: Sequence[str] = (), say: Callable[[str], None] = print) -> None:
    """Judge the best weights, write `report.html` beside them, and name the commands that go on.

    Args:
        config: of the training, in its output folder. The score threshold of the best F1 is written into it and into
            the weights' description, unless it gives one.
        overrides: `key=value` for the config.
        say: is told the figures.

    Raises:
        OSError: the page cannot be written.
    """
    if not comm.is_main_process():
        return
    cfg, output = load_config(str(config), overrides), config.parent
    best = output / "model_best.pth"
    weights = best if best.is_file() else output / "model_final.pth"
    predictor = Predictor(cfg, str(weights), score_threshold=0.0)
    name = build(cfg, "dataloader.test.dataset.names")
    records = checked_dicts(name, on_error=cfg.dataset.on_error)
    data = EvaluationData(records, list(MetadataCatalog.get(name).thing_classes), "val")
    diagnosis = evaluate_records(predictor, data, on_error=cfg.dataset.on_error)
    page = output / "report.html"
    title = f"{cfg.dataset.root}, validation images"
    write_report(page, diagnosis, predictor, weights=str(weights), data=title, notes=data.notes)
    say(figures_table(diagnosis))
    for note in data.notes:
        say(f"  {note}")
    if _keep_threshold(config, weights, diagnosis.threshold):
        say(f"  {weights} and {config.name} take this threshold.")
    quoted = shlex.quote(str(weights))
    say(
        f"The whole evaluation: {page}\n"
        f"Predict:  {command_line('predict')} --weights {quoted} --input IMAGES --output predictions\n"
        f"Evaluate: {command_line('evaluate')} --weights {quoted} --data OTHER_IMAGES --report\n"
        f"Train on: {command_line('finetune')} --data MORE --weights {quoted} --output {shlex.quote(str(output))}_2"
    )


def _keep_threshold(config: Path, weights: Path, threshold: float) -> bool:
    """Write a score threshold into a config file and the weights, unless the config has one of its user's."""
    text = config.read_text(encoding="utf-8")
    line = f"{_MARK}\ndataset.score_threshold = {threshold:.2f}\n"
    if _MARK in text:
        text = re.sub(rf"{re.escape(_MARK)}\n.*\n", lambda _: line, text)
    elif "\ndataset.score_threshold" in text:
        return False
    else:
        text = f"{text.rstrip()}\n\n{line}"
    content = read_file(str(weights))
    content[DESCRIPTION]["config"]["dataset"]["score_threshold"] = round(threshold, 2)
    write_atomically(weights, lambda file: torch.save(content, file), durable=True)
    write_atomically(config, text.encode())
    return True
