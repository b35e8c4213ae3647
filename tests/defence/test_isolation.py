"""Another tenant is as good as not there: whatever a caller asks, by whatever role, path, filter, body or header, the
answer is the same whether the other account's data exists or not, and none of that data has changed.

Every route, every filter and every field of every body is tried, as the application itself declares them. One that is
new fails here until somebody has said, in one of the two tables below, how it could point at what is theirs.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import marshmallow
import pytest
from flask.testing import FlaskClient

from api.auth import EVERYONE
from tests.architecture.test_routes import BODIES, ROUTES, Route
from workers.bootstrap import Adapters
from workers.domain.actor import Actor
from workers.services.submit import Receipt

THEIRS = "theirs"
SOMEBODY = Actor(subject="somebody", role="operator", request_id="request-of-theirs")
KEY = "key-of-theirs"
LATEST_ID = "msg_7ZZZZZZZZZZZZZZZZZZZZZZZZZ"

POINTS_AT_THEIRS: dict[str, Any] = {
    "accountId": THEIRS,
    "recipientId": "fan-of-theirs",
    "batchId": "batch-of-theirs",
    "messageId": "",  # filled in once there is one
    "subject": SOMEBODY.subject,
    "requestId": SOMEBODY.request_id,
    "action": "send",
    "status": "failed",
    "reason": "rejected",
    "since": "2020-01-01T00:00:00Z",
    "until": "2090-01-01T00:00:00Z",
    "limit": 200,
    "offset": 0,
    "httpStatus": 422,
    "words": "not AGAIN",
    "failed.cursor": 999_999_999,
    "cursor": LATEST_ID,
    "audit.cursor": 999_999_999,  # its ids are numbers
    "messages": [{"recipientId": "fan-1", "content": "Hello", "accountId": THEIRS}],
    "dryRun": True,
    "includeUnknown": True,
    "Idempotency-Key": KEY,
}
"""By field or header, or by route and field: the value that would bring what is theirs to light."""

SAYS_ONLY_WHAT_IS_NEW = {
    "send.recipientId", "send.content", "send.priority", "send.mediaIds", "send.sendAt", "send.expiresAt",
    "send.batchId", "send.metadata", "resolve.as", "retry.expiresAt", "dismiss.reason",
    "amend.content", "amend.priority", "amend.sendAt", "amend.expiresAt",
    "put_account.channel", "put_account.displayName", "put_account.limits", "put_account.credentials",
    "put_account.settings", "patch_account.channel", "patch_account.displayName", "patch_account.limits",
    "patch_account.credentials", "patch_account.settings", "pause.reason", "pause.until",
}  # fmt: skip
"""Fields of bodies, by route, that describe what is asked for and refer to nothing that is there already."""
OF_NO_ACCOUNT = {"messaging.list_channels"}
"""Routes whose answers are the same whatever accounts there are."""

MOVES = {"requestId", "timestamp", "queuedAt", "estimatedSendTime", "estimatedCompletionTime", "nextTokenAt"}
MOVES |= {"tokensAvailable", "position", "blockedBy", "estimatedTimeSeconds"}
"""What differs from one request to the next, or with what the caller queued itself; none of it is anybody else's."""


@dataclass(frozen=True)
class Request:
    """What is asked of a route; what names it in a failure."""

    name: str
    parts: dict[str, Any] = field(default_factory=dict)


def requests(route: Route, message_id: str) -> Iterator[Request]:
    """One for every way in which this route could be pointed at what is theirs, and the plain one."""
    for name in sorted(fields_of(route.declared.query)):
        yield Request(f"?{name}", route.valid | {"query_string": {name: aimed(route, name, message_id)}})
    pointing = {name for name in fields_of(route.declared.body) if local(route, name) not in SAYS_ONLY_WHAT_IS_NEW}
    for dry in ({"dryRun": True}, {}) if "dryRun" in pointing else ({},):
        for name in sorted(pointing):
            body = BODIES[route.name] | dry | {name: aimed(route, name, message_id)}
            yield Request(f"{name}, dry" if dry else name, {"json": body})
    for name in route.declared.headers:
        yield Request(name, route.valid | {"headers": {name: aimed(route, name, message_id)}})
    yield Request("plain", route.valid)


def fields_of(schema: type[marshmallow.Schema] | None) -> set[str]:
    return {found.data_key or name for name, found in schema().fields.items()} if schema else set()


def local(route: Route, name: str) -> str:
    return f"{route.name.partition('.')[2]}.{name}"


def aimed(route: Route, name: str, message_id: str) -> Any:
    value = POINTS_AT_THEIRS.get(local(route, name), POINTS_AT_THEIRS[name])
    return message_id if name == "messageId" else value


def comparable(answer: Any) -> Any:
    """Without what moves; messages that the request itself has queued by no name."""
    match answer:
        case dict():
            return {name: comparable(value) for name, value in answer.items() if name not in MOVES}
        case list():
            return [comparable(value) for value in answer]
    return answer


class World:
    """Two accounts: `mine`, with a message that waits, and `theirs`, with one of everything."""

    def __init__(self, adapters: Adapters, client: FlaskClient, submit: Callable[..., Receipt]) -> None:
        self._adapters, self._client = adapters, client
        submit("fan-1", account_id="mine")
        self.message_ids = [self._queue(n) for n in range(3)]
        self._bury(self.message_ids[:2])

    def _queue(self, n: int) -> str:
        wanted = {"recipient_id": POINTS_AT_THEIRS["recipientId"], "content": "Hello", "batch_id": f"batch-of-{THEIRS}"}
        key = KEY if n == 0 else None
        return self._adapters.submitter().submit(wanted, THEIRS, by=SOMEBODY, key=key).message_id

    def _bury(self, message_ids: list[str]) -> None:
        for message_id, reason in zip(message_ids, ("rejected", "outcome_unknown"), strict=True):
            self._adapters.db.all(
                "WITH dead AS (UPDATE messages SET state = 'failed', ended_at = now(), attempts = 1 WHERE id = %(id)s)"
                " INSERT INTO dead_letters (message_id, account_id, reason, error, http_status)"
                " VALUES (%(id)s, %(account)s, %(reason)s, 'Not you again', 422)",
                {"id": message_id, "account": THEIRS, "reason": reason},
            )

    def theirs(self) -> list[Any]:
        """Every row of theirs that a request could have changed."""
        tables = {"accounts": "id", "messages": "account_id", "dead_letters": "account_id", "audit": "account_id"}
        return [
            self._adapters.db.all(f"SELECT * FROM {table} WHERE {column} = %(id)s ORDER BY id", {"id": THEIRS})
            for table, column in tables.items()
        ]

    def without_theirs(self) -> None:
        """The same world, in which they have never been."""
        for statement in (
            "DO $$ BEGIN PERFORM set_config('paceline.prune_audit', 'on', true);"
            f" DELETE FROM audit WHERE account_id = '{THEIRS}'; END $$",
            f"DELETE FROM messages WHERE account_id = '{THEIRS}'",
            f"DELETE FROM tallies WHERE account_id = '{THEIRS}'",
            f"DELETE FROM accounts WHERE id = '{THEIRS}'",
        ):
            self._adapters.db.all(statement)

    def answers(self, route: Route, caller: dict[str, str]) -> dict[str, Any]:
        """What a caller is told, whose path, if there is one, leads to what is theirs."""
        return {
            f"{request.name} {message_id}": self._ask(route, request, message_id, caller)
            for message_id in (self.message_ids if "message_id" in route.parameters else self.message_ids[:1])
            for request in requests(route, message_id)
        }

    def _ask(self, route: Route, request: Request, message_id: str, caller: dict[str, str]) -> Any:
        parts = request.parts | {"headers": caller | request.parts.get("headers", {})}
        answer = route.call(self._client, message_id, THEIRS, **parts)
        told = comparable(answer.json)
        asked_for = message_id if message_id in json.dumps([request.parts]) or route.parameters else ""
        queued = set(re.findall(r"msg_\w{26}", json.dumps(told))) - {asked_for}
        if answer.status_code == 202:  # its own new messages, under names that nobody can foresee
            assert not queued & set(self.message_ids)
            told = json.loads(re.sub(r"msg_\w{26}", "msg", json.dumps(told)))
        return answer.status_code, told


@pytest.fixture
def world(
    adapters: Adapters, client: FlaskClient, submit: Callable[..., Receipt], make_account: Callable[..., str]
) -> World:
    for name in ("mine", THEIRS):
        make_account(name, limits="1000/second", api_key=f"key-of-{name}")
    return World(adapters, client, submit)


every_route = pytest.mark.parametrize("route", ROUTES, ids=str)


@every_route
def test_every_field_has_a_decision(route: Route) -> None:
    for name in fields_of(route.declared.query) | set(route.declared.headers):
        assert name in POINTS_AT_THEIRS, f"how could {name} of {route} point at another account's things?"
    for name in fields_of(route.declared.body):
        assert name in POINTS_AT_THEIRS or local(route, name) in SAYS_ONLY_WHAT_IS_NEW, f"or {name} of its body?"


@pytest.mark.parametrize(
    ("route", "role"), [(route, role) for route in ROUTES for role in route.declared.roles or ()], ids=str
)
def test_a_stranger_cannot_tell_whether_they_exist(
    route: Route, role: str, world: World, bearer: Callable[..., dict[str, str]]
) -> None:
    stranger, before = bearer(role, "mine", subject="stranger"), world.theirs()
    with_them = world.answers(route, stranger)
    assert world.theirs() == before
    world.without_theirs()
    assert world.answers(route, stranger) == with_them


@pytest.mark.parametrize(
    ("route", "role"),
    [(route, role) for route in ROUTES for role in EVERYONE if role not in (route.declared.roles or ())],
    ids=str,
)
def test_a_role_that_may_not_is_told_nothing_and_changes_nothing(
    route: Route, role: str, world: World, bearer: Callable[..., dict[str, str]]
) -> None:
    before = world.theirs()
    assert {status for status, _ in world.answers(route, bearer(role)).values()} == {403}
    assert world.theirs() == before


@every_route
def test_whoever_may_know_of_them_can_tell(route: Route, world: World, bearer: Callable[..., dict[str, str]]) -> None:
    """So that the comparison above could fail: asked by their owner, each of these ways does lead to what is theirs."""
    owner = bearer((route.declared.roles or ())[-1], THEIRS, "mine", subject=SOMEBODY.subject)
    with_them = world.answers(route, owner)
    world.without_theirs()
    without = world.answers(route, owner)
    same = {name for name in with_them if with_them[name] == without[name]}
    assert (same == set(with_them)) == (route.name in OF_NO_ACCOUNT)
    nowhere = {name for name in same if name.startswith(("?", "accountId", "messages")) or ", dry" in name}
    assert nowhere == set()
