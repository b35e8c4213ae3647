"""A channel kind of another package: one module and an entry point, and everything else follows."""

import json
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from flask.testing import FlaskClient

from api.app import create_app
from deploy.check import settings as settings_rules
from deploy.check import upstream as upstream_rules
from deploy.check.rules import Finding
from deploy.cli import paceline
from tests.conftest import origin
from workers.bootstrap import Adapters
from workers.channels import registry
from workers.channels.registry import BadKind
from workers.domain.errors import UnknownKind
from workers.domain.remarks import Level
from workers.environment import BadSetting
from workers.services.submit import Receipt
from workers.settings import Settings, problems, variables
from workers.store.claims import claim_next

BASE = "/api/telex/messaging"
CREDENTIALS = {"user": "shop", "password": "word-of-the-shop"}

MODULE = '''
"""Telex: a POST to an upstream of its own, under a user and a password."""

import json
from base64 import b64encode
from dataclasses import dataclass

from marshmallow import Schema, fields

from workers.channels.base import Kind
from workers.channels.fields import Strict, Text
from workers.channels.http.exchange import NoAnswer, NotSent
from workers.channels.http.transport import Transport
from workers.channels.http.upstream import Upstream
from workers.domain.lookup import History
from workers.domain.outcome import Blame, Capabilities, Outcome, OutcomeKind
from workers.domain.errors import UnknownKind
from workers.domain.remarks import note
from workers.environment import url, variable


@dataclass(frozen=True, slots=True, kw_only=True)
class TelexSettings:
    base_url: str = variable("TELEX_BASE_URL", url("http", "https", example="https://telex.example"), "http://127.0.0.1:1")


class TelexCredentials(Strict):
    user = Text(required=True, metadata={"examples": ["shop"]})
    password = Text(required=True, metadata={"examples": ["word-of-the-shop"]})


class TelexAccount(Strict):
    answer_back = Text(data_key="answerBack", metadata={"examples": ["SHOP D"]})


class Telex:
    name = "telex"
    capabilities = Capabilities()

    def __init__(self, base_url, network, connections):
        self._transport = Transport(Upstream.at(base_url, network), connections=connections)

    async def send(self, claim, sender, *, start_by_s, timeout_s):
        word = b64encode("{user}:{password}".format(**sender.credentials).encode()).decode()
        body = {"to": claim.recipient_id, "text": claim.content, "from": sender.settings.get("answerBack")}
        try:
            answer = await self._transport.request(
                "POST", "/telex", headers={"Authorization": f"Basic {word}"}, body=json.dumps(body).encode(),
                start_by_s=start_by_s, timeout_s=timeout_s,
            )
        except NotSent as error:
            return Outcome(OutcomeKind.UNAVAILABLE, Blame.UPSTREAM, left=False, error=str(error))
        except NoAnswer as error:
            return Outcome(OutcomeKind.UNKNOWN, Blame.UPSTREAM, error=str(error))
        return Outcome(OutcomeKind.ACCEPTED, upstream_id=json.loads(answer.body)["id"], http_status=answer.status)

    def history(self, chat_id, sender, *, since_s, timeout_s):
        return History((), "Telex keeps no history")

    def close(self):
        self._transport.close()


KIND = Kind(
    name="telex",
    platform="telex",
    settings=TelexSettings,
    credentials=TelexCredentials,
    account_settings=TelexAccount,
    identity=lambda config, credentials: credentials.get("user"),
    build=lambda config, network, connections: Telex(config.base_url, network, connections),
    check=lambda config, network, timeout_s: note(config.base_url),
)
'''


@pytest.fixture
def telex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package is installed: a module, and a dist-info that says which kind is in it."""
    (tmp_path / "paceline_telex.py").write_text(MODULE)
    about = tmp_path / "paceline_telex-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: paceline-telex\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[paceline.channels]\ntelex = paceline_telex:KIND\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry.kinds.cache_clear()
    yield
    registry.kinds.cache_clear()
    sys.modules.pop("paceline_telex", None)


class Exchange(ThreadingHTTPServer):
    """The upstream: it takes whatever it is told."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, dict[str, Any]]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Exchange

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.taken.append((self.headers["Authorization"], body))
        answer = b'{"id": "telex-1"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    with Exchange() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def environ(settings: Settings, exchange: Exchange) -> dict[str, str]:
    return {
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "JWT_SECRET_KEY": settings.jwt_secret_key or "",
        "API_RATE_LIMIT": "off",
        "TELEX_BASE_URL": exchange.url,
    }


@pytest.fixture
def adapters(telex: None, environ: dict[str, str], make_adapters: Callable[[Settings], Adapters]) -> Adapters:
    return make_adapters(Settings.from_env(environ))


@pytest.fixture
def client(adapters: Adapters) -> FlaskClient:
    return create_app(adapters).test_client()


def test_a_message_is_sent_with_the_credentials_and_settings_of_its_account(
    adapters: Adapters, client: FlaskClient, exchange: Exchange, bearer: Callable[..., dict[str, str]]
) -> None:
    wanted = {"credentials": CREDENTIALS, "settings": {"answerBack": "SHOP D"}, "limits": "100/second"}
    made = client.put(f"{BASE}/accounts/shop", json=wanted, headers=bearer("admin"))
    assert (made.status_code, made.json["channel"], made.json["hasCredentials"]) == (200, "telex", True)
    assert CREDENTIALS["password"] not in made.text
    stored = adapters.db.one("SELECT api_key FROM accounts WHERE id = 'shop'")
    assert stored["api_key"].startswith("fernet:")
    queued = client.post(
        f"{BASE}/send", json={"recipientId": "1234", "content": "Hello", "accountId": "shop"}, headers=bearer()
    )
    adapters.dispatcher(worker=1).drain("shop")
    found = client.get(f"{BASE}/messages/{queued.json['messageId']}", headers=bearer()).json
    assert (found["status"], found["upstreamId"]) == ("sent", "telex-1")
    authorization = "Basic c2hvcDp3b3JkLW9mLXRoZS1zaG9w"
    assert exchange.taken == [(authorization, {"to": "1234", "text": "Hello", "from": "SHOP D"})]


def test_what_the_kind_does_not_take_is_refused_by_field(
    client: FlaskClient, bearer: Callable[..., dict[str, str]]
) -> None:
    wrong = {"credentials": {"apiKey": "k", "user": "u"}, "settings": {"trust5xx": True}}
    answer = client.put(f"{BASE}/accounts/shop", json=wrong, headers=bearer("admin"))
    assert answer.status_code == 400
    assert answer.json["details"] == {
        "credentials": {"apiKey": ["Unknown field."], "password": ["Missing data for required field."]},
        "settings": {"trust5xx": ["Unknown field."]},
    }
    elsewhere = client.put(f"{BASE}/accounts/shop", json={"channel": "onlyfans"}, headers=bearer("admin"))
    assert (elsewhere.status_code, list(elsewhere.json["details"])) == (400, ["channel"])


def test_credentials_of_one_kind_do_not_pass_to_another(
    client: FlaskClient, bearer: Callable[..., dict[str, str]]
) -> None:
    admin, anywhere = bearer("admin"), "/api/any/messaging/accounts/shop"
    assert client.put(f"{BASE}/accounts/shop", json={"credentials": CREDENTIALS}, headers=admin).status_code == 200
    answer = client.patch(anywhere, json={"channel": "onlyfans"}, headers=admin)
    assert (answer.status_code, list(answer.json["details"])) == (400, ["credentials"])
    new = {"channel": "onlyfans", "credentials": {"apiKey": "key"}}
    assert client.patch(anywhere, json=new, headers=admin).json["channel"] == "onlyfans"


def test_the_kind_is_documented(client: FlaskClient, bearer: Callable[..., dict[str, str]]) -> None:
    document = client.get("/openapi.json").json
    send = document["paths"]["/api/{channel}/messaging/send"]["post"]
    channel = next(one for one in send["parameters"] if one.get("name") == "channel")
    assert channel["schema"]["enum"] == ["onlyfans", "telex", "any"]
    schemas = document["components"]["schemas"]
    assert schemas["AccountIn"]["properties"]["channel"]["enum"] == ["onlyfans", "telex"]
    assert schemas["TelexCredentials"]["properties"]["user"]["examples"] == ["shop"]
    assert {"$ref": "#/components/schemas/TelexAccount"} in schemas["AccountIn"]["properties"]["settings"]["anyOf"]
    (kind,) = client.get(f"{BASE}/channels", headers=bearer("ops")).json["channels"]
    assert (kind["name"], kind["platform"]) == ("telex", "telex")
    assert kind["credentials"]["required"] == ["password", "user"]
    assert kind["capabilities"]["history"] is False
    every = client.get("/api/any/messaging/channels", headers=bearer("ops")).json["channels"]
    assert [kind["name"] for kind in every] == ["onlyfans", "telex"]


def test_the_kind_is_configured_and_checked(telex: None, environ: dict[str, str], exchange: Exchange) -> None:
    assert variables()["TELEX_BASE_URL"] == "http://127.0.0.1:1"
    (wrong,) = problems(environ | {"TELEX_BASE_URL": "telex.example"})
    assert str(wrong).startswith("TELEX_BASE_URL='telex.example': must be a URL")
    settings = Settings.from_env(environ)
    assert Finding(Level.OK, "upstream answers (telex)", exchange.url) in list(upstream_rules.findings(settings))
    plain = Settings.from_env(environ | {"TELEX_BASE_URL": "http://telex.example"})
    found = list(settings_rules.rules.judge(settings_rules.Configuration(plain)))
    assert any("TELEX_BASE_URL is plain http" in finding.words for finding in found)


def test_the_command_line_knows_the_platform(telex: None, tmp_path: Path) -> None:
    file = tmp_path / "messages.csv"
    file.write_text("recipientId,content\n1,Hello\n")
    known = CliRunner().invoke(paceline, ["send", "--file", str(file), "--channel", "telex", "--dry-run"])
    assert known.exit_code == 0
    unknown = CliRunner().invoke(paceline, ["send", "--file", str(file), "--channel", "pigeon", "--dry-run"])
    assert (unknown.exit_code, "'telex'" in unknown.output) == (2, True)


@pytest.mark.parametrize(
    ("source", "remedy"),
    [
        ("import nothing_of_that_name", "cannot be imported (ModuleNotFoundError"),
        ("KIND = 1", "it must be a workers.channels.base.Kind"),
        ("from workers.channels.onlyfans import KIND", "declares the name 'onlyfans'; the entry point must have"),
        (
            "from dataclasses import replace\nfrom workers.channels.onlyfans import KIND\n"
            "KIND = replace(KIND, name='broken')",
            "the kind 'onlyfans' has the setting ONLYFANS_BASE_URL already; rename it",
        ),
        (
            "from dataclasses import replace\nfrom workers.channels.onlyfans import KIND\n"
            "KIND = replace(KIND, name='broken', settings=dict)",
            "settings must be a dataclass",
        ),
    ],
)
def test_a_broken_entry_point_is_named_with_its_remedy(
    source: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_kind.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("broken_kind", None)
    with pytest.raises(BadKind) as refused:
        registry.load([*registry.OURS, EntryPoint("broken", "broken_kind:KIND", registry.GROUP)])
    assert str(refused.value).startswith("The channel kind 'broken' (broken_kind:KIND): ")
    assert remedy in str(refused.value)
    assert isinstance(refused.value, BadSetting)


def test_one_name_for_two_kinds_is_refused() -> None:
    with pytest.raises(BadKind, match="declares this name already; uninstall one of the two"):
        registry.load([*registry.OURS, *registry.OURS])


def test_messages_of_a_kind_that_is_not_installed_here_wait_and_hold_up_nobody(
    adapters: Adapters, submit: Callable[..., Receipt], make_account: Callable[..., str]
) -> None:
    """A worker without the kind claims nothing, changes no budget, and rescues what it can. Before: a KeyError ended
    the round of rescues for all accounts."""
    foreign, ours = make_account(), make_account()
    receipts = [submit("fan-1", account_id=account_id) for account_id in (foreign, ours)]
    for account_id in (foreign, ours):
        assert claim(adapters, account_id)
    adapters.db.all("UPDATE attempts SET deadline_at = now() - interval '1 hour'")
    adapters.db.all("UPDATE accounts SET channel = 'gone' WHERE id = %(id)s", {"id": foreign})
    before = adapters.db.one("SELECT * FROM accounts WHERE id = %(id)s", {"id": foreign})

    assert adapters.rescuer().rescue() == 1
    states = [adapters.reader().message(receipt.message_id, None).message["state"] for receipt in receipts]
    assert states[0] == "sending"
    assert states[1] != "sending"
    with pytest.raises(UnknownKind, match="'gone' is not installed here; install its package"):
        adapters.dispatcher(worker=1).drain(foreign)
    assert adapters.db.one("SELECT * FROM accounts WHERE id = %(id)s", {"id": foreign}) == before


def claim(adapters: Adapters, account_id: str) -> bool:
    """Claim the account's next message, as a worker does that dies before it sends."""
    found = claim_next(adapters.db, account_id, ["token"], worker=99, lease_s=10, origin=origin(adapters))
    return bool(found)
