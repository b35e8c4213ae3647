"""A pulse tells a loop that hangs from one that waits."""

from typing import Any

from workers.telemetry.exposition import beside
from workers.telemetry.pulse import STALE_S, Pulse


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_loop_that_no_longer_beats_hangs() -> None:
    clock = Clock()
    pulse = Pulse(clock)
    pulse.beat()
    clock.now_s += STALE_S - 1
    assert pulse.state() == "beating"
    clock.now_s += 1
    assert pulse.state() == "hung"
    pulse.beat()
    assert pulse.state() == "beating"


def test_starting_and_resting_may_take_their_time() -> None:
    clock = Clock()
    pulse = Pulse(clock)
    clock.now_s += 10 * STALE_S
    assert pulse.state() == "resting"
    pulse.beat()
    pulse.rest()
    clock.now_s += 10 * STALE_S
    assert pulse.state() == "resting"


def test_healthz_stands_beside_what_was_there() -> None:
    clock = Clock()
    pulse = Pulse(clock)
    app = beside(lambda environ, start_response: [b"metrics"], pulse)
    statuses: list[str] = []

    def ask(path: str) -> list[Any]:
        return list(app({"PATH_INFO": path}, lambda status, headers: statuses.append(status)))

    assert ask("/metrics") == [b"metrics"]
    pulse.beat()
    assert ask("/healthz") == [b"beating\n"]
    clock.now_s += STALE_S
    assert ask("/healthz") == [b"hung\n"]
    assert statuses == ["200 OK", "503 Service Unavailable"]
