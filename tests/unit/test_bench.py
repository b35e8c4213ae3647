"""The arithmetic of the benchmarks: a table that is wrong is worse than none."""

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deploy.sandbox import Arrival as SandboxArrival
from deploy.sandbox import Entry, Message
from tests.bench.benchmark import SUBJECT, Row, evaluate, failed, percentile, ratio_of, turns
from tests.bench.compare import damage_of, pace_of
from tests.bench.judge import Arrival
from tests.bench.lateness import lateness_s, times_by_account
from tests.bench.processes import cpu_s
from tests.bench.report import cells, markdown, number, write
from tests.bench.runner import play
from tests.bench.timing import alternately, together
from tests.bench.waiting import sliding

FASTER = Row("send", "by hand", "messages/s", at_least=1.5)
SMALLER = Row("wait", "idle", "ms", figure="p50", at_most=1.2)


def rounds(*pairs: tuple[float, float], figure: str = "rate") -> list[dict[str, dict[str, float]]]:
    return [{SUBJECT: {figure: ours}, "theirs": {figure: baseline}} for ours, baseline in pairs]


def test_the_ratio_is_the_median_of_the_rounds_ratios() -> None:
    """And not the ratio of the medians, which here would be 2: each round has its own weather."""
    result = evaluate("send", FASTER, rounds((10, 10), (20, 5), (30, 10)))
    assert (result.figure, result.baseline, result.ratio) == (20, 10, 3)
    assert (result.low, result.high, result.rounds) == (1, 4, 3)


@pytest.mark.parametrize(
    ("row", "ratio", "reached"),
    [(FASTER, 1.5, True), (FASTER, 1.49, False), (SMALLER, 1.2, True), (SMALLER, 1.3, False)],
)
def test_a_target_is_reached_from_the_right_side(row: Row, ratio: float, reached: bool) -> None:
    assert evaluate("x", row, rounds((ratio, 1), figure=row.figure)).reached is reached


def test_of_several_baselines_the_best_of_each_round_counts() -> None:
    played = [
        {SUBJECT: {"rate": 12}, "a": {"rate": 3}, "b": {"rate": 6}},
        {SUBJECT: {"rate": 12}, "a": {"rate": 4}, "b": {"rate": 2}},
    ]
    assert evaluate("send", FASTER, played).ratio == pytest.approx((2 + 3) / 2)
    slower = Row("wait", "any", "ms", at_most=1.2)
    assert evaluate("wait", slower, played).ratio == pytest.approx((4 + 6) / 2)


def test_a_row_may_name_its_baselines() -> None:
    row = Row("send", "a", "messages/s", at_least=8, against=("a", "left out"))
    assert evaluate("send", row, [{SUBJECT: {"rate": 12}, "a": {"rate": 3}, "b": {"rate": 6}}]).ratio == 4


def test_a_constant_is_a_baseline() -> None:
    row = Row("send", "its limit", "messages/s", at_least=0.9, constant=400)
    assert evaluate("send", row, [{SUBJECT: {"rate": 380}}]).ratio == 0.95


def test_a_round_without_a_figure_is_left_out() -> None:
    assert evaluate("send", FASTER, rounds((float("nan"), 1), (3, 1))).rounds == 1
    assert evaluate("send", FASTER, rounds((float("nan"), 1))).error


def test_a_broken_benchmark_is_a_miss() -> None:
    result = failed("send", FASTER, "ConnectionError: no")
    assert not result.reached
    assert "broken: ConnectionError: no" in cells(result)


@pytest.mark.parametrize("figure", [{}, {"at_least": 1.0, "at_most": 1.0}])
def test_a_row_has_one_target(figure: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="either at_least or at_most"):
        Row("send", "by hand", "messages/s", **figure)  # type: ignore[arg-type]


@pytest.mark.parametrize(("figure", "baseline", "ratio"), [(4, 2, 2), (0, 0, 1), (3, 0, float("inf")), (-1, -0.5, 1)])
def test_ratio(figure: float, baseline: float, ratio: float) -> None:
    assert ratio_of(figure, baseline) == ratio


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (1, 100), (0, 1)])
def test_percentile_is_the_nearest_rank(share: float, value: int) -> None:
    assert percentile(list(range(100, 0, -1)), share) == value


def test_nobody_always_goes_first() -> None:
    orders = [turns("AB", number) for number in range(4)]
    assert orders == [["A", "B"], ["B", "A"], ["B", "A"], ["A", "B"]]
    assert {turns("ABC", number)[0] for number in range(6)} == set("ABC")


def test_every_side_plays_once_a_round() -> None:
    played: list[str] = []

    def side(name: str) -> dict[str, float]:
        played.append(name)
        return {"rate": 1.0}

    found = list(play("x", {"a": lambda: side("a"), "b": lambda: side("b")}, 2, say=lambda _: None))
    assert played == ["a", "b", "b", "a"]
    assert [sorted(round_) for round_ in found] == [["a", "b"], ["a", "b"]]


def test_sides_measured_together_are_watched_once_a_round() -> None:
    watched: list[int] = []

    def watch() -> dict[str, dict[str, float]]:
        watched.append(1)
        return {"a": {"cpu": len(watched)}, "b": {"cpu": 10 * len(watched)}}

    found = list(play("x", together(["a", "b"], watch), 2, say=lambda _: None))
    assert [(round_["a"]["cpu"], round_["b"]["cpu"]) for round_ in found] == [(1, 10), (2, 20)]


def test_each_look_at_who_waits_covers_several_steps_and_is_one_further() -> None:
    """A clock that only sleeping moves; 1 CPU second in the first 10, 2 in the second, and so on."""
    now_s = [0.0]
    look = sliding(
        {"a": lambda: sum(range(int(now_s[0] / 10) + 1))},
        10,
        steps=3,
        clock=lambda: now_s[0],
        sleep=lambda s: now_s.append(now_s.pop() + s),
    )
    assert [look()["a"]["cpu"] for _ in range(3)] == pytest.approx([6000 / 30, 9000 / 30, 12000 / 30])
    assert now_s == [50]


def test_a_call_may_say_itself_how_long_it_took() -> None:
    assert alternately({"a": lambda: 0.25}, 2, each=3) == {"a": [0.25, 0.25]}


def test_lateness_counts_from_when_the_token_was_free() -> None:
    """2 per 6 s: the third may go 6 s after the first, the fourth 6 s after the second."""
    assert lateness_s([[0.0, 1.0, 6.5, 7.0]], 2, 6) == pytest.approx([0.5, 0.0])


def test_arrivals_are_told_apart_by_their_number() -> None:
    arrivals = [Arrival(at, "key", f"run-{n}") for n, at in enumerate([5.0, 1.0, 3.0, 2.0])]
    assert times_by_account(arrivals, 2) == [[3.0, 5.0], [1.0, 2.0]]


def entry(n: int, at_s: float, key: str = "", verdict: str = "accepted") -> Entry:
    message = Message("account-0", f"fan-{n}", "Hello", (), key or f"run-{n}")
    arrival = SandboxArrival(message, round(at_s * 1e9), datetime(2026, 1, 1, tzinfo=UTC))
    return Entry(n, arrival, verdict, 200, f"up_{n}", False, None)


def test_damage_is_what_never_came_and_what_came_again() -> None:
    entries = [entry(1, 0), entry(2, 1), entry(3, 2, key="run-1"), entry(4, 3, verdict="throttled")]
    damage = damage_of(entries, messages=4)
    assert (damage.lost, damage.duplicated) == (2, 1)


def test_pace_sees_refused_requests_in_the_window() -> None:
    entries = [entry(n, 0.01 * n) for n in range(10)]
    entries += [entry(10, 1.0, verdict="throttled"), *(entry(11 + n, 2.2 + 0.01 * n) for n in range(10))]
    pace = pace_of(entries)
    assert (pace.worst_window, pace.throttled) == (11, 1)
    assert pace.late_p50_s == pytest.approx(0.2)


def test_cpu_time_is_told_in_less_than_ticks_and_with_what_has_ended() -> None:
    mine = [os.getpid()]
    before = cpu_s(mine)
    while (between := cpu_s(mine)) == before:
        pass
    assert between - before < 0.01
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.2: pass"], check=True)
    assert cpu_s(mine) - between > 0.19


@pytest.mark.parametrize(("value", "shown"), [(1234.5, "1,234"), (12.345, "12.3"), (0.01234, "0.0123")])
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert number(value) == shown


def test_the_document_keeps_what_people_wrote(tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text("# Benchmarks\n\nWords.\n")
    table = markdown([evaluate("send", FASTER, rounds((3, 1)))])
    write(document, "table", "old")
    document.write_text(document.read_text() + "\nMore words.\n")
    write(document, "table", table)
    text = document.read_text()
    assert "old" not in text
    assert table.strip() in text
    assert text.startswith("# Benchmarks\n\nWords.\n")
    assert text.endswith("More words.\n")
    assert "| send | by hand | 3 messages/s | 1 messages/s | 3.00 | 3.00–3.00 | ≥ 1.5 | pass | 1 |" in text
