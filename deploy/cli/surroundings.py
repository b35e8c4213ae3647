"""What the commands share with the terminal and the environment that they run in."""

import os
import signal
from pathlib import Path

import click

from deploy.local import dotenv, running
from deploy.local.stopping import Stop
from workers.settings import variables


def say(line: str) -> None:
    click.echo(line, err=True)


def stop_on_signal() -> Stop:
    """Set on ^C or SIGTERM."""
    stop = Stop()

    def heard(*_: object) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, heard)
    return stop


def with_dotenv() -> dict[str, str]:
    """The environment, and what a file .env in the current directory adds to it. Says what that is."""
    path = Path(".env")
    if not path.is_file():
        return dict(os.environ)
    file = dotenv.read(path, variables().keys())
    added = sorted(name for name in file if not os.environ.get(name))
    if added:
        say(f"from .env: {', '.join(added)}")
    return dotenv.merged(os.environ, file)


def beside_up(data_dir: Path) -> running.Running | None:
    """Mean the same settings as `paceline up` does, if the environment names no servers of its own: those of the stack
    that runs on the data directory, or else of .env. Returns that stack."""
    found = running.find(data_dir)
    if os.environ.get("DATABASE_URL"):
        return found
    environ = dotenv.merged(os.environ, found.environ) if found else with_dotenv()
    os.environ.update(environ)
    return found
