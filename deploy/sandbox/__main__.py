"""`python -m deploy.sandbox`: the sandbox as a process of its own, in the foreground."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from deploy.sandbox.chats import AS_SENT, Chats
from deploy.sandbox.ledger import parse_limits
from deploy.sandbox.server import serve


def _checked(check: Callable[[str], object]) -> Callable[[click.Context, click.Parameter, str], str]:
    def callback(_context: click.Context, _option: click.Parameter, text: str) -> str:
        try:
            check(text)
        except ValueError as problem:
            raise click.BadParameter(str(problem)) from problem
        return text

    return callback


@click.command(context_settings={"show_default": True})
@click.option("--host", default="127.0.0.1", help="Stay on loopback: /_sandbox asks for no token.")
@click.option("--port", default=9000, type=click.IntRange(0, 65535), help="0 picks a free one.")
@click.option(
    "--limits", default="10/minute", callback=_checked(parse_limits), help="Per API key; 1/second,10/minute: both."
)
@click.option("--enforce/--no-enforce", default=True, help="Answer 429, or only note the overshoot.")
@click.option("--idempotent/--no-idempotent", default=True, help="Honour the Idempotency-Key.")
@click.option("--history/--no-history", default=True, help="Have GET /chats/<chat_id>/messages.")
@click.option("--keeps", default=AS_SENT, callback=_checked(Chats), help="In the history: trimmed,nfc,lf,html.")
@click.option("--authors/--no-authors", default=True, help="Say in the history who wrote what.")
@click.option("--keeps-refusals/--no-keeps-refusals", default=False, help="Repeat a refusal under its key for ever.")
@click.option("--latency-ms", default=0.0, type=click.FloatRange(0), help="Added before every answer.")
@click.option("--seed", default=0, help="Of what goes wrong by chance.")
def main(host: str, port: int, **options: Any) -> None:
    """An upstream to send to: it holds a strict limit, keeps a ledger, and misbehaves on request."""
    serve(host, port, **options)


if __name__ == "__main__":
    main()
