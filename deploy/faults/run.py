"""A run from an empty directory to the verdict."""

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

from rich.console import Console

from deploy.client import NoAnswer
from deploy.faults import mail, report
from deploy.faults.caller import Caller
from deploy.faults.chaos import Chaos
from deploy.faults.evidence import collect
from deploy.faults.judge import Verdict, judge
from deploy.faults.load import Load
from deploy.faults.schedule import SEND_TIMEOUT_S, Kind, Options, plan
from deploy.servers import Breakable
from deploy.servers.places import throwaway_directory
from deploy.stack import Stack

GRACE = 0.5
"""Of the run, on top of it: how long the last messages may take before they count as lost."""
GRACE_S = 90.0
SAY_EVERY_S = 10.0
LATENCY_MS = 40


def run(
    options: Options,
    *,
    data_dir: Path | None = None,
    console: Console | None = None,
    stop: threading.Event | None = None,
    environ: Mapping[str, str] | None = None,
    servers: Breakable | None = None,
) -> Verdict:
    """Start everything, post, break, wait until all is over, judge, print. data_dir: where servers and logs live, to be
    looked at afterwards; a temporary one if None. servers: in place of the stack's own, at the addresses in `environ`.
    """
    console = console or Console()
    began_s = time.monotonic()
    home = nullcontext(data_dir) if data_dir else throwaway_directory("paceline-faults-")
    with home as directory, _stack(directory, options, environ or _without_servers(os.environ)) as stack:
        breakable = servers or stack.servers
        assert breakable is not None, "somebody must hold the servers that are to be broken"
        api = _api(stack, options)
        _create_accounts(api, options)
        until_s = time.monotonic() + options.duration_s * (1 + GRACE) + GRACE_S
        upstream = Caller(stack.sandbox_url)
        load = Load(api, upstream, mail.write(options), mail.talk(options), until_s)
        chaos = Chaos(stack, breakable, plan(options), options.seed, load.hurry)
        chaos.start()
        load.start()
        try:
            _await_end(
                api, load, chaos, until_s, stop or threading.Event(), lambda line: console.print(line, style="dim")
            )
        finally:
            load.stop()
        evidence = collect(api, upstream, load.posted, mail.unclear(options))
    verdict = judge(evidence, options.limits)
    report.show(
        console,
        options,
        verdict,
        done=chaos.done,
        repeated=load.repeated,
        refused=[f"{refused.key}: {words}" for refused, words in load.refused],
        wall_s=time.monotonic() - began_s,
    )
    return verdict


def _stack(directory: Path, options: Options, environ: Mapping[str, str]) -> Stack:
    sandbox = [
        "--limits",
        ",".join(limit.theirs for limit in options.limits),
        "--latency-ms",
        str(LATENCY_MS),
        "--seed",
        str(options.seed),
    ]
    sandbox += [] if options.idempotent else ["--no-idempotent"]
    sandbox += [] if options.history else ["--no-history"]
    sandbox += ["--keeps", options.keeps, "--authors" if options.authors else "--no-authors"]
    settings = {
        "RATE_LIMIT": _ours(options),
        "API_RATE_LIMIT": "off",
        "API_READ_LIMIT": "off",
        "ONLYFANS_IDEMPOTENT": "1" if options.idempotent else "0",
        "SEND_TIMEOUT_SECONDS": str(SEND_TIMEOUT_S),
        "RETRY_BASE_SECONDS": "0.5",
        "RETRY_MAX_SECONDS": "5",
        "MAX_ATTEMPTS": "8",
    }
    return Stack(
        directory,
        port=0,
        sandbox=True,
        sandbox_arguments=sandbox,
        workers=options.workers,
        pacers=options.pacers,
        environ={**environ, **settings},
    )


def _without_servers(environ: Mapping[str, str]) -> dict[str, str]:
    """Somebody's real servers must not be what is broken."""
    return {**environ, "DATABASE_URL": "", "REDIS_URL": "", "CELERY_BROKER_URL": ""}


def _ours(options: Options) -> str:
    return ",".join(limit.ours for limit in options.limits)


def _api(stack: Stack, options: Options) -> Caller:
    token = stack.admin_token("faults", timedelta(seconds=10 * options.duration_s + 3600))
    assert token is not None, "a local stack has a secret of its own"
    return Caller(f"{stack.url}/api/onlyfans/messaging", token)


def _create_accounts(api: Caller, options: Options) -> None:
    """Each with the key that has a window upstream."""
    for name in mail.accounts(options):
        account = {"limits": _ours(options), "credentials": {"apiKey": mail.api_key(name)}}
        api.until_answered("PUT", f"/accounts/{name}", account)


def _await_end(
    api: Caller, load: Load, chaos: Chaos, until_s: float, stop: threading.Event, say: Callable[[str], None]
) -> None:
    """Until all is posted, the schedule done, and nothing waits or is on its way; or until `until_s`."""
    began_s = said_s = time.monotonic()
    while time.monotonic() < until_s and not stop.wait(1.0):
        over = chaos.over and load.over  # asked before the counts: nothing is posted after them
        try:
            answer = api.ask("GET", "/status")
        except NoAnswer:
            continue
        queue = answer.body.get("queue", {})
        if over and answer.status == 200 and not queue["depth"] and not queue["inFlight"]:
            return
        if time.monotonic() - said_s >= SAY_EVERY_S:
            said_s = time.monotonic()
            waiting = (
                f"{queue['depth']} waiting, {queue['inFlight']} on their way" if queue else f"HTTP {answer.status}"
            )
            struck = f"{sum(chaos.done.values())} faults ({chaos.done[Kind.KILL]} kills)"
            say(f"{said_s - began_s:4.0f} s  {len(load.posted)} accepted, {waiting}; {struck}")
