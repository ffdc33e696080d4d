"""What a finished training is worth on its validation images, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from maskrcnn_plus.apps.evaluate import EvaluationData, evaluate_records, figures_table, write_report
from maskrcnn_plus.build import build
from maskrcnn_plus.config import load_config
from maskrcnn_plus.data.check import checked_dicts
from maskrcnn_plus.inference.predictor import Predictor


def report(config: Path, say: Callable[[str], None] = print) -> None:
    """Judge the best weights, write `report.html` beside them, and name the commands that go on.

    Args:
        config: of the training, in its output folder.
        say: is told the figures.

    Raises:
        OSError: the page cannot be written.
    """
    if not comm.is_main_process():
        return
    cfg, output = load_config(str(config)), config.parent
    best = output / "model_best.pth"
    weights = best if best.is_file() else output / "model_final.pth"
    predictor = Predictor(cfg, str(weights), score_threshold=0.0)
    name = build(cfg, "dataloader.test.dataset.names")
    records = checked_dicts(name, on_error=cfg.dataset.on_error)
    data = EvaluationData(records, list(MetadataCatalog.get(name).thing_classes), "val")
    diagnosis = evaluate_records(predictor, data)
    page = output / "report.html"
    title = f"{cfg.dataset.root}, validation images"
    write_report(page, diagnosis, predictor, weights=str(weights), data=title, notes=data.notes)
    say(figures_table(diagnosis))
    quoted = shlex.quote(str(weights))
    say(
        f"The whole evaluation: {page}\n"
        f"Predict:  python tools/predict.py --weights {quoted} --input IMAGES --output predictions "
        f"--score-threshold {diagnosis.threshold:.2f}\n"
        f"Evaluate: python tools/evaluate.py --weights {quoted} --data OTHER_IMAGES --report\n"
        f"Train on: python tools/finetune.py --data MORE --weights {quoted} --output {shlex.quote(str(output))}_2"
    )
