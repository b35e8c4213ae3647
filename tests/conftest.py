"""Real parts for tests: one PostgreSQL, one Valkey and one upstream for the session, emptied before each test.

`adapters` is the whole pipeline without its processes: a test submits, drains and reconciles by calling the services,
so that nothing happens behind its back. Tests of processes (kill -9 and the like) are in `tests/acceptance`.
"""

import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from api.app import create_app
from api.auth import Role, issue_token
from deploy.sandbox import Sandbox
from deploy.servers import Servers
from ratelimit import Limits, Origin, Tokens
from tests.servers.debian import DebianServers, wanted
from workers.bootstrap import Adapters, build
from workers.domain.actor import Actor
from workers.services.dispatch import Dispatcher
from workers.services.epochs import Keeper, begin_epoch
from workers.services.recovery import rebuild_tokens
from workers.services.submit import Receipt
from workers.settings import Settings
from workers.store import accounts, epochs, migrations
from workers.store.session import Database

SECRET = "a secret for tests, at least 32 bytes long"
_FORGET = """
DO $$ BEGIN
    -- To truncate costs thirty files, also of empty tables; most tests leave these empty.
    IF EXISTS (SELECT FROM messages) OR EXISTS (SELECT FROM tallies) OR EXISTS (SELECT FROM idempotency_keys)
        OR EXISTS (SELECT FROM credential_budgets) THEN
        TRUNCATE messages, attempts, dead_letters, idempotency_keys, tallies, credential_budgets;
    END IF;
    DELETE FROM accounts;
    INSERT INTO accounts (id) VALUES ('default');
    UPDATE token_epoch SET given = 0, rival = NULL;
    PERFORM set_config('paceline.prune_audit', 'on', true);
    IF EXISTS (SELECT FROM audit) THEN TRUNCATE audit; END IF;
END $$
"""
LONGEST = ("test_minute", "test_fuzzed", "test_short_run")
RUN = "paceline-tests-"
ALICE = Actor(subject="alice", role="operator", request_id="a-request")


def empty(db: Database) -> None:
    """Forget everything but the schema and the default account."""
    db.all(_FORGET)


def origin(adapters: Adapters) -> Origin:
    """Where the next grant will have come from: for claims under tokens that nobody has borrowed."""
    now = adapters.tokens.origin()
    return replace(now, given=now.given + 1)


def rebuild(adapters: Adapters, pause: Callable[[float], bool | None] = lambda _: None) -> int:
    """As a reconciler does that has just started; without its pauses if it is not told how."""
    epoch = Keeper(adapters.db, adapters.tokens).hold(epochs.current(adapters.db), pause)
    assert epoch is not None
    return rebuild_tokens(adapters.db, adapters.tokens, epoch, adapters.settings.rate_limit, pause)


def pytest_configure(config: pytest.Config) -> None:
    """A directory of this run's own: in the one that pytest would share among runs, each that starts closes the door to
    the servers of those that run, which are other users' where root runs the tests."""
    if not config.option.basetemp and not hasattr(config, "workerinput"):
        config.option.basetemp = tempfile.mkdtemp(prefix=RUN)
        config.add_cleanup(lambda: shutil.rmtree(config.option.basetemp, ignore_errors=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that all workers end together."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


class OpenDirectories:
    """pytest's temporary directories, which users other than root may pass through: those that servers run as."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        base = factory.getbasetemp()
        base.chmod(0o711)
        if base.parent.name.startswith(RUN):  # a worker's own is in that of the run
            base.parent.chmod(0o711)

    def getbasetemp(self) -> Path:
        return self._factory.getbasetemp()

    def mktemp(self, basename: str, numbered: bool = True) -> Path:
        made = self._factory.mktemp(basename, numbered)
        made.chmod(0o711)
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._factory, name)


@pytest.fixture(scope="session")
def tmp_path_factory(tmp_path_factory: pytest.TempPathFactory) -> OpenDirectories:
    return OpenDirectories(tmp_path_factory)


@pytest.fixture(scope="session")
def debian() -> Iterator[DebianServers | None]:
    """Other people's servers, under `make test-servers`."""
    with wanted() as running:
        yield running


@pytest.fixture(scope="session")
def servers(
    debian: DebianServers | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Servers | DebianServers]:
    # A short path: Unix sockets do not take long ones.
    with nullcontext(debian) if debian else Servers(tmp_path_factory.mktemp("s", numbered=True)) as running:
        migrations.upgrade(running.database_url)
        yield running


@pytest.fixture(scope="session")
def _upstream() -> Iterator[Sandbox]:
    with Sandbox(limits="1000/s") as sandbox:
        yield sandbox


@pytest.fixture
def upstream(_upstream: Sandbox) -> Sandbox:
    """The sandbox, as new: there, no faults, an empty ledger, honouring idempotency keys, hardly limiting."""
    _upstream.reset()
    _upstream.faults.clear()
    _upstream.faults.set_rates({})
    _upstream.away = None
    _upstream.switch(Sandbox().switches())
    return _upstream


@pytest.fixture
def settings(servers: Servers, upstream: Sandbox) -> Settings:
    """Quick retries, a short send timeout; change one with `dataclasses.replace`."""
    return Settings.from_env(
        {
            "DATABASE_URL": servers.database_url,
            "REDIS_URL": servers.redis_url,
            "JWT_SECRET_KEY": SECRET,
            "ONLYFANS_BASE_URL": upstream.url,
            "ONLYFANS_API_KEY": "key-of-the-house",
            "ONLYFANS_IDEMPOTENT": "1",
            "RETRY_BASE_SECONDS": "0",
            "SEND_TIMEOUT_SECONDS": "2",
            "API_RATE_LIMIT": "off",
            "API_READ_LIMIT": "off",
        }
    )


@pytest.fixture
def make_adapters(servers: Servers) -> Iterator[Callable[[Settings], Adapters]]:
    """Adapters over emptied servers, whose default account is known and may send."""
    built: list[Adapters] = []

    def make(settings: Settings) -> Adapters:
        adapters = build(settings, name="paceline tests")
        built.append(adapters)
        empty(adapters.db)
        adapters.redis.flushall()
        begin_epoch(adapters.db, adapters.tokens)
        adapters.tokens.open_new("default")
        return adapters

    yield make
    for adapters in built:
        adapters.close()


@pytest.fixture
def adapters(make_adapters: Callable[[Settings], Adapters], settings: Settings) -> Adapters:
    return make_adapters(settings)


@pytest.fixture
def tokens(adapters: Adapters) -> Tokens:
    return adapters.tokens


@pytest.fixture
def dispatcher(adapters: Adapters) -> Dispatcher:
    """A worker's dispatcher that is nobody's: its number is locked by no process."""
    return adapters.dispatcher(worker=1)


@pytest.fixture
def submit(adapters: Adapters) -> Callable[..., Receipt]:
    """Queue a message; name only what matters."""

    def do(recipient_id: str = "fan-1", content: str = "Hello", account_id: str = "default", **more: Any) -> Receipt:
        wanted = {"recipient_id": recipient_id, "content": content, **more}
        return adapters.submitter().submit(wanted, account_id, by=ALICE)

    return do


@pytest.fixture
def make_account(adapters: Adapters) -> Callable[..., str]:
    """An account with limits and a key of its own, known to the tokens. api_key: its key, if that matters; without one
    (""), it sends with the channel's."""

    def make(account_id: str = "", *, limits: str | None = None, api_key: str | None = None) -> str:
        account_id = account_id or f"account-{secrets.token_hex(4)}"
        parsed = None if limits is None else Limits.parse(limits)
        api_key = f"key-of-{account_id}" if api_key is None else api_key
        accounts.put(
            adapters.db, account_id, limits=parsed, sealed_key=adapters.vault.seal(api_key) if api_key else None
        )
        adapters.tokens.open_new(account_id)
        return account_id

    return make


@pytest.fixture
def client(adapters: Adapters) -> FlaskClient:
    return create_app(adapters).test_client()


@pytest.fixture
def bearer() -> Callable[..., dict[str, str]]:
    """The headers of a caller: `bearer("operator", "a", "b")`; no account named means all."""

    one_at_a_time = threading.Lock()  # it makes a Flask application, and CPython 3.11 parses in one thread alone

    def make(role: str = "operator", *account_ids: str, subject: str = "alice") -> dict[str, str]:
        with one_at_a_time:
            made = issue_token(
                SECRET, subject=subject, role=Role(role), accounts=list(account_ids) or ["*"], ttl=timedelta(minutes=5)
            )
        return {"Authorization": f"Bearer {made}"}

    return make


@pytest.fixture
def with_settings(make_adapters: Callable[[Settings], Adapters], settings: Settings) -> Callable[..., Adapters]:
    """Adapters under other settings: `with_settings(max_attempts=2, onlyfans={"idempotent": False})`."""

    def make(*, onlyfans: Mapping[str, Any] | None = None, **changes: Any) -> Adapters:
        return make_adapters(replace(settings.with_channel("onlyfans", **(onlyfans or {})), **changes))

    return make


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).parent.parent
