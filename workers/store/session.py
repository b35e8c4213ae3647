"""Connections to PostgreSQL.

One pool, one style: every statement commits by itself unless it stands in `transaction()`. Hot statements go straight
to psycopg, prepared; the pool is SQLAlchemy's, which lists and filters also use.
"""

import random
import select
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
import sqlalchemy
from psycopg.abc import RV, PQGen
from psycopg.rows import dict_row
from sqlalchemy import event
from sqlalchemy import exc as sa_exc

from workers.domain.errors import StoreUnavailable

Row = dict[str, Any]
_T = TypeVar("_T")

# A host that is gone without a word is found out within some 10 s, by either side.
TCP: dict[str, Any] = {
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
SERVER_TCP = "-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3"
# Claims are flat to a million rows only with a generic plan: a custom plan is chosen per call from statistics that a
# queue outdates within seconds. PostgreSQL keeps a generic plan, and may have made it while the table was empty, when
# to read all of it looked cheapest. `enable_seqscan` rules that out where there is an index. Without it, a statement
# prepared on an empty table reads every row of a full one for as long as its connection lives. Timeouts bound what a
# hung client can hold on to.
ASKED_FOR = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "jit": "off",
    "statement_timeout": "15000",
    "idle_in_transaction_session_timeout": "15000",
}
_OPTIONS = " ".join(f"-c {name}={value}" for name, value in ASKED_FOR.items())
PATIENCE_S = 20.0
"""A server that is there and does not answer is given up after this: later than it gives up a statement itself."""
_PAUSE_S = (0.1, 0.2)
"""After a connection that failed, nobody of this process tries another for so long: a recovering server has enough
to do."""
_ATTEMPTS = 20
"""A newcomer loses only while the heads of its line change faster than it can look; after a few pauses it does not."""


class _OutOfPatience(psycopg.OperationalError):
    """The server is there, and does not answer."""


class _PatientConnection(psycopg.Connection[Any]):
    """psycopg's, which would wait for an answer for ever. Everything that waits for the server comes through `wait`."""

    patience_s = PATIENCE_S

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        try:
            return super().wait(gen, interval, self.patience_s if timeout is None else timeout)
        except psycopg.errors._WaitTimeout as error:
            self.close()  # in the middle of an answer: of no use to anybody
            raise _OutOfPatience(f"no answer within {self.patience_s:g} s") from error


class Connection:
    """A borrowed connection. Rows are dictionaries."""

    def __init__(self, raw: psycopg.Connection[Any]) -> None:
        self._raw = raw

    def all(self, sql: str, params: Mapping[str, Any] | None = None) -> list[Row]:
        with self._raw.cursor(row_factory=dict_row) as cursor:
            cursor.execute(sql, params or {}, prepare=True)
            return cursor.fetchall() if cursor.description else []

    def one(self, sql: str, params: Mapping[str, Any] | None = None) -> Row | None:
        rows = self.all(sql, params)
        return rows[0] if rows else None


class Database:
    """The pool, and the ways to use it: `all` rows of one statement, or a function in one `transaction`, or of a
    `single` statement.

    Whatever PostgreSQL does, nobody waits longer than 5 s for a place in the pool, 3 s for a new connection in it, and
    `patience_s` for an answer.
    """

    def __init__(
        self, url: str, *, pool_size: int = 10, name: str = "paceline", patience_s: float = PATIENCE_S
    ) -> None:
        self.url = url
        self._patience_s = patience_s
        self._refused = (0.0, "")
        self.engine = sqlalchemy.create_engine(
            sqlalchemy.make_url(url).set(drivername="postgresql+psycopg"),
            isolation_level="AUTOCOMMIT",
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=5,
            pool_recycle=1800,
            connect_args={"options": f"{_OPTIONS} {SERVER_TCP}", "connect_timeout": 3, "application_name": name, **TCP},
        )
        event.listen(self.engine, "do_connect", self._connect)

    def all(self, sql: str, params: Mapping[str, Any] | None = None) -> list[Row]:
        """One statement, committed. A broken pooled connection is replaced; a statement that may have run is not
        repeated: the caller learns that nobody knows (`StoreUnavailable`)."""
        with self._borrow() as raw:
            return Connection(raw).all(sql, params)

    def one(self, sql: str, params: Mapping[str, Any] | None = None) -> Row | None:
        rows = self.all(sql, params)
        return rows[0] if rows else None

    def transaction(self, work: Callable[[Connection], _T]) -> _T:
        """Run `work` in one transaction, again if it lost a race."""

        def once() -> _T:
            with self._borrow() as raw, raw.transaction():
                return work(Connection(raw))

        return self.retrying(once)

    def single(self, work: Callable[[Connection], _T]) -> _T:
        """Run `work`, which makes one statement, again if it lost a race. The statement commits by itself, which saves
        the two round trips of BEGIN and COMMIT."""

        def once() -> _T:
            with self._borrow() as raw:
                return work(Connection(raw))

        return self.retrying(once)

    def retrying(self, work: Callable[[], _T]) -> _T:
        """Run `work` again if it lost a deadlock or a race for the head of a line. It must be one transaction."""
        for attempt in range(_ATTEMPTS):
            try:
                return work()
            except (psycopg.errors.DeadlockDetected, psycopg.errors.UniqueViolation) as error:
                if not is_race(error):
                    raise
                if attempt == _ATTEMPTS - 1:
                    raise StoreUnavailable(f"Lost a race {_ATTEMPTS} times running: {error}") from error
                time.sleep(random.uniform(0, min(0.05, 0.002 * 2**attempt)))  # noqa: S311
        raise AssertionError("unreachable")

    def select(self, statement: sqlalchemy.Executable) -> list[Row]:
        """A query built with SQLAlchemy, where the filters vary. It only reads, so one that met a connection which had
        died in the pool is asked again."""
        for last in (False, True):
            try:
                with self.engine.connect() as connection:
                    return [dict(row) for row in connection.execute(statement).mappings()]
            except (sa_exc.OperationalError, sa_exc.InterfaceError, sa_exc.TimeoutError) as error:
                dead = getattr(error, "connection_invalidated", False)
                if last or not dead or isinstance(getattr(error, "orig", None), _OutOfPatience):
                    raise StoreUnavailable(f"PostgreSQL did not answer: {error}") from error
        raise AssertionError("unreachable")

    def close(self) -> None:
        self.engine.dispose()

    def _connect(self, _dialect: Any, _record: Any, args: Any, params: Any) -> psycopg.Connection[Any]:
        """A new connection for the pool; at once the error of the last attempt if it failed a moment ago."""
        until_s, refusal = self._refused
        if time.monotonic() < until_s:
            raise psycopg.OperationalError(f"{refusal} (a moment ago)")
        try:
            connection = _PatientConnection.connect(*args, **params)
        except psycopg.OperationalError as error:
            self._refused = (time.monotonic() + random.uniform(*_PAUSE_S), str(error).strip())  # noqa: S311
            raise
        connection.patience_s = self._patience_s
        return connection

    @contextmanager
    def _borrow(self) -> Iterator[psycopg.Connection[Any]]:
        try:
            pooled = self._pooled()
            try:
                yield pooled.driver_connection
            except psycopg.OperationalError:
                if pooled.driver_connection is None or pooled.driver_connection.closed:
                    # The server went away under one connection, so the idle ones are gone as well.
                    self.engine.dispose()
                    pooled.invalidate()
                raise
            finally:
                pooled.close()
        except psycopg.errors.DeadlockDetected:
            raise
        except (
            psycopg.OperationalError,
            psycopg.InterfaceError,
            psycopg.errors.ReadOnlySqlTransaction,
        ) as error:
            raise StoreUnavailable(f"PostgreSQL did not answer: {error}") from error
        except (sa_exc.OperationalError, sa_exc.InterfaceError, sa_exc.TimeoutError) as error:
            raise StoreUnavailable(f"PostgreSQL did not answer: {error}") from error

    def _pooled(self) -> Any:
        """A live connection: those that died in the pool are dropped before anything is sent through them."""
        while True:
            pooled: Any = self.engine.raw_connection()
            usable = False
            try:
                usable = not pooled.driver_connection.closed and not _hung_up(pooled.driver_connection)
            finally:
                if not usable:
                    pooled.invalidate()
                    pooled.close()
            if usable:
                return pooled


def is_race(error: psycopg.Error) -> bool:
    """Whether trying again is the answer: a deadlock lost, or another message became head of the line first."""
    if isinstance(error, psycopg.errors.DeadlockDetected):
        return True
    return isinstance(error, psycopg.errors.UniqueViolation) and error.diag.constraint_name == "uq_messages_head"


def _hung_up(connection: psycopg.Connection[Any]) -> bool:
    """Whether the server closed this idle connection, without asking it: an idle one has nothing to read."""
    ready = select.poll()  # select() knows no file numbers above 1023
    ready.register(connection.fileno(), select.POLLIN)
    return bool(ready.poll(0))
