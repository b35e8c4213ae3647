"""schemathesis over `/openapi.json`, every check and every phase, against the real process on real servers.

Part of every test run with few examples and a fixed seed. `PACELINE_FUZZ_EXAMPLES=500` makes it a long one, and
`PACELINE_FUZZ_SEED` another one.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.defence.conftest import Process
from workers.bootstrap import Adapters
from workers.services.submit import Receipt

EXAMPLES = os.environ.get("PACELINE_FUZZ_EXAMPLES", "12")
SEED = os.environ.get("PACELINE_FUZZ_SEED", "20261120")

CONFIG = """
hooks = "tests.defence.fuzzing_hooks"
request-timeout = 120.0
suppress-health-check = ["too_slow"]  # it is the machine that is
warnings = false

[checks]
enabled = true

[auth.wfc]
path = "users.json"
user = "mallory"
{peers}

[dictionaries.failed]
from-file = "failed.txt"

[dictionaries.accounts]
values = ["default", "theirs"]

[parameters]
message_id = {{ dictionary = "failed", probability = 0.3 }}
account_id = {{ dictionary = "accounts", probability = 0.5 }}

# 503 is what it has to say without pacer and worker, and these are not running here.
[[operations]]
include-path = "/readyz"
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", "503"]

# DELETE cancels a message and keeps it: contract §1. It is there to be read afterwards, and says `cancelled`.
[[operations]]
include-name = "GET /api/{{channel}}/messaging/messages/{{message_id}}"
checks.use_after_free.enabled = false
"""


patiently = pytest.mark.timeout(0 if "PACELINE_FUZZ_EXAMPLES" in os.environ else 1200)


@pytest.fixture
def dead(submit: Callable[..., Receipt], adapters: Adapters) -> list[str]:
    """Dead letters to retry and to resolve."""
    ids = [submit(f"fan-{n}").message_id for n in range(200)]
    adapters.db.all(
        "WITH dead AS (UPDATE messages SET state = 'failed', ended_at = now(), attempts = 1 WHERE id = ANY(%(ids)s))"
        " INSERT INTO dead_letters (message_id, account_id, reason, error)"
        " SELECT id, 'default', 'outcome_unknown', 'timed out' FROM unnest(%(ids)s) id",
        {"ids": ids},
    )
    return ids


@pytest.fixture
def fuzz(dead: list[str], api: Process, tmp_path: Path) -> Callable[..., None]:
    """Run schemathesis as these users, the first of whom asks; the others must not see what that one owns."""

    def run(phases: str, **users: str) -> None:
        peers = f"peers = {json.dumps(list(users))}" if len(users) > 1 else ""
        (tmp_path / "schemathesis.toml").write_text(CONFIG.format(peers=peers))
        (tmp_path / "failed.txt").write_text("\n".join(map(json.dumps, dead)))
        headers = {name: {"name": "Authorization", "value": f"Bearer {token}"} for name, token in users.items()}
        entries = [{"name": name, "fixedHeaders": [header]} for name, header in headers.items()]
        (tmp_path / "users.json").write_text(json.dumps({"auth": entries}))
        command = [Path(sys.executable).parent / "schemathesis", "--config-file", "schemathesis.toml", "run"]
        options = ["--phases", phases, "--mode", "all"]
        options += ["--max-examples", EXAMPLES, "--seed", SEED, "--generation-database", "none", "--no-color"]
        ended = subprocess.run(
            [*command, f"{api.url}/openapi.json", *options, "--continue-on-failure"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "150"},
            capture_output=True,
            text=True,
        )
        print(ended.stdout, ended.stderr)
        assert ended.returncode == 0
        logged = [json.loads(line)["event"] for line in api.log.read_text().splitlines()]
        assert "account_paused" in logged  # the log of these very requests, and nothing in it that is no event
        assert "unhandled_error" not in logged

    return run


@patiently
def test_whatever_an_admin_asks_is_answered_as_the_document_says(fuzz: Callable[..., None], api: Process) -> None:
    fuzz("examples,coverage,fuzzing,stateful", mallory=api.token("admin"))


@patiently
def test_two_admins_of_different_accounts_never_see_each_others_things(
    fuzz: Callable[..., None], api: Process, make_account: Callable[..., str]
) -> None:
    make_account("theirs")
    phases = "examples,coverage,stateful"  # what the fuzzing phase sends, the test above has sent
    fuzz(phases, mallory=api.token("admin", "default"), victor=api.token("admin", "theirs", subject="victor"))
