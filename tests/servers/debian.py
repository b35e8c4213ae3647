"""Debian's PostgreSQL 15, Redis 7 and RabbitMQ as processes of ours: ports of their own on 127.0.0.1, everything they
write in one directory, nothing of the system's own touched.

Each is a child in the foreground: it is stopped by its process id and its end awaited. They can be broken as those of
the wheels can (`deploy.servers`).
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

import kombu
import psutil
import psycopg
import redis

from celeryconfig import task_default_queue
from deploy.stack import free_port

POSTGRES = Path("/usr/lib/postgresql/15/bin")
REDIS = Path("/usr/bin/redis-server")
RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # the one in the PATH wants to be root or rabbitmq
EPMD = Path("/usr/bin/epmd")
PACKAGES: Mapping[str, Path] = {
    "postgresql-15": POSTGRES / "postgres",
    "redis-server": REDIS,
    "rabbitmq-server": RABBITMQ,
}
"""What must be installed, each with a file that shows that it is."""

UNPRIVILEGED = "nobody"
"""Who they run as where the tests are root's: PostgreSQL refuses to be root."""
HOME = "PACELINE_TEST_SERVERS"
"""The environment variable by which the tests are told to run on these servers, and in which directory."""
STARTS_WITHIN_S = 90.0
STOPS_WITHIN_S = 30.0
ASK_AGAIN_S = 0.05


def missing(packages: Mapping[str, Path] = PACKAGES) -> list[str]:
    """Those that are not installed."""
    return [package for package, proof in packages.items() if not proof.exists()]


@contextmanager
def wanted() -> Iterator["DebianServers | None"]:
    """Those of this process, running; None unless they were asked for."""
    home = os.environ.get(HOME)
    if home is None:
        yield None
        return
    with DebianServers(Path(tempfile.mkdtemp(dir=home))) as servers:
        yield servers


class ServerFailed(RuntimeError):
    """A server did not come up; the message has the end of its log."""


class Server:
    """One server in a directory of its own. Those derived from it say what to run, and whether it answers."""

    stopped_by = signal.SIGTERM

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self._directory = directory
        self._log = directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir()
        if os.geteuid() == 0:
            shutil.chown(directory, UNPRIVILEGED)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process = self._launch(*self._command())
        deadline = time.monotonic() + STARTS_WITHIN_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise ServerFailed(self._log.read_text(errors="replace")[-3000:])
            time.sleep(ASK_AGAIN_S)

    def stop(self) -> None:
        """As whoever looks after it would."""
        self._end(self.stopped_by)

    def kill(self) -> None:
        """SIGKILL, as the machine's out-of-memory killer would."""
        self._end(signal.SIGKILL)

    def send_signal(self, number: signal.Signals) -> None:
        """To all its processes: SIGSTOP and SIGCONT make a server that neither answers nor hangs up."""
        assert self._process is not None, "it is not running"
        server = psutil.Process(self._process.pid)
        for process in (server, *server.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _command(self) -> tuple[str | Path, ...]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    def _environ(self) -> Mapping[str, str]:
        return {}

    def _launch(self, *command: str | Path) -> subprocess.Popen[bytes]:
        """In a session of its own, so that ^C leaves it to whoever started it."""
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self._directory,
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": str(self._directory), **self._environ()},
                user=UNPRIVILEGED if os.geteuid() == 0 else None,
                extra_groups=[] if os.geteuid() == 0 else None,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(STOPS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Postgres(Server):
    """PostgreSQL 15, and as many databases as are asked for."""

    stopped_by = signal.SIGINT
    """A fast shutdown: sessions are ended, not waited for."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._data = directory / "data"
        self._numbers = count(1)
        made = self._launch(
            POSTGRES / "initdb", "-D", self._data, "-U", "paceline", "-A", "trust", "-E", "UTF8", "--no-sync"
        )
        if made.wait(STARTS_WITHIN_S):
            raise ServerFailed(self._log.read_text(errors="replace")[-3000:])

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://paceline@127.0.0.1:{self.port}/{database}?sslmode=disable"

    def new_database(self) -> str:
        """An empty one. Returns its URL."""
        name = f"paceline_{next(self._numbers)}"
        with psycopg.connect(self.url(), autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def crash(self) -> None:
        """Stop it without a checkpoint: what was not committed is gone, the rest is recovered at the next start."""
        self._end(signal.SIGQUIT)

    def _command(self) -> tuple[str | Path, ...]:
        return (
            POSTGRES / "postgres",
            *("-D", self._data, "-p", str(self.port)),
            *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
        )

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


class Redis(Server):
    """Redis 7, empty at every start."""

    _first: subprocess.Popen[bytes] | None = None
    """The first server, while the address leads to a second one."""
    _aside = 0
    """The port of the first one meanwhile."""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def empty(self) -> None:
        """FLUSHALL: everything that connected clients took for granted is gone."""
        with redis.Redis.from_url(self.url) as client:
            client.flushall()

    def fail_over(self) -> None:
        """See `deploy.servers.Valkey.fail_over`."""
        self._aside = free_port()
        with redis.Redis.from_url(self.url) as admin:
            admin.config_set("port", self._aside)  # listens there from now on, and keeps its connections
            self._first, self._process = self._process, None
            self.start()
            for kind in ("normal", "pubsub"):
                admin.client_kill_filter(_type=kind, skipme=True)

    def fail_back(self) -> None:
        """See `deploy.servers.Valkey.fail_back`."""
        super().stop()
        with redis.Redis(port=self._aside) as admin:
            admin.config_set("port", self.port)
        self._process, self._first = self._first, None

    def stop(self) -> None:
        super().stop()
        if self._first is not None:
            self._process, self._first = self._first, None
            super().stop()

    def _command(self) -> tuple[str | Path, ...]:
        return (REDIS, "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no")

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=2) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


class Epmd(Server):
    """Erlang's port mapper. RabbitMQ would start one as a daemon, and leave it behind."""

    def _command(self) -> tuple[str | Path, ...]:
        return (EPMD, "-address", "127.0.0.1", "-port", str(self.port))

    def _answers(self) -> bool:
        names = subprocess.run([EPMD, "-port", str(self.port), "-names"], capture_output=True, check=False)
        return names.returncode == 0


class RabbitMQ(Server):
    """RabbitMQ, a node of its own with its own port mapper, cookie and books, which outlive a restart."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._distribution_port = free_port()
        self._epmd = Epmd(directory.with_name("epmd"))

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def start(self) -> None:
        self._epmd.start()
        super().start()

    def _end(self, number: signal.Signals) -> None:
        super()._end(number)
        self._epmd.kill()

    def empty(self) -> None:
        """Forget Paceline's queue, and all that is in it."""
        with kombu.Connection(self.url) as connection:
            connection.default_channel.queue_delete(task_default_queue)

    def _command(self) -> tuple[str | Path, ...]:
        return (RABBITMQ,)

    def _environ(self) -> Mapping[str, str]:
        return {
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd.port),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",  # not the system's
            "RABBITMQ_CONFIG_FILE": str(self._directory / "none"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self._directory / "none"),
            "RABBITMQ_ENABLED_PLUGINS": "",
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._directory / "plugins"),
            "RABBITMQ_NODENAME": f"paceline-{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": str(self._directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self._directory / "logs"),
            # It listens nowhere else, and leaves the cores alone while it has nothing to do.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none",
            # The script becomes the server, so that its process id is the server's.
            "RUNNING_UNDER_SYSTEMD": "1",
        }

    def _answers(self) -> bool:
        try:
            with kombu.Connection(self.url, connect_timeout=2) as connection:
                connection.connect()
        except Exception:  # whatever it says while it boots
            return False
        return True


class DebianServers:
    """All three, as `deploy.servers.Servers` has its two. A context manager."""

    def __init__(self, directory: Path) -> None:
        directory.chmod(0o711)  # whoever they run as must come through
        self.postgres = Postgres(directory / "postgres")
        self.valkey = Redis(directory / "redis")
        """Redis 7, in Valkey's place."""
        self.rabbitmq = RabbitMQ(directory / "rabbitmq")

    @property
    def database_url(self) -> str:
        return self.postgres.url()

    @property
    def redis_url(self) -> str:
        return self.valkey.url

    @property
    def environ(self) -> dict[str, str]:
        """All that Paceline is told of them."""
        return {
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "CELERY_BROKER_URL": self.rabbitmq.url,
        }

    def as_new(self) -> dict[str, str]:
        """Their `environ` with a database that nobody has used, an emptied Redis, and no queue in RabbitMQ."""
        self.valkey.empty()
        self.rabbitmq.empty()
        return {**self.environ, "DATABASE_URL": self.postgres.new_database()}

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            for server in (self.postgres, self.valkey, self.rabbitmq):
                starting.callback(server.stop)
                server.start()
            self._running = starting.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()
