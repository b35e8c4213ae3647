"""Runs benchmarks: every side once in each round, in another order each time."""

import time
import traceback
from collections.abc import Callable, Iterable, Iterator

from tests.bench.benchmark import Benchmark, Figures, Result, Sides, evaluate, failed, turns

SLOWEST_S = 150.0
"""A benchmark that has taken this long ends with the rounds it has."""


def run(
    benchmarks: Iterable[Benchmark], stage: object, rounds: int, say: Callable[[str], None] = print
) -> Iterator[Result]:
    """The results, row by row. A benchmark that breaks is a row that says so; the others go on."""
    for benchmark in benchmarks:
        began_s = time.monotonic()
        try:
            with benchmark.prepare(stage) as sides:
                played = list(play(benchmark.name, sides, rounds, say))
        except Exception as error:
            say(traceback.format_exc())
            words = f"{type(error).__name__}: {error}".splitlines()[0]
            yield from (failed(benchmark.name, row, words) for row in benchmark.rows)
        else:
            yield from (evaluate(benchmark.name, row, played) for row in benchmark.rows)
        say(f"{benchmark.name} · took {time.monotonic() - began_s:.0f} s")


def play(name: str, sides: Sides, rounds: int, say: Callable[[str], None]) -> Iterator[dict[str, Figures]]:
    """What each side came to, round by round."""
    began_s = time.monotonic()
    for number in range(rounds):
        if time.monotonic() - began_s > SLOWEST_S:
            say(f"{name} · out of time after {number} rounds")
            return
        played: dict[str, Figures] = {}
        for side in turns(list(sides), number):
            played[side] = sides[side]()
        shown = " | ".join(f"{side} {_shown(figures)}" for side, figures in played.items())
        say(f"{name} · round {number + 1}: {shown}")
        yield played


def _shown(figures: Figures) -> str:
    return ", ".join(f"{name} {figure:.4g}" for name, figure in figures.items())
