"""The command line as a new user meets it."""

import json
import os
import stat
import subprocess
import sys
from base64 import urlsafe_b64decode
from pathlib import Path

import psycopg
import pytest
import sqlalchemy

from deploy.sandbox import Sandbox
from deploy.servers import Servers
from tests.servers.debian import DebianServers

SECRET = "a secret for tests, at least 32 bytes long"


def paceline(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy.cli", *arguments],
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


def claims(token: str) -> dict[str, object]:
    payload = token.split(".")[1]
    return json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))


def test_token_prints_a_jwt_and_nothing_else(tmp_path: Path) -> None:
    made = paceline("token", "--role", "operator", "--sub", "alice", "--accounts", "a, b", "--data-dir", str(tmp_path))
    assert made.returncode == 0
    assert made.stdout.count("\n") == 1
    found = claims(made.stdout.strip())
    assert (found["sub"], found["role"], found["accounts"]) == ("alice", "operator", ["a", "b"])
    assert int(str(found["exp"])) - int(str(found["iat"])) == 12 * 3600


def test_the_local_secret_is_its_owners_alone(tmp_path: Path) -> None:
    paceline("token", "--role", "ops", "--sub", "x", "--data-dir", str(tmp_path))
    secret = tmp_path / "jwt_secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert len(secret.read_bytes()) >= 32


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["token", "--role", "king", "--sub", "x"], "'king' is not one of"),
        (["token", "--role", "ops", "--sub", "x", "--ttl", "soon"], "write e.g. 30m, 12h or 7d"),
        (["fly"], "No such command 'fly'"),
        (["up", "--port", "99999"], "99999 is not in the range"),
    ],
)
def test_a_wrong_call_exits_with_2_and_says_why(arguments: list[str], says: str) -> None:
    wrong = paceline(*arguments)
    assert wrong.returncode == 2
    assert says in wrong.stderr
    assert wrong.stdout == ""


def test_a_wrong_setting_exits_with_2_and_names_the_variable() -> None:
    urls = {"DATABASE_URL": "postgresql://h/d", "REDIS_URL": "redis://h"}
    for environ, says in (
        ({}, "DATABASE_URL"),
        ({**urls, "RATE_LIMIT": "ten"}, "RATE_LIMIT='ten': 'ten' is not a limit; write e.g. 10/minute"),
        ({**urls, "JWT_SECRET_KEY": "short"}, "JWT_SECRET_KEY='(not shown)': must be at least 32 bytes"),
    ):
        wrong = paceline("worker", **environ)
        assert wrong.returncode == 2
        assert says in wrong.stderr
        assert "Traceback" not in wrong.stderr


def test_the_api_refuses_to_start_without_a_secret(servers: Servers) -> None:
    wrong = paceline("api", "--port", "0", DATABASE_URL=servers.database_url, REDIS_URL=servers.redis_url)
    assert wrong.returncode == 2
    assert "set exactly one of JWT_SECRET_KEY" in wrong.stderr


def test_check_finds_all_in_order(servers: Servers | DebianServers, upstream: Sandbox) -> None:
    found = paceline("check", JWT_SECRET_KEY=SECRET, ONLYFANS_BASE_URL=upstream.url, **servers.environ)
    assert found.returncode == 0, found.stdout
    assert "FAIL" not in found.stdout


def test_check_refuses_an_upstream_where_nobody_listens(servers: Servers | DebianServers) -> None:
    environ = {**servers.environ, "JWT_SECRET_KEY": SECRET, "ONLYFANS_BASE_URL": "http://127.0.0.1:1"}
    found = paceline("check", **environ)
    assert found.returncode == 1
    [line] = [line for line in found.stdout.splitlines() if line.startswith("FAIL")]
    assert line.startswith("FAIL  upstream answers: http://127.0.0.1:1: cannot connect to")
    assert paceline("check", "--as", "api", **environ).returncode == 0  # it need not reach the upstream


def test_check_as_a_worker_asks_for_no_token_keys(servers: Servers | DebianServers, upstream: Sandbox) -> None:
    found = paceline("check", "--as", "worker", ONLYFANS_BASE_URL=upstream.url, **servers.environ)
    assert found.returncode == 0, found.stdout
    assert "token keys" not in found.stdout


def test_check_names_each_fix() -> None:
    found = paceline("check", DATABASE_URL="postgresql://127.0.0.1:1/x", REDIS_URL="redis://127.0.0.1:1")
    assert found.returncode == 1
    for fix in ("set exactly one of JWT_SECRET_KEY", "fix DATABASE_URL", "fix REDIS_URL"):
        assert fix in found.stdout


def test_check_names_every_wrong_setting_at_once() -> None:
    found = paceline("check", RATE_LIMIT="ten", MAX_ATTEMPTS="0", REDIS_URL="redis://h")
    assert found.returncode == 1
    for variable in ("DATABASE_URL", "RATE_LIMIT", "MAX_ATTEMPTS"):
        assert f"settings: {variable}=" in found.stdout


def test_migrate_can_wait_for_whoever_migrates(servers: Servers) -> None:
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE waited_for")
    url = sqlalchemy.make_url(servers.database_url).set(database="waited_for").render_as_string(hide_password=False)
    environ = {"PATH": os.environ["PATH"], "DATABASE_URL": url, "REDIS_URL": servers.redis_url}
    command = [sys.executable, "-m", "deploy.cli", "migrate", "--wait"]
    waiting = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert waiting.stderr is not None
    assert "waiting for schema" in waiting.stderr.readline()
    assert paceline("migrate", **environ).returncode == 0
    said, _ = waiting.communicate(timeout=30)
    assert (waiting.returncode, said.startswith("schema at")) == (0, True)


def test_up_on_a_data_directory_in_use_says_so(servers: Servers, tmp_path: Path) -> None:
    with Servers(tmp_path / "d"):
        busy = paceline("up", "--port", "0", "--data-dir", str(tmp_path / "d"))
    assert busy.returncode == 1
    assert "Another Paceline is using" in busy.stderr
