"""How fast the variants train and predict: in turn in one process, so that a change of the machine's load meets all.

`speed.json` holds {"machine": text, "training": {name: {"seconds", "quartiles", "parameters"}}, "inference": {name:
{"ms", "quartiles"}}, "failed": {name: last lines of its error}}; seconds are of an iteration, ms of an image.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import traceback
from collections.abc import Callable, Sequence

import torch
from benchmarks.timing import time_in_turn
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from tuning import keep_memory_on_cpu

from ablation.plan import Plan, write_json
from maskrcnn_plus.data import resolve_classes
from maskrcnn_plus.device import usable_device
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.training.data import build_train_loader
from maskrcnn_plus.training.hooks import WeightAveraging
from maskrcnn_plus.training.loop import Trainer
from maskrcnn_plus.training.run import build_model

IMAGES = 8
"""Images of the test loader that a round of inference predicts."""

LAST_LINES = 15
"""Lines of an error that are kept."""


def read_speed(plan: Plan) -> dict[str, dict]:
    """What `speed.json` holds, empty where nothing was measured."""
    path = plan.output / "speed.json"
    empty = {"machine": "", "training": {}, "inference": {}, "failed": {}}
    return empty | (json.loads(path.read_text()) if path.exists() else {})


def iterations(minutes: float, seconds: float) -> int:
    """Training iterations of so many seconds that take so many minutes, at least one."""
    return max(1, round(minutes * 60 / seconds))


def measure_training(plan: Plan, rounds: int) -> dict[str, dict]:
    """Measure the training iteration of the variants that `speed.json` lacks, and add them to it.

    The base config runs beside them. Where it was measured before, the new figures are scaled by what it took then and
    takes now, so that all are of the same conditions.

    Args:
        plan: the ablation.
        rounds: iterations of each that are timed, each on another batch.

    Returns:
        The content of `speed.json`.

    Raises:
        ValueError: the base config cannot be trained. Another variant that cannot is recorded and left out.
    """
    speed = read_speed(plan)
    missing = [name for name in plan.variants if name not in speed["training"]]
    if not missing:
        return speed
    measured = list(dict.fromkeys([plan.base, *missing]))
    print(f"Measuring the training iteration of {', '.join(measured)} ...", flush=True)
    speed["failed"] = {name: text for name, text in speed["failed"].items() if name not in measured}
    steps, parameters = {}, {}
    for name in measured:
        try:
            steps[name], parameters[name] = training_step(plan.config(name), rounds)
            steps[name]()  # one that cannot train is left out
        except Exception as error:
            if name == plan.base:
                raise ValueError(f"The base config cannot be trained: {error}") from error
            steps.pop(name, None)
            speed["failed"][name] = last_lines(traceback.format_exc())
            print(f"{name} cannot be trained:\n{speed['failed'][name]}", flush=True)
    times = dict(zip(steps, time_in_turn(list(steps.values()), rounds), strict=True))
    known = speed["training"].get(plan.base)
    scale = known["seconds"] / (statistics.median(times[plan.base]) / 1e3) if known else 1.0
    for name in missing:
        if name in times:
            middle, quartiles = summary([scale * ms / 1e3 for ms in times[name]])
            entry = {"seconds": middle, "quartiles": quartiles, "parameters": parameters[name]}
            speed["training"][name] = entry
            print(f"{name}: {middle:.3f} s [{quartiles[0]:.3f}-{quartiles[1]:.3f}]", flush=True)
    speed["machine"] = f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"
    write_json(plan.output / "speed.json", speed)
    return speed


def training_step(cfg: DictConfig, num_batches: int) -> tuple[Callable[[], None], int]:
    """A training iteration as the training runs it, and the number of the model's parameters.

    The batches are the first that the config's own loader gives, and lie in memory. The learning rate is zero, so that
    each iteration meets the same model.

    Returns:
        A function that runs one iteration on the next batch, starting again after `num_batches`; the parameters.
    """
    cfg.train.device = str(usable_device(cfg.train.device))
    keep_memory_on_cpu(cfg.train.device)
    cfg.dataloader.train.num_workers = 0
    torch.manual_seed(cfg.train.seed)
    resolve_classes(cfg, splits=["train"])
    model = build_model(cfg)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    averaging = WeightAveraging(model, cfg.train.ema.decay) if cfg.train.ema.enabled else None
    batches = list(itertools.islice(build_train_loader(cfg, 0), num_batches * cfg.train.accumulate))
    trainer = Trainer(
        model,
        itertools.cycle(batches),
        optimizer,
        amp_dtype=cfg.train.amp.dtype if cfg.train.amp.enabled else None,
        accumulate=cfg.train.accumulate,
        clip_grad_norm=cfg.train.clip_grad_norm,
        seed=cfg.train.seed,
    )
    trainer.iter = 0

    def step() -> None:
        with EventStorage(0) as trainer.storage:
            trainer.run_step()
        if averaging:
            averaging.after_step()

    return step, sum(parameter.numel() for parameter in model.parameters())


def measure_inference(plan: Plan, weights: dict[str, str], rounds: int) -> list[str]:
    """Measure the prediction of an image by the trained models that `speed.json` lacks, and add them to it.

    The base model runs beside them, for the same purpose as in `measure_training`.

    Args:
        plan: the ablation.
        weights: short name -> checkpoint.
        rounds: that are timed, each of `IMAGES` images of the base config's test set, spread over it.

    Returns:
        "variant, prediction" for each that cannot predict.
    """
    speed = read_speed(plan)
    missing = [name for name in weights if name not in speed["inference"]]
    if not missing:
        return []
    measured = [name for name in weights if name in missing or name == plan.base]
    print(f"Measuring the prediction of an image by {', '.join(measured)} ...", flush=True)
    images = spread_images(plan.config(plan.base))
    predictions, failed = {}, []
    for name in measured:
        try:
            predictions[name] = get_prediction(Predictor(plan.config(name), weights[name], score_threshold=0.5), images)
            predictions[name]()
        except Exception:
            predictions.pop(name, None)
            failed.append(f"{name}, prediction")
            print(f"{name} cannot predict:\n{last_lines(traceback.format_exc())}", flush=True)
    times = dict(zip(predictions, time_in_turn(list(predictions.values()), rounds), strict=True))
    known, now = speed["inference"].get(plan.base), times.get(plan.base)
    scale = known["ms"] / (statistics.median(now) / len(images)) if known and now else 1.0
    for name in missing:
        if name in times:
            middle, quartiles = summary([scale * ms / len(images) for ms in times[name]])
            speed["inference"][name] = {"ms": middle, "quartiles": quartiles}
    write_json(plan.output / "speed.json", speed)
    return failed


def get_prediction(predictor: Predictor, images: Sequence[str]) -> Callable[[], None]:
    """A function that predicts the images one by one."""

    def predict() -> None:
        for image in images:
            predictor.predict(image)

    return predict


def spread_images(cfg: DictConfig) -> list[str]:
    """At most `IMAGES` files of the config's test set, evenly spread."""
    name = instantiate(cfg.dataloader.test.dataset.names)
    files = [entry["file_name"] for entry in DatasetCatalog.get(name if isinstance(name, str) else name[0])]
    return [files[index * len(files) // IMAGES] for index in range(IMAGES)] if len(files) > IMAGES else files


def summary(values: Sequence[float]) -> tuple[float, list[float]]:
    """The median, and the lower and the upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return middle, [low, high]


def last_lines(text: str) -> str:
    """The end of a log or a traceback."""
    return "\n".join(text.strip().splitlines()[-LAST_LINES:])
