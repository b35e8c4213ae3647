"""The whole pipeline on one machine: servers, API, worker, pacer and, if wanted, the sandbox upstream.

Each is a process of its own, in a session of its own, so that ^C reaches only this one, which then stops them in order:
first whoever accepts, then whoever sends (what is in flight is finished and recorded), the servers last. One that dies
is started again. Should this process itself be killed, the others notice (`lifeline`) and stop by themselves.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from api.auth import Role, issue_token
from deploy.client import Client, NoAnswer
from deploy.lifeline import LIFELINE
from deploy.local import running, upstream
from deploy.local.stopping import Stop
from deploy.servers import Servers, lock, wheels
from deploy.servers.places import make_data_dir
from workers.settings import Settings
from workers.store import migrations

READY_WITHIN_S = 60.0
STOP_WITHIN_S = 20.0
"""Beyond the longest send."""
RESTART_PAUSE_S = 1.0


class StackFailed(RuntimeError):
    """The pipeline did not come up; the message says what is missing and where to look."""


@dataclass(slots=True)
class Service:
    """One process of the stack."""

    name: str
    arguments: list[str]
    environ: Mapping[str, str] = field(default_factory=dict)
    """Beyond the stack's own."""
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    since_s: float = 0.0
    """When the present process was started, by the monotonic clock."""


@dataclass
class Stack:
    """A context manager: inside it the pipeline runs and is ready.

    data_dir: where servers, secret and logs live. environ: settings, as environment variables; DATABASE_URL and
    REDIS_URL there mean servers that are already running. sandbox: None for the upstream that the data are for, which
    is the sandbox if they are new (`local.upstream`). say: gets a line for people now and then. stopping: when it is
    set, a start ends with Interrupted.
    """

    data_dir: Path
    port: int = 8000
    sandbox: bool | None = False
    sandbox_arguments: list[str] = field(default_factory=list)
    api_workers: int = 1
    workers: int = 1
    pacers: int = 1
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    say: Callable[[str], None] = lambda _: None
    stopping: Stop = field(default_factory=Stop)

    def __post_init__(self) -> None:
        self.services: dict[str, Service] = {}
        self.servers: Servers | None = None
        self.sandbox_url = ""
        self.upstream = ""
        self._lock: int | None = None
        self._environ: dict[str, str] = {}
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._lifeline = os.pipe()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def settings(self) -> Settings:
        return Settings.from_env(self._environ)

    def admin_token(self, subject: str, ttl: timedelta) -> str | None:
        """A token for all accounts; None if tokens are issued elsewhere."""
        settings = self.settings
        if settings.jwt_secret_key is None:
            return None
        return issue_token(
            settings.jwt_secret_key,
            subject=subject,
            role=Role.ADMIN,
            accounts=["*"],
            ttl=ttl,
            audience=settings.jwt_audience,
            issuer=settings.jwt_issuer,
        )

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop everything, in order, and wait for it."""
        self._stopping.set()
        if self._watcher.is_alive():
            self._watcher.join()
            running.forget(self.data_dir)
        names = list(self.services)
        for group in (["api"], [n for n in names if n.startswith(("worker", "pacer"))], ["sandbox"]):
            self._stop_services([self.services[name] for name in group if name in self.services])
        if self.servers is not None:
            self.servers.__exit__(None, None, None)
            self.servers = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        for end in self._lifeline:
            with suppress(OSError):
                os.close(end)

    def send_signal(self, name: str, number: signal.Signals) -> bool:
        """Send a signal to a service and to whatever it has started (the API's server has children). False if it is not
        running at the moment."""
        process = self.services[name].process
        if process is None or process.poll() is not None:
            return False
        os.killpg(process.pid, number)  # each is the first of a session of its own
        return True

    def _start(self) -> None:
        if self.port == 0:
            self.port = free_port()
        _refuse_taken(self.port)
        self._environ = {**self.environ}
        # A wrong setting is refused before anything is started or migrated.
        Settings.from_env({"DATABASE_URL": "postgresql://later", "REDIS_URL": "redis://later", **_set(self._environ)})
        make_data_dir(self.data_dir)
        self.say("starting what it takes: PostgreSQL, Valkey, API, worker, pacer")
        self._start_servers()
        if not any(self._environ.get(name) for name in ("JWT_SECRET_KEY", "JWT_PUBLIC_KEY", "JWT_JWKS_FILE")):
            self._environ["JWT_SECRET_KEY"] = own_secret(self.data_dir)
        self._choose_upstream()
        self.stopping.check()
        migrations.upgrade(self.settings.database_url)
        metrics = self.data_dir / "metrics"
        metrics.mkdir(exist_ok=True)
        for old in metrics.glob("*.db"):
            old.unlink()
        self._environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics.resolve())
        self._launch("api", ["api", "--port", str(self.port), "--workers", str(self.api_workers)])
        senders = [("worker", n) for n in range(self.workers)] + [("pacer", n) for n in range(self.pacers)]
        port = self.settings.metrics_port  # the first one's; the others count up from it
        for at, (kind, n) in enumerate(senders):
            self._launch(f"{kind}{n + 1}", [kind], {"METRICS_PORT": str(port + at)} if port else {})
        self._await_ready()
        running.tell(self.data_dir, self.url, self._environ)
        self._watcher.start()

    def _start_servers(self) -> None:
        """Those of our own that the environment does not name."""
        if self._environ.get("DATABASE_URL") and self._environ.get("REDIS_URL"):
            self._lock = lock(self.data_dir)
            return
        wheels.check()
        self.servers = Servers(self.data_dir, say=self.say, stopping=self.stopping)
        self.servers.__enter__()
        self._environ["DATABASE_URL"] = self._environ.get("DATABASE_URL") or self.servers.database_url
        self._environ["REDIS_URL"] = self._environ.get("REDIS_URL") or self.servers.redis_url

    def _choose_upstream(self) -> None:
        """Decide where messages go, remember it, and start the sandbox if it is that."""
        named = self._environ.get("ONLYFANS_BASE_URL", "")
        new = migrations.current(self.settings.database_url) is None
        choice = upstream.choose(asked=self.sandbox, named=named, before=upstream.kept(self.data_dir), new=new)
        if self.sandbox is None and choice.base_url is None:
            self._environ["ONLYFANS_API_KEY"] = ""  # a real upstream's key is not for the sandbox
        self.sandbox = choice.base_url is None
        if self.sandbox:
            self._start_sandbox()
        elif choice.base_url:
            self._environ["ONLYFANS_BASE_URL"] = choice.base_url
        upstream.keep(self.data_dir, choice)
        self.upstream = choice.words.format(sandbox=self.sandbox_url)

    def _start_sandbox(self) -> None:
        port = free_port()
        self.sandbox_url = f"http://127.0.0.1:{port}"
        self._environ["ONLYFANS_BASE_URL"] = self.sandbox_url
        if not self._environ.get("ONLYFANS_API_KEY"):
            self._environ["ONLYFANS_API_KEY"] = "sandbox"
        if not self._environ.get("ONLYFANS_IDEMPOTENT"):
            self._environ["ONLYFANS_IDEMPOTENT"] = "1"
        limits = str(self.settings.rate_limit)
        self._launch("sandbox", ["sandbox", "--port", str(port), "--limits", limits, *self.sandbox_arguments])

    def _launch(self, name: str, arguments: list[str], environ: Mapping[str, str] | None = None) -> None:
        service = self.services.setdefault(name, Service(name, arguments, environ or {}))
        logs = self.data_dir / "logs"
        logs.mkdir(exist_ok=True)
        service.since_s = time.monotonic()
        with (logs / f"{name}.log").open("ab") as log:
            service.process = subprocess.Popen(
                # -P: a directory `deploy` or `api` where we were started is not ours
                [sys.executable, "-P", "-m", "deploy.cli", *service.arguments],
                env={**self._environ, **service.environ, LIFELINE: str(self._lifeline[0])},
                pass_fds=[self._lifeline[0]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _await_ready(self) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        missing = "the API does not answer"
        client = Client(self.url, timeout_s=5)
        while time.monotonic() < deadline:
            self.stopping.check()
            for service in self.services.values():
                if service.process is not None and service.process.poll() is not None:
                    raise StackFailed(f"{service.name} stopped at once:\n{self._tail(service.name)}")
            try:
                answer = client.ask("GET", "/readyz")
                if answer.status == 200:
                    return
                missing = ", ".join(answer.body.get("missing", []))
            except NoAnswer:
                pass
            time.sleep(0.1)
        raise StackFailed(f"Not ready after {READY_WITHIN_S:.0f} s: {missing}; see {self.data_dir / 'logs'}")

    def _watch(self) -> None:
        """Start again whatever dies."""
        while not self._stopping.wait(0.2):
            for service in self.services.values():
                if service.process is not None and service.process.poll() is not None:
                    self.say(f"{service.name} ended ({service.process.returncode}); starting it again")
                    service.restarts += 1
                    self._launch(service.name, service.arguments)
                    self._stopping.wait(RESTART_PAUSE_S)

    def _stop_services(self, services: list[Service]) -> None:
        running = [s.process for s in services if s.process is not None and s.process.poll() is None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_WITHIN_S + float(self._environ.get("SEND_TIMEOUT_SECONDS") or 10)
        for process in running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _tail(self, name: str) -> str:
        log = self.data_dir / "logs" / f"{name}.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def own_secret(data_dir: Path) -> str:
    """The secret of a local Paceline: made once, kept in its data directory, readable by its owner alone."""
    path = data_dir / "jwt_secret"
    make_data_dir(data_dir)
    with suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    return path.read_text().strip()


def _set(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if value}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise StackFailed(f"Port {port} is taken; choose another with --port") from None
