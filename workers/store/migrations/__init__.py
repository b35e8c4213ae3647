"""Schema changes, run by Alembic through `paceline migrate`. Each expands first and contracts in a later release."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, make_url, text

_ADVISORY_LOCK = 0x70616365  # "pace": one migration at a time, however many processes start


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


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config


def _engine(database_url: str):  # type: ignore[no-untyped-def]
    from sqlalchemy.pool import NullPool

    return create_engine(make_url(database_url).set(drivername="postgresql+psycopg"), poolclass=NullPool)


def _run(database_url: str, work) -> None:  # type: ignore[no-untyped-def]
    config = _config()
    with _engine(database_url).connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _ADVISORY_LOCK})
        connection.commit()
        config.attributes["connection"] = connection
        work(config)
        connection.commit()
