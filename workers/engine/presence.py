"""How the others know that a process lives.

A worker process has a number and holds a PostgreSQL advisory lock on it, over a connection of its own. When the process
dies, however it dies, its socket closes and the lock is gone within milliseconds. This tells a killed worker, whose
messages are taken over after 0.8 s, from a hung one, which may yet wake up. Without the lock, every message of a killed
worker would wait for its deadline and 1 s more. Pacers and workers also say in Redis that they live, for `/readyz`.
"""

import secrets
import select
import threading

import psycopg

from ratelimit import TokensUnavailable
from workers.store.glance import LOCK_CLASS
from workers.store.session import SERVER_TCP, TCP
from workers.telemetry.logs import logger
from workers.wakeups import Wakeups

BEAT_S = 1.0
RETRY_S = 0.2
"""How often a process without its lock tries to take it: faster than the others call it dead."""
ALIVE_FOR_S = 5.0

log = logger(__name__)


class Presence:
    """Says that this process lives, from a thread of its own, until `stop`; every `beat_s` seconds."""

    def __init__(self, kind: str, database_url: str, wakeups: Wakeups, beat_s: float = BEAT_S) -> None:
        self._beat_s = beat_s
        self.number = secrets.randbelow(2**31 - 1) + 1
        self._kind, self._url, self._wakeups = kind, database_url, wakeups
        self._connection: psycopg.Connection[tuple[object, ...]] | None = None
        self._lost = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        """Returns once the lock is held, or PostgreSQL turned out to be away (it is taken when it is back)."""
        self.tick()
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        if self._connection is not None:
            self._connection.close()

    def tick(self) -> None:
        try:
            if not self._holds_lock():
                self._take_lock()
        except psycopg.Error as error:
            self._say_lost(error)
        try:
            self._wakeups.beat(self._kind, str(self.number), ALIVE_FOR_S)
        except TokensUnavailable as error:
            log.warning("presence_beat_lost", error=str(error))

    def _holds_lock(self) -> bool:
        """False after a cut: the lock is taken again in the same beat, before the others count us as dead."""
        if self._connection is None:
            return False
        try:
            self._connection.execute("SELECT 1")
        except psycopg.Error as error:
            self._say_lost(error)
            self._connection.close()
            self._connection = None
        return self._connection is not None

    def _say_lost(self, error: psycopg.Error) -> None:
        """Once, however long it takes to get it back."""
        if not self._lost:
            self._lost = True
            log.warning("presence_lock_lost", error=str(error).strip())

    def _take_lock(self) -> None:
        connection = psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=3,
            application_name=f"paceline {self._kind} presence",
            options=SERVER_TCP,
            **TCP,
        )
        try:
            held = connection.execute("SELECT pg_try_advisory_lock(%s, %s)", (LOCK_CLASS, self.number)).fetchone()
            if held and held[0]:
                self._connection, self._lost = connection, False
            # else by our own session of before a cut, which the server has not noticed yet: the next tick tries again
        finally:
            if self._connection is not connection:
                connection.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._rest()
                self.tick()
            except Exception:  # whoever stops saying that they live is dead to all others
                log.exception("presence_broke")
                self._stopping.wait(self._beat_s)

    def _rest(self) -> None:
        """For a beat; less if the connection is cut meanwhile, or has been."""
        if self._connection is None or self._connection.closed:
            self._stopping.wait(RETRY_S)
            return
        cut = select.poll()  # an idle connection has nothing to read but its end
        cut.register(self._connection.fileno(), select.POLLIN)
        cut.poll(self._beat_s * 1000)
