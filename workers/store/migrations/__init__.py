"""Schema changes, run by Alembic through `paceline migrate`. Each expands first and contracts in a later release, and
changes one of the tables in use.

env       Alembic's entry
versions  one module for each change
"""

import time
from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg.errors import LockNotAvailable
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

_ADVISORY_LOCK = 0x70616365  # "pace": one migration at a time, however many processes start
_LOCK_TIMEOUT_MS = 2000
_TRIES = 15
_PAUSE_S = 1.0
"""In which those who had to wait behind it go on."""


def upgrade(database_url: str, revision: str = "head") -> None:
    """Bring the schema to a revision. Several processes may call it at once."""
    _run(database_url, lambda config: command.upgrade(config, revision))


def downgrade(database_url: str, revision: str) -> None:
    _run(database_url, lambda config: command.downgrade(config, revision))


def head() -> str:
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None
    return revision


def current(database_url: str) -> str | None:
    """The revision the database is at; None if it has no schema of ours."""
    with _engine(database_url).connect() as connection:
        found = connection.execute(text("SELECT to_regclass('alembic_version')")).scalar()
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar() if found else None


def reached(revision: str | None) -> bool:
    """Whether a schema at this revision has all that this version needs: it is at head, or at one that only a newer
    version knows."""
    older = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()} - {head()}
    return revision is not None and revision not in older


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config


def _engine(database_url: str) -> Engine:
    return create_engine(make_url(database_url).set(drivername="postgresql+psycopg"), poolclass=NullPool)


def _run(database_url: str, work: Callable[[Config], None]) -> None:
    config = _config()
    with _engine(database_url).connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _ADVISORY_LOCK})
        # A change of a table waits for whoever reads it, and everybody else then waits behind the change: not for long.
        connection.execute(text(f"SET lock_timeout = {_LOCK_TIMEOUT_MS}"))
        connection.commit()
        config.attributes["connection"] = connection
        for last in [False] * (_TRIES - 1) + [True]:
            try:
                work(config)
                connection.commit()
                return
            except OperationalError as error:
                if not isinstance(error.orig, LockNotAvailable):
                    raise
                connection.rollback()
                if last:
                    words = (
                        "A transaction elsewhere keeps a table from being changed; end it (pg_stat_activity), try again"
                    )
                    raise RuntimeError(words) from error
                time.sleep(_PAUSE_S)
