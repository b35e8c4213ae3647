"""PostgreSQL on a data directory, as a child of this process."""

import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlencode

import psycopg

from deploy.local.stopping import Stop
from deploy.servers import places, wheels

STARTS_WITHIN_S = 60.0
STOPS_WITHIN_S = 60.0
_LOOK_S = 0.05
_INITDB = [
    "--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-instructions",
    "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
]  # fmt: skip
"""trust: whoever can get at the socket may connect, and its directory is closed to others. The locale is PostgreSQL's
own, the same on every machine, whatever LANG says."""


class PostgresFailed(RuntimeError):
    """PostgreSQL did not start; the message has its own words."""


class Postgres:
    """PostgreSQL on a data directory. Started by root it runs as another user (`places`).

    say: gets a line for people. stopping: when it is set, a start ends with Interrupted.
    """

    def __init__(
        self, directory: Path, *, say: Callable[[str], None] = lambda _: None, stopping: Stop | None = None
    ) -> None:
        self._directory = directory
        self._say = say
        self._stopping = stopping or Stop()
        self._process: subprocess.Popen[bytes] | None = None
        self._adopted: int | None = None
        self._sockets: Path | None = None

    def start(self) -> str:
        """Start it, or find it running, left behind by a process that was killed. Returns its URL."""
        user = places.user_for(self._directory)
        data = places.data_for(self._directory, user)
        if user is not None and self._directory.is_symlink():
            self._say(f"PostgreSQL runs as {user.pw_name}, who cannot get at {self._directory}: its data are in {data}")
        programs = places.programs_for(wheels.postgres_programs(_version(data)), user)
        if not (data / "PG_VERSION").exists():
            self._init(programs, data, user)
        if url := self._adopt(data):
            return url
        sockets = data if places.is_plain(data) else self._short_sockets(user)
        command = [str(programs / "postgres"), "-D", str(data), "-k", str(sockets), "-h", ""]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd="/",
                env={**os.environ, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # ^C is for us; it must outlive those who still have outcomes to record
                umask=0o077,
                **places.as_user(user),
            )
        url = _url(sockets)
        self._await_ready(url)
        return url

    def stop(self) -> None:
        """End its sessions and stop it. Without a running server nothing happens."""
        self._end(signal.SIGINT, within_s=STOPS_WITHIN_S)

    def clean_up(self) -> None:
        """Remove what a start made outside the directory; until then the URL stays the same."""
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = None

    def crash(self) -> None:
        """Stop it without a checkpoint: what was not committed is gone, the rest is recovered at the next start."""
        self._end(signal.SIGQUIT, within_s=10.0)

    def send_signal(self, number: signal.Signals) -> None:
        """To all its processes: SIGSTOP and SIGCONT make a server that neither answers nor hangs up."""
        import psutil

        server = psutil.Process(self.pid)
        for process in (server, *server.children(recursive=True)):
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)

    @property
    def pid(self) -> int:
        found = self._process.pid if self._process else self._adopted
        assert found is not None, "it is not running"
        return found

    def _init(self, programs: Path, data: Path, user: pwd.struct_passwd | None) -> None:
        """Make new data. Interrupted or failed, initdb removes what it has made."""
        command = [str(programs / "initdb"), *_INITDB, "-D", str(data)]
        process = subprocess.Popen(
            command,
            cwd="/",
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **places.as_user(user),
        )
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    said, _ = process.communicate(timeout=_LOOK_S)
                    break
                self._stopping.check()
        except BaseException:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
        if process.returncode != 0:
            raise PostgresFailed(f"PostgreSQL could not make its data in {data}:\n{said.decode(errors='replace')}")

    def _adopt(self, data: Path) -> str | None:
        """The URL of a server that runs on these data already, if one does."""
        try:
            about = (data / "postmaster.pid").read_text().splitlines()
            pid, sockets = int(about[0]), Path(about[4])
            _ask(_url(sockets))
        except (OSError, ValueError, IndexError, psycopg.Error):
            return None
        self._adopted = pid
        return _url(sockets)

    def _short_sockets(self, user: pwd.struct_passwd | None) -> Path:
        if self._sockets is None:
            self._sockets = places.short_directory()
            if user is not None:
                os.chown(self._sockets, user.pw_uid, user.pw_gid)
        return self._sockets

    def _await_ready(self, url: str) -> None:
        assert self._process is not None
        deadline = time.monotonic() + STARTS_WITHIN_S
        while True:
            try:
                return _ask(url)
            except psycopg.Error as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    said = (self._directory / "log").read_text(errors="replace").splitlines()[-10:]
                    self.stop()
                    raise PostgresFailed("\n".join(["PostgreSQL did not start:", *said])) from error
            self._stopping.check()
            time.sleep(_LOOK_S)

    def _end(self, number: signal.Signals, within_s: float) -> None:
        if self._process is not None:
            _end_child(self._process, number, within_s)
        elif self._adopted is not None:
            _end_other(self._adopted, number, within_s)
        self._process = self._adopted = None


def _version(data: Path) -> int | None:
    try:
        return int((data / "PG_VERSION").read_text())
    except (FileNotFoundError, ValueError):
        return None


def _url(sockets: Path) -> str:
    return f"postgresql://postgres@/postgres?{urlencode({'host': sockets}, safe='/')}"


def _ask(url: str) -> None:
    with psycopg.connect(url, connect_timeout=5) as connection:
        connection.execute("SELECT 1")


def _end_child(process: subprocess.Popen[bytes], number: signal.Signals, within_s: float) -> None:
    process.send_signal(number)
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGQUIT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _end_other(pid: int, number: signal.Signals, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    with suppress(ProcessLookupError):
        os.kill(pid, number)
        while True:
            os.kill(pid, signal.SIGQUIT if time.monotonic() > deadline else 0)
            time.sleep(_LOOK_S)
