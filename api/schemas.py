"""Schemas of requests and answers. OpenAPI is generated from them, so they are also the documentation."""

import json
import re
from datetime import MAXYEAR, MINYEAR, UTC, datetime
from functools import cache
from typing import Any

from marshmallow import Schema, ValidationError, fields, validate, validates_schema

from api.kinds import Channel, OfKind
from ratelimit import BadLimits, Limits
from workers.channels.fields import Flag, Matches, Strict, Text, Whole, check_text
from workers.domain.actor import Action
from workers.domain.decisions import DeadLetterReason
from workers.domain.state import Status
from workers.encoding import as_json
from workers.services.estimate import BlockedBy

METADATA_BYTES = 4096
METADATA_DEPTH = 64
"""The deepest nesting. Deeper values could be stored, but many JSON parsers could not read them again."""
BULK_MESSAGES = 10_000
MOST_WRONG = 100
"""After this many invalid entries of a list, the rest of the list is not validated."""
ACCOUNT_ID = r"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,63}"
LIMITS_LENGTH = 255
NUMBER_CURSOR = r"^[1-9][0-9]{0,17}$"
MESSAGE_ID = r"^msg_[0-9A-HJKMNP-TV-Z]{26}$"
IDS = {"message_id": MESSAGE_ID, "account_id": f"^{ACCOUNT_ID}$"}
"""Pattern of each id in a path, by its name there."""


def iso(moment: datetime | None) -> str | None:
    """ISO-8601, UTC, milliseconds, Z."""
    if moment is None:
        return None
    moment = moment.astimezone(UTC)
    text = as_json(moment).decode()  # isoformat takes more than twice as long
    return (text[1:24] if moment.microsecond else f"{text[1:20]}.000") + "Z"


class Time(fields.AwareDateTime):
    """ISO-8601 with an offset. Readers would disagree about the meaning of a time without an offset."""

    pattern = r"^(?!0000|0001|9999)"
    """For OpenAPI: the constraints in addition to `date-time`."""

    def __init__(self, **kwargs: Any) -> None:
        words = "Has no offset. End it with Z for UTC, or with an offset such as +02:00."
        super().__init__(format="iso", error_messages={"invalid_awareness": words}, **kwargs)

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> str | None:
        return iso(value)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        moment = super()._deserialize(value, attr, data, **kwargs)
        # The first and the last year are out of reach in some time zone or other.
        if not MINYEAR < moment.year < MAXYEAR:
            raise self.make_error("invalid", input=value, obj_type=self.OBJ_TYPE)
        return moment.astimezone(UTC)


class Some(fields.List):
    """A list whose length is checked first. Then its entries are validated until `MOST_WRONG` of them are invalid."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> list[Any]:
        if not isinstance(value, list):
            raise self.make_error("invalid")
        self._validate(value)
        loaded: list[Any] = []
        wrong: dict[int, Any] = {}
        for n, inner in enumerate(value):
            try:
                loaded.append(self.inner.deserialize(inner, **kwargs))
            except ValidationError as error:
                wrong[n] = error.messages
                if len(wrong) == MOST_WRONG:
                    break
        if wrong:
            raise ValidationError(wrong)
        return loaded


class Words(Text):
    """Up to ten words to search for."""

    pattern = r"^[ \t\n\r]*[^ \t\n\r\x00]+([ \t\n\r]+[^ \t\n\r\x00]+){0,9}[ \t\n\r]*$"
    length, most = 255, 10

    def __init__(self, *, metadata: dict[str, Any]) -> None:
        super().__init__(metadata=metadata | {"minLength": 1, "maxLength": self.length})

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        text = super()._deserialize(value, attr, data, **kwargs)
        words = tuple(re.findall(r"[^ \t\n\r]+", text)) if len(text) <= self.length else ()
        if not 1 <= len(words) <= self.most:
            raise ValidationError(f"Must be 1 to {self.most} words, of at most {self.length} characters together.")
        return words


class LimitsField(fields.String):
    """Limits as people write them, e.g. `1/second,10/minute`."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        text = super()._deserialize(value, attr, data, **kwargs)
        if len(text) > LIMITS_LENGTH:
            raise ValidationError(f"Longer than maximum length {LIMITS_LENGTH}.")
        try:
            return Limits.parse(text)
        except BadLimits as error:
            raise ValidationError(str(error)) from None


class Metadata(fields.Dict):
    """A JSON object of at most 4 KiB that can be stored and read again."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(keys=fields.String(), **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        found = super()._deserialize(value, attr, data, **kwargs)
        _check_json(found)
        try:
            text = json.dumps(found, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        except ValueError:
            raise ValidationError("Numbers must be finite.") from None
        if len(text.encode()) > METADATA_BYTES:
            raise ValidationError(f"Must be at most {METADATA_BYTES} bytes of JSON.")
        return found


def _check_json(value: Any, level: int = 1) -> None:
    match value:
        case str():
            check_text(value)
        case dict() | list() if level > METADATA_DEPTH:
            raise ValidationError(f"Must be at most {METADATA_DEPTH} levels deep.")
        case dict():
            for key, inner in value.items():
                check_text(key)
                _check_json(inner, level + 1)
        case list():
            for inner in value:
                _check_json(inner, level + 1)


# --- in -------------------------------------------------------------------------------------------------------------


class Send(Strict):
    example = {"recipientId": "fan-1", "content": "Hello Anna, thank you for writing!"}

    recipient_id = Text(
        data_key="recipientId",
        required=True,
        validate=validate.Length(1, 255),
        metadata={"description": "The recipient: the chat at the upstream"},
    )
    content = Text(
        required=True,
        validate=validate.Length(max=10_000),
        metadata={"description": "1 to 10,000 characters; may be empty only with mediaIds"},
    )
    priority = Whole(
        load_default=5,
        validate=validate.Range(1, 10),
        metadata={"description": "1 (lowest) to 10 (most urgent)"},
    )
    account_id = Text(
        data_key="accountId",
        validate=validate.Length(1, 64),
        metadata={"description": "The sending account. Default: the token's only account, otherwise `default`"},
    )
    media_ids = Some(
        Text(validate=validate.Length(1, 255)),
        data_key="mediaIds",
        load_default=list,
        validate=validate.Length(max=100),
        metadata={"description": "Ids of media that were uploaded to the upstream"},
    )
    send_at = Time(data_key="sendAt", allow_none=True, metadata={"description": "Do not send before this time"})
    expires_at = Time(
        data_key="expiresAt",
        allow_none=True,
        metadata={"description": "Do not send after this time; the message becomes `expired`"},
    )
    batch_id = Text(
        data_key="batchId",
        allow_none=True,
        validate=validate.Length(1, 255),
        metadata={"description": "Your name for a group of messages"},
    )
    metadata = Metadata(
        allow_none=True,
        metadata={"description": "Your own data: a JSON object of at most 4 KiB", "additionalProperties": True},
    )

    rules = {
        "anyOf": [
            {"properties": {"content": {"minLength": 1}}},
            {"properties": {"mediaIds": {"minItems": 1}}, "required": ["mediaIds"]},
        ]
    }

    @validates_schema(skip_on_field_errors=True)
    def _has_something_to_say(self, data: dict[str, Any], **_: Any) -> None:
        if not data["content"] and not data["media_ids"]:
            raise ValidationError("Must not be empty without mediaIds.", "content")


class Amend(Strict):
    """A JSON merge patch (RFC 7396)."""

    example = {"content": "Hello Anna, see you soon!", "priority": 8}

    content = Text(validate=validate.Length(max=10_000), metadata={"description": "May be empty only with mediaIds"})
    priority = Whole(validate=validate.Range(1, 10), metadata={"description": "1 (lowest) to 10 (most urgent)"})
    send_at = Time(
        data_key="sendAt", allow_none=True, metadata={"description": "Do not send before this time; null: send at once"}
    )
    expires_at = Time(
        data_key="expiresAt",
        allow_none=True,
        metadata={"description": "Do not send after this time; null: never expires"},
    )


class SendBulk(Strict):
    example = {
        "messages": [
            {"recipientId": "fan-1", "content": "Hello Anna!", "batchId": "may-newsletter"},
            {"recipientId": "fan-2", "content": "Hello Ben!", "batchId": "may-newsletter", "priority": 8},
        ]
    }

    messages = Some(
        fields.Nested(Send),
        required=True,
        validate=validate.Length(1, BULK_MESSAGES),
        metadata={"description": "Messages as in /send; all of them are queued, or none"},
    )

    def handle_error(self, error: ValidationError, data: Any, **_: Any) -> None:
        """Report how many messages were not validated."""
        wrong = error.messages_dict.get("messages")
        if isinstance(wrong, dict) and (rest := len(data["messages"]) - 1 - max(wrong)) and len(wrong) == MOST_WRONG:
            error.messages_dict["more"] = [f"{rest:,} messages after these were not looked at."]


class Narrow(Strict):
    account_id = Text(data_key="accountId", validate=validate.Length(1, 64))


class MessagesQuery(Narrow):
    status = fields.Enum(Status, by_value=True)
    recipient_id = Text(data_key="recipientId", validate=validate.Length(1, 255))
    batch_id = Text(data_key="batchId", validate=validate.Length(1, 255))
    limit = fields.Integer(load_default=50, validate=validate.Range(1, 200))
    cursor = Text(
        validate=Matches(MESSAGE_ID, error="Must be the nextCursor of an earlier answer."),
        metadata={"description": "nextCursor of the page before"},
    )


class FailureFilter(Narrow):
    """Selects open dead letters."""

    reason = fields.Enum(DeadLetterReason, by_value=True)
    recipient_id = Text(data_key="recipientId", validate=validate.Length(1, 255))
    batch_id = Text(data_key="batchId", validate=validate.Length(1, 255))
    words = Words(metadata={"description": "Words of the error, in any order, in upper or lower case: each must occur"})
    since = Time(metadata={"description": "Failed at this time or later"})
    until = Time(metadata={"description": "Failed before this time"})


class FailedQuery(FailureFilter):
    http_status = fields.Integer(data_key="httpStatus", validate=validate.Range(100, 599))
    limit = fields.Integer(load_default=50, validate=validate.Range(1, 200))
    offset = fields.Integer(
        load_default=0,
        validate=validate.Range(0, 1_000_000_000),
        metadata={"description": "Misses failures while others are retried: prefer cursor"},
    )
    cursor = Text(
        validate=Matches(NUMBER_CURSOR, error="Must be the nextCursor of an earlier answer."),
        metadata={"description": "nextCursor of the page before; offset counts from there"},
    )


class AuditQuery(Narrow):
    subject = Text(validate=validate.Length(1, 255))
    action = fields.Enum(Action, by_value=True)
    message_id = Text(data_key="messageId", validate=Matches(MESSAGE_ID, error="Must be a message id."))
    request_id = Text(data_key="requestId", validate=validate.Length(1, 128))
    since = Time(metadata={"description": "At this time or later"})
    until = Time(metadata={"description": "Before this time"})
    limit = fields.Integer(load_default=50, validate=validate.Range(1, 200))
    cursor = Text(
        validate=Matches(NUMBER_CURSOR, error="Must be the nextCursor of an earlier answer."),
        metadata={"description": "nextCursor of the page before"},
    )


class Retry(Strict):
    example = {"expiresAt": "2035-06-02T09:00:00Z"}

    expires_at = Time(
        data_key="expiresAt",
        metadata={"description": "A new expiresAt; needed if the message's own has passed"},
    )


class Redrive(FailureFilter):
    example = {"reason": "retries_exhausted", "dryRun": True}

    http_status = Whole(data_key="httpStatus", validate=validate.Range(100, 599))
    dry_run = Flag(data_key="dryRun", load_default=False, metadata={"description": "Count only"})
    include_unknown = Flag(
        data_key="includeUnknown",
        load_default=False,
        metadata={"description": "Include messages whose outcome is unknown: they may arrive twice"},
    )


class Resolve(Strict):
    example = {"as": "sent"}

    as_ = fields.String(data_key="as", required=True, validate=validate.OneOf(["sent"]))


class Dismiss(Strict):
    example = {"reason": "The recipient has left"}

    reason = Text(
        required=True,
        validate=validate.Length(1, 1000),
        metadata={"description": "Why the message should not be sent; kept in the audit"},
    )


class _Account(Strict):
    """Properties of an account that PUT and PATCH share."""

    limits = LimitsField(
        allow_none=True,
        metadata={
            "description": "1/second,10/minute,1000/day: all apply at once; null for the default. "
            "Accounts that send with the same key must have the same",
            "format": "limits",
            "minLength": 1,
            "maxLength": LIMITS_LENGTH,
        },
    )
    channel = Channel(metadata={"description": "The kind of channel; the platform's own if not given"})
    display_name = Text(data_key="displayName", allow_none=True, validate=validate.Length(1, 255))


class AccountIn(_Account):
    example = {"limits": "1/second,10/minute", "displayName": "Shop", "credentials": {"apiKey": "key-of-the-shop"}}

    credentials = OfKind(
        "credentials", metadata={"description": "Write-only; unchanged if not given", "writeOnly": True}
    )
    settings = OfKind("account_settings", metadata={"description": "None if not given"})


class AccountPatch(_Account):
    """A JSON merge patch (RFC 7396): what is not named stays, null clears."""

    example = {"credentials": {"apiKey": "new-key-of-the-shop"}}

    credentials = OfKind(
        "credentials",
        allow_none=True,
        metadata={"description": "Write-only; null: send with the channel's key from now on", "writeOnly": True},
    )
    settings = OfKind(
        "account_settings",
        patch=True,
        allow_none=True,
        metadata={"description": "By name; null removes all of them"},
    )


class Pause(Strict):
    example = {"reason": "Holidays"}

    reason = Text(required=True, validate=validate.Length(1, 1000))
    until = Time(
        allow_none=True, metadata={"description": "The pause ends by itself at this time; if not given, only by resume"}
    )

    @validates_schema(skip_on_field_errors=True)
    def _ends_later(self, data: dict[str, Any], **_: Any) -> None:
        if data.get("until") and data["until"] <= datetime.now(UTC):
            raise ValidationError("Is in the past; leave it out or choose a later time.", "until")


def check_account_id(account_id: str) -> str:
    if not re.fullmatch(ACCOUNT_ID, account_id):
        words = "Must be 1 to 64 letters, digits and . _ : @ - and begin with a letter or digit."
        raise ValidationError(words, "accountId")
    return account_id


# --- out ------------------------------------------------------------------------------------------------------------

_MESSAGE_ID = fields.String(data_key="messageId", required=True, metadata={"pattern": MESSAGE_ID})


class Receipt(Schema):
    message_id = _MESSAGE_ID
    status = fields.Constant("queued", required=True)
    queued_at = Time(data_key="queuedAt", required=True)
    estimated_at = Time(
        data_key="estimatedSendTime",
        required=True,
        allow_none=True,
        metadata={
            "description": "null if unknown: the account is paused without an end, or the tokens are unavailable. "
            "What may expire or be cancelled before its turn is not foreseen: then others go earlier than told"
        },
    )
    message = fields.Constant("Message queued successfully", required=True)
    account_id = fields.String(data_key="accountId", required=True)
    position = fields.Integer(
        required=True,
        allow_none=True,
        metadata={"description": "Position in the queue, 1 is next; null in a replay once it no longer waits"},
    )
    blocked_by = fields.Enum(BlockedBy, by_value=True, data_key="blockedBy", required=True, allow_none=True)


class Receipts(fields.List):
    """Serialises thousands of receipts without marshmallow, several times as fast. A test compares it to `Receipt`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(fields.Nested(Receipt), **kwargs)

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> list[dict[str, Any]]:
        shown = cache(iso)  # many share their times
        return [
            {
                "messageId": message_id,
                "status": "queued",
                "queuedAt": shown(queued_at),
                "estimatedSendTime": shown(estimated_at),
                "message": "Message queued successfully",
                "accountId": account_id,
                "position": position,
                "blockedBy": blocked_by,
            }
            for message_id, account_id, queued_at, position, estimated_at, blocked_by, _ in value
        ]


class BulkReceipt(Schema):
    receipts = Receipts(data_key="messages", required=True, metadata={"description": "In the order of the request"})
    queued = fields.Function(lambda bulk: len(bulk.receipts), required=True, metadata={"type": "integer"})
    done_at = Time(
        data_key="estimatedCompletionTime",
        required=True,
        allow_none=True,
        metadata={"description": "When the last of them will be sent; null if unknown, and in a replay"},
    )


class AttemptOut(Schema):
    number = fields.Integer(required=True)
    started_at = Time(data_key="time", required=True)
    outcome = fields.String(required=True, allow_none=True, metadata={"description": "null while the request is open"})
    http_status = fields.Integer(data_key="httpStatus", required=True, allow_none=True)
    latency_ms = fields.Integer(data_key="latencyMs", required=True, allow_none=True)
    error = fields.String(required=True, allow_none=True)


class DeferralOut(Schema):
    started_at = Time(data_key="time", required=True)
    deferral = fields.String(data_key="reason", required=True)
    http_status = fields.Integer(data_key="httpStatus", required=True, allow_none=True)
    error = fields.String(required=True, allow_none=True)


class DeadLetterOut(Schema):
    failed_at = Time(data_key="failedAt", required=True)
    reason = fields.String(required=True, validate=validate.OneOf(list(map(str, DeadLetterReason))))
    error = fields.String(required=True, allow_none=True)
    http_status = fields.Integer(data_key="httpStatus", required=True, allow_none=True)
    closed_at = Time(data_key="closedAt", required=True, allow_none=True)
    closed_as = fields.String(data_key="closedAs", required=True, allow_none=True)
    closed_by = fields.String(data_key="closedBy", required=True, allow_none=True)


class MessageOut(Schema):
    id = _MESSAGE_ID
    account_id = fields.String(data_key="accountId", required=True)
    recipient_id = fields.String(data_key="recipientId", required=True)
    content = fields.String(required=True)
    media_ids = fields.List(fields.String(), data_key="mediaIds", required=True)
    priority = fields.Integer(required=True)
    status = fields.Enum(Status, by_value=True, required=True)
    batch_id = fields.String(data_key="batchId", required=True, allow_none=True)
    metadata = fields.Dict(required=True, allow_none=True)
    queued_at = Time(data_key="queuedAt", required=True)
    send_at = Time(data_key="sendAt", required=True, allow_none=True)
    expires_at = Time(data_key="expiresAt", required=True, allow_none=True)
    sent_at = Time(data_key="sentAt", required=True, allow_none=True)
    ended_at = Time(data_key="endedAt", required=True, allow_none=True)
    attempt_count = fields.Integer(data_key="attemptCount", required=True)
    upstream_id = fields.String(data_key="upstreamId", required=True, allow_none=True)


class MessageListed(MessageOut):
    position = fields.Integer(
        required=True,
        allow_none=True,
        metadata={"description": "Position in the queue, 1 is next; null once it no longer waits"},
    )
    estimated_at = Time(data_key="estimatedSendTime", required=True, allow_none=True)
    blocked_by = fields.Enum(BlockedBy, by_value=True, data_key="blockedBy", required=True, allow_none=True)


class MessageWhole(MessageListed):
    attempts = fields.List(fields.Nested(AttemptOut), required=True)
    deferrals = fields.List(fields.Nested(DeferralOut), required=True)
    failures = fields.List(fields.Nested(DeadLetterOut), required=True)


class MessagePage(Schema):
    messages = fields.List(fields.Nested(MessageListed), required=True)
    next_cursor = fields.String(data_key="nextCursor", required=True, allow_none=True)


class FailedMessage(MessageOut):
    reason = fields.String(required=True, validate=validate.OneOf(list(map(str, DeadLetterReason))))
    failure_error = fields.String(data_key="error", required=True, allow_none=True)
    http_status = fields.Integer(data_key="httpStatus", required=True, allow_none=True)
    failed_at = Time(data_key="failedAt", required=True)


class FailedPage(Schema):
    messages = fields.List(fields.Nested(FailedMessage), required=True)
    next_cursor = fields.String(data_key="nextCursor", required=True, allow_none=True)
    total = fields.Integer(required=True)
    limit = fields.Integer(required=True)
    offset = fields.Integer(required=True)


class BatchCounts(Schema):
    queued = fields.Integer(required=True)
    sending = fields.Integer(required=True)
    sent = fields.Integer(required=True)
    failed = fields.Integer(required=True)
    cancelled = fields.Integer(required=True)
    expired = fields.Integer(required=True)


class BatchOut(Schema):
    id = fields.String(data_key="batchId", required=True)
    total = fields.Function(lambda batch: sum(batch.counts.values()), required=True, metadata={"type": "integer"})
    counts = fields.Nested(BatchCounts, required=True)
    done_at = Time(
        data_key="estimatedCompletionTime",
        required=True,
        allow_none=True,
        metadata={"description": "When the last waiting message is sent; null if none waits, or if unknown"},
    )


class BatchCancelled(Schema):
    cancelled = fields.Integer(required=True, metadata={"description": "How many messages were cancelled"})


class Cancelled(Schema):
    message_id = _MESSAGE_ID
    status = fields.Constant("cancelled", required=True)


class Retried(Schema):
    success = fields.Constant(True, required=True)
    message_id = _MESSAGE_ID
    status = fields.Constant("queued", required=True)
    queued_at = Time(data_key="queuedAt", required=True)


class Redriven(Schema):
    matched = fields.Integer(required=True)
    expired = fields.Integer(
        required=True, metadata={"description": "How many of these were left out because their expiresAt has passed"}
    )
    queued = fields.Integer(required=True)
    done_at = Time(
        data_key="estimatedCompletionTime",
        required=True,
        allow_none=True,
        metadata={"description": "When the last of them will be sent; null if unknown"},
    )


class Resolved(Schema):
    message_id = _MESSAGE_ID
    status = fields.Constant("sent", required=True)


class AccountOut(Schema):
    account_id = fields.String(data_key="accountId", required=True)
    channel = fields.String(required=True)
    display_name = fields.String(data_key="displayName", required=True, allow_none=True)
    limits = fields.String(required=True)
    own_limits = fields.Boolean(data_key="ownLimits", required=True)
    has_credentials = fields.Boolean(data_key="hasCredentials", required=True)
    settings = OfKind("account_settings", required=True)
    state = fields.String(required=True, validate=validate.OneOf(["active", "paused", "cooldown"]))
    reason = fields.String(required=True, allow_none=True)
    paused_until = Time(data_key="pausedUntil", required=True, allow_none=True)


class AccountList(Schema):
    accounts = fields.List(fields.Nested(AccountOut), required=True)


class KindOut(Schema):
    name = fields.String(required=True)
    platform = fields.String(required=True)
    settings = fields.Dict(required=True, metadata={"description": "JSON Schema of an account's settings"})
    credentials = fields.Dict(required=True, metadata={"description": "JSON Schema of an account's credentials"})
    capabilities = fields.Dict(required=True, metadata={"description": "What the upstream can do"})


class KindList(Schema):
    channels = fields.List(fields.Nested(KindOut), required=True)


class AuditOut(Schema):
    id = fields.String(required=True)
    at = Time(required=True)
    subject = fields.String(
        required=True, metadata={"description": "`sub` of the token; `paceline` for its own changes"}
    )
    role = fields.String(required=True)
    action = fields.String(required=True, validate=validate.OneOf(list(map(str, Action))))
    account_id = fields.String(data_key="accountId", required=True)
    message_id = fields.String(data_key="messageId", required=True, allow_none=True)
    request_id = fields.String(data_key="requestId", required=True, allow_none=True)
    details = fields.Dict(required=True, allow_none=True)


class AuditPage(Schema):
    entries = fields.List(fields.Nested(AuditOut), required=True)
    next_cursor = fields.String(data_key="nextCursor", required=True, allow_none=True)


class Alive(Schema):
    status = fields.Constant("ok", required=True)
    channel = fields.String(required=True)
    timestamp = Time(required=True)


class Healthy(Schema):
    status = fields.Constant("ok", required=True)


class Ready(Schema):
    status = fields.String(required=True, validate=validate.OneOf(["ready", "not ready"]))
    missing = fields.List(fields.String(), required=True)


class QueueOut(Schema):
    depth = fields.Integer(required=True, metadata={"description": "Waiting messages, including scheduled ones"})
    in_flight = fields.Integer(data_key="inFlight", required=True)
    dlq_count = fields.Integer(data_key="dlqCount", required=True, metadata={"description": "Open dead letters"})
    total = fields.Integer(required=True)


class ProcessingOut(Schema):
    estimated_time_seconds = fields.Float(
        data_key="estimatedTimeSeconds",
        required=True,
        metadata={"description": "Seconds until the last waiting message is sent, including scheduled ones"},
    )
    rate_limit = fields.String(data_key="rateLimit", required=True)
    last_processed_at = Time(data_key="lastProcessedAt", required=True, allow_none=True)


class HealthOut(Schema):
    status = fields.String(required=True, validate=validate.OneOf(["healthy", "degraded", "down"]))
    message = fields.String(required=True)


class AccountStatusOut(Schema):
    account_id = fields.String(data_key="accountId", required=True)
    depth = fields.Integer(required=True)
    tokens_available = fields.Integer(data_key="tokensAvailable", required=True, allow_none=True)
    next_token_at = Time(data_key="nextTokenAt", required=True, allow_none=True)
    state = fields.String(required=True, validate=validate.OneOf(["active", "paused", "cooldown"]))
    reason = fields.String(required=True, allow_none=True)


class StatusOut(Schema):
    queue = fields.Nested(QueueOut, required=True)
    processing = fields.Nested(ProcessingOut, required=True)
    health = fields.Nested(HealthOut, required=True)
    accounts = fields.List(fields.Nested(AccountStatusOut), required=True)
    timestamp = Time(required=True)


class Error(Schema):
    error = fields.String(required=True)
    code = fields.String(required=True)
    details = fields.Dict(required=True)
    request_id = fields.String(data_key="requestId", required=True)
