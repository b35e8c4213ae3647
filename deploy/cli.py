"""The `paceline` command: contract §3. Exit codes: 0, 1 for a failure, 2 for a wrong call or setting."""

import os
import re
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click

from deploy.lifeline import follow_lifeline
from deploy.local import dotenv, running
from deploy.local.stopping import Interrupted, Stop
from deploy.sandbox.__main__ import main as run_sandbox
from workers.channels.registry import platforms
from workers.environment import BadSetting
from workers.settings import Settings, variables

_F = TypeVar("_F", bound=Callable[..., Any])
_TTL = re.compile(r"(\d+)([smhd])")
_COUNTS = "PROMETHEUS_MULTIPROC_DIR"
_TTL_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

data_dir_option = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".paceline"),
    show_default=True,
    help="Where a local Paceline keeps its servers' data, its secret and its logs.",
)
port_option = click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)


class _Ttl(click.ParamType):
    name = "ttl"

    def convert(self, value: Any, param: Any, ctx: Any) -> timedelta:
        if isinstance(value, timedelta):
            return value
        match = _TTL.fullmatch(value)
        if not match or int(match[1]) == 0:
            self.fail(f"{value!r} is not a duration; write e.g. 30m, 12h or 7d", param, ctx)
        return timedelta(**{_TTL_UNITS[match[2]]: int(match[1])})


class _TimeZone(click.ParamType):
    name = "zone"

    def convert(self, value: Any, param: Any, ctx: Any) -> ZoneInfo:
        if isinstance(value, ZoneInfo):
            return value
        try:
            return ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            words = (
                "is not a time zone; write e.g. Europe/Berlin (or install tzdata, if this machine has no time zones)"
            )
            self.fail(f"{value!r} {words}", param, ctx)


class _Platform(click.ParamType):
    """A platform that a channel kind serves. The kinds are looked for only once one is named."""

    name = "platform"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return click.Choice(platforms()).convert(value, param, ctx)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="paceline", message="%(version)s")
def paceline() -> None:
    """Sends outbound messages exactly as fast as the platform allows: none lost, none twice."""


@paceline.command()
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

    stop = _stop_on_signal()
    environ = _with_dotenv()
    if sandbox:
        environ["ONLYFANS_API_KEY"] = ""  # a real upstream's key is not for the sandbox
    follower = Follower(data_dir / "logs", _say)
    with Stack(data_dir, port=port, sandbox=sandbox, environ=environ, say=_say, stopping=stop) as stack:
        click.echo(f"ready {stack.url}")
        _how_to_begin(stack, data_dir)
        sys.stdout.flush()
        with nullcontext() if quiet else _following(follower, stack):
            stop.wait()
        click.echo("stopping: what is in flight is finished first", err=True)


@paceline.command(short_help="The pipeline, a sandbox upstream and a mixed queue, live.")
@click.option("--messages", type=click.IntRange(1, 200), default=30, show_default=True)
@click.option("--rate-limit", default="10/10s", show_default=True, help="Of the sandbox, so that a demo ends soon.")
def demo(messages: int, rate_limit: str) -> None:
    """The pipeline with the sandbox upstream and a mixed queue, with live progress."""
    from deploy.demo import run
    from deploy.servers.places import throwaway_directory
    from deploy.stack import Stack

    stop = _stop_on_signal()
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
        Stack(directory, port=0, sandbox=True, environ=environ, say=_say, stopping=stop) as stack,
    ):
        agreed = run(stack, messages, stop)
    sys.exit(0 if agreed else 1)


@paceline.command(short_help="A seeded schedule of faults, judged by the upstream.")
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

    stop = _stop_on_signal()
    verdict = run(Options.scaled(messages, minutes, seed, **given), data_dir=data_dir, stop=stop)
    sys.exit(0 if verdict.holds else 1)


@paceline.command()
@click.option("--role", type=click.Choice(["operator", "admin", "ops"]), required=True)
@click.option("--sub", required=True, help="Who it is for.")
@click.option("--accounts", default="*", show_default=True, help="Account ids, separated by commas, or * for all.")
@click.option("--ttl", type=_Ttl(), default="12h", show_default=True, help="How long it is good for: 30m, 12h, 7d.")
@data_dir_option
def token(role: str, sub: str, accounts: str, ttl: timedelta, data_dir: Path) -> None:
    """Print a JWT, and nothing else, on stdout."""
    from api.auth import Role, issue_token
    from deploy.stack import own_secret

    _beside_up(data_dir)
    secret = os.environ.get("JWT_SECRET_KEY")
    if secret and len(secret.encode()) < 32:
        raise BadSetting("JWT_SECRET_KEY", "(not shown)", "must be at least 32 bytes; make one: openssl rand -hex 32")
    if not secret and (os.environ.get("JWT_PUBLIC_KEY") or os.environ.get("JWT_JWKS_FILE")):
        raise click.UsageError("Tokens are issued elsewhere here (JWT_PUBLIC_KEY or JWT_JWKS_FILE is set)")
    wanted = [account.strip() for account in accounts.split(",") if account.strip()]
    if not secret and not (data_dir / "jwt_secret").exists():
        _say(f"note: no Paceline has run in {data_dir} yet; its secret is made now, and `up` there will use it")
    made = issue_token(
        secret or own_secret(data_dir),
        subject=sub,
        role=Role(role),
        accounts=wanted,
        ttl=ttl,
        audience=os.environ.get("JWT_AUDIENCE") or None,
        issuer=os.environ.get("JWT_ISSUER") or None,
    )
    click.echo(made)


@paceline.command(short_help="A file of messages; again, it goes on where it stopped.")
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    required=True,
    help="CSV with the API's field names as columns, NDJSON or a JSON array; - for stdin.",
)
@click.option("--url", help="Where the API is.  [default: that of the local Paceline, or http://127.0.0.1:8000]")
@click.option("--channel", type=_Platform(), default="onlyfans", show_default=True)
@click.option("--token", envvar="PACELINE_TOKEN", help="[env: PACELINE_TOKEN; default: made from the local secret]")
@click.option("--account", help="For messages without an accountId.")
@click.option("--batch-id", help="For messages without a batchId.")
@click.option("--time-zone", type=_TimeZone(), help="Of times without an offset, e.g. Europe/Berlin.")
@click.option("--chunk", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="Messages per request.")
@click.option("--run", "name", help="Its name: what was queued under it is not queued again.  [default: the file's]")
@click.option("--dry-run", is_flag=True, help="Look at every row, and send nothing.")
@data_dir_option
def send(
    file: Path, url: str | None, channel: str, token: str | None, account: str | None, batch_id: str | None,
    time_zone: ZoneInfo | None, chunk: int, name: str | None, dry_run: bool, data_dir: Path,
) -> None:  # fmt: skip
    """Queue a file of messages.

    All rows are looked at before any is sent. Interrupted, the same command goes on where it stopped, and queues
    nothing twice.
    """
    from deploy.send import Sender, read, run, token_of

    running = _beside_up(data_dir)
    url = url or (running.url if running else "http://127.0.0.1:8000")
    if not re.match(r"https?://[^/]", url):
        raise click.BadParameter(f"{url!r} is not http://… or https://…", param_hint="--url")
    if str(file) == "-" and not name:
        raise click.UsageError("What comes from stdin has no name; give it one with --run")
    with click.open_file(str(file), "rb") as opened:
        rows = read(opened, str(file), time_zone=time_zone, accountId=account, batchId=batch_id)
    if dry_run:
        click.echo(f"{len(rows):,} messages are valid; nothing was sent")
        return
    token = token or token_of(data_dir, os.environ)
    if token is None:
        raise click.UsageError(f"No token, and no secret in {data_dir}: give --token or set PACELINE_TOKEN")
    run(Sender(url, token, name or file.name, channel), rows, chunk)


@paceline.command()
@port_option
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 in a container.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes.")
@click.option("--threads", type=click.IntRange(1, 256), default=16, show_default=True, help="Threads of each.")
def api(port: int, host: str, workers: int, threads: int) -> None:
    """The API, in the foreground."""
    with ExitStack() as at_the_end:
        if workers > 1 and not os.environ.get(_COUNTS):
            os.environ[_COUNTS] = at_the_end.enter_context(tempfile.TemporaryDirectory(prefix="paceline-metrics-"))
        from deploy.serve import serve_api

        serve_api(_settings(), host=host, port=port, workers=workers, threads=threads)


@paceline.command(short_help="A worker, in the foreground; one per core.")
def worker() -> None:
    """A worker, in the foreground; start as many as the machine has cores."""
    _count_alone()
    from workers.engine.processes import run_worker

    warnings.filterwarnings("ignore", message=".*superuser privileges")  # a container's user is its own affair
    run_worker(_settings())


@paceline.command(short_help="A pacer with its reconciler; run two.")
def pacer() -> None:
    """A pacer with its reconciler, in the foreground; two are enough to survive one."""
    _count_alone()
    from workers.engine.processes import run_pacer

    run_pacer(_settings())


@paceline.command()
@click.option("--wait", is_flag=True, help="Change nothing: wait until somebody else has brought it there.")
@data_dir_option
def migrate(wait: bool, data_dir: Path) -> None:
    """Bring the schema to head."""
    from sqlalchemy.exc import OperationalError

    from workers.store import migrations

    _beside_up(data_dir)
    settings = Settings.from_env()
    if wait:
        _await_schema(settings.database_url)
        return
    try:
        migrations.upgrade(settings.database_url)
    except OperationalError as error:
        raise RuntimeError(f"cannot connect ({error.orig}); mend DATABASE_URL or start the server") from error
    click.echo(f"schema at {migrations.current(settings.database_url)}")


@paceline.command()
@data_dir_option
def rekey(data_dir: Path) -> None:
    """Encrypt every account's credentials under the newest CREDENTIALS_KEY."""
    from workers.bootstrap import build
    from workers.domain.errors import CannotSeal, Unreadable

    _beside_up(data_dir)
    adapters = build(Settings.from_env())
    try:
        click.echo(f"{adapters.accounts().rekey()} accounts' credentials are under the newest key")
    except CannotSeal as error:
        raise RuntimeError(str(error)) from error
    except Unreadable as error:
        raise RuntimeError(f"{error}; the old key must stay there until this has run") from error
    finally:
        adapters.close()


@paceline.command()
@click.option(
    "--as", "process", type=click.Choice(["api", "worker"]), help="Only what this process needs.  [default: everything]"
)
@data_dir_option
def check(process: str | None, data_dir: Path) -> None:
    """Configuration and connections, each with its fix.

    Of the environment; where that names no servers, of the Paceline that runs on the data directory.
    """
    from deploy.check import run

    _beside_up(data_dir)
    sys.exit(0 if run(click.echo, process) else 1)


run_sandbox.short_help = "An upstream to try things out on."
paceline.add_command(run_sandbox, "sandbox")


def main() -> None:
    """The entry point: errors as one line for people, with the contract's exit codes."""
    follow_lifeline()
    try:
        paceline(standalone_mode=False)
    except (click.exceptions.Abort, Interrupted):
        click.echo("stopped", err=True)
        sys.exit(130)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(1)
    except BadSetting as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except (RuntimeError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except Exception as error:
        if os.environ.get("PACELINE_DEBUG"):
            raise
        click.echo(f"Error: {type(error).__name__}: {error} (PACELINE_DEBUG=1 shows where)", err=True)
        sys.exit(1)


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
            _say(waiting)
        told = waiting
        time.sleep(1.0)


def _settings() -> Settings:
    """For a process of production: settings read, logs configured."""
    from workers.telemetry import traces
    from workers.telemetry.logs import configure_logging

    settings = Settings.from_env()
    traces.wanted()  # and to be had
    configure_logging(settings.log_format)
    return settings


def _count_alone() -> None:
    """Keep the counts of a process that tells them on a port of its own out of the shared directory.

    Must run before `workers.telemetry.counts` is imported.
    """
    if os.environ.get("METRICS_PORT"):
        os.environ.pop(_COUNTS, None)


def _say(line: str) -> None:
    click.echo(line, err=True)


def _stop_on_signal() -> Stop:
    """Set on ^C or SIGTERM."""
    stop = Stop()

    def heard(*_: object) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, heard)
    return stop


def _with_dotenv() -> dict[str, str]:
    """The environment, and what a file .env in the current directory adds to it. Says what that is."""
    path = Path(".env")
    if not path.is_file():
        return dict(os.environ)
    file = dotenv.read(path, variables().keys())
    added = sorted(name for name in file if not os.environ.get(name))
    if added:
        _say(f"from .env: {', '.join(added)}")
    return dotenv.merged(os.environ, file)


def _beside_up(data_dir: Path) -> running.Running | None:
    """Mean the same settings as `paceline up` does, if the environment names no servers of its own: those of the stack
    that runs on the data directory, or else of .env. Returns that stack."""
    found = running.find(data_dir)
    if os.environ.get("DATABASE_URL"):
        return found
    environ = dotenv.merged(os.environ, found.environ) if found else _with_dotenv()
    os.environ.update(environ)
    return found


@contextmanager
def _following(follower: Any, stack: Any) -> Iterator[None]:
    """Say a line for every message that moves."""
    from workers.bootstrap import build
    from workers.domain.errors import StoreUnavailable
    from workers.store import queries

    if stack.settings.log_format != "json":
        _say("LOG_FORMAT is not json, so the logs alone tell what moves")
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


if __name__ == "__main__":
    main()
