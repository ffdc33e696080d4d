"""The trainings of an ablation, one at a time, each continued where it was stopped, and the figures of each.

The folder of a run has `result.json` once it is finished, with the weights beside it, or `failed.json`.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.config import instantiate
from detectron2.evaluation import inference_on_dataset
from omegaconf import DictConfig, OmegaConf

from ablation.plan import Plan, evaluator_key, write_json
from ablation.speed import iterations, last_lines
from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.checkpoints import load_weights, read_classes
from maskrcnn_plus.config import find_config, skip_pretrained
from maskrcnn_plus.data import resolve_classes
from maskrcnn_plus.device import usable_device
from maskrcnn_plus.evaluation.matching import DEFAULT_THRESHOLDS
from maskrcnn_plus.evaluation.proposals import ProposalRecallEvaluator, predict_proposals

AP_FIGURES = ("AP50", "AP75", "AP90", "mAP")
RECALL = "AR@300"
LOG = "console.txt"
WEIGHTS = "weights.pth"
TOOL = Path(__file__).resolve().parents[1] / "train_net.py"

Train = Callable[[str, list[str], Path, int], int]
Evaluate = Callable[[DictConfig, Path], dict[str, float]]


def train_net(config_file: str, overrides: list[str], log: Path, lock: int, tool: Path = TOOL) -> int:
    """Run tools/train_net.py with --resume; gives its exit code.

    The training is out of reach of the terminal's Ctrl-C: it gets one signal from here, and its checkpoint is waited
    for. A second Ctrl-C stops it at once.

    Args:
        config_file: path of a config.
        overrides: "key=value" entries.
        log: file that its output is added to.
        lock: file descriptor that it holds as long as it runs.
        tool: what is run.

    Raises:
        KeyboardInterrupt: after an interrupted training has ended.
    """
    command = [sys.executable, str(tool), "--resume", "--config-file", config_file, *overrides]
    interrupted = False
    with open(log, "ab") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, pass_fds=(lock,), start_new_session=True
        )
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:
                interrupted = True
                process.terminate()
    if interrupted:
        raise KeyboardInterrupt
    return code


def evaluate_run(cfg: DictConfig, folder: Path) -> dict[str, float]:
    """The figures of a finished training, all in 0..1; its weights become `weights.pth`.

    Args:
        cfg: config of the run.
        folder: of the run, with `matching_results.json` and `model_final.pth`.

    Returns:
        The pooled AP at the IoU thresholds 0.5, 0.75 and 0.9 and its mean from the training's own evaluation, and the
        average recall of 300 proposals.
    """
    figures = json.loads((folder / "matching_results.json").read_text())["figures"]
    skip_pretrained(cfg)
    classes = resolve_classes(cfg, read_classes(str(folder / "model_final.pth")), ["test"])
    model = instantiate(cfg.model)
    load_weights(model, str(folder / "model_final.pth"), class_names=classes and classes.names, strict=True)
    content = {"model": model.state_dict()}
    if classes:
        content |= {"class_names": classes.names, "category_ids": classes.category_ids}
    write_atomically(folder / WEIGHTS, lambda file: torch.save(content, file), durable=True)
    model = model.to(usable_device(cfg.train.device)).eval()
    name = OmegaConf.select(cfg, evaluator_key(cfg)).dataset_name
    if not isinstance(name, str):
        name = instantiate(name)
    loader = instantiate(cfg.dataloader.test)
    recall = inference_on_dataset(
        functools.partial(predict_proposals, model), loader, ProposalRecallEvaluator(name, limits=(300,))
    )
    return {key: figures[key] for key in AP_FIGURES} | {RECALL: recall["box_proposals"][RECALL] / 100}


def run_all(
    plan: Plan, speed: dict[str, dict], lock: int, train: Train = train_net, evaluate: Evaluate = evaluate_run
) -> list[str]:
    """Train and evaluate what is not finished yet: all variants with the first seed, then with the next.

    Args:
        plan: the ablation.
        speed: content of `speed.json`. Variants without a speed cannot be trained and are left out.
        lock: file descriptor that a training holds as long as it runs.
        train: trains one run, or continues it, and gives an exit code.
        evaluate: gives the figures of a finished run.

    Returns:
        What failed, as "variant, seed N".
    """
    runs = [(name, seed) for seed in plan.seeds for name in plan.variants]
    failed = []
    for number, (name, seed) in enumerate(runs, start=1):
        folder = plan.folder(name, seed)
        if (folder / "result.json").exists():
            _remove_states(folder)
            continue
        if name not in speed["training"]:
            failed.append(f"{name}, seed {seed}")
            continue
        seconds = speed["training"][name]["seconds"]
        max_iter = iterations(plan.minutes, seconds)
        print(f"[{number}/{len(runs)}] {name}, seed {seed}: {max_iter} iterations of {seconds:.3f} s", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        error, figures = "", {}
        cfg = plan.config(name)
        overrides = run_overrides(plan, cfg, seed, max_iter, seconds, folder)
        code = train(find_config(plan.variants[name]), overrides, folder / LOG, lock)
        if code:
            log = (folder / LOG).read_text(errors="replace") if (folder / LOG).exists() else ""
            error = f"exit code {code}\n{last_lines(log)}"
        else:
            try:
                figures = evaluate(cfg, folder)
            except Exception:
                error = last_lines(traceback.format_exc())
        if error:
            failed.append(f"{name}, seed {seed}")
            write_json(folder / "failed.json", {"variant": name, "seed": seed, "error": error})
            print(f"{name}, seed {seed} failed, {folder / LOG}: {error}", flush=True)
            continue
        write_json(folder / "result.json", {"variant": name, "seed": seed, "iterations": max_iter, **figures})
        (folder / "failed.json").unlink(missing_ok=True)
        _remove_states(folder)
        print("    " + "  ".join(f"{key} {value:.4f}" for key, value in figures.items()), flush=True)
    return failed


def run_overrides(plan: Plan, cfg: DictConfig, seed: int, max_iter: int, seconds: float, folder: Path) -> list[str]:
    """Overrides of one run: a checkpoint a minute, those of all runs, and what the ablation sets."""
    evaluator = evaluator_key(cfg)
    return [
        f"train.checkpointer.period={max(1, round(60 / seconds))}",
        "train.best.metric=''",
        *plan.overrides,
        f"train.seed={seed}",
        f"train.max_iter={max_iter}",
        *(["train.max_hours=0"] if "max_hours" in cfg.train else []),  # of a config that finetune wrote
        "train.eval_period=0",
        f"train.output_dir={_quoted(folder)}",
        f"{evaluator}.output_dir={_quoted(folder)}",
        f"{evaluator}.thresholds={list(DEFAULT_THRESHOLDS)}",
    ]


def trained_weights(plan: Plan) -> dict[str, str]:
    """Short name -> weights of its finished run with the first seed that has them."""
    found = {}
    for name in plan.variants:
        folders = [plan.folder(name, seed) for seed in plan.seeds]
        files = [folder / WEIGHTS for folder in folders if (folder / "result.json").exists()]
        kept = [file for file in files if file.exists()]  # not of a run that a record tells of
        if kept:
            found[name] = str(kept[0])
    return found


def _quoted(path: Path) -> str:
    """A path as a value of an override, whatever its characters."""
    text = str(path).replace("'", "\\'")
    return f"'{text}'"


def _remove_states(folder: Path) -> None:
    """Remove what only a resumed training needs: four times the size of the weights."""
    for path in [*folder.glob("model_*.pth"), folder / "last_checkpoint"]:
        path.unlink(missing_ok=True)
