"""Counts of several processes in one directory: real processes, killed, restarted, forked."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from prometheus_client.multiprocess import MultiProcessCollector

from deploy.stack import free_port
from workers.telemetry import exposition
from workers.telemetry.counts import DIRECTORY, Slots

COUNTING = """
import sys
from workers.telemetry import metrics
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


class Process:
    """A process that counts on command."""

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", COUNTING],
            env={**os.environ, DIRECTORY: str(directory)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, line: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(line, file=self._process.stdin, flush=True)
        assert self._process.stdout.readline() == "done\n"

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Process]]:
    with ExitStack() as running:

        def make() -> Process:
            process = Process(tmp_path)
            running.callback(process.kill)
            return process

        yield make


def told(directory: Path) -> Mapping[str, float]:
    """What a scrape of the directory says, by sample name (labels apart, which none here has)."""
    Slots(directory).close_dead()
    found = MultiProcessCollector(None, str(directory)).collect()
    return {sample.name: sample.value for metric in found for sample in metric.samples}


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*.db"))


def test_counts_of_several_processes_add_up_and_outlive_them(tmp_path: Path, start: Callable[[], Process]) -> None:
    one, other = start(), start()
    one("metrics.rescued.inc(2)")
    other("metrics.rescued.inc(3)")
    assert told(tmp_path)["paceline_rescued_total"] == 5
    one.kill()
    assert told(tmp_path)["paceline_rescued_total"] == 5
    successor = start()
    successor("metrics.rescued.inc()")
    assert told(tmp_path)["paceline_rescued_total"] == 6


def test_restarts_leave_no_files_behind(tmp_path: Path, start: Callable[[], Process]) -> None:
    lives = start()
    lives("metrics.rescued.inc()")
    for _ in range(3):
        process = start()
        process("metrics.rescued.inc(); metrics.pacer_lag.set(1)")
        process.kill()
    assert files(tmp_path) == [
        f"{kind}_{slot}.db" for kind in ("counter", "gauge_livemax", "histogram") for slot in (1, 2)
    ]
    assert told(tmp_path)["paceline_rescued_total"] == 4


def test_what_a_process_said_of_itself_ends_with_it(tmp_path: Path, start: Callable[[], Process]) -> None:
    late, other = start(), start()
    late("metrics.pacer_lag.set(9)")
    other("metrics.pacer_lag.set(1)")
    assert told(tmp_path)["paceline_pacer_lag_seconds"] == 9
    late.kill()
    assert told(tmp_path)["paceline_pacer_lag_seconds"] == 1
    other.kill()
    assert "paceline_pacer_lag_seconds" not in told(tmp_path)


def test_a_successor_says_nothing_of_its_predecessors(tmp_path: Path, start: Callable[[], Process]) -> None:
    late = start()
    late("metrics.pacer_lag.set(9)")
    late.kill()
    start()("metrics.rescued.inc()")  # nobody has asked in between
    assert told(tmp_path)["paceline_pacer_lag_seconds"] == 0


def test_a_forked_process_has_a_slot_of_its_own(tmp_path: Path, start: Callable[[], Process]) -> None:
    parent = start()
    parent("metrics.rescued.inc()")
    parent("import os; child = os.fork() or [metrics.rescued.inc(), os._exit(0)]; os.waitpid(child, 0)")
    parent("metrics.rescued.inc()")
    assert told(tmp_path)["paceline_rescued_total"] == 3


# --- on a port of one's own


@pytest.fixture
def port() -> int:
    return free_port()


def status(port: int, headers: Mapping[str, str] | None = None) -> int:
    try:
        with urlopen(Request(f"http://127.0.0.1:{port}/metrics", headers=dict(headers or {})), timeout=5) as answer:
            assert b"paceline_rescued_total" in answer.read()
            return answer.status
    except HTTPError as error:
        return error.code


def test_the_token_guards_the_port(port: int) -> None:
    exposition.serve(port, "let me see")
    assert status(port, {"Authorization": "Bearer let me see"}) == 200
    for wrong in ({}, {"Authorization": "let me see"}, {"Authorization": "Bearer let me"}):
        assert status(port, wrong) == 401


def test_without_a_token_it_is_open(port: int) -> None:
    exposition.serve(port, None)
    assert status(port) == 200


def test_a_port_that_is_taken_says_so(port: int) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", port))
        taken.listen()
        with pytest.raises(RuntimeError, match=f"METRICS_PORT={port} cannot be served .*each worker and pacer"):
            exposition.serve(port, None)
