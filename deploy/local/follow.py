"""A line on the terminal for every message that moves, read from the logs that the services write.

Logs have no words of an upstream, since these may quote a message. The terminal is the owner's: what went wrong is
asked of PostgreSQL and shown there.
"""

import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Self

LOOK_S = 0.2
MOST_LINES = 40
"""At a look; of more, only how many they were."""
_MOST_WORDS = 200
_PASSED_OVER = {"message_sending", "not_ready", "tokens_rebuilt"}
_OURS = re.compile(r"[a-z_]+")
"""Names of our own events; libraries write sentences."""
_ASKED_ABOUT = {"message_failed", "message_deferred", "message_retry_scheduled", "message_verifying"}
_NAMES = {"message_retry_scheduled": "retry", "message_looked_up": "looked up"}
_DETAILS = ("reason", "outcome", "evidence", "state", "by")
_OF_EVERY_LINE = {"event", "level", "logger", "timestamp", "request_id", "trace_id", "message_id", "account_id"}

Words = Callable[[str], str | None]
"""Of a message: what its upstream, or the network, said last."""


class Follower:
    """Reads what is added to `*.log` in a directory since it was made, and says the lines. A context manager."""

    def __init__(self, logs: Path, say: Callable[[str], None], words: Words = lambda _: None) -> None:
        self.words = words
        self._logs, self._say = logs, say
        self._at = {path: path.stat().st_size for path in logs.glob("*.log")}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._over.wait(LOOK_S):
            self.look()
        self.look()

    def look(self) -> None:
        """Say what has been written since the last look."""
        events = [event for path in sorted(self._logs.glob("*.log")) for event in self._added(path)]
        events = sorted(filter(_is_shown, events), key=lambda event: str(event.get("timestamp", "")))
        for event in events[:MOST_LINES]:
            asked = event["event"] in _ASKED_ABOUT and event.get("message_id")
            self._say(line(event, self.words(str(asked)) if asked else None))
        if more := Counter(_name(event) for event in events[MOST_LINES:]):
            self._say(f"… and {more.total():,} more: {', '.join(f'{n:,} {name}' for name, n in more.items())}")

    def _added(self, path: Path) -> list[dict[str, Any]]:
        """Whole lines since the last look that are JSON objects."""
        with path.open("rb") as file:
            file.seek(self._at.get(path, 0))
            found = []
            for raw in file:
                if not raw.endswith(b"\n"):
                    break
                self._at[path] = self._at.get(path, 0) + len(raw)
                if raw.startswith(b"{") and isinstance(event := _read(raw), dict) and "event" in event:
                    found.append(event | {"service": path.stem})
            return found


def line(event: dict[str, Any], words: str | None = None) -> str:
    """An event as people read it. Example: `09:12:01  failed      msg_…  shop  rejected, HTTP 400: Not wanted`"""
    about = [str(event[name]) for name in ("message_id", "account_id") if event.get(name)]
    if event["event"] == "messages_accepted":
        about = [f"{event.get('count')} messages, {event.get('first_id')} to {event.get('last_id')}"]
    if not event["event"].startswith("message"):
        about = [str(event["service"]), *about]
    return _plain("  ".join([_clock(event), f"{_name(event):<9}", *about, *_said(event, words)]))


def _said(event: dict[str, Any], words: str | None) -> list[str]:
    """The details of an event that say something to people, as one piece of text."""
    said = [str(event[name]) for name in _DETAILS if event.get(name)]
    if event.get("http_status"):
        said.append(f"HTTP {event['http_status']}")
    if event["event"] == "message_sent":
        said = [f"in {event.get('latency_ms')} ms"]
    if event.get("delay_s"):
        said.append(f"again in {event['delay_s']:.1f} s")
    if event.get("cooldown_s"):
        said.append(f"closed for {event['cooldown_s']:.1f} s")
    if not event["event"].startswith("message"):
        told = _OF_EVERY_LINE | {"service", "error", "http_status", "delay_s", "cooldown_s", *_DETAILS}
        said += [f"{name}={value}" for name, value in event.items() if name not in told and value is not None]
    words = words or event.get("error")
    text = ", ".join(dict.fromkeys(said))
    return [f"{text}: {str(words)[:_MOST_WORDS]}" if words and text else str(words)[:_MOST_WORDS] if words else text]


def _is_shown(event: dict[str, Any]) -> bool:
    """Every move of a message or an account, and whatever else of ours is a warning or worse."""
    name = str(event["event"])
    if name in _PASSED_OVER or not _OURS.fullmatch(name):
        return False
    return name.startswith(("message", "account_", "batch_")) or event.get("level") in ("warning", "error", "critical")


def _name(event: dict[str, Any]) -> str:
    name = str(event["event"])
    short = name.removeprefix("message_").removeprefix("messages_").replace("_", " ")
    return _NAMES.get(name, short)


def _clock(event: dict[str, Any]) -> str:
    try:
        return datetime.fromisoformat(str(event["timestamp"])).astimezone().strftime("%H:%M:%S")
    except (KeyError, ValueError):
        return "--:--:--"


def _read(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return None


def _plain(text: str) -> str:
    """Without characters that would move the cursor."""
    return "".join(character if character.isprintable() else " " for character in text).rstrip()
