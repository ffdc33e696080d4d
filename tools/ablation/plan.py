"""What an ablation compares: configs that each change one thing of a base config, with the same overrides and time."""

from __future__ import annotations

import fcntl
import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from detectron2.config.instantiate import locate
from omegaconf import DictConfig, ListConfig, OmegaConf

from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.config import find_config, get_config, list_configs
from maskrcnn_plus.evaluation import MatchingEvaluator
from maskrcnn_plus.input_channels import follow_dataset_channels
from maskrcnn_plus.overrides import apply_overrides

FIXED = ("train.max_iter", "train.max_hours", "train.seed", "train.output_dir", "train.eval_period")
"""Config keys that the ablation sets itself."""


@dataclass(frozen=True)
class Plan:
    """An ablation.

    Args:
        output: its folder.
        variants: short name -> path or name of a config; the first is the base config.
        seeds: of the runs of each variant.
        minutes: of training, a run.
        overrides: "key=value" for all configs.
    """

    output: Path
    variants: dict[str, str]
    seeds: tuple[int, ...]
    minutes: float
    overrides: tuple[str, ...] = ()

    @property
    def base(self) -> str:
        """Short name of the base config."""
        return next(iter(self.variants))

    def config(self, name: str) -> DictConfig:
        """The config of a variant with the overrides, a fresh copy; its network takes the channels that are picked."""
        cfg = apply_overrides(get_config(self.variants[name]), self.overrides)
        follow_dataset_channels(cfg)
        return cfg

    def folder(self, name: str, seed: int) -> Path:
        """Where the run of a variant with a seed is."""
        return self.output / name / f"seed_{seed}"

    @property
    def command(self) -> str:
        """The command that does it."""
        configs = list(self.variants.values())
        parts = ["python", "tools/ablate.py", "--base", configs[0]]
        parts += ["--variants", *configs[1:]] if configs[1:] else []
        parts += ["--seeds", *map(str, self.seeds), "--minutes", f"{self.minutes:g}", "--output", str(self.output)]
        return shlex.join([*parts, *self.overrides])


def make_plan(
    base: str,
    variants: Sequence[str],
    seeds: Sequence[int],
    minutes: float,
    output: str | Path,
    overrides: Sequence[str] = (),
) -> Plan:
    """Check the arguments and load every config once.

    Args:
        base: path or name of the base config.
        variants: the same of the others; a folder of shipped configs ("nuclei/variants") stands for all in it.
        seeds, minutes, output, overrides: as for `Plan`.

    Raises:
        ValueError: a config does not exist, has no `MatchingEvaluator` or shares its file name with another one; an
            override is misspelt or belongs to the ablation; there is no seed or no time.
    """
    if not minutes > 0:
        raise ValueError(f"--minutes must be more than 0, got {minutes:g}.")
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds must be different numbers from 0 on, got {', '.join(map(str, seeds)) or 'none'}.")
    for entry in overrides:
        key = entry.partition("=")[0].strip()
        if key in FIXED:
            raise ValueError(f"{key} is set by the ablation itself and cannot be overridden.")
    shipped = list_configs()
    names: dict[str, str] = {}
    for entry in [base, *variants]:
        inside = [name for name in shipped if Path(name).parent == Path(entry)]
        for config in inside or [entry]:
            short = Path(config).stem
            if short in names:
                raise ValueError(f"{names[short]} and {config} would both be called {short!r} in the table.")
            find_config(config)
            names[short] = config
    plan = Plan(Path(output), names, tuple(seeds), float(minutes), tuple(overrides))
    for name in names:
        try:
            evaluator_key(plan.config(name))
        except (ValueError, ImportError) as error:
            raise ValueError(f"{names[name]}: {error}") from error
    return plan


def evaluator_key(cfg: DictConfig) -> str:
    """Config key of the `MatchingEvaluator`, whose figures the table shows.

    Raises:
        ValueError: the config has none.
    """
    key = "dataloader.evaluator"
    node = OmegaConf.select(cfg, key)
    candidates = {f"{key}.{index}": each for index, each in enumerate(node)} if isinstance(node, ListConfig) else {}
    for name, each in (candidates or {key: node}).items():
        target = each.get("_target_") if isinstance(each, DictConfig) else None
        if target and (locate(target) if isinstance(target, str) else target) is MatchingEvaluator:
            return name
    raise ValueError(f"{key} has no MatchingEvaluator, whose figures an ablation compares.")


def get_settings(plan: Plan) -> dict[str, object]:
    """What all runs share."""
    return {"base": plan.variants[plan.base], "minutes": plan.minutes, "overrides": list(plan.overrides)}


def check_settings(plan: Plan, found: dict[str, object], where: str) -> None:
    """Compare what all runs share with that of an ablation that is there already; variants and seeds may be added.

    Raises:
        ValueError: `where` holds an ablation of another base config, time or overrides.
    """
    changes = [
        f"{key} {found.get(key)!r}, now {value!r}"
        for key, value in get_settings(plan).items()
        if found.get(key) != value
    ]
    if changes:
        raise ValueError(f"{where} holds an ablation with {'; '.join(changes)}. Choose another.")


def keep_settings(plan: Plan) -> None:
    """Write what all runs share to `settings.json` of the ablation's folder, or compare it with what is there.

    Raises:
        ValueError: as `check_settings`.
    """
    path = plan.output / "settings.json"
    if path.exists():
        check_settings(plan, json.loads(path.read_text()), f"The folder {plan.output}")
    else:
        plan.output.mkdir(parents=True, exist_ok=True)
        write_json(path, get_settings(plan))


def write_json(path: Path, content: object) -> None:
    """Write a JSON file, whole or not at all."""
    write_atomically(path, json.dumps(content, indent=1).encode(), durable=True)


@contextmanager
def alone(output: Path) -> Iterator[int]:
    """Hold the lock of an ablation's folder; gives its file descriptor, to be passed on to the trainings.

    A training that outlives a killed ablation keeps the lock: the next ablation waits for its end.
    """
    with open(output / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting: another ablation, or a training of one that was killed, works in {output}.", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()
