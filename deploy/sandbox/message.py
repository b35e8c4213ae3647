"""What may be sent: one message, as it arrived.

Promises that a `Message` is well formed. Whether it is *accepted* is the ledger's affair.
"""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One request to send. Two are equal if they say the same thing, to the same chat, under the same
    keys."""

    key: str
    """The API key, as given. Shown in the ledger, never logged."""
    chat_id: str
    text: str
    media_ids: tuple[str | int, ...] = ()
    idempotency_key: str | None = None

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """What makes a repeated request the same message: the Idempotency-Key, or else the text."""
        if self.idempotency_key is not None:
            return (self.key, self.chat_id, "key", self.idempotency_key)
        return (self.key, self.chat_id, "text", self.text)


def parse_message(body: bytes, key: str, idempotency_key: str | None) -> Message:
    """The message in a send-message body; ValueError with words for the caller if there is none."""
    fields = parse_object(body)
    chat_id, text, media_ids = fields.get("chat_id"), fields.get("text"), fields.get("media_ids", [])
    if not isinstance(chat_id, str) or not chat_id:
        raise ValueError("chat_id must be a string, and not empty")
    if not isinstance(text, str):
        raise ValueError("text must be a string")
    if not isinstance(media_ids, list) or not all(type(media_id) in (str, int) for media_id in media_ids):
        raise ValueError("media_ids must be a list of ids")
    if not text and not media_ids:
        raise ValueError("text may be empty only with media_ids")
    return Message(key, chat_id, text, tuple(media_ids), idempotency_key)


def parse_object(body: bytes) -> dict[str, object]:
    """The JSON object in a request body; ValueError if it is anything else."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as cause:
        raise ValueError("the body is not JSON") from cause
    if not isinstance(fields, dict):
        raise ValueError("the body must be a JSON object")
    return fields
