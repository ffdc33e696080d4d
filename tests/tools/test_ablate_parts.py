"""The parts of tools/ablate.py: its arguments, the settings of a run, the scale of speeds and the table by hand."""

import importlib
import json
import shlex
import sys
from pathlib import Path

import pytest

from maskrcnn_plus.overrides import apply_overrides

ROOT = Path(__file__).resolve().parents[2]
BASE = "nuclei/mask_rcnn_lite0_fpn"
SECONDS = {"a": 0.1, "b": 0.15, "c": 0.4}  # of an iteration

CONFIG = """
from maskrcnn_plus.config import get_config

cfg = get_config("demo/mask_rcnn_lite0_fpn")
dataloader, dataset, lr_multiplier = cfg.dataloader, cfg.dataset, cfg.lr_multiplier
model, optimizer, train = cfg.model, cfg.optimizer, cfg.train
"""


@pytest.fixture(scope="module")
def tool():
    """The parts of the tool, as it sees them itself."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        names = ("plan", "record", "runs", "speed", "table")
        modules = {name: importlib.import_module(f"ablation.{name}") for name in names}
        yield {"ablate": importlib.import_module("ablate"), **modules}
    finally:
        sys.path.remove(str(ROOT / "tools"))


@pytest.fixture
def plan(tool, tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.py").write_text(CONFIG)
    names = [str(tmp_path / f"{name}.py") for name in "abc"]
    return tool["plan"].make_plan(names[0], names[1:], [0, 1], 2.0, tmp_path / "out", ["dataset.num_val=2"])


def test_other_settings_are_refused_and_variants_may_be_added(tool, plan, tmp_path):
    parts = tool["plan"]
    parts.keep_settings(plan)
    (tmp_path / "d.py").write_text(CONFIG)
    more = [*list(plan.variants.values())[1:], str(tmp_path / "d.py")]
    parts.keep_settings(
        parts.make_plan(plan.variants["a"], more, [0, 1, 5], 2.0, tmp_path / "out", ["dataset.num_val=2"])
    )
    for base, minutes, overrides, message in (
        ("a", 3.0, ["dataset.num_val=2"], "minutes 2.0, now 3.0"),
        ("a", 2.0, [], "overrides"),
        ("b", 2.0, ["dataset.num_val=2"], "base"),
    ):
        other = parts.make_plan(plan.variants[base], [], [0], minutes, tmp_path / "out", overrides)
        with pytest.raises(ValueError, match=message):
            parts.keep_settings(other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base", "nuclei/mask_rcnn_lite0_fqn"], "mask_rcnn_lite0_fpn"),
        (["--base", BASE, "--variants", "demo/mask_rcnn_lite0_fpn"], "both be called"),
        (["--base", BASE, "--minutes", "0"], "--minutes"),
        (["--base", BASE, "--seeds", "0", "0"], "--seeds"),
        (["--base", BASE, "train.max_iter=3"], "train.max_iter is set by the ablation"),
        (["--base", BASE, "train.amp.enabld=true"], "train.amp.enabled"),
        (["--base", "coco/mask_rcnn_r50_fpn"], "MatchingEvaluator"),
        (["--base", BASE, "--only-table", "--table", "x.md"], "holds no ablation"),
    ],
)
def test_bad_arguments_are_refused_before_anything_starts(tool, tmp_path, capsys, arguments, message):
    assert tool["ablate"].main([*arguments, "--output", str(tmp_path / "new")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_folder_stands_for_its_configs_and_the_command_for_its_plan(tool, tmp_path):
    make = tool["plan"].make_plan
    plan = make(BASE, ["nuclei/variants"], [2, 0], 0.5, tmp_path / "a b", ["dataset.root=my nuclei"])
    shipped = sorted(path.stem for path in (ROOT / "configs/nuclei/variants").glob("*.py"))
    assert list(plan.variants) == ["mask_rcnn_lite0_fpn", *shipped]
    assert plan.config(shipped[-1]).dataset.root == "my nuclei"
    again = tool["ablate"].parse_arguments(shlex.split(plan.command)[2:])
    assert make(again.base, again.variants, again.seeds, again.minutes, again.output, again.opts) == plan


def test_networks_take_the_channels_that_are_picked(tool, tmp_path):
    overrides = ["dataset.root=nowhere", "dataset.channels=[0,1,2,3,4]"]
    plan = tool["plan"].make_plan("nuclei/mask_rcnn_lite0_fpn", [], [0], 2.0, tmp_path / "out", overrides)
    cfg = plan.config(plan.base)
    assert cfg.model.backbone.bottom_up.in_chans == len(cfg.model.pixel_mean) == 5
    assert cfg.dataloader.test.mapper.channels == 5


def test_overrides_of_a_run_reach_the_config(tool, plan, tmp_path):
    folder = tmp_path / "it's 1=2, a folder" / "seed_1"
    cfg = plan.config("b")
    cfg.train.max_hours = 0.5  # of finetune; the ablation has a time of its own
    entries = tool["runs"].run_overrides(plan, cfg, 1, 90, 0.5, folder)
    cfg = apply_overrides(cfg, entries)
    assert (cfg.train.seed, cfg.train.max_iter, cfg.train.max_hours, cfg.train.eval_period) == (1, 90, 0, 0)
    assert cfg.train.checkpointer.period == 120  # a minute
    assert cfg.train.output_dir == cfg.dataloader.evaluator[0].output_dir == str(folder)
    assert cfg.dataset.num_val == 2
    assert list(cfg.dataloader.evaluator[0].thresholds) == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9]


def test_table_by_hand(tool, plan, tmp_path):
    """Seeds 0 and 1: base 0.50 and 0.60; b 0.52 and 0.66, that is +0.02 and +0.06; c has seed 1 alone, 0.55."""
    values = {("a", 0): 0.5, ("a", 1): 0.6, ("b", 0): 0.52, ("b", 1): 0.66, ("c", 1): 0.55}
    for (name, seed), value in values.items():
        folder = plan.folder(name, seed)
        folder.mkdir(parents=True)
        result = {"AP50": value + 0.1, "AP75": value, "AP90": value - 0.1, "mAP": value, "AR@300": 0.25}
        result |= {"variant": name, "seed": seed, "iterations": {"a": 1200, "b": 800 + seed, "c": 300}[name]}
        (folder / "result.json").write_text(json.dumps(result))
    (plan.folder("c", 0)).mkdir()
    (plan.folder("c", 0) / "failed.json").write_text(json.dumps({"error": "exit code 1\nout of `memory`"}))
    training = {name: {"seconds": seconds, "parameters": 12_345_678} for name, seconds in SECONDS.items()}
    inference = {"a": {"ms": 51.4}, "b": {"ms": 70.6}}
    speed = {"machine": "2 CPU cores", "training": training, "inference": inference}
    (tmp_path / "out/speed.json").write_text(json.dumps(speed))
    table = tool["table"]
    document = tmp_path / "doc.md"
    document.write_text(f"# Mine\nbefore\n{table.BEGIN}\n| earlier |\n{table.END}\nafter | here\n")
    table.write_table(plan, document)
    table.write_table(plan, document)
    text = document.read_text()
    assert text.startswith(f"# Mine\nbefore\n{table.BEGIN}\n")
    assert text.endswith(f"{table.END}\nafter | here\n")
    assert "earlier" not in text
    header, line, *rows = [
        [cell.strip() for cell in row.split("|")[1:-1]] for row in text.splitlines() if row[:1] == "|"
    ]
    assert [set(cell) for cell in line] == [{"-"}] * len(header)
    rows = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert list(rows) == ["a", "b", "c"]
    assert rows["a"]["mean AP"] == "0.5500 ± 0.0707"  # 0.1 / sqrt(2)
    assert rows["b"]["AP50"] == "0.6900 ± 0.0990"
    assert rows["b"]["mean AP to base"] == "+0.0400 ± 0.0283"  # 0.04 / sqrt(2)
    assert rows["c"]["mean AP to base"] == "-0.0500"  # against the base's seed 1
    assert (rows["a"]["mean AP to base"], rows["c"]["AP90"], rows["c"]["seeds"]) == ("", "0.4500", "1")
    assert [row["iterations"] for row in rows.values()] == ["1200", "800-801", "300"]
    assert [row["ms / image"] for row in rows.values()] == ["51", "71", "-"]
    assert {row["parameters, M"] for row in rows.values()} == {"12.35"}
    assert "- c: seed 0 failed: `out of 'memory'`" in text


@pytest.mark.parametrize("text", ["# Mine\n", "{END}\n{BEGIN}\n", "{BEGIN}\n"])
def test_a_document_without_markers_is_left_alone(tool, plan, tmp_path, text):
    table = tool["table"]
    document = tmp_path / "doc.md"
    document.write_text(text.format(BEGIN=table.BEGIN, END=table.END))
    before = document.read_text()
    with pytest.raises(ValueError, match="no place for the table"):
        table.write_table(plan, document)
    assert document.read_text() == before


def test_later_variants_are_measured_beside_the_base(tool, plan, monkeypatch):
    """The machine is half as fast the second time: c, twice as slow as the base there, is so in the table too."""
    speed, calls = tool["speed"], []

    def step(cfg, rounds):
        return (lambda: None), 7

    def times(functions, rounds):
        calls.append(len(functions))
        return [[100, 100, 400], [200, 200, 200]] if len(calls) == 1 else [[200, 200, 200], [400, 390, 500]]

    monkeypatch.setattr(speed, "training_step", step)
    monkeypatch.setattr(speed, "time_in_turn", times)
    plan.output.mkdir()
    first = tool["plan"].Plan(plan.output, {name: plan.variants[name] for name in "ab"}, (0,), 2.0)
    entries = speed.measure_training(first, 3)["training"]
    assert {name: entry["seconds"] for name, entry in entries.items()} == pytest.approx({"a": 0.1, "b": 0.2})
    entries = speed.measure_training(plan, 3)["training"]
    assert {name: entry["seconds"] for name, entry in entries.items()} == pytest.approx({"a": 0.1, "b": 0.2, "c": 0.2})
    assert entries["c"]["quartiles"] == pytest.approx([0.1975, 0.225])
    assert speed.measure_training(plan, 3)["training"] == entries
    assert calls == [2, 2]


def test_later_models_predict_beside_the_base(tool, plan, monkeypatch):
    """As above: c takes 1.5 times the base's time. Of b the weights are gone, not its figure."""
    speed, calls = tool["speed"], []

    def times(functions, rounds):
        calls.append(len(functions))
        return [[10, 10, 10], [40, 40, 40]] if len(calls) == 1 else [[20, 20, 20], [30, 30, 30]]

    monkeypatch.setattr(speed, "spread_images", lambda cfg: ["x.png", "y.png"])
    monkeypatch.setattr(speed, "Predictor", lambda *_, **__: None)
    monkeypatch.setattr(speed, "get_prediction", lambda *_: lambda: None)
    monkeypatch.setattr(speed, "time_in_turn", times)
    plan.output.mkdir()
    assert speed.measure_inference(plan, {"a": "a.pth", "b": "b.pth"}, 3) == []
    assert speed.measure_inference(plan, {"a": "a.pth", "c": "c.pth"}, 3) == []
    entries = speed.read_speed(plan)["inference"]
    assert {name: entry["ms"] for name, entry in entries.items()} == pytest.approx({"a": 5, "b": 20, "c": 7.5})
    assert speed.measure_inference(plan, {"a": "a.pth", "b": "b.pth"}, 3) == []
    assert calls == [2, 2]


def test_an_ablation_goes_on_from_the_record_beside_its_table(tool, plan, tmp_path):
    record, table = tool["record"], tmp_path / "doc.md"
    speed = {"machine": "m", "training": {name: {"seconds": 0.5, "parameters": 1} for name in "abc"}}
    speed |= {"inference": {"a": {"ms": 3.0}}, "failed": {}}
    keys = ("AP50", "AP75", "AP90", "mAP", "AR@300", "iterations")
    for name, seed in (("a", 0), ("a", 1), ("b", 0)):
        plan.folder(name, seed).mkdir(parents=True)
        (plan.folder(name, seed) / "result.json").write_text(json.dumps(dict.fromkeys(keys, 0.1 * seed)))
    (plan.output / "speed.json").write_text(json.dumps(speed))
    tool["ablate"].write_document(plan, table)

    make = tool["plan"].make_plan
    paths = list(plan.variants.values())
    elsewhere = make(paths[0], paths[1:2], [0, 1, 2], 2.0, tmp_path / "elsewhere", plan.overrides)
    elsewhere.folder("a", 1).mkdir(parents=True)
    (elsewhere.folder("a", 1) / "result.json").write_text(json.dumps(dict.fromkeys(keys, 0.9)))
    record.restore_record(elsewhere, record.record_path(table))
    results = {name: record.read_results(elsewhere, name) for name in elsewhere.variants}
    assert {name: {seed: run["mAP"] for seed, run in runs.items()} for name, runs in results.items()} == {
        "a": {0: 0.0, 1: 0.9},  # its own stays
        "b": {0: 0.0},
    }
    restored = tool["speed"].read_speed(elsewhere)
    assert (sorted(restored["training"]), restored["inference"], restored["machine"]) == (
        ["a", "b"],
        {"a": {"ms": 3.0}},
        "m",
    )
    trained = []

    def train(config, overrides, log, lock):
        trained.append(log.parent.relative_to(elsewhere.output).as_posix())
        return 0

    tool["runs"].run_all(elsewhere, restored, 0, train, lambda *_: dict.fromkeys(keys, 0.5))
    assert trained == ["b/seed_1", "a/seed_2", "b/seed_2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"settings": {"base": "other", "minutes": 2.0, "overrides": []}, "speed": {}, "results": {}}',
            "base 'other'",
        ),
        ('{"settings": {}}', "no record of an ablation"),
        ("{", "no record of an ablation"),
    ],
)
def test_a_record_of_something_else_is_refused(tool, plan, tmp_path, content, message):
    path = tmp_path / "doc.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        tool["record"].restore_record(plan, path)
    assert path.read_text() == content
    assert not plan.output.exists()
