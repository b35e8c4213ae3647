"""Values as JSON, quickly: a list of ten thousand messages is written out twice, to PostgreSQL and to its caller."""

import json
from datetime import datetime
from typing import Any

import orjson


def as_json(value: Any) -> bytes:
    """UTF-8. orjson knows neither whole numbers beyond 64 bits nor half a surrogate pair, which JSON may hold: what it
    refuses is written the slow way."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, default=datetime.isoformat).encode()
