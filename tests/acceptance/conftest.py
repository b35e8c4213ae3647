"""A real stack: servers, API, worker, pacer and sandbox, each a process of its own, driven over HTTP."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from api.auth import Role, issue_token
from deploy.servers import Servers
from deploy.stack import Stack
from tests.servers.debian import DebianServers
from workers.store import migrations


class Api:
    """The HTTP API, as any caller would use it."""

    def __init__(self, stack: Stack, role: str = "admin") -> None:
        secret = stack.settings.jwt_secret_key
        assert secret is not None
        self.token = issue_token(secret, subject="test", role=Role(role), accounts=["*"], ttl=timedelta(hours=1))
        self.base = f"{stack.url}/api/onlyfans/messaging"

    def __call__(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        try:
            with urlopen(Request(self.base + path, data, headers, method=method), timeout=15) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            return error.code, json.load(error)

    def send(self, recipient_id: str, content: str = "Hello", **more: Any) -> dict[str, Any]:
        status, receipt = self("POST", "/send", {"recipientId": recipient_id, "content": content, **more})
        assert status == 202, receipt
        return receipt

    def message(self, receipt: dict[str, Any]) -> dict[str, Any]:
        return self("GET", f"/messages/{receipt['messageId']}")[1]

    def statuses(self) -> list[str]:
        """Of all messages, newest first; asked again while the API says 503, as any caller would."""
        while (answer := self("GET", "/messages?limit=200"))[0] == 503:
            time.sleep(0.1)
        return [message["status"] for message in answer[1]["messages"]]

    def await_over(self, within_s: float) -> list[str]:
        """Wait until nothing is queued or being sent."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            statuses = self.statuses()
            if not {"queued", "sending"} & set(statuses):
                return statuses
            time.sleep(0.1)
        raise AssertionError(f"still under way after {within_s} s: {self.statuses()}")


@pytest.fixture
def addresses(debian: DebianServers | None) -> dict[str, str]:
    """The environment variables of other people's servers, as new; of none, so that a stack starts its own."""
    return debian.as_new() if debian else {}


@pytest.fixture
def servers_of(debian: DebianServers | None) -> Callable[[Stack], Servers | DebianServers]:
    """The servers that a stack runs on, to be broken."""

    def find(stack: Stack) -> Servers | DebianServers:
        found = stack.servers or debian
        assert found is not None
        return found

    return find


@pytest.fixture(scope="session")
def migrated(debian: DebianServers | None, tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """PostgreSQL's data with the schema at head, to copy: initdb and the migrations cost each stack a second of CPU.

    None if stacks have no PostgreSQL of their own, or if its data cannot stay in their directories."""
    if debian is not None:
        return None
    directory = tmp_path_factory.mktemp("migrated")
    with Servers(directory) as servers:
        migrations.upgrade(servers.database_url)
    postgres = directory / "postgres"
    return None if postgres.is_symlink() else postgres


@pytest.fixture
def make_stack(
    tmp_path_factory: pytest.TempPathFactory, addresses: dict[str, str], migrated: Path | None
) -> Iterator[Callable[..., Stack]]:
    """A running stack with a sandbox: `make_stack(RATE_LIMIT="10/2s", sandbox=["--latency-ms", "50"], workers=2)`."""
    with ExitStack() as running:

        def make(
            *, sandbox: list[str] | None = None, api_workers: int = 1, workers: int = 1, pacers: int = 1,
            data_dir: Path | None = None, **environ: str,
        ) -> Stack:  # fmt: skip
            if data_dir is None:
                data_dir = tmp_path_factory.mktemp("stack")
                if migrated is not None:
                    subprocess.run(["cp", "-a", str(migrated), str(data_dir / "postgres")], check=True)
            stack = Stack(
                data_dir,
                port=0,
                sandbox=True,
                sandbox_arguments=sandbox or [],
                api_workers=api_workers,
                workers=workers,
                pacers=pacers,
                environ={
                    "PATH": "/usr/bin:/bin",
                    "API_RATE_LIMIT": "off",
                    "API_READ_LIMIT": "off",
                    "RETRY_BASE_SECONDS": "0.2",
                    **addresses,
                    **environ,
                },
            )
            return running.enter_context(stack)

        yield make


def upstream(stack: Stack, path: str, method: str = "GET", body: Any = None) -> dict[str, Any]:
    """Ask the sandbox: `upstream(stack, "/summary")`."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(f"{stack.sandbox_url}/_sandbox{path}", data, {"Content-Type": "application/json"}, method=method)
    with urlopen(request, timeout=10) as answer:
        return json.loads(answer.read() or b"{}")


def judge(stack: Stack, accepted: int) -> None:
    """The upstream's verdict: so many messages, none twice, never too many."""
    summary = upstream(stack, "/summary")
    assert (summary["accepted"], summary["duplicates"], summary["overshoot"]) == (accepted, 0, 0), summary


def await_arrivals(stack: Stack, count: int) -> None:
    deadline = time.monotonic() + 30
    while upstream(stack, "/summary")["arrivals"] < count:
        assert time.monotonic() < deadline, "the upstream hears nothing"
        time.sleep(0.02)
