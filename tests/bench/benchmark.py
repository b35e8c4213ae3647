"""What a row of the table is, and the arithmetic behind it. No clock, no process: plain values in, plain values out.

    @benchmark("borrow", Row("borrow a token, granted", "redis-py calling an empty script", "calls/s", at_least=0.9))
    @contextmanager
    def borrow(stage: Stage) -> Iterator[Sides]:
        ...                                       # set up once
        yield {SUBJECT: granted, "empty script": empty}   # each call is one measurement

A benchmark has sides, Paceline's own and its baselines'. Measuring a side once gives its figures; several rows may read
different figures of the same measurement (its p50 and its p99), or set it against different baselines.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

SUBJECT = "paceline"
"""The name of our own side."""

Figures = Mapping[str, float]
Measure = Callable[[], Figures]
Sides = Mapping[str, Measure]
Round = Mapping[str, Figures]
"""What each side came to in one round."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a figure of the subject, in relation to the same figure of a baseline.

    Of several baselines the best counts, anew in each round. against: which of the sides; empty: all but ours.
    at_least: more is better, and the ratio must reach this; at_most: less is better, and it must not pass this.
    constant: the baseline, where it is arithmetic and not measured.
    """

    what: str
    baseline: str
    unit: str
    figure: str = "rate"
    at_least: float | None = None
    at_most: float | None = None
    against: tuple[str, ...] = ()
    constant: float | None = None

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"{self.what}: either at_least or at_most")

    @property
    def target(self) -> str:
        return f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"

    def reached(self, ratio: float) -> bool:
        return ratio >= self.at_least if self.at_least is not None else ratio <= (self.at_most or 0)

    def rivals(self, round_: Round) -> Mapping[str, float]:
        """The baseline's figure by side."""
        if self.constant is not None:
            return {"": self.constant}
        names = self.against or tuple(name for name in round_ if name != SUBJECT)
        return {name: round_[name][self.figure] for name in names if name in round_}


@dataclass(frozen=True, slots=True)
class Benchmark:
    """name: for `--only`. prepare: sets up and yields the sides; what it needs of a stage is its own affair."""

    name: str
    rows: tuple[Row, ...]
    prepare: Callable[[Any], AbstractContextManager[Sides]]


@dataclass(frozen=True, slots=True)
class Result:
    """A row as measured: medians over the rounds. ratio: the median of the rounds' ratios, which is not the ratio of
    the medians; low, high: the least and the greatest of them. best: the baseline that it was, most often."""

    name: str
    row: Row
    figure: float
    baseline: float
    ratio: float
    low: float
    high: float
    rounds: int
    best: str = ""
    error: str = ""

    @property
    def reached(self) -> bool:
        return not self.error and self.row.reached(self.ratio)


def evaluate(name: str, row: Row, rounds: Sequence[Round]) -> Result:
    """What the rounds say about a row. A round in which a side has no figure (NaN) is left out."""
    judged = [_judge(row, round_) for round_ in rounds]
    judged = [one for one in judged if one[2] == one[2]]
    if not judged:
        return failed(name, row, "no round gave a figure")
    figures, baselines, ratios, best = zip(*judged, strict=True)
    return Result(
        name,
        row,
        statistics.median(figures),
        statistics.median(baselines),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        len(judged),
        statistics.mode(best),
    )


def failed(name: str, row: Row, error: str) -> Result:
    nan = float("nan")
    return Result(name, row, nan, nan, nan, nan, nan, 0, error=error)


def _judge(row: Row, round_: Round) -> tuple[float, float, float, str]:
    """The subject's figure, the best baseline's, their ratio and that baseline's name, in one round."""
    rivals = row.rivals(round_)
    best = (max if row.at_least is not None else min)(rivals, key=lambda name: rivals[name])
    figure = round_[SUBJECT][row.figure]
    return figure, rivals[best], ratio_of(figure, rivals[best]), best


def ratio_of(figure: float, baseline: float) -> float:
    """Infinite over nothing, or over a baseline that was early; 1 if we were as good as that."""
    if baseline <= 0:
        return 1.0 if figure <= baseline else float("inf")
    return figure / baseline


def turns(names: Sequence[str], round_number: int) -> list[str]:
    """Who plays when in a round: A B C, then C B A, then B C A, then A C B, …: nobody always goes first, or always
    after the same one."""
    half = round_number // 2 % len(names)
    order = [*names[half:], *names[:half]]
    return order[::-1] if round_number % 2 else order


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all do not exceed (nearest rank)."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


BENCHMARKS: dict[str, Benchmark] = {}
"""All there are, by name, in the order of the table: those of the modules that have been imported."""


def benchmark(
    name: str, *rows: Row
) -> Callable[[Callable[[Any], AbstractContextManager[Sides]]], Callable[[Any], AbstractContextManager[Sides]]]:
    """Declare what prepares a benchmark, and the rows that are read off it."""

    def declare(prepare: Callable[[Any], AbstractContextManager[Sides]]) -> Any:
        BENCHMARKS[name] = Benchmark(name, rows, prepare)
        return prepare

    return declare
