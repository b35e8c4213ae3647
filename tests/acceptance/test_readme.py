"""The README as a newcomer follows it: the tour as typed, in a shell, against what `make up` starts."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.cli import paceline
from tests.acceptance.test_up import Up, up

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
TOUR = README.partition("## A tour")[2].partition("\n## ")[0]
MAKEFILE = (ROOT / "Makefile").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run_tour(started: Up) -> str:
    """Run every block in one shell, which ends at the first command that fails. Only the port is another."""
    port = started.url.rpartition(":")[2]
    script = "\n".join(blocks(TOUR, "bash")).replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    assert port in script
    done = subprocess.run(
        ["bash", "-e", "-u", "-c", script],
        cwd=started.directory, env=started.environ, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_tour_works_as_typed(tmp_path: Path, addresses: dict[str, str]) -> None:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    with up(tmp_path, **addresses) as started:
        said = run_tour(started).splitlines()
    answers: list[dict[str, Any]] = [json.loads(line) for line in said if line.startswith("{")]
    assert [answer for answer in answers if "error" in answer] == []
    first, bounced, failed, retried, *answers = answers
    [promised] = blocks(TOUR, "json")
    assert shape(first) == shape(json.loads(promised))
    [letter] = failed["messages"]
    assert (letter["messageId"], letter["error"]) == (bounced["messageId"], "This user does not accept messages")
    assert (retried["messageId"], retried["status"]) == (bounced["messageId"], "queued")
    sends, (status, waiting, later, cancelled, shop, paused, resumed, audit) = answers[:14], answers[14:]
    assert {answer["status"] for answer in sends} == {"queued"}
    assert "rate" in {answer["blockedBy"] for answer in sends}
    assert status["queue"]["depth"] > 0
    assert {message["status"] for message in waiting["messages"]} == {"queued"}
    assert later["messageId"] in {message["messageId"] for message in waiting["messages"]}
    assert (later["sendAt"], later["blockedBy"]) == ("2030-01-01T09:00:00.000Z", "schedule")
    assert cancelled == {"messageId": later["messageId"], "status": "cancelled"}
    assert (shop["limits"], shop["hasCredentials"]) == ("1/second,10/minute", True)
    assert (paused["state"], paused["reason"], resumed["state"]) == ("paused", "Holidays", "active")
    assert {entry["subject"] for entry in audit["entries"]} == {"you"}
    assert len(audit["entries"]) == 3
    queued, again = (line for line in said if "messages are queued" in line)
    assert queued.startswith("2 messages are queued;")
    assert again.startswith("2 messages are queued, 2 of them by an earlier run")


def shape(answer: dict[str, Any]) -> dict[str, type]:
    return {name: type(value) for name, value in answer.items()}


@pytest.mark.parametrize("text", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_every_command_that_is_named_exists(text: str) -> None:
    """With its options, wherever the text has it in a block or between backticks."""
    prose = (ROOT / text).read_text()
    code = "\n".join([*blocks(prose, "(?:console|bash|sh)"), *re.findall(r"`([^`\n]+)`", prose)])
    begins = r"(?:^\s*(?:\$ )?|& |\.venv/bin/)"
    for name, options in re.findall(rf"{begins}paceline ([a-z]+)((?: [^\n|&;#`]*)?)", code, re.MULTILINE):
        command = paceline.commands.get(name)
        assert command is not None, f"paceline {name}"
        known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)} | {"--help"}
        assert set(re.findall(r"--[a-z-]+", options)) <= known, f"paceline {name}{options}"
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    assert set(re.findall(r"(?<![\w/-])make ([a-z-]+)", code)) <= targets
