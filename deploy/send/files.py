"""`read`: every message of a file, checked as the API would and beyond, or every error with its line."""

import itertools
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any
from zoneinfo import ZoneInfo

from api.schemas import Send
from deploy.send import documents, table
from deploy.send.fields import TIMES, of_spreadsheets, placed
from deploy.send.source import lines, pieces
from deploy.send.words import Few, SendFailed, Unreadable, errors

_IN_MEMORY = 1024 * 1024
_SCHEMA = Send()


@dataclass(frozen=True, slots=True)
class Row:
    """A message of the file: the line that it begins on, and its JSON."""

    line: int
    body: bytes


class Messages:
    """The messages of a file, in their order. They wait in a temporary file, so that memory stays small."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 it lives as long as this object
        self._count = 0

    def add(self, row: Row) -> None:
        self._file.write(b"%d %s\n" % (row.line, row.body))  # JSON has no line breaks of its own
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Row]:
        self._file.seek(0)
        for kept in self._file:
            line, _, body = kept.rstrip(b"\n").partition(b" ")
            yield Row(int(line), body)


def read(file: IO[bytes], name: str, *, time_zone: ZoneInfo | None = None, **defaults: str | None) -> Messages:
    """Every message of a file: NDJSON if it begins with {, a JSON array if with [, else CSV with the API's names.

    time_zone: of times without an offset. defaults: fields of messages that do not have them. Raises SendFailed with
    what is wrong in which line.
    """
    given = {key: value for key, value in defaults.items() if value is not None}
    messages, wrong = Messages(), Few()
    for line, found in _found(file, name):
        message = given | found if isinstance(found, dict) else found
        if said := _wrong(message, time_zone):
            for words in errors(said):
                wrong.add(f"{name}:{line}: {words}")
        else:
            messages.add(Row(line, json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()))
    if wrong:
        raise SendFailed("\n".join(["nothing was sent; put these right first", *wrong.lines()]))
    if not len(messages):
        raise SendFailed(f"{name}: there is no message in it")
    return messages


def _found(file: IO[bytes], name: str) -> Iterator[tuple[int, Any]]:
    text = pieces(file, name)
    beginning = next(text, "")
    text = itertools.chain([beginning], text)
    match beginning.lstrip()[:1]:
        case "{":
            return documents.ndjson(lines(text, name))
        case "[":
            return documents.array(text)
        case _:
            return table.messages(lines(text, name), name)


def _wrong(message: Any, zone: ZoneInfo | None) -> dict[str, Any]:
    """What is wrong with it, by field. Puts its times into the time zone."""
    if isinstance(message, Unreadable):
        return {message.field: [message.why]}
    if not isinstance(message, dict):
        return {"_schema": ["Must be a JSON object."]}
    said: dict[str, Any] = {name: [words] for name, words in of_spreadsheets(message)}
    for name in TIMES:
        if isinstance(text := message.get(name), str):
            try:
                message[name] = placed(text, zone)
            except ValueError as error:
                said[name] = [str(error)]
    return _SCHEMA.validate(message) | said
