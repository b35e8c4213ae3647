"""The verdict, as one table for people."""

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy.faults.judge import Verdict
from deploy.faults.schedule import Kind, Limit, Options

SHOWN = 10
"""Findings of each sort that are printed."""


def show(
    console: Console, options: Options, verdict: Verdict, *, done: Mapping[Kind, int], repeated: int,
    refused: Sequence[str], wall_s: float,
) -> None:  # fmt: skip
    """Print it."""
    table = Table(title="\nPaceline under fire", title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    upstream = "idempotent" if options.idempotent else "not idempotent"
    authors = "and names authors" if options.authors else "without authors"
    history = f"its history keeps texts {options.keeps} {authors}" if options.history else "without history"
    table.add_row("seed", str(options.seed), f"{options.accounts} accounts; upstream {upstream}, {history}")
    table.add_row("wall time", f"{wall_s:.0f} s", f"{options.workers} workers, {options.pacers} pacers")
    table.add_section()
    table.add_row("accepted (202)", str(verdict.accepted), f"{repeated} posts repeated" if repeated else "")
    table.add_row("never accepted", str(len(refused)), "; ".join(refused[:3]))
    for ending, number in sorted(verdict.ended.items(), key=lambda item: -item[1]):
        table.add_row(ending, str(number), "")
    table.add_section()
    table.add_row("still queued", _good_if_none(verdict.unresolved), "")
    table.add_row("lost", _good_if_none(len(verdict.lost)), "")
    table.add_row("sent twice", _good_if_none(len(verdict.twice)), "")
    table.add_row("sent without a 202", _good_if_none(len(verdict.strays)), "")
    table.add_row("overshoot", _good_if_none(verdict.overshoot), "requests beyond a limit in some rolling period")
    table.add_row("out of order", _good_if_none(len(verdict.misordered)), "per account, recipient and priority")
    table.add_row("out of time", _good_if_none(len(verdict.mistimed)), "before the sendAt, or after the expiresAt")
    table.add_row(
        "needless dead letters", _good_if_none(len(verdict.unexpected)), "not refused, and not past finding out"
    )
    table.add_row("attempts burnt", _good_if_none(len(verdict.burnt)), "messages that lost attempts to an outage")
    table.add_row("pressed", _good_if_none(len(verdict.pressed)), "tried too often at a chat that throttles")
    table.add_section()
    for limit, worst in verdict.worst.items():
        table.add_row(f"worst window, {limit.theirs}", str(max(worst.values(), default=0)), _windows(worst, limit))
    table.add_row("429 from the limit", str(verdict.throttled_by_limit), f"{verdict.throttled_by_fault} injected")
    table.add_row("requests upstream", str(sum(verdict.verdicts.values())), _counts(verdict.verdicts))
    table.add_row("upstream's faults", str(sum(verdict.faults.values())), _counts(verdict.faults))
    table.add_row("unknown outcomes", str(sum(verdict.unknowns.values())), _counts(verdict.unknowns))
    table.add_row("given up, and arrived", str(len(verdict.doubtful)), "retries exhausted after an unknown outcome")
    table.add_section()
    for kind in Kind:
        table.add_row(str(kind), str(done.get(kind, 0)), "")
    console.print(table)
    for title in ("lost", "twice", "strays", "misordered", "mistimed", "unexpected", "burnt", "pressed", "doubtful"):
        for finding in getattr(verdict, title)[:SHOWN]:
            console.print(f"{title}: {finding}", style="red")
    console.print("[green]Every guarantee held.[/]" if verdict.holds else "[red]Not every guarantee held.[/]")


def _good_if_none(number: int) -> Text:
    return Text(str(number), style="green" if number == 0 else "bold red")


def _windows(worst: Mapping[str, int], limit: Limit) -> str:
    """How many accounts have which fullest window; those beyond the limit by name."""
    sizes = ", ".join(f"{number} accounts {size}" for size, number in sorted(Counter(worst.values()).items())[::-1])
    beyond = [f"{key}: {size}" for key, size in worst.items() if size > limit.count]
    return sizes + (f"; {', '.join(beyond[:SHOWN])}" if beyond else "")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(counts.items(), key=lambda item: -item[1]))
