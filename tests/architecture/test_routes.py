"""Nobody forgets to guard a route: what holds for one is tried on all, as the application itself lists them.

Whoever is refused learns nothing else: 401 and 403 come before the body is looked at and before anything is looked up.
"""

import base64
import gc
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jwt
import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from api.app import create_app
from api.auth import EVERYONE
from api.endpoint import Declaration, declaration_of
from workers.bootstrap import build
from workers.services.submit import Receipt
from workers.settings import Settings

SECRET = "a secret for tests " * 4
PUBLIC = {
    "messaging.test",
    "operations.home",
    "operations.healthz",
    "operations.readyz",
    "operations.metrics",  # guards itself, if METRICS_TOKEN is set
    "operations.openapi",
    "swagger_ui.show",
}
NOWHERE = {"DATABASE_URL": "postgresql://nowhere", "REDIS_URL": "redis://nowhere", "JWT_SECRET_KEY": SECRET}
APP = create_app(build(Settings.from_env(NOWHERE)))
DOOR = APP.test_client()
"""An application without a database and without Redis: whom it turns away, it turns away without asking either."""
UNKNOWN_ID = "msg_01ARZ3NDEKTSV4RRFFQ69G5FAV"
BODIES: dict[str, dict[str, Any]] = {
    "messaging.send": {"recipientId": "fan-1", "content": "Hello"},
    "messaging.send_bulk": {"messages": [{"recipientId": "fan-1", "content": "Hello"}]},
    "messaging.amend": {},
    "messaging.retry": {},
    "messaging.redrive": {},
    "messaging.dismiss": {"reason": "because"},
    "messaging.resolve": {"as": "sent"},
    "messaging.put_account": {},
    "messaging.patch_account": {},
    "messaging.pause": {"reason": "because"},
}
"""The least that each route with a body takes."""


@dataclass(frozen=True)
class Route:
    name: str
    method: str
    parameters: frozenset[str]
    declared: Declaration

    def __str__(self) -> str:
        return f"{self.method} {self.name}"

    def call(
        self, client: FlaskClient, message_id: str = UNKNOWN_ID, account_id: str = "default", **request: Any
    ) -> TestResponse:
        return client.open(self.path(message_id, account_id), method=self.method, **request)

    def path(self, message_id: str = UNKNOWN_ID, account_id: str = "default") -> str:
        values = {"channel": "onlyfans", "message_id": message_id, "account_id": account_id}
        values["batch_id"] = f"batch-of-{account_id}"
        wanted = {name: values[name] for name in self.parameters}
        return APP.url_map.bind("localhost").build(self.name, wanted, self.method)

    @property
    def valid(self) -> dict[str, Any]:
        """What a request needs besides a token and a path."""
        return {"json": BODIES[self.name]} if self.declared.body else {}

    def names_account_in(self, part: str) -> bool:
        schema = getattr(self.declared, part)
        return schema is not None and "account_id" in schema().fields


ROUTES = [
    Route(rule.endpoint, method, frozenset(rule.arguments), declared)
    for rule in APP.url_map.iter_rules()
    if (declared := declaration_of(APP.view_functions[rule.endpoint])) and declared.roles is not None
    for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
]
BAD_CLAIMS: dict[str, dict[str, Any]] = {
    "no sub": {"sub": None},
    "sub is a number": {"sub": 5},
    "sub is empty": {"sub": ""},
    "sub with a NUL": {"sub": "ali\0ce"},
    "sub with half a surrogate pair": {"sub": "\ud800"},
    "sub too long for an index": {"sub": "x" * 256},
    "no role": {"role": None},
    "role unknown": {"role": "root"},
    "role in capitals": {"role": "ADMIN"},
    "role in a list": {"role": ["admin"]},
    "no accounts": {"accounts": None},
    "accounts is a string": {"accounts": "*"},
    "accounts of numbers": {"accounts": [1]},
    "an account with a NUL": {"accounts": ["a\0b"]},
    "expired": {"exp": time.time() - 1},
    "expires never, the odd way": {"exp": float("inf")},
    "not valid yet": {"nbf": time.time() + 600},
    "issued at no time": {"iat": "yesterday"},
    "expires at no time": {"exp": "never"},
    "for another audience": {"aud": "another-service"},
    "for other audiences": {"aud": ["another-service", "and-another"]},
    "a refresh token": {"type": "refresh"},
}


def signed(key: str = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    """A token as an admin's; a claim of None is left out."""
    claims = {"sub": "alice", "role": "admin", "accounts": ["*"], "exp": time.time() + 600} | claims
    return jwt.encode({k: v for k, v in claims.items() if v is not None}, key, algorithm=algorithm)


def signed_under(header: str, key: str = SECRET) -> str:
    """Signed by HS256, as we would, but its header says something else."""
    payload = signed().split(".")[1].encode()
    text = base64.urlsafe_b64encode(header.encode()).rstrip(b"=") + b"." + payload
    signature = base64.urlsafe_b64encode(hmac.new(key.encode(), text, hashlib.sha256).digest()).rstrip(b"=")
    return (text + b"." + signature).decode()


def under_their_own_key(**header: Any) -> str:
    """An attacker's token, whose header says where its key is to be found."""
    return "Bearer " + signed_under(json.dumps({"alg": "HS256", "typ": "JWT"} | header), THEIR_KEY)


THEIR_KEY = "a key of the attacker's own, of 32 bytes and more"
THEIR_JWK = {"kty": "oct", "k": base64.urlsafe_b64encode(THEIR_KEY.encode()).rstrip(b"=").decode()}


BAD_HEADERS: dict[str, str | None] = {
    "none": None,
    "empty": "",
    "garbage": "Bearer garbage",
    "not ASCII": "Bearer \xff.\xfe.\xfd",
    "no scheme": signed(),
    "another scheme": f"Basic {signed()}",
    "two tokens": f"Bearer {signed()} {signed()}",
    "another secret": f"Bearer {signed('another secret, also at least 32 bytes')}",
    "alg none": f"Bearer {signed('', algorithm='none')}",
    "alg None, signed": "Bearer " + signed_under('{"alg":"None","typ":"JWT"}'),
    "another alg of the family": f"Bearer {signed(algorithm='HS512')}",
    "header says RS256": "Bearer " + signed_under('{"alg":"RS256","typ":"JWT"}'),
    "header is deeper than the parser goes": "Bearer " + signed_under("[" * 50_000),
    "says what we must understand and do not": "Bearer " + signed_under('{"alg":"HS256","crit":["x"],"x":1}'),
    "payload is not encoded": "Bearer " + signed_under('{"alg":"HS256","b64":false,"crit":["b64"]}'),
    "brings its key along": under_their_own_key(jwk=THEIR_JWK),
    "says where its key is": under_their_own_key(jku="http://127.0.0.1:1/jwks.json", x5u="http://127.0.0.1:1/x"),
    "names a file as its key": under_their_own_key(kid="../../../../dev/null"),
    "signed with an empty key": "Bearer " + signed_under('{"alg":"HS256","kid":"/dev/null"}', ""),
    "names its key in SQL": under_their_own_key(kid="' UNION SELECT 'x' --"),
    "an object as the id of its key": under_their_own_key(kid={"$ne": ""}),
    "a megabyte": f"Bearer {signed()}{'A' * 2**20}",
    "a megabyte of dots": "Bearer " + "." * 2**20,
    "five parts, as if encrypted": f"Bearer {signed()}.AAAA.AAAA",
    "changed after signing": f"Bearer {signed()[:-4]}AAAA",
}


def refused(answer: TestResponse) -> None:
    assert answer.status_code == 401
    assert answer.json == {
        "error": "Not authenticated",
        "code": "not_authenticated",
        "details": {},
        "requestId": answer.headers["X-Request-Id"],
    }
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def without_request_id(answer: TestResponse) -> dict[str, Any]:
    assert answer.json is not None
    return {name: value for name, value in answer.json.items() if name != "requestId"}


every_route = pytest.mark.parametrize("route", ROUTES, ids=str)


def test_every_route_says_who_may_call_it() -> None:
    open_to_anyone = {
        rule.endpoint
        for rule in APP.url_map.iter_rules()
        if not (declared := declaration_of(APP.view_functions[rule.endpoint])) or declared.roles is None
    }
    assert open_to_anyone == PUBLIC
    assert len(ROUTES) >= 7


@every_route
def test_a_valid_token_of_a_declared_role_gets_past_the_door(
    route: Route, client: FlaskClient, bearer: Callable[..., dict[str, str]]
) -> None:
    for role in route.declared.roles or ():
        assert route.call(client, headers=bearer(role)).status_code in (200, 202, 404, 415)


@pytest.mark.parametrize("header", BAD_HEADERS.values(), ids=BAD_HEADERS)
@every_route
def test_without_a_valid_token_it_is_401(route: Route, header: str | None) -> None:
    # A finalizer run by the collector where the parser is at its deepest has no stack left, and pytest complains.
    gc.disable()
    try:
        refused(route.call(DOOR, headers={} if header is None else {"Authorization": header}, data=b"{"))
    finally:
        gc.enable()


@pytest.mark.parametrize("claims", BAD_CLAIMS.values(), ids=BAD_CLAIMS)
@every_route
def test_without_our_claims_it_is_401(route: Route, claims: dict[str, Any]) -> None:
    refused(route.call(DOOR, headers={"Authorization": f"Bearer {signed(**claims)}"}, data=b"{"))


@every_route
def test_a_token_in_the_query_or_a_cookie_is_none(route: Route) -> None:
    visitor = APP.test_client()
    visitor.set_cookie("access_token_cookie", signed())
    refused(route.call(visitor, query_string={"jwt": signed(), "access_token": signed()}))


@every_route
def test_any_other_role_is_403_whatever_it_asks(route: Route) -> None:
    for role in set(EVERYONE) - set(route.declared.roles or ()):
        for request in ({"data": b"{"}, {"json": {"unknown": "field"}, "query_string": {"unknown": "parameter"}}):
            headers = {"Authorization": f"Bearer {signed(role=role)}"}
            answer = route.call(DOOR, headers=headers, **request)
            assert (answer.status_code, without_request_id(answer)["code"]) == (403, "forbidden")


@pytest.mark.parametrize("route", [route for route in ROUTES if "message_id" in route.parameters], ids=str)
def test_another_accounts_message_is_as_good_as_none(
    route: Route, client: FlaskClient, bearer: Callable[..., dict[str, str]], submit: Callable[..., Receipt]
) -> None:
    foreign = submit().message_id
    stranger = bearer((route.declared.roles or ())[-1], "another-account")
    answers = [
        without_request_id(route.call(client, id_, headers=stranger, **route.valid)) for id_ in (foreign, UNKNOWN_ID)
    ]
    assert [answer["code"] for answer in answers] == ["not_found", "not_found"]
    assert json.loads(json.dumps(answers[0]).replace(foreign, UNKNOWN_ID)) == answers[1]


@pytest.mark.parametrize("odd", ["1", "msg_%00", "%00", "msg_%F0%9F%99%82", "x" * 5000, "..%2f..", "' OR 1=1 --"])
@pytest.mark.parametrize("route", [route for route in ROUTES if "message_id" in route.parameters], ids=str)
def test_an_id_that_cannot_be_one_is_404(
    route: Route, odd: str, client: FlaskClient, bearer: Callable[..., dict[str, str]]
) -> None:
    path = APP.url_map.bind("localhost").build(route.name, {"channel": "onlyfans", "message_id": "ID"}, route.method)
    answer = client.open(path.replace("ID", odd), method=route.method, headers=bearer("admin"), **route.valid)
    assert without_request_id(answer)["code"] == "not_found"


@pytest.mark.parametrize("odd", ["%00", "a%00b", "%F0%9F%99%82", "x" * 5000, "..%2f..", "' OR 1=1 --", "default%0A"])
@pytest.mark.parametrize("route", [r for r in ROUTES if "account_id" in r.parameters and r.method != "PUT"], ids=str)
def test_an_account_that_cannot_be_one_is_404(
    route: Route, odd: str, client: FlaskClient, bearer: Callable[..., dict[str, str]]
) -> None:
    path = route.path(account_id="ID").replace("ID", odd)
    answer = client.open(path, method=route.method, headers=bearer("admin"), **route.valid)
    assert without_request_id(answer)["code"] == "not_found"


@pytest.mark.parametrize("route", [route for route in ROUTES if "account_id" in route.parameters], ids=str)
def test_another_account_is_as_good_as_none(
    route: Route, client: FlaskClient, bearer: Callable[..., dict[str, str]]
) -> None:
    stranger = bearer((route.declared.roles or ())[-1], "another-account")
    answers = [
        without_request_id(route.call(client, account_id=id_, headers=stranger, **route.valid))
        for id_ in ("default", "no-such")
    ]
    assert [answer["error"] for answer in answers] == ["No account default", "No account no-such"]
    assert [answer["code"] for answer in answers] == ["not_found", "not_found"]


@pytest.mark.parametrize(
    "route", [r for r in ROUTES if r.names_account_in("query") or r.names_account_in("body")], ids=str
)
def test_an_account_outside_the_claim_is_as_good_as_none(
    route: Route, client: FlaskClient, bearer: Callable[..., dict[str, str]], submit: Callable[..., Receipt]
) -> None:
    submit()
    stranger = bearer("admin", "another-account")

    def ask(account_id: str) -> dict[str, Any]:
        named = {"accountId": account_id}
        if route.names_account_in("query"):
            return without_request_id(route.call(client, headers=stranger, query_string=named))
        return without_request_id(route.call(client, headers=stranger, json=named | BODIES[route.name]))

    assert ask("default") == {"error": "No account default", "code": "not_found", "details": {}}
    assert ask("no-such") == {"error": "No account no-such", "code": "not_found", "details": {}}


@pytest.mark.parametrize("route", [route for route in ROUTES if "account_id" in route.parameters], ids=str)
def test_a_path_to_an_account_outside_the_claim_leads_nowhere(
    route: Route, client: FlaskClient, bearer: Callable[..., dict[str, str]]
) -> None:
    stranger = bearer("admin", "another-account")
    for account_id in ("default", "no-such"):
        answer = without_request_id(route.call(client, account_id=account_id, headers=stranger, **route.valid))
        assert answer == {"error": f"No account {account_id}", "code": "not_found", "details": {}}
