"""What a liveness probe sees of a worker and a pacer: both beat, and wait for a Redis that is away without illness."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from deploy.servers import Servers
from deploy.stack import free_port
from workers.store import migrations


@pytest.fixture
def own_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Valkey is killed here, so nobody else may need it."""
    with Servers(tmp_path_factory.mktemp("h")) as running:
        migrations.upgrade(running.database_url)
        yield running


def await_state(port: int, state: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    seen = "nothing"
    while seen != state and time.monotonic() < deadline:
        assert process.poll() is None
        try:
            with urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as answer:
                seen = answer.read().decode().strip()
        except OSError as error:
            seen = str(error)
        time.sleep(0.1)
    assert seen == state


@pytest.mark.parametrize(("kind", "without_redis"), [("worker", "resting"), ("pacer", "beating")])
def test_main_loop_beats_and_waits(own_servers: Servers, tmp_path: Path, kind: str, without_redis: str) -> None:
    port = free_port()
    environ = {
        **os.environ,
        "DATABASE_URL": own_servers.database_url,
        "REDIS_URL": own_servers.redis_url,
        "METRICS_PORT": str(port),
        "METRICS_TOKEN": "not for probes",
    }
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "deploy.cli", kind], env=environ, stderr=log)
    try:
        await_state(port, "beating", process)
        own_servers.valkey.kill()
        await_state(port, without_redis, process)
        own_servers.valkey.start()
        await_state(port, "beating", process)
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0
