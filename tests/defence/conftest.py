"""The real API process on real servers: what stands between a stranger's bytes and Flask is part of the defence."""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from urllib.request import urlopen

import pytest

from api.auth import Role, issue_token
from deploy.servers import Servers
from deploy.stack import free_port

SECRET = secrets.token_hex(32)
READY_WITHIN_S = 60.0


@dataclass(frozen=True)
class Process:
    """A running `paceline api`."""

    port: int
    log: Path
    pid: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def token(self, role: str = "admin", *accounts: str, subject: str = "mallory") -> str:
        """No account named means all."""
        return issue_token(
            SECRET, subject=subject, role=Role(role), accounts=list(accounts) or ["*"], ttl=timedelta(hours=1)
        )

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


@pytest.fixture(scope="module")
def start_api(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Process]]:
    """Start the API, in a process of its own: `start_api(LOG_FORMAT="console")`."""
    with contextlib.ExitStack() as running:

        def start(**environ: str) -> Process:
            log = tmp_path_factory.mktemp("api") / "api.log"
            api = Process(free_port(), log)
            settings = {
                "PATH": os.environ["PATH"],
                "DATABASE_URL": servers.database_url,
                "REDIS_URL": servers.redis_url,
                "JWT_SECRET_KEY": SECRET,
                "API_RATE_LIMIT": "off",
                "API_READ_LIMIT": "off",
                **environ,
            }
            with log.open("wb") as file:
                process = subprocess.Popen(
                    [sys.executable, "-m", "deploy.cli", "api", "--port", str(api.port)],
                    env=settings,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                )
            running.callback(process.wait)
            running.callback(process.terminate)
            _await_up(api, process)
            return replace(api, pid=process.pid)

        yield start


@pytest.fixture(scope="module")
def api(start_api: Callable[..., Process]) -> Process:
    return start_api()


def _await_up(api: Process, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        assert process.poll() is None, api.log.read_text()
        with contextlib.suppress(OSError), urlopen(f"{api.url}/healthz", timeout=5):
            return
        time.sleep(0.05)
    raise AssertionError(f"no API after {READY_WITHIN_S:.0f} s: {api.log.read_text()}")
