"""Early stopping: when, what is left, and that a resumed run stops as an uninterrupted one."""

import json

import pytest
import tiny
from detectron2.config import LazyCall as L
from detectron2.evaluation import DatasetEvaluator

values: list[float] = []


class Scripted(DatasetEvaluator):
    """Gives the next of `values`."""

    def evaluate(self):
        """The next."""
        return {"a": {"mean": values.pop(0)}}


def train(output, figures, resume=False, **settings):
    """A run whose evaluations, one an iteration, give these figures; returns the log."""
    values[:] = figures
    settings = {"eval_period": 1, "max_iter": 8, "checkpointer": {"period": 1, "max_to_keep": 0}, **settings}
    cfg = tiny.config(output, **settings)
    cfg.dataloader.evaluator = [L(Scripted)()]
    tiny.execute(cfg, resume=resume)
    return (output / "log.txt").read_text()


@pytest.mark.parametrize(
    ("patience", "figures", "iterations"),
    [
        (2, [1, 3, 2, 3], 4),  # equal is not better
        (2, [5, 1, 6, 1, 2], 5),
        (1, [1, 2, 3, 4, 5, 6, 7, 8], 8),
        (0, [9, 1, 1, 1, 1, 1, 1, 1], 8),
        (3, [float("nan"), 4, 1, 2, float("nan")], 5),
    ],
)
def test_it_ends_after_so_many_evaluations_without_a_better_one(tmp_path, patience, figures, iterations):
    log = train(tmp_path / "run", figures, patience=patience)
    assert values == []
    assert tiny.num_iterations(tmp_path / "run") == iterations
    assert ("no better a/mean in" in log) == (iterations < 8)
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_final.pth"
    best = max(figure for figure in figures if figure == figure)
    assert json.loads((tmp_path / "run" / "best.json").read_text())["value"] == best


def test_the_evaluation_that_ended_it_is_in_the_metrics(tmp_path):
    train(tmp_path / "run", [3, 2, 1], patience=2)
    assert [entry["a/mean"] for entry in tiny.entries(tmp_path / "run") if "a/mean" in entry] == [3, 2, 1]


def test_resuming_what_has_ended_evaluates_and_trains_no_more(tmp_path):
    train(tmp_path / "run", [3, 2, 1], patience=2)
    log = train(tmp_path / "run", [7], resume=True, patience=2)
    assert "is finished (no better a/mean in 2 evaluations" in log
    assert tiny.num_iterations(tmp_path / "run") == 3


def test_without_patience_it_goes_on(tmp_path):
    train(tmp_path / "run", [3, 2, 1], patience=2)
    train(tmp_path / "run", [1, 1, 1, 1, 1], resume=True, patience=0)
    assert tiny.num_iterations(tmp_path / "run") == 8


def test_a_resumed_run_counts_what_was_before(tmp_path):
    train(tmp_path / "run", [3, 2], max_iter=2, patience=0)
    train(tmp_path / "run", [1, 1], resume=True, patience=3)
    assert values == []
    assert tiny.num_iterations(tmp_path / "run") == 4
