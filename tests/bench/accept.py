"""How fast messages come in: what durability costs a request, and what it costs a row.

Both sides are the server of `paceline api` with the same routes, on the same machine, called by the same callers; one
of them has a database that answers at once (`without_database`). No worker runs: what is accepted waits.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from urllib.request import urlopen

from api.auth import Role, issue_token
from deploy.stack import free_port
from tests.bench.benchmark import SUBJECT, Figures, Row, Sides, benchmark
from tests.bench.load import drive
from tests.bench.processes import stop
from tests.bench.stage import SECRET, Stage
from tests.bench.without_database import VALIDATE
from workers.bootstrap import Adapters

ACCOUNTS = 8
CALLERS = 16
"""As many as the server has threads."""
BULK = 1000
BULK_CALLERS = 4
OURS, BARE = "deploy.cli api", "tests.bench.without_database"
_PATH = "/api/onlyfans/messaging"


@benchmark(
    "accept",
    Row(
        "accept one message (POST /send, JWT, validation, COMMIT)",
        "the same server and route without the database",
        "requests/s",
        at_least=0.5,
    ),
)
@contextmanager
def accept(stage: Stage) -> Iterator[Sides]:
    for_s = stage.size(20, 5) / 10
    with both_servers(stage) as (ours, bare):
        token = _token()
        requests = [
            {"path": f"{_PATH}/send", "token": token, "body": json.dumps(_message(account))}
            for account in range(ACCOUNTS)
        ]

        def side(port: int) -> Figures:
            return {"rate": drive(port, requests, for_s=for_s, connections=CALLERS).rate}

        for port in (ours, bare):
            drive(port, requests, for_s=0.5, connections=CALLERS)
        yield {SUBJECT: lambda: side(ours), "without the database": lambda: side(bare)}


@benchmark(
    "bulk",
    Row(
        f"accept in bulk with ids, {BULK} messages a request",
        "the same server parsing and validating only",
        "rows/s",
        at_least=0.6,
    ),
)
@contextmanager
def bulk(stage: Stage) -> Iterator[Sides]:
    for_s = stage.size(25, 10) / 10
    with both_servers(stage) as (ours, bare):
        body = json.dumps({"messages": [_message(n % ACCOUNTS) for n in range(BULK)]})

        def side(port: int, path: str) -> Figures:
            request = {"path": path, "token": _token(), "body": body}
            return {"rate": drive(port, [request], for_s=for_s, connections=BULK_CALLERS).rate * BULK}

        yield {
            SUBJECT: lambda: side(ours, f"{_PATH}/send/bulk"),
            "parsing and validating": lambda: side(bare, VALIDATE),
        }


@contextmanager
def both_servers(stage: Stage) -> Iterator[tuple[int, int]]:
    """The ports of the real one and of the one without a database."""
    with ExitStack() as running:
        adapters = running.enter_context(stage.adapters(pool_size=2))
        _open_accounts(adapters)
        ours, bare = (running.enter_context(_server(stage, adapters, program)) for program in (OURS, BARE))
        yield ours, bare


@contextmanager
def _server(stage: Stage, adapters: Adapters, program: str) -> Iterator[int]:
    port = free_port()
    module, *arguments = program.split()
    settings = adapters.settings
    environ = stage.environ(DATABASE_URL=settings.database_url, REDIS_URL=settings.redis_url)
    with (stage.data_dir / f"{module}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments, "--port", str(port)],
            env=environ,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _await_server(port, process)
        yield port
    finally:
        stop(process)


def _await_server(port: int, process: subprocess.Popen[bytes], within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while True:
        try:
            with urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _open_accounts(adapters: Adapters) -> None:
    for n in range(ACCOUNTS):
        adapters.db.all("INSERT INTO accounts (id) VALUES (%(id)s)", {"id": f"account-{n}"})
        adapters.tokens.open_new(f"account-{n}")


def _message(account: int) -> dict[str, object]:
    return {"recipientId": "fan-{n}", "content": "Hello, how are you?", "accountId": f"account-{account}"}


def _token() -> str:
    return issue_token(SECRET, subject="bench", role=Role.OPERATOR, accounts=["*"], ttl=timedelta(hours=1))
