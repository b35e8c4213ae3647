"""Errors in words for people: a line for each field, and only the first of many."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MOST_ERRORS = 20
LONGEST_NAME = 60
"""Characters of a name from the file that an error shows."""


class SendFailed(RuntimeError):
    """Why not everything was queued; for people."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands in for a message that cannot be read: why, and which field is to blame if one is."""

    why: str
    field: str = "_schema"


def shown(name: str) -> str:
    """A name from the file, quoted, with invisible characters escaped."""
    cut = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…"
    return ascii(cut) if not cut.isprintable() else repr(cut)


def errors(found: Any, path: str = "") -> Iterator[str]:
    """What marshmallow or the API says of one message, a line for each field."""
    match found:
        case dict():
            for key, inner in found.items():
                name = str(key) if len(str(key)) <= LONGEST_NAME else f"{str(key)[:LONGEST_NAME]}…"
                yield from errors(inner, path if key == "_schema" else f"{path}{'.' if path else ''}{name}")
        case list():
            yield f"{path}: {' '.join(map(str, found))}" if path else " ".join(map(str, found))


class Few:
    """Collects lines, keeps the first, and counts the others."""

    def __init__(self) -> None:
        self._first: list[str] = []
        self._more = 0

    def add(self, line: str) -> None:
        if len(self._first) < MOST_ERRORS:
            self._first.append(line)
        else:
            self._more += 1

    def __bool__(self) -> bool:
        return bool(self._first)

    def lines(self) -> list[str]:
        return [*self._first, f"… and {self._more} more"] if self._more else self._first
