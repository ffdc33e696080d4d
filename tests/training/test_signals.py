"""One process and its signals."""

import os
import signal

import pytest

from maskrcnn_plus.training.signals import StoppableLoader, StopSignals, TrainingInterrupted


def test_a_second_signal_ends_at_once_unless_it_is_an_echo(monkeypatch):
    """Ctrl-C reaches the processes of torchrun from the terminal and, at once, from torchrun."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopSignals() as signals:
        assert not signals.requested()
        os.kill(os.getpid(), signal.SIGINT)
        now[0] = 0.5
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.requested()
        with pytest.raises(TrainingInterrupted) as caught:
            signals.agree()
        assert caught.value.signum == signal.SIGINT
        now[0] = 3.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_no_image_is_taken_after_a_signal():
    with StopSignals() as signals:
        seen = []
        for image in StoppableLoader(range(9), signals):
            seen.append(image)
            if image == 3:
                os.kill(os.getpid(), signal.SIGTERM)
    assert seen == [0, 1, 2, 3]


def test_a_loading_process_that_the_same_signal_ended_is_no_error():
    def load():
        yield 0
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.")

    with StopSignals() as signals:
        assert list(StoppableLoader(load(), signals)) == [0]
        with pytest.raises(TrainingInterrupted):
            signals.agree()
