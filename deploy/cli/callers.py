"""Commands for those who call the API: token, send."""

import os
import re
from datetime import timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import click

from deploy.cli.options import Platform, TimeZone, Ttl, data_dir_option
from deploy.cli.surroundings import beside_up, say
from workers.environment import BadSetting


@click.command()
@click.option("--role", type=click.Choice(["operator", "admin", "ops"]), required=True)
@click.option("--sub", required=True, help="Who it is for.")
@click.option("--accounts", default="*", show_default=True, help="Account ids, separated by commas, or * for all.")
@click.option("--ttl", type=Ttl(), default="12h", show_default=True, help="How long it is good for: 30m, 12h, 7d.")
@data_dir_option
def token(role: str, sub: str, accounts: str, ttl: timedelta, data_dir: Path) -> None:
    """Print a JWT, and nothing else, on stdout."""
    from api.auth import Role, issue_token
    from deploy.stack import own_secret

    beside_up(data_dir)
    secret = os.environ.get("JWT_SECRET_KEY")
    if secret and len(secret.encode()) < 32:
        raise BadSetting("JWT_SECRET_KEY", "(not shown)", "must be at least 32 bytes; make one: openssl rand -hex 32")
    if not secret and (os.environ.get("JWT_PUBLIC_KEY") or os.environ.get("JWT_JWKS_FILE")):
        raise click.UsageError("Tokens are issued elsewhere here (JWT_PUBLIC_KEY or JWT_JWKS_FILE is set)")
    wanted = [account.strip() for account in accounts.split(",") if account.strip()]
    if not secret and not (data_dir / "jwt_secret").exists():
        say(f"note: no Paceline has run in {data_dir} yet; its secret is made now, and `up` there will use it")
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


@click.command(short_help="A file of messages; again, it goes on where it stopped.")
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    required=True,
    help="CSV with the API's field names as columns, NDJSON or a JSON array; - for stdin.",
)
@click.option("--url", help="Where the API is.  [default: that of the local Paceline, or http://127.0.0.1:8000]")
@click.option("--channel", type=Platform(), default="onlyfans", show_default=True)
@click.option("--token", envvar="PACELINE_TOKEN", help="[env: PACELINE_TOKEN; default: made from the local secret]")
@click.option("--account", help="For messages without an accountId.")
@click.option("--batch-id", help="For messages without a batchId.")
@click.option("--time-zone", type=TimeZone(), help="Of times without an offset, e.g. Europe/Berlin.")
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

    running = beside_up(data_dir)
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
