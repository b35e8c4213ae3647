"""Commands for those who run Paceline: migrate, rekey, check."""

import sys
import time
from pathlib import Path

import click

from deploy.cli.options import data_dir_option
from deploy.cli.surroundings import beside_up, say
from workers.settings import Settings


@click.command()
@click.option("--wait", is_flag=True, help="Change nothing: wait until somebody else has brought it there.")
@data_dir_option
def migrate(wait: bool, data_dir: Path) -> None:
    """Bring the schema to head."""
    from sqlalchemy.exc import OperationalError

    from workers.store import migrations

    beside_up(data_dir)
    settings = Settings.from_env()
    if wait:
        _await_schema(settings.database_url)
        return
    try:
        migrations.upgrade(settings.database_url)
    except OperationalError as error:
        raise RuntimeError(f"cannot connect ({error.orig}); mend DATABASE_URL or start the server") from error
    click.echo(f"schema at {migrations.current(settings.database_url)}")


@click.command()
@data_dir_option
def rekey(data_dir: Path) -> None:
    """Encrypt every account's credentials under the newest CREDENTIALS_KEY."""
    from workers.bootstrap import build
    from workers.domain.errors import CannotSeal, Unreadable

    beside_up(data_dir)
    adapters = build(Settings.from_env())
    try:
        click.echo(f"{adapters.accounts().rekey()} accounts' credentials are under the newest key")
    except CannotSeal as error:
        raise RuntimeError(str(error)) from error
    except Unreadable as error:
        raise RuntimeError(f"{error}; the old key must stay there until this has run") from error
    finally:
        adapters.close()


@click.command()
@click.option(
    "--as", "process", type=click.Choice(["api", "worker"]), help="Only what this process needs.  [default: everything]"
)
@data_dir_option
def check(process: str | None, data_dir: Path) -> None:
    """Configuration and connections, each with its fix.

    Of the environment; where that names no servers, of the Paceline that runs on the data directory.
    """
    from deploy.check import run

    beside_up(data_dir)
    sys.exit(0 if run(click.echo, process) else 1)


def _await_schema(database_url: str) -> None:
    """Return once the schema has all that this version needs; a newer one has."""
    from sqlalchemy.exc import OperationalError

    from workers.store import migrations

    told = ""
    while True:
        try:
            at = migrations.current(database_url)
            if migrations.reached(at):
                click.echo(f"schema at {at}")
                return
            waiting = f"waiting for schema {migrations.head()}; it is at {at}"
        except OperationalError as error:
            waiting = f"waiting for PostgreSQL: {error.orig}"
        if waiting != told:
            say(waiting)
        told = waiting
        time.sleep(1.0)
