"""The table: on the terminal, and as the part of docs/benchmarks.md that nobody writes by hand."""

import os
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.benchmark import Result

HEADINGS = ("what", "baseline", "figure", "its baseline", "ratio", "spread", "target", "", "rounds")
MARKERS = ("<!-- {name}: begin, written by `make {target}` -->", "<!-- {name}: end -->")


def cells(result: Result) -> tuple[str, ...]:
    """A line of the table."""
    row = result.row
    if result.error:
        return (row.what, row.baseline, "–", "–", "–", "–", row.target, f"broken: {result.error}", "0")
    best = f" ({result.best})" if result.best and row.constant is None and _several(result) else ""
    return (
        row.what,
        row.baseline + best,
        f"{number(result.figure)} {row.unit}",
        f"{number(result.baseline)} {row.unit}",
        f"{result.ratio:.2f}",
        f"{result.low:.2f}–{result.high:.2f}",
        row.target,
        "pass" if result.reached else "MISS",
        str(result.rounds),
    )


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def show(results: Sequence[Result], console: Console) -> None:
    table = Table(title="Paceline, in relation to", show_lines=False)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("what", "baseline") else "right")
    for result in results:
        style = "" if result.reached else "bold red"
        table.add_row(*cells(result), style=style)
    console.print(table)


def markdown(results: Iterable[Result]) -> str:
    return markdown_table(HEADINGS, map(cells, results))


def markdown_table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (headings, ["---"] * len(headings), *lines)) + "\n"


def write(path: Path, name: str, text: str, *, target: str = "bench") -> None:
    """Put the text between the file's markers of that name; a file without them gets them at its end."""
    begin, end = (marker.format(name=name, target=target) for marker in MARKERS)
    block = f"{begin}\n\n{text.strip()}\n\n{end}"
    before = path.read_text() if path.exists() else ""
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    after, found = pattern.subn(lambda _: block, before, count=1)
    path.write_text(after if found else f"{before.rstrip()}\n\n{block}\n".lstrip())


def machine(servers: Sequence[str]) -> str:
    """What it was measured on. servers: their names with versions."""
    cpus = os.cpu_count()
    return (
        f"{cpus} × {_cpu_model()}, {_memory_gib():.0f} GiB; {platform.system()} {platform.release()}; "
        f"Python {platform.python_version()}; {', '.join(servers)}; Celery {version('celery')}, "
        f"granian {version('granian')}, psycopg {version('psycopg')}, redis-py {version('redis')}"
    )


def commit() -> str:
    """The commit that was measured, with a `+` if there was more than that in the tree; empty outside a repository."""
    told = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False)
    return told.stdout.strip()


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _several(result: Result) -> bool:
    return len(result.row.against) != 1 and "best of" in result.row.baseline
