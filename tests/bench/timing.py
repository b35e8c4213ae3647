"""Measuring sides that can be measured at the same time: what disturbs one then disturbs the other as well."""

import time
from collections.abc import Callable, Mapping, Sequence

from tests.bench.benchmark import Figures, Measure, Sides, percentile, turns

Call = Callable[[], object]
"""What it returns, if that is a float, is how long what counts took (s); else all of it counts."""


def together(names: Sequence[str], watch: Callable[[], Mapping[str, Figures]]) -> Sides:
    """Sides that `watch` measures all at once: it runs when the first of them is asked, and the others are told what it
    found."""
    found: dict[str, Figures] = {}

    def side(name: str) -> Measure:
        def measure() -> Figures:
            if name not in found:
                found.update(watch())
            return found.pop(name)

        return measure

    return {name: side(name) for name in names}


def alternately(calls: Mapping[str, Call], times: int, *, each: int = 1) -> dict[str, list[float]]:
    """How long calls take (s), each side's made in turn with the others', `each` in a row, so many times."""
    took_s: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(times):
        for name in turns(list(calls), number):
            took_s[name].append(_timed(calls[name], each))
    return took_s


def _timed(call: Call, each: int) -> float:
    began_s = time.perf_counter()
    told = [call() for _ in range(each)]
    whole_s = time.perf_counter() - began_s
    own = [one for one in told if isinstance(one, float)]
    return (sum(own) if own else whole_s) / each


def p50s(calls: Mapping[str, Call], times: int) -> dict[str, Figures]:
    """The median of each, in milliseconds."""
    return {name: {"p50": percentile(took_s, 0.5) * 1000} for name, took_s in alternately(calls, times).items()}
