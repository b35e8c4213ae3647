"""The messaging routes of a channel: contract §1."""

import hashlib
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, g, request, url_for
from werkzeug.exceptions import NotFound as NoSuchRoute

from api import accounts, schemas
from api.auth import ADMINS, DEFAULT_ACCOUNT, EVERYONE, SENDERS, Caller, actor
from api.endpoint import endpoint
from api.errors import ApiError
from workers.bootstrap import Adapters
from workers.channels.registry import platforms
from workers.domain.errors import NotFound
from workers.domain.filters import AuditFilter, FailureFilter, MessageFilter
from workers.domain.state import State, Status
from workers.services.bulk import no_accounts
from workers.services.reader import AccountStatus, Dossier, Waiting

KEY_LENGTH = 255


def blueprint(adapters: Adapters) -> Blueprint:
    routes = Blueprint("messaging", __name__, url_prefix="/api/<channel>/messaging")
    submitter, reader, failures = adapters.submitter(), adapters.reader(), adapters.failures()
    amender, canceller, known = adapters.amender(), adapters.canceller(), platforms()

    @routes.url_value_preprocessor
    def _take_channel(_endpoint: str | None, values: dict[str, Any] | None) -> None:
        g.channel = (values or {}).pop("channel", None)

    @routes.before_request
    def _know_channel() -> None:
        if g.channel not in known:
            raise NoSuchRoute

    @routes.get("/test")
    @endpoint("Is the API there?", roles=None, answers={200: schemas.Alive})
    def test() -> Any:
        """Try this first: it needs no token."""
        return {"channel": g.channel, "timestamp": datetime.now(UTC)}, 200

    @routes.get("/status")
    @endpoint(
        "How things stand",
        roles=EVERYONE,
        query=schemas.Narrow,
        answers={200: schemas.StatusOut},
    )
    def status(query: dict[str, Any]) -> Any:
        """How many messages wait, what keeps them from going, and when the next token is free, account by account."""
        now = datetime.now(UTC)
        found = reader.status(g.caller.scope(query.get("account_id")))
        if query.get("account_id") and not found.accounts:
            raise ApiError(404, f"No account {query['account_id']}")
        depth, in_flight, dead = found.depth, found.in_flight, found.dead_letters
        health, why = found.health
        return {
            "queue": {
                "depth": depth,
                "in_flight": in_flight,
                "dlq_count": dead,
                "total": depth + in_flight + dead,
            },
            "processing": {
                "estimated_time_seconds": round(found.done_s, 3),
                "rate_limit": ", ".join(str(limit).replace("/", " messages/") for limit in found.limits),
                "last_processed_at": found.last_processed_at,
            },
            "health": {"status": health, "message": why},
            "accounts": [_account(account, now) for account in found.accounts],
            "timestamp": now,
        }, 200

    @routes.post("/send")
    @endpoint(
        "Queue a message",
        roles=SENDERS,
        body=schemas.Send,
        answers={202: schemas.Receipt},
        errors=(409,),
        headers={
            "Idempotency-Key": "The same key and body again answer with the same message (at most 255 characters)"
        },
        answer_headers={
            "Location": "The message's own path",
            "Idempotent-Replayed": "`true` if this Idempotency-Key had been used already",
        },
    )
    def send(body: dict[str, Any]) -> Any:
        """Queue one message. The answer says where it stands in line, and when it will go."""
        key = _idempotency_key()
        account_id = g.caller.account(body.pop("account_id", None))
        body["media_ids"] = tuple(body["media_ids"])
        receipt = submitter.submit(
            body,
            account_id,
            by=actor(),
            key=key,
            fingerprint=hashlib.sha256(f"{g.channel}\n{account_id}\n".encode() + g.body).hexdigest(),
        )
        headers = {"Location": url_for(".message", channel=g.channel, message_id=receipt.message_id)}
        if receipt.replayed:
            headers["Idempotent-Replayed"] = "true"
            receipt = receipt._replace(**_prospects(reader.message(receipt.message_id, None).waiting))
        return receipt, 202, headers

    @routes.post("/send/bulk")
    @endpoint(
        "Queue up to 10,000 messages, all or none",
        roles=SENDERS,
        body=schemas.SendBulk,
        answers={202: schemas.BulkReceipt},
        errors=(409,),
        headers={"Idempotency-Key": "The same key and body again answer with the same messages"},
        answer_headers={"Idempotent-Replayed": "`true` if this Idempotency-Key had been used already"},
    )
    def send_bulk(body: dict[str, Any]) -> Any:
        """Queue a list of messages in one request, which counts as one against your limit. If one of them is wrong,
        none is queued."""
        key = _idempotency_key()
        wanted = _with_accounts(body["messages"])
        named = "\n".join(dict.fromkeys(message["account_id"] for message in wanted))
        receipt = submitter.submit_many(
            wanted,
            by=actor(),
            key=key,
            fingerprint=hashlib.sha256(f"{g.channel}\n{named}\n".encode() + g.body).hexdigest(),
        )
        return receipt, 202, {"Idempotent-Replayed": "true"} if receipt.replayed else {}

    @routes.get("/messages")
    @endpoint("Messages, newest first", roles=SENDERS, query=schemas.MessagesQuery, answers={200: schemas.MessagePage})
    def messages(query: dict[str, Any]) -> Any:
        """Look for messages by recipient, account, batch or status, page by page."""
        scope = g.caller.scope(query.get("account_id"))
        status: Status | None = query.get("status")
        wanted = MessageFilter(
            states=status.states if status else (),
            recipient_id=query.get("recipient_id"),
            account_id=query.get("account_id"),
            batch_id=query.get("batch_id"),
            before_id=query.get("cursor"),
        )
        page, next_cursor = reader.messages(wanted, scope, query["limit"])
        return {"messages": [_listed(row, waiting) for row, waiting in page], "next_cursor": next_cursor}, 200

    @routes.get("/messages/<message_id>")
    @endpoint("A message whole", roles=SENDERS, answers={200: schemas.MessageWhole})
    def message(message_id: str) -> Any:
        """What became of one message: every attempt with the upstream's answer, and, while it waits, what holds it
        back."""
        return _whole(reader.message(message_id, g.caller.scope())), 200

    @routes.patch("/messages/<message_id>")
    @endpoint(
        "Change a waiting message",
        roles=SENDERS,
        body=schemas.Amend,
        answers={200: schemas.MessageWhole},
        errors=(409,),
    )
    def amend(message_id: str, body: dict[str, Any]) -> Any:
        """Change the words, the times or the priority of a message before it goes. What you leave out stays."""
        scope = g.caller.scope()
        amender.amend(message_id, body, scope=scope, by=actor())
        return _whole(reader.message(message_id, scope)), 200

    @routes.delete("/messages/<message_id>")
    @endpoint("Cancel a waiting message", roles=SENDERS, answers={200: schemas.Cancelled}, errors=(409,))
    def delete(message_id: str) -> Any:
        """Keep a message from being sent. One that is being sent already is 409."""
        canceller.cancel(message_id, scope=g.caller.scope(), by=actor())
        return {"message_id": message_id}, 200

    @routes.get("/batches/<path:batch_id>")
    @endpoint("How a batch stands", roles=SENDERS, answers={200: schemas.BatchOut})
    def batch(batch_id: str) -> Any:
        """How many messages of a batch wait, were sent or failed, and when the last of them will go."""
        return reader.batch(batch_id, g.caller.scope()), 200

    @routes.delete("/batches/<path:batch_id>")
    @endpoint("Cancel what still waits of a batch", roles=SENDERS, answers={200: schemas.BatchCancelled})
    def delete_batch(batch_id: str) -> Any:
        """Stop a whole batch: everything that has not gone yet is cancelled, however many messages these are."""
        cancelled = canceller.cancel_batch(batch_id, scope=g.caller.scope(), by=actor())
        return {"cancelled": cancelled}, 200

    @routes.get("/failed")
    @endpoint(
        "Open dead letters, latest first", roles=SENDERS, query=schemas.FailedQuery, answers={200: schemas.FailedPage}
    )
    def failed(query: dict[str, Any]) -> Any:
        """What needs a person: messages that were given up, with the upstream's own words. While somebody retries, page
        by `cursor`: by `offset` you would miss some."""
        scope = g.caller.scope(query.get("account_id"))
        limit, offset, cursor = query.pop("limit"), query.pop("offset"), query.pop("cursor", None)
        wanted = FailureFilter(**query, before_id=cursor and int(cursor))
        rows, total, next_cursor = reader.failures(wanted, scope, limit, offset)
        return {
            "messages": [_message(row) for row in rows],
            "total": total,
            "limit": limit,
            "offset": offset,
            "next_cursor": next_cursor,
        }, 200

    @routes.post("/<message_id>/retry")
    @endpoint(
        "Queue a failed message again",
        roles=ADMINS,
        body=schemas.Retry,
        body_optional=True,
        answers={202: schemas.Retried},
        errors=(409,),
    )
    def retry(message_id: str, body: dict[str, Any]) -> Any:
        """Send a message again, once what was wrong has been put right. Its history is kept. A message whose expiresAt
        has passed needs a new one."""
        queued_at = failures.retry(message_id, scope=g.caller.scope(), by=actor(), expires_at=body.get("expires_at"))
        return {"message_id": message_id, "queued_at": queued_at}, 202

    @routes.post("/failed/retry")
    @endpoint(
        "Queue every failed message that matches again",
        roles=ADMINS,
        body=schemas.Redrive,
        answers={202: schemas.Redriven},
    )
    def redrive(body: dict[str, Any]) -> Any:
        """Send all failures of one kind again, behind fresh messages. Begin with `dryRun`, which only counts them."""
        scope = g.caller.scope(body.get("account_id"))
        include_unknown, dry_run = body.pop("include_unknown"), body.pop("dry_run")
        found = failures.redrive(
            FailureFilter(**body), scope=scope, by=actor(), include_unknown=include_unknown, dry_run=dry_run
        )
        return found, 202

    @routes.post("/<message_id>/resolve")
    @endpoint(
        "Close a failure of unknown outcome by hand: it did arrive",
        roles=ADMINS,
        body=schemas.Resolve,
        answers={200: schemas.Resolved},
        errors=(409,),
    )
    def resolve(message_id: str, body: dict[str, Any]) -> Any:
        """You have seen upstream that the message did arrive: it counts as sent."""
        failures.resolve_as_sent(message_id, scope=g.caller.scope(), by=actor())
        return {"message_id": message_id}, 200

    @routes.post("/<message_id>/dismiss")
    @endpoint(
        "Close a failure unsent",
        roles=ADMINS,
        body=schemas.Dismiss,
        answers={200: schemas.Cancelled},
        errors=(409,),
    )
    def dismiss(message_id: str, body: dict[str, Any]) -> Any:
        """Nobody wants this message sent any more: it is cancelled, and no longer counted as a failure."""
        failures.dismiss(message_id, body["reason"], scope=g.caller.scope(), by=actor())
        return {"message_id": message_id}, 200

    @routes.get("/audit")
    @endpoint(
        "Who did what, when, from which request; latest first",
        roles=ADMINS,
        query=schemas.AuditQuery,
        answers={200: schemas.AuditPage},
    )
    def audit(query: dict[str, Any]) -> Any:
        """Who sent, changed, cancelled, retried or paused what."""
        scope = g.caller.scope(query.get("account_id"))
        limit, cursor = query.pop("limit"), query.pop("cursor", None)
        page, next_id = reader.audit(AuditFilter(**query, before_id=cursor and int(cursor)), scope, limit)
        return {"entries": page, "next_cursor": next_id}, 200

    accounts.add_routes(routes, adapters)
    return routes


def _idempotency_key() -> str | None:
    key = request.headers.get("Idempotency-Key")
    if key is not None and not (1 <= len(key) <= KEY_LENGTH and key.isascii() and key.isprintable()):
        details = {"Idempotency-Key": [f"Must be 1 to {KEY_LENGTH} printable ASCII characters."]}
        raise ApiError(400, "The Idempotency-Key is not valid", details=details)
    return key


def _with_accounts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each with the account that it means. Raises NotFound, with all that the caller may not know of."""
    caller: Caller = g.caller
    named = [message.get("account_id") for message in messages]
    meant, unknown = {}, set()
    for name in set(named):
        try:
            meant[name] = caller.account(name)
        except NotFound:
            unknown.add(name)
    if unknown:
        raise no_accounts({n: name or DEFAULT_ACCOUNT for n, name in enumerate(named) if name in unknown})
    for name, message in zip(named, messages, strict=True):
        message["account_id"] = meant[name]
    return messages


def _message(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"status": State(row["state"]).status, "attempt_count": row["attempts"]}


def _whole(dossier: Dossier) -> dict[str, Any]:
    shown = _message(dossier.message) | {
        "attempts": dossier.attempts,
        "deferrals": dossier.deferrals,
        "failures": dossier.dead_letters,
    }
    return shown | _prospects(dossier.waiting)


def _listed(row: dict[str, Any], waiting: Waiting | None) -> dict[str, Any]:
    return _message(row) | _prospects(waiting)


def _prospects(waiting: Waiting | None) -> dict[str, Any]:
    """What can be said of a message while it waits, and not after."""
    return {
        "position": waiting and waiting.position,
        "estimated_at": waiting and waiting.estimate.at,
        "blocked_by": waiting and waiting.estimate.blocked_by,
    }


def _account(account: AccountStatus, now: datetime) -> dict[str, Any]:
    return {
        "account_id": account.account.id,
        "depth": account.depth,
        "tokens_available": account.tokens_available,
        "next_token_at": account.next_token_at(now),
        "state": account.state,
        "reason": account.reason,
    }
