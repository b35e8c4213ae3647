"""For schemathesis: what makes sense where JSON Schema has no words for it. Without this, a request that is valid by
the schema and refused for one of these reasons would be taken for a failure of the API.
"""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import schemathesis
from hypothesis import strategies as st

PERIODS = ["second", "minute", "hour", "day", "7s", "1500ms"]
LIMITS = st.lists(st.sampled_from(PERIODS), min_size=1, max_size=3, unique=True).flatmap(
    lambda periods: st.tuples(*[st.integers(1, 100_000).map(f"{{}}/{period}".format) for period in periods])
)

schemathesis.openapi.format("limits", LIMITS.map(",".join))


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    """`until`, `sendAt` and `expiresAt` are in the future, `expiresAt` is after `sendAt`, and metadata is at most 4 KiB
    of JSON without NUL."""
    body = case.body if isinstance(case.body, dict) else {}
    if case.method == "PATCH" and body.get("content") == "":
        body["content"] = "x"  # it may be empty only beside media, of which a patch says nothing
    messages = body.get("messages")
    for part in [body, *(messages if isinstance(messages, list) else [])]:
        if isinstance(part, dict):
            if (send_at := _moment(part.get("sendAt"))) and send_at < datetime.now(UTC):
                part["sendAt"] = "8000-01-01T00:00:00Z"
            soonest = max(_moment(part.get("sendAt")) or datetime.now(UTC), datetime.now(UTC)) + timedelta(hours=1)
            ends = {name: _moment(part.get(name)) for name in ("until", "expiresAt")}
            part.update({name: "9000-01-01T00:00:00Z" for name, end in ends.items() if end and end < soonest})
            if isinstance(part.get("metadata"), dict):
                part["metadata"] = _storable(part["metadata"])


def _storable(metadata: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(metadata).replace("\\u0000", "0")
    return json.loads(text) if len(text) < 4000 else {}


def _moment(text: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
