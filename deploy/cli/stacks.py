"""Commands that start a whole pipeline: up, demo, faults."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from deploy.cli.options import data_dir_option, port_option
from deploy.cli.surroundings import say, stop_on_signal, with_dotenv


@click.command()
@port_option
@data_dir_option
@click.option(
    "--sandbox/--no-sandbox",
    default=None,
    help="The upstream to try things out on, or the real one.  [default: the sandbox if the data are new and "
    "ONLYFANS_BASE_URL is not set; later, what it was before]",
)
@click.option("--quiet", is_flag=True, help="Without a line for every message that moves.")
def up(port: int, data_dir: Path, sandbox: bool | None, quiet: bool) -> None:
    """The whole pipeline on one machine; ^C stops it cleanly.

    Settings come from the environment, and from a file .env in the current directory where the environment has none.
    """
    from deploy.local.follow import Follower
    from deploy.stack import Stack

    stop = stop_on_signal()
    environ = with_dotenv()
    if sandbox:
        environ["ONLYFANS_API_KEY"] = ""  # a real upstream's key is not for the sandbox
    follower = Follower(data_dir / "logs", say)
    with Stack(data_dir, port=port, sandbox=sandbox, environ=environ, say=say, stopping=stop) as stack:
        click.echo(f"ready {stack.url}")
        _how_to_begin(stack, data_dir)
        sys.stdout.flush()
        with nullcontext() if quiet else _following(follower, stack):
            stop.wait()
        click.echo("stopping: what is in flight is finished first", err=True)


@click.command(short_help="The pipeline, a sandbox upstream and a mixed queue, live.")
@click.option("--messages", type=click.IntRange(1, 200), default=30, show_default=True)
@click.option("--rate-limit", default="10/10s", show_default=True, help="Of the sandbox, so that a demo ends soon.")
def demo(messages: int, rate_limit: str) -> None:
    """The pipeline with the sandbox upstream and a mixed queue, with live progress."""
    from deploy.demo import run
    from deploy.servers.places import throwaway_directory
    from deploy.stack import Stack

    stop = stop_on_signal()
    environ = {
        **os.environ,
        "RATE_LIMIT": rate_limit,
        "API_RATE_LIMIT": "off",
        "API_READ_LIMIT": "off",
        "RETRY_BASE_SECONDS": "1",
        "ONLYFANS_API_KEY": "",
        "DATABASE_URL": "",
        "REDIS_URL": "",
        "CELERY_BROKER_URL": "",
    }
    with (
        throwaway_directory("paceline-demo-") as directory,
        Stack(directory, port=0, sandbox=True, environ=environ, say=say, stopping=stop) as stack,
    ):
        agreed = run(stack, messages, stop)
    sys.exit(0 if agreed else 1)


@click.command(short_help="A seeded schedule of faults, judged by the upstream.")
@click.option("--messages", type=click.IntRange(1, 1_000_000), default=1000, show_default=True)
@click.option("--minutes", type=click.FloatRange(0.25, 24 * 60), default=2.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed is the same schedule.")
@click.option("--accounts", type=click.IntRange(1, 1000), help="[default: one per 200 messages]")
@click.option("--workers", type=click.IntRange(1, 16), default=3, show_default=True)
@click.option("--pacers", type=click.IntRange(1, 16), default=2, show_default=True)
@click.option("--idempotent/--no-idempotent", default=True, help="Whether the upstream honours the Idempotency-Key.")
@click.option("--history/--no-history", default=True, help="Whether the upstream can be asked what arrived.")
@click.option("--keeps", help="What that history makes of texts.  [default: trimmed,nfc,lf,html]")
@click.option("--authors/--no-authors", default=True, help="Whether that history says who wrote each message.")
@click.option("--kills", type=click.IntRange(0), help="Of single processes.  [default: 10 per minute]")
@click.option("--hangs", type=click.IntRange(0), help="[default: 2 per minute]")
@click.option("--redis-losses", type=click.IntRange(0), help="[default: 3 per 2 minutes]")
@click.option("--redis-failbacks", type=click.IntRange(0), help="To another and back.  [default: 1 per 2 minutes]")
@click.option("--postgres-restarts", type=click.IntRange(0), help="[default: 1 per 2 minutes]")
@click.option("--outages", type=click.IntRange(0), help="Of the upstream.  [default: 1 per minute, 3 at least]")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep servers' data and logs there, to look at afterwards.",
)
def faults(messages: int, minutes: float, seed: int, data_dir: Path | None, **given: Any) -> None:
    """A pipeline under a seeded schedule of faults, judged by its upstream: none lost, none twice, never too many.

    Starts servers and a sandbox of its own; the exit code is 0 only if every guarantee held.
    """
    from deploy.faults import Options, run

    stop = stop_on_signal()
    verdict = run(Options.scaled(messages, minutes, seed, **given), data_dir=data_dir, stop=stop)
    sys.exit(0 if verdict.holds else 1)


@contextmanager
def _following(follower: Any, stack: Any) -> Iterator[None]:
    """Say a line for every message that moves."""
    from workers.bootstrap import build
    from workers.domain.errors import StoreUnavailable
    from workers.store import queries

    if stack.settings.log_format != "json":
        say("LOG_FORMAT is not json, so the logs alone tell what moves")
        yield
        return
    adapters = build(stack.settings, pool_size=1, name="paceline up")

    def words(message_id: str) -> str | None:
        with suppress(StoreUnavailable):
            said = [*queries.attempts(adapters.db, message_id), *queries.dead_letters(adapters.db, message_id)]
            return next((row["error"] for row in reversed(said) if row["error"]), None)
        return None

    follower.words = words
    try:
        with follower:
            yield
    finally:
        adapters.close()


def _how_to_begin(stack: Any, data_dir: Path) -> None:
    """Where messages go, a token, and a line to paste."""
    click.echo(f"logs in {data_dir / 'logs'}, docs at {stack.url}/docs")
    click.echo(stack.upstream)
    made = stack.admin_token("you", timedelta(hours=12))
    if made is None:
        click.echo("tokens are issued elsewhere (JWT_PUBLIC_KEY or JWT_JWKS_FILE)")
        return
    click.echo(f"\nexport TOKEN={made}\n")
    click.echo(
        f'curl -s {stack.url}/api/onlyfans/messaging/send -H "Authorization: Bearer $TOKEN" '
        '-H \'Content-Type: application/json\' -d \'{"recipientId":"fan-0","content":"Hello"}\'\n'
    )
