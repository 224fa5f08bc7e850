"""How a run is stopped: by a signal, a second signal, or its deadline."""

import signal
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from moco.runtime import signals
from moco.runtime.signals import Signals


@pytest.fixture
def interrupts() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_the_first_signal_is_reported_and_the_second_ends_at_once():
    with Signals(None) as one:
        assert one.agree(due=False) == (0, False)
        assert one.agree(due=True) == (0, True)
        signal.raise_signal(signal.SIGINT)
        assert one.agree(due=False) == (signal.SIGINT, False)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_deadline_stops_as_sigterm_does():
    with Signals(time.monotonic() + 100) as later, Signals(time.monotonic() - 1) as passed:
        assert later.agree(due=False)[0] == 0
        assert passed.agree(due=False)[0] == signal.SIGTERM


def test_ranks_agree_about_once_a_second(monkeypatch):
    """Of steps of 10 ms, and then of 3 s; a signal waits until then, and is no step lost."""
    clock, agreed = [0.0], []
    monkeypatch.setattr("moco.runtime.signals.world_size", lambda: 2)
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor, op: agreed.append(clock[0]))
    with Signals(None) as ours:
        for _ in range(500):
            clock[0] += 0.01
            assert ours.agree(due=False) == (0, False)
        assert 5 <= len(agreed) <= 9
        assert all(0.9 <= after - before <= 1.1 for before, after in pairwise(agreed[1:]))
        signal.raise_signal(signal.SIGTERM)
        assert signal.SIGTERM in [ours.agree(due=False)[0] for _ in range(101)]
        agreed.clear()
        for _ in range(101 + 10):
            clock[0] += 3.0
            ours.agree(due=False)
        assert len(agreed) >= 10
    assert signals._MOST_STEPS == 1000
