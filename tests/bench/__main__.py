"""`python -m tests.bench`: measure, and show one table."""

import logging
import time
from functools import partial
from importlib import import_module
from pathlib import Path

import click
from rich.console import Console

from deploy.servers.places import throwaway_directory
from tests.bench.benchmark import BENCHMARKS, Result
from tests.bench.processes import clean_up_on_sigterm
from tests.bench.report import commit, machine, markdown, show, write
from tests.bench.runner import run
from tests.bench.stage import Stage
from workers.telemetry.logs import configure_logging

THEMES = ("tokens", "accept", "dispatch", "store", "lateness", "waiting", "neighbours", "memory")


@click.command(context_settings={"show_default": True})
@click.option("--only", default="", metavar="NAMES", help="Of benchmarks, separated by commas; see --list.")
@click.option("--rounds", default=5, type=click.IntRange(1), help="Of each.")
@click.option("--quick", is_flag=True, help="Small sizes: whether it works, not what it comes to.")
@click.option("--markdown", "file", type=click.Path(path_type=Path, dir_okay=False), help="Write the table there too.")
@click.option("--list", "names_only", is_flag=True, help="Name the benchmarks, and end.")
def main(only: str, rounds: int, quick: bool, file: Path | None, names_only: bool) -> None:
    """Paceline in relation to its baselines, measured in turn. Exit code 1 if a target is missed."""
    for theme in THEMES:
        import_module(f"tests.bench.{theme}")
    if names_only:
        click.echo("\n".join(BENCHMARKS))
        return
    wanted = [name.strip() for name in only.split(",") if name.strip()] or list(BENCHMARKS)
    if unknown := set(wanted) - set(BENCHMARKS):
        raise click.BadParameter(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    clean_up_on_sigterm()
    configure_logging("console", level=logging.WARNING)
    console, progress = Console(width=180), Console(stderr=True)
    began_s = time.monotonic()
    with (
        throwaway_directory("pace-") as directory,  # short: Unix sockets do not take long paths
        Stage(directory, quick, say=partial(progress.print, highlight=False, markup=False)) as stage,
    ):
        results = list(run((BENCHMARKS[name] for name in wanted), stage, rounds, stage.say))
        measured_on = machine(stage.versions())
    took_s = time.monotonic() - began_s
    show(results, console)
    console.print(f"{measured_on}\n{commit()}, {took_s:.0f} s", highlight=False)
    if file is not None:
        write(file, "table", _document(results, measured_on, took_s))
    raise SystemExit(0 if all(result.reached for result in results) else 1)


def _document(results: list[Result], measured_on: str, took_s: float) -> str:
    return f"{markdown(results)}\nMeasured at commit `{commit()}` in {took_s:.0f} s on {measured_on}."


if __name__ == "__main__":
    main()
