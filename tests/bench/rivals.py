"""The baselines' processes: started once, stopped by signal whenever they are not playing, so that they cost the others
nothing."""

import os
import secrets
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from tests.bench.processes import stop

ROOT = Path(__file__).parents[2]
BIN = Path(os.environ.get("BENCH_BIN", ROOT / ".venv-bench" / "bin"))
PROCESSES = 2
"""Of workers, for everybody, Paceline included."""

_CELERY = "--loglevel=ERROR --without-gossip --without-mingle --without-heartbeat"


@dataclass(frozen=True, slots=True)
class Kind:
    """How its workers are started, and which Redis database is its own."""

    name: str
    command: str
    database: int

    @property
    def installed(self) -> bool:
        return (BIN / "python").exists()

    def arguments(self) -> list[str]:
        program, *rest = self.command.format(n=PROCESSES).split()
        return [str(BIN / program), *rest]

    def fill_arguments(self, run: str, messages: int, accounts: int) -> list[str]:
        return [str(BIN / "python"), "-m", "tests.bench.baselines", self.name, run, str(messages), str(accounts)]


OBVIOUS = Kind("obvious", f"celery -A tests.bench.baselines.obvious worker -c {{n}} {_CELERY}", 2)
CELERY_RATE = Kind("celery_rate", f"celery -A tests.bench.baselines.celery_rate worker -c {{n}} {_CELERY}", 3)
CELERY_LIMITS = Kind("celery_limits", f"celery -A tests.bench.baselines.celery_limits worker -c {{n}} {_CELERY}", 4)
DRAMATIQ = Kind("dramatiq_window", "dramatiq tests.bench.baselines.dramatiq_window --processes {n} --threads 8", 5)


class Rival:
    """A baseline with its workers, paused until `release`."""

    def __init__(self, kind: Kind, environ: Mapping[str, str], redis_url: str, log: Path) -> None:
        self.kind = kind
        self._redis_url = f"{redis_url}?db={kind.database}"
        self._environ = {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "BENCH_REDIS_URL": self._redis_url,
            **environ,
        }
        self._log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self.kind.arguments(), cwd=ROOT, env=self._environ, stdout=log, stderr=log, start_new_session=True
            )

    def fill(self, messages: int, accounts: int) -> str:
        """Put messages into its queue while it stands still. Returns what their ids begin with."""
        run = secrets.token_hex(4)
        arguments = self.kind.fill_arguments(run, messages, accounts)
        subprocess.run(arguments, cwd=ROOT, env=self._environ, check=True, capture_output=True)
        return run

    def hold(self) -> None:
        self.send_signal(signal.SIGSTOP)

    def release(self) -> None:
        self.send_signal(signal.SIGCONT)

    def send_signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def forget(self) -> None:
        """Everything it has in Redis."""
        with redis.Redis.from_url(self._redis_url) as client:
            client.flushdb()

    def restart(self) -> None:
        """Begin anew, with nothing in the queue."""
        self.stop()
        self.forget()
        self.start()

    def stop(self) -> None:
        if self.process is not None:
            stop(self.process)


@contextmanager
def rival(kind: Kind, environ: Mapping[str, str], redis_url: str, log: Path) -> Iterator[Rival]:
    """A rival, running, until the end of the block."""
    one = Rival(kind, environ, redis_url, log)
    one.forget()
    one.start()
    try:
        yield one
    finally:
        one.stop()
