"""`paceline send --file`: a file of messages, in lists that the API takes whole or not at all.

Nothing is sent before every row has been looked at. Each list goes under an Idempotency-Key made of the run's name and
the list's number, and is repeated until it is answered. So whatever happens, the same command again goes on where the
last one stopped, and queues nothing twice. Keys do not depend on what is in the file: one that was mended meanwhile is
refused where it differs from what has been queued, rather than queued a second time.
"""

import csv
import hashlib
import http.client
import io
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from api.auth import Role, issue_token
from api.schemas import Send

SUBJECT = "paceline-send"
"""Who sends, where no token says so. Always the same: keys are remembered by caller."""
MOST_BYTES = 7 * 1024 * 1024
"""Of one list: the API takes 8 MiB."""
MOST_ERRORS = 20
ANSWER_WITHIN_S = 60.0
GIVE_UP_AFTER_S = 60.0
"""Without any answer."""

_COLUMNS = [field.data_key or name for name, field in Send().fields.items()]


class SendFailed(RuntimeError):
    """Why not everything was queued; for people."""


@dataclass(frozen=True, slots=True)
class Row:
    """A message of the file: the line that it begins on, and its JSON."""

    line: int
    body: bytes


@dataclass(slots=True)
class Sent:
    """What has become of a file so far. again: of those queued, how many had been already, by a run before."""

    queued: int = 0
    again: int = 0
    done_at: str | None = None


@dataclass
class Sender:
    """Sends rows to the API at `url`, as the run of this name. wait: sleeps so many seconds; say: gets a line for
    people now and then."""

    url: str
    token: str
    run: str
    channel: str = "onlyfans"
    wait: Callable[[float], None] = time.sleep
    say: Callable[[str], None] = lambda _: None
    sent: Sent = field(default_factory=Sent)

    def send(self, rows: list[Row], chunk: int, progress: Callable[[int], None] = lambda _: None) -> Sent:
        """Send them all, in lists of at most `chunk`. Raises SendFailed; `sent` says how far it got."""
        for number, rows_of_it in enumerate(chunks(rows, chunk)):
            answer, replayed = self._send_list(number, rows_of_it)
            self.sent.queued += len(rows_of_it)
            self.sent.again += len(rows_of_it) if replayed else 0
            self.sent.done_at = max(filter(None, (self.sent.done_at, answer["estimatedCompletionTime"])), default=None)
            progress(len(rows_of_it))
        return self.sent

    def _send_list(self, number: int, rows: list[Row]) -> tuple[dict[str, Any], bool]:
        """Ask until there is an answer, always under the same key: a list that has been queued already is not again.

        Returns the answer, and whether it was queued by an earlier run.
        """
        request = Request(
            f"{self.url.rstrip('/')}/api/{self.channel}/messaging/send/bulk",
            b'{"messages":[' + b",".join(row.body for row in rows) + b"]}",
            {
                "Authorization": f"Bearer {self.token}",
                "Content-Type": "application/json",
                "Idempotency-Key": self._key(number),
            },
        )
        silent_since_s, silences, perhaps_queued = time.monotonic(), 0, False
        while True:
            try:
                with urlopen(request, timeout=ANSWER_WITHIN_S) as answer:
                    replayed = "Idempotent-Replayed" in answer.headers
                    return json.load(answer), replayed and not perhaps_queued
            except (OSError, http.client.HTTPException, ValueError) as error:
                said = _said(error) if isinstance(error, HTTPError) else None
                if said and said["status"] in (429, 503):  # it is there, and says when
                    silent_since_s, silences = time.monotonic(), 0
                    self.say(f"waiting {said['wait_s']:.0f} s: {said['error']}")
                    self.wait(said["wait_s"])
                    continue
                if said and said["status"] < 500:
                    raise SendFailed(_words(said, rows)) from error
                if time.monotonic() - silent_since_s > GIVE_UP_AFTER_S:
                    raise SendFailed(f"{self.url} does not answer: {error}") from error
                if not silences:
                    self.say(f"no answer ({error}); asking again for up to {GIVE_UP_AFTER_S:.0f} s")
                silences, perhaps_queued = silences + 1, True
                self.wait(random.uniform(0, min(5.0, 0.2 * 2**silences)))  # noqa: S311

    def _key(self, number: int) -> str:
        return f"send-file.{hashlib.sha256(self.run.encode()).hexdigest()[:32]}.{number}"


def read(data: bytes, name: str, **defaults: str | None) -> list[Row]:
    """Every message of a file: NDJSON if it begins with {, else CSV with the API's field names as columns.

    defaults: fields of those that do not have them. Raises SendFailed, with what is wrong in which line.
    """
    try:
        text = data.decode("utf-8-sig")  # spreadsheets begin with a byte order mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SendFailed(f"{name}:{line}: is not UTF-8; save the file as UTF-8") from error
    found = _ndjson(text) if text.lstrip().startswith("{") else _csv(text, name)
    given = {key: value for key, value in defaults.items() if value is not None}
    rows: list[Row] = []
    wrong: list[str] = []
    schema = Send()
    for line, message in found:
        message = given | message if isinstance(message, dict) else message
        errors = _unreadable(message) or schema.validate(message)
        wrong += [f"{name}:{line}: {said}" for said in _errors(errors)]
        if not errors:
            rows.append(Row(line, json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()))
    if wrong:
        raise SendFailed("\n".join(["nothing was sent; put these right first", *_few(wrong)]))
    if not rows:
        raise SendFailed(f"{name}: there is no message in it")
    return rows


def chunks(rows: list[Row], most: int) -> Iterator[list[Row]]:
    """Split into lists of at most `most` messages that the API takes whole."""
    chunk: list[Row] = []
    size = 0
    for row in rows:
        if chunk and (len(chunk) == most or size + len(row.body) > MOST_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += len(row.body) + 1
    if chunk:
        yield chunk


def token_of(data_dir: Path, environ: Mapping[str, str]) -> str | None:
    """A token of one's own, where the secret is at hand; None where it is not."""
    secret, kept = environ.get("JWT_SECRET_KEY"), data_dir / "jwt_secret"
    if not secret and kept.exists():
        secret = kept.read_text().strip()
    if not secret:
        return None
    return issue_token(
        secret,
        subject=SUBJECT,
        role=Role.OPERATOR,
        accounts=["*"],
        ttl=timedelta(days=7),
        audience=environ.get("JWT_AUDIENCE") or None,
        issuer=environ.get("JWT_ISSUER") or None,
    )


def run(sender: Sender, rows: list[Row], chunk: int) -> None:
    """Send with a progress bar on stderr; at the end one line on stdout. Interrupted, say how to go on."""
    console = Console(stderr=True)
    sender.say = partial(console.print, markup=False)
    columns = (BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("", total=len(rows))
            sender.send(rows, chunk, lambda n: bar.advance(task, n))
    finally:
        if sender.sent.queued < len(rows):
            sender.say(
                f"{sender.sent.queued:,} of {len(rows):,} are known to be queued; none is queued twice by another try"
            )
    print(_summary(sender.sent))


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} messages/s" if task.speed else "")


def _summary(sent: Sent) -> str:
    before = f", {sent.again:,} of them by an earlier run" if sent.again else ""
    until = f"; the last of them will go at {sent.done_at}" if sent.done_at else ""
    return f"{sent.queued:,} messages are queued{before}{until}"


# --- the file -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """In place of a message: why there is none, or why one of its fields cannot be read."""

    why: str
    field: str = "_schema"


def _unreadable(message: Any) -> dict[str, list[str]]:
    match message:
        case dict():
            return {}
        case _Unreadable(why, field):
            return {field: [why]}
        case _:
            return {"_schema": ["Must be a JSON object."]}


def _ndjson(text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, _Unreadable(f"Is not JSON: {error}")


def _csv(text: str, name: str) -> Iterator[tuple[int, Any]]:
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns = [column.strip() for column in next(reader, [])]
    unknown = [column for column in columns if column not in _COLUMNS]
    if unknown or len(set(columns)) < len(columns):
        words = f"there is no column {unknown[0]!r}" if unknown else "a column stands there twice"
        raise SendFailed(f"{name}:1: {words}; columns are {', '.join(_COLUMNS)}")
    begins = reader.line_num + 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise SendFailed(f"{name}:{begins}: {error}") from error
        if cells:
            yield begins, _message(columns, cells)
        begins = reader.line_num + 1


def _message(columns: list[str], cells: list[str]) -> Any:
    """A row as JSON would have it. An empty cell is a field left out, but for the content."""
    if len(cells) > len(columns):
        return _Unreadable(f"Has {len(cells)} cells, and there are {len(columns)} columns.")
    message: dict[str, Any] = {}
    for column, cell in zip(columns, cells, strict=False):
        if cell == "" and column != "content":
            continue
        match column:
            case "priority":
                message[column] = int(cell) if cell.strip().isdecimal() else cell
            case "mediaIds" if not cell.lstrip().startswith("["):
                message[column] = [part.strip() for part in cell.split(";")]
            case "mediaIds" | "metadata":
                try:
                    message[column] = json.loads(cell)
                except (ValueError, RecursionError) as error:
                    return _Unreadable(f"Is not JSON: {error}", column)
            case _:
                message[column] = cell
    return message


# --- words ----------------------------------------------------------------------------------------------------------


def _errors(found: Any, path: str = "") -> Iterator[str]:
    """What marshmallow or the API says of one message, a line for each field."""
    match found:
        case dict():
            for key, inner in found.items():
                yield from _errors(inner, path if key == "_schema" else f"{path}{'.' if path else ''}{key}")
        case list():
            yield f"{path}: {' '.join(map(str, found))}" if path else " ".join(map(str, found))


def _few(lines: list[str]) -> list[str]:
    more = len(lines) - MOST_ERRORS
    return lines if more <= 0 else [*lines[:MOST_ERRORS], f"… and {more} more"]


def _words(said: dict[str, Any], rows: list[Row]) -> str:
    """What an answer that is an error means for these rows."""
    where = f"lines {rows[0].line} to {rows[-1].line}"
    if said["code"] == "idempotency_key_reused":
        return (
            f"some of {where} were queued before, in a list that was another then: the file, --account, --batch-id or"
            " --chunk has changed since. Nothing was queued now. Put it back as it was; or send what is new from a"
            " file of its own, or all of it again as a run of its own (--run NAME)"
        )
    wrong = said["details"].get("messages")
    lines = []
    if isinstance(wrong, dict):
        lines = [f"line {rows[int(n)].line}: {words}" for n, what in wrong.items() for words in _errors(what)]
    return "\n".join([f"{where} were refused: {said['error']}", *_few(lines)])


def _said(error: HTTPError) -> dict[str, Any]:
    """The API's words, its status, and how long it asks to wait. Something in between may have other words, or none."""
    try:
        said = json.loads(error.read())
    except (OSError, http.client.HTTPException, ValueError):
        said = None
    after = error.headers.get("Retry-After", "")
    bare = {"error": f"{error.code} {error.reason}", "code": "", "details": {}}
    told = {"status": error.code, "wait_s": float(after) if after.isdecimal() else 2.0}
    return bare | (said if isinstance(said, dict) else {}) | told
