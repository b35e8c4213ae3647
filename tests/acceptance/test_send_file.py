"""`paceline send --file` as an operator runs it: killed in the middle, started again."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from deploy.stack import Stack

pytestmark = pytest.mark.acceptance

ROWS = 400


@contextmanager
def sending(stack: Stack, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    command = ["send", "--url", stack.url, "--data-dir", str(stack.data_dir), *map(str, arguments)]
    with subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", *command],
        env={"PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def send(stack: Stack, *arguments: str | Path) -> tuple[int, str, str]:
    with sending(stack, *arguments) as process:
        stdout, stderr = process.communicate(timeout=120)
    return process.returncode, stdout, stderr


def accepted(stack: Stack) -> list[str]:
    with psycopg.connect(stack.settings.database_url) as database:
        return [recipient for (recipient,) in database.execute("SELECT recipient_id FROM messages ORDER BY seq")]


def test_a_file_is_queued_once_however_often_it_is_sent(make_stack: Callable[..., Stack], tmp_path: Path) -> None:
    # So few requests that the first run is certainly caught in the middle.
    stack = make_stack(API_RATE_LIMIT="4/2s")
    file = tmp_path / "newsletter.csv"
    lines = ["recipientId,content,batchId", *(f"fan-{n},Hello {n},march" for n in range(ROWS))]
    file.write_text("\n".join(lines))
    fans = [f"fan-{n}" for n in range(ROWS)]

    assert send(stack, "--file", file, "--dry-run") == (0, f"{ROWS} messages are valid; nothing was sent\n", "")
    assert accepted(stack) == []

    with sending(stack, "--file", file, "--chunk", "20") as process:
        while len(accepted(stack)) < 100:
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    before = accepted(stack)
    assert 100 <= len(before) < ROWS

    code, stdout, _ = send(stack, "--file", file, "--chunk", "20")
    assert (code, accepted(stack)) == (0, fans)
    assert stdout.startswith(f"{ROWS} messages are queued, ")
    assert int(stdout.split(", ")[1].split()[0]) >= len(before)

    lines[50] = "fan-x,Somebody else,march"
    file.write_text("\n".join(lines))
    code, stdout, stderr = send(stack, "--file", file, "--chunk", "20")
    assert (code, stdout) == (1, "")
    assert "some of lines 42 to 61 were queued before, in a list that was another then" in stderr
    assert "40 of 400 are known to be queued" in stderr
    assert accepted(stack) == fans


def test_what_cannot_be_sent_is_said_before_anything_is(tmp_path: Path) -> None:
    def refused(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "deploy.cli", "send", "--data-dir", str(tmp_path), *arguments],
            env={"PATH": os.environ["PATH"]},
            input="recipientId,content\nfan-1,\n",
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout == ""
        return done.returncode, done.stderr

    file = tmp_path / "f.ndjson"
    file.write_text('{"recipientId":"fan-1","content":"Hello"}\n')
    for (code, says), arguments in {
        (1, "-:2: content: Must not be empty without mediaIds."): ("--file", "-", "--run", "r"),
        (2, "give it one with --run"): ("--file", "-"),
        (2, "No token, and no secret"): ("--file", str(file)),
        (2, "'localhost:8000' is not http://… or https://…"): ("--file", str(file), "--url", "localhost:8000"),
        (2, "does not exist"): ("--file", str(tmp_path / "none")),
        (2, "Missing option '--file'"): (),
    }.items():
        found = refused(*arguments)
        assert found[0] == code
        assert says in found[1]
