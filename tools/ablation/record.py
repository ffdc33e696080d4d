"""What an ablation has found, in one small file beside its table, from which it goes on where its folder is lost.

`FILE.json` of a table `FILE.md` holds {"settings", "speed": contents of the files of these names, "results": {variant:
{seed: content of result.json}}}.
"""

from __future__ import annotations

import json
from pathlib import Path

from ablation.plan import Plan, check_settings, get_settings, write_json
from ablation.speed import read_speed


def record_path(table: Path) -> Path:
    """The record of a table."""
    return table.with_suffix(".json")


def write_record(plan: Plan, path: Path) -> None:
    """Write what the ablation's folder holds of the plan's variants and seeds."""
    results = {name: read_results(plan, name) for name in plan.variants}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"settings": get_settings(plan), "speed": read_speed(plan), "results": results})


def restore_record(plan: Plan, path: Path) -> None:
    """Put what a record holds and the ablation's folder lacks into the folder, if there is a record.

    Raises:
        ValueError: the record is of another base config, time or overrides, or cannot be read.
    """
    if not path.exists():
        return
    try:
        record = json.loads(path.read_text())
        settings, speed, results = record["settings"], record["speed"], record["results"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no record of an ablation ({error!r}). Choose another --table.") from error
    check_settings(plan, settings, str(path))
    here = read_speed(plan)
    for kind in ("training", "inference"):
        here[kind] = {name: entry for name, entry in speed[kind].items() if name in plan.variants} | here[kind]
    here["machine"] = here["machine"] or speed["machine"]
    plan.output.mkdir(parents=True, exist_ok=True)
    write_json(plan.output / "speed.json", here)
    for name in plan.variants:
        for seed, result in results.get(name, {}).items():
            file = plan.folder(name, int(seed)) / "result.json"
            if int(seed) in plan.seeds and not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                write_json(file, result)


def read_results(plan: Plan, name: str) -> dict[int, dict]:
    """Seed -> content of `result.json` of the finished runs of a variant."""
    paths = {seed: plan.folder(name, seed) / "result.json" for seed in plan.seeds}
    return {seed: json.loads(path.read_text()) for seed, path in paths.items() if path.exists()}
