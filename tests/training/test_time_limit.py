"""`train.max_hours`: how many iterations fit, by a clock that tests turn, and the learning rate that goes with them."""

import re
from types import SimpleNamespace

import pytest
import tiny

from maskrcnn_plus.training import time_limit
from maskrcnn_plus.training.loop import Trainer

HOUR = 3600


@pytest.fixture
def clock(monkeypatch):
    """A function that is told how many seconds iteration k takes; `now` of it is the time."""
    run_step = Trainer.run_step

    def clock(seconds):
        def run(self):
            clock.now += seconds(self.iter)
            run_step(self)

        monkeypatch.setattr(Trainer, "run_step", run)

    clock.now = 0.0
    monkeypatch.setattr(time_limit.time, "monotonic", lambda: clock.now)
    yield clock
    tiny.called.clear()


def train(output, seconds, resume=False, **settings):
    """A run of at most 200 iterations in so many seconds; returns its log."""
    settings = {"max_iter": 200, "checkpointer": {"period": 20, "max_to_keep": 0}, **settings}
    tiny.execute(tiny.config(output, max_hours=seconds / HOUR, **settings), resume=resume)
    return (output / "log.txt").read_text()


def rates(output):
    return [entry["lr"] for entry in tiny.entries(output) if "lr" in entry]


def test_a_machine_as_fast_as_expected_trains_as_without_a_limit(tmp_path, clock):
    clock(lambda k: 1.0)
    train(tmp_path / "limited", 200)
    train(tmp_path / "free", 0)
    assert tiny.entries(tmp_path / "limited") == tiny.entries(tmp_path / "free")
    assert tiny.num_iterations(tmp_path / "limited") == 200


@pytest.mark.parametrize("slow_from", [0, 90, 180])
def test_a_slower_machine_trains_less_and_ends_in_time_with_the_whole_schedule(tmp_path, clock, slow_from):
    clock(lambda k: 3.0 if k >= slow_from else 1.0)
    log = train(tmp_path / "run", 200)
    expected = slow_from + (200 - slow_from) / 3
    assert clock.now <= 200 + 5 * 3  # it looks at the clock each five iterations
    assert expected - 10 <= tiny.num_iterations(tmp_path / "run") <= expected + 5
    assert re.findall(r"goes to iteration (\d+) of 200: one takes", log)
    lr = rates(tmp_path / "run")
    assert lr[-1] < 0.05 * max(lr)  # the cosine goes down to a hundredth
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_final.pth"
    assert tiny.entries(tmp_path / "run")[-1].keys() >= {"a/mean"}  # evaluated after the last iteration


def test_what_was_slow_for_a_while_is_made_up_for(tmp_path, clock):
    clock(lambda k: 5.0 if k < 20 else 0.5)
    train(tmp_path / "run", 200)
    assert tiny.num_iterations(tmp_path / "run") == 200


def test_evaluations_take_their_time(tmp_path, clock):
    clock(lambda k: 1.0)

    def evaluate(index):
        clock.now += 5.0

    tiny.called[:] = [evaluate]  # of 3 images
    train(tmp_path / "run", 200, eval_period=20)
    assert clock.now - 15 <= 200 + 15  # the last evaluation comes after it; late by another at most
    assert 200 * 20 / 35 - 10 <= tiny.num_iterations(tmp_path / "run") <= 200 * 20 / 35 + 10


def test_a_resumed_run_goes_on_with_its_time(tmp_path, clock):
    clock(lambda k: 2.0)
    train(tmp_path / "whole", 200)

    def end(k):
        if k == 50:
            raise KeyboardInterrupt
        return 2.0

    clock(end)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", 200)
    clock(lambda k: 2.0)
    train(tmp_path / "run", 200, resume=True)
    whole, run = (tiny.load(tmp_path / name / "model_final.pth") for name in ("whole", "run"))
    assert tiny.equal(whole["model"], run["model"])
    assert whole["trainer"]["iteration"] == run["trainer"]["iteration"]


def test_a_run_whose_time_is_over_is_finished_until_it_is_given_more(tmp_path, clock):
    clock(lambda k: 2.0)
    train(tmp_path / "run", 100)
    done = tiny.num_iterations(tmp_path / "run")
    assert "is finished (train.max_hours=" in train(tmp_path / "run", 100, resume=True)
    assert tiny.num_iterations(tmp_path / "run") == done
    train(tmp_path / "run", 200, resume=True)
    assert done + 40 <= tiny.num_iterations(tmp_path / "run") <= 100


def test_of_several_processes_the_first_decides(tmp_path, clock, monkeypatch):
    clock(lambda k: 2.0)
    monkeypatch.setattr(time_limit, "comm", SimpleNamespace(all_gather=lambda mine: [mine // 2 + 10, mine]))
    train(tmp_path / "run", 200)
    assert 50 <= tiny.num_iterations(tmp_path / "run") < 70


def test_no_time_at_all_ends_at_the_first_estimate(tmp_path, clock):
    clock(lambda k: 1000.0)
    train(tmp_path / "run", 1)
    assert tiny.num_iterations(tmp_path / "run") == 5
