"""What the rows play on: one PostgreSQL and one Valkey that all of them share, a database for each, the judge."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import redis
from sqlalchemy import make_url

from deploy.servers import Servers
from deploy.stack import Stack
from tests.bench.judge import Judge, judge
from tests.bench.ours import Ours
from tests.bench.rivals import PROCESSES, Kind, Rival, rival
from workers.bootstrap import Adapters, build
from workers.services.epochs import begin_epoch
from workers.settings import Settings
from workers.store import migrations

SECRET = "a secret for benchmarks, at least 32 bytes long"


@dataclass
class Stage:
    """A context manager. quick: sizes that show that a row works, not what it comes to."""

    data_dir: Path
    quick: bool = False
    say: Callable[[str], None] = print
    _open: ExitStack = field(default_factory=ExitStack)
    _servers: Servers | None = None

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    @property
    def servers(self) -> Servers:
        """Shared by all rows that do not ask for their own; started for the first of them."""
        if self._servers is None:
            self._servers = self._open.enter_context(Servers(self.data_dir / "servers"))
        return self._servers

    def versions(self) -> list[str]:
        """What the servers are."""
        with psycopg.connect(self.servers.database_url) as database:
            found = database.execute("SHOW server_version").fetchone()
        with redis.Redis.from_url(self.servers.redis_url) as client:
            info = client.info("server")
        return [
            f"PostgreSQL {found[0] if found else '?'}",
            f"Valkey {info.get('valkey_version', info['redis_version'])}",
        ]

    def database(self) -> str:
        """The URL of a new database with the schema in it. It goes with the servers."""
        name = f"bench_{secrets.token_hex(4)}"
        with psycopg.connect(self.servers.database_url, autocommit=True) as server:
            server.execute(f"CREATE DATABASE {name}")
        made = make_url(self.servers.database_url).set(database=name).render_as_string(hide_password=False)
        migrations.upgrade(made)
        return made

    def environ(self, **more: str) -> dict[str, str]:
        """Settings as environment variables: production's, with the limits on callers and queues out of the way."""
        return {
            "PATH": "/usr/bin:/bin",
            "JWT_SECRET_KEY": SECRET,
            "ONLYFANS_BASE_URL": "http://127.0.0.1:9",
            "ONLYFANS_API_KEY": "bench",
            "ONLYFANS_IDEMPOTENT": "1",
            "API_RATE_LIMIT": "off",
            "API_READ_LIMIT": "off",
            "MAX_QUEUE_DEPTH": "10000000",
            **more,
        }

    @contextmanager
    def adapters(self, *, pool_size: int = 4, **more: str) -> Iterator[Adapters]:
        """Paceline without its processes, on a new database and an emptied Redis whose past is known."""
        with redis.Redis.from_url(self.servers.redis_url) as client:
            client.flushdb()
        urls = {"DATABASE_URL": self.database(), "REDIS_URL": self.servers.redis_url}
        environ = self.environ(**urls, **more)
        adapters = build(Settings.from_env(environ), pool_size=pool_size, name="paceline bench")
        try:
            begin_epoch(adapters.db, adapters.tokens)
            adapters.tokens.open_new("default")
            yield adapters
        finally:
            adapters.close()

    @contextmanager
    def judge(self, latency_ms: float = 0) -> Iterator[Judge]:
        with judge(latency_ms) as one:
            yield one

    @contextmanager
    def paceline(self, upstream_url: str, *, own_servers: bool = False, **more: str) -> Iterator[Ours]:
        """The pipeline, as many worker processes as anybody else has, an API and a pacer."""
        urls = {}
        if not own_servers:
            with redis.Redis.from_url(self.servers.redis_url) as client:
                client.flushdb()
            urls = {"DATABASE_URL": self.database(), "REDIS_URL": self.servers.redis_url}
        environ = self.environ(ONLYFANS_BASE_URL=upstream_url, **urls, **more)
        data_dir = self.data_dir / f"stack-{secrets.token_hex(3)}"
        with (
            Stack(data_dir, port=0, workers=PROCESSES, environ=environ) as stack,
            Ours(stack) as ours,
        ):
            yield ours

    @contextmanager
    def rival(self, kind: Kind, upstream_url: str, *, count: int = 100_000, period_s: int = 1) -> Iterator[Rival]:
        """A baseline on a database of the same servers."""
        environ = {
            "BENCH_DATABASE_URL": self.servers.database_url,
            "BENCH_UPSTREAM_URL": upstream_url,
            "BENCH_LIMIT_COUNT": str(count),
            "BENCH_LIMIT_PERIOD_S": str(period_s),
        }
        with rival(kind, environ, self.servers.redis_url, self.data_dir / f"{kind.name}.log") as one:
            yield one
