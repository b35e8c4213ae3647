"""An example of every field, path parameter and header, for the documentation: `/docs` fills its forms with these. A
test sends all of them to a real API, which must take them as they stand."""

from typing import Any

from marshmallow import fields

MESSAGE_ID = "msg_01ARZ3NDEKTSV4RRFFQ69G5FAV"
PAST, SOON, LATER = "2026-01-01T09:00:00.000Z", "2035-06-01T09:00:00.000Z", "2035-06-02T09:00:00.000Z"

IN_PATH = {"channel": "onlyfans", "message_id": MESSAGE_ID, "account_id": "shop", "batch_id": "may-newsletter"}

HEADERS = {"Idempotency-Key": "may-newsletter-fan-1", "X-Request-Id": "01ARZ3NDEKTSV4RRFFQ69G5FAV"}

FIELDS: dict[str, Any] = {
    # a message
    "messageId": MESSAGE_ID,
    "accountId": "default",
    "recipientId": "fan-1",
    "content": "Hello Anna, thank you for writing!",
    "mediaIds": ["media-1"],
    "priority": 5,
    "batchId": "may-newsletter",
    "metadata": {"campaign": 7},
    "sendAt": SOON,
    "expiresAt": LATER,
    "queuedAt": PAST,
    "sentAt": PAST,
    "endedAt": PAST,
    "attemptCount": 1,
    "upstreamId": "918273645",
    "position": 3,
    "estimatedSendTime": SOON,
    "estimatedCompletionTime": SOON,
    # an attempt, a failure
    "number": 1,
    "time": PAST,
    "outcome": "rejected",
    "latencyMs": 84,
    "httpStatus": 422,
    "error": "This user does not accept messages",
    "failedAt": PAST,
    "closedAt": PAST,
    "closedAs": "retried",
    "closedBy": "alice",
    "DeferralOut.reason": "throttled",
    "Dismiss.reason": "The recipient has left",
    # numbers of messages
    "cancelled": 4980,
    "expired": 2,
    "failed": 1,
    "matched": 40,
    "queued": 38,
    "sending": 1,
    "sent": 17,
    "total": 5000,
    "depth": 41,
    "inFlight": 1,
    "dlqCount": 2,
    # an account
    "channel": "onlyfans",
    "displayName": "Shop",
    "limits": "1/second,10/minute",
    "ownLimits": True,
    "hasCredentials": True,
    "reason": "Holidays",
    "pausedUntil": SOON,
    "tokensAvailable": 4,
    "nextTokenAt": SOON,
    # a kind of channel
    "name": "onlyfans",
    "platform": "onlyfans",
    "KindOut.settings": {"type": "object", "properties": {"trust5xx": {"type": "boolean"}}},
    "KindOut.credentials": {"type": "object", "properties": {"apiKey": {"type": "string"}}, "required": ["apiKey"]},
    "capabilities": {"idempotent": True, "keyLifetimeSeconds": 86400.0, "history": True},
    # how things stand
    "estimatedTimeSeconds": 246.5,
    "rateLimit": "10 messages/minute",
    "lastProcessedAt": PAST,
    "message": "All systems operational",
    "timestamp": PAST,
    "missing": ["worker: none is alive"],
    # filters, pages
    "words": "does not accept",
    "since": PAST,
    "until": SOON,
    "limit": 50,
    "offset": 0,
    "cursor": "4711",
    "nextCursor": "4711",
    "MessagesQuery.cursor": MESSAGE_ID,
    "MessagePage.nextCursor": MESSAGE_ID,
    "dryRun": True,
    "includeUnknown": False,
    # the audit
    "id": "4711",
    "at": PAST,
    "subject": "alice",
    "role": "operator",
    "requestId": "01ARZ3NDEKTSV4RRFFQ69G5FAV",
    "details": {"redriven": False},
    # an error
    "code": "invalid_request",
    "Error.error": "The request is not valid; see details",
    "Error.details": {"content": ["Missing data for required field."]},
}
"""By the name that a field has outside; `Schema.name` where the name means something else there."""


def of_field(field: fields.Field) -> Any:
    """The example of a field; None if it needs none, since it says by itself what it takes."""
    name = field.data_key or field.name or ""
    own = field.metadata.get("examples")
    return own[0] if own else FIELDS.get(f"{type(field.parent).__name__}.{name}", FIELDS.get(name))
