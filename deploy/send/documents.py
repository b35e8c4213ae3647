"""NDJSON and JSON arrays as messages. As strict as the API: a name may stand only once in an object."""

import json
import re
from collections.abc import Iterator
from typing import Any

from deploy.send.source import MOST_MESSAGE
from deploy.send.words import Unreadable, shown

_BLANK = re.compile(r"[ \t\r\n]*")
_BREAK = re.compile(r"\r\n|\n|\r")


class _StrictJson:
    """JSON as the API takes it (I-JSON, RFC 7493). What breaks only that is noted while the rest is read on, so that
    the end of the value is known."""

    def __init__(self) -> None:
        self._wrong: str | None = None
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant)

    def decode(self, text: str) -> Any:
        """The value of a text, or Unreadable."""
        self._wrong = None
        try:
            found = self._decoder.decode(text)
        except (ValueError, RecursionError) as error:
            return Unreadable(f"Is not JSON: {error}")
        return Unreadable(self._wrong) if self._wrong else found

    def decode_first(self, text: str, at: int) -> tuple[Any, int]:
        """The value that begins at this place, or Unreadable, and where it ends. Raises ValueError, RecursionError."""
        self._wrong = None
        found, end = self._decoder.raw_decode(text, at)
        return (Unreadable(self._wrong) if self._wrong else found), end

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            self._wrong = f"The name {shown(twice)} stands twice in one object."
        return found

    def _constant(self, constant: str) -> None:
        self._wrong = f"Is not JSON: {constant} is not a value there."


strict = _StrictJson()


def ndjson(lines: Iterator[str]) -> Iterator[tuple[int, Any]]:
    """A JSON object on each line; blank lines are passed over."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, strict.decode(line.rstrip("\r\n"))


def array(pieces: Iterator[str]) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON array, each with the line that it begins on. After broken JSON nothing more is read."""
    reading = _Reading(pieces)
    reading.take()  # the bracket
    sign, number = reading.next_sign(), 0
    while sign != "]" or number:
        line = reading.line
        try:
            value = reading.value()
        except (ValueError, RecursionError) as error:
            yield line, Unreadable(f"Is not JSON: {error}")
            return
        yield line, value
        number += 1
        sign = reading.next_sign()
        if sign == "]":
            break
        if sign != ",":
            yield reading.line, Unreadable("Is not JSON: expected a comma or the end of the list.")
            return
        reading.take()
        reading.next_sign()
    reading.take()
    if reading.next_sign():
        yield reading.line, Unreadable("Is not JSON: something follows the end of the list.")


class _Reading:
    """Where one is in a text that comes in pieces. line: of the next character."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._text, self._at = "", 0
        self.line = 1

    def next_sign(self) -> str:
        """The next character that is not blank, "" at the end."""
        while True:
            blank = _BLANK.match(self._text, self._at)
            self._pass_to(blank.end() if blank else self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self) -> None:
        """Pass over the next character that is not blank."""
        if self.next_sign():
            self._pass_to(self._at + 1)

    def value(self) -> Any:
        """The value that begins here. Raises ValueError or RecursionError if there is none."""
        while True:
            try:
                value, end = strict.decode_first(self._text, self._at)
            except json.JSONDecodeError as error:
                if len(self._text) - self._at > MOST_MESSAGE:
                    raise ValueError(f"no whole value in {MOST_MESSAGE:,} characters ({error.msg})") from None
                if not self._more():
                    raise ValueError(error.msg) from None
                continue
            if end < len(self._text) or not self._more():  # a number may go on in the next piece
                self._pass_to(end)
                return value

    def _pass_to(self, end: int) -> None:
        self.line += len(_BREAK.findall(self._text, self._at, end))
        self._at = end

    def _more(self) -> bool:
        piece = next(self._pieces, "")
        self._text, self._at = self._text[self._at :] + piece, 0
        return bool(piece)
