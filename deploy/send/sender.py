"""Queues messages in lists that the API takes whole or not at all.

Each list goes under an Idempotency-Key made of the run's name and the list's number, and is repeated until it is
answered. So whatever happens, the same command again goes on where the last one stopped, and queues nothing twice. Keys
do not depend on what is in the file: if the file was changed meanwhile, the lists that differ from what has been queued
are refused, rather than queued a second time.
"""

import hashlib
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from api.auth import Role, issue_token
from deploy.client import Answer, Client, NoAnswer, Refused
from deploy.send.files import Row
from deploy.send.words import Few, SendFailed, errors

SUBJECT = "paceline-send"
"""Who sends, where no token says so. Always the same: keys are remembered by caller."""
MOST_BYTES = 7 * 1024 * 1024
"""Of one list: the API takes 8 MiB."""
ANSWER_WITHIN_S = 60.0


class Rows(Iterable[Row], Sized, Protocol):
    """Messages of a file, in their order."""


@dataclass(slots=True)
class Sent:
    """What has become of a file so far. again: of those queued, how many had been already, by a run before."""

    queued: int = 0
    again: int = 0
    done_at: str | None = None


@dataclass
class Sender:
    """Sends rows to the API at `url`, as the run of this name.

    wait: sleeps so many seconds. say: gets a line for people now and then. give_up_after_s: without any answer.
    """

    url: str
    token: str
    run: str
    channel: str = "onlyfans"
    wait: Callable[[float], None] = time.sleep
    say: Callable[[str], None] = lambda _: None
    give_up_after_s: float = 60.0
    sent: Sent = field(default_factory=Sent)

    def send(self, rows: Rows, chunk: int, progress: Callable[[int], None] = lambda _: None) -> Sent:
        """Send them all, in lists of at most `chunk`. Raises SendFailed; `sent` says how far it got."""
        for number, rows_of_it in enumerate(chunks(rows, chunk)):
            answer, replayed = self._send_list(number, rows_of_it)
            self.sent.queued += len(rows_of_it)
            self.sent.again += len(rows_of_it) if replayed else 0
            times = (self.sent.done_at, answer.get("estimatedCompletionTime"))
            self.sent.done_at = max(filter(None, times), default=None)
            progress(len(rows_of_it))
        return self.sent

    def _send_list(self, number: int, rows: list[Row]) -> tuple[dict[str, Any], bool]:
        """Ask until there is an answer, always under the same key: a list that has been queued already is not again.

        Returns the answer, and whether it was queued by an earlier run.
        """
        body = b'{"messages":[' + b",".join(row.body for row in rows) + b"]}"
        key = {"Idempotency-Key": self._key(number)}
        silent_since_s, silences, perhaps_queued = time.monotonic(), 0, False
        told = ""
        while True:
            try:
                answer = self._api.ask("POST", "/send/bulk", body, key)
                if answer.ok:
                    replayed = "Idempotent-Replayed" in answer.headers
                    return self._receipts(answer.body), replayed and not perhaps_queued
                said = _said(answer)
                if answer.status in (429, 503):  # it is there, and says when
                    silent_since_s, silences = time.monotonic(), 0
                    self._stop_at_a_paused_account(said, rows)
                    words = f"waiting {said['wait_s']:.0f} s: {said['error']}"
                    if words != told:
                        self.say(words)
                    told = words
                    self.wait(said["wait_s"])
                    continue
                if answer.status < 500:
                    raise SendFailed(_words(said, rows))
                why = f"HTTP Error {answer.status}: {answer.reason}"
            except NoAnswer as error:
                why = str(error.__cause__)
            if time.monotonic() - silent_since_s > self.give_up_after_s:
                raise SendFailed(f"{self.url} does not answer: {why}")
            if not silences:
                self.say(f"no answer ({why}); asking again for up to {self.give_up_after_s:.0f} s")
            silences, perhaps_queued = silences + 1, True
            self.wait(random.uniform(0, min(5.0, 0.2 * 2**silences)))  # noqa: S311

    def _stop_at_a_paused_account(self, said: dict[str, Any], rows: list[Row]) -> None:
        """Raises SendFailed if the queue is full and its account is paused without an end: nobody can say how long to
        wait. The answer's words name the account."""
        if said["code"] != "queue_full":
            return
        try:
            accounts = self._api.must("GET", "/accounts")["accounts"]
        except (NoAnswer, Refused, KeyError):
            return
        for account in accounts:
            named = account["accountId"] in re.findall(r"[\w.:@-]+", said["error"])
            if named and account["state"] == "paused" and not account["pausedUntil"]:
                raise SendFailed(
                    f"lines {rows[0].line} to {rows[-1].line} do not fit: {said['error']}. "
                    "After that run the same command again"
                )

    @cached_property
    def _api(self) -> Client:
        url = f"{self.url.rstrip('/')}/api/{self.channel}/messaging"
        return Client(url, self.token, timeout_s=ANSWER_WITHIN_S)

    def _receipts(self, answer: Any) -> dict[str, Any]:
        if not isinstance(answer, dict) or "queued" not in answer:
            raise SendFailed(f"{self.url} does not answer as Paceline does; is that its address?")
        return answer

    def _key(self, number: int) -> str:
        return f"send-file.{hashlib.sha256(self.run.encode()).hexdigest()[:32]}.{number}"


def chunks(rows: Iterable[Row], most: int, most_bytes: int = MOST_BYTES) -> Iterator[list[Row]]:
    """Split into lists of at most `most` messages that the API takes whole."""
    chunk: list[Row] = []
    size = 0
    for row in rows:
        if chunk and (len(chunk) == most or size + len(row.body) > most_bytes):
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


def run(sender: Sender, rows: Rows, chunk: int) -> None:
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


def _words(said: dict[str, Any], rows: list[Row]) -> str:
    """What an answer that is an error means for these rows."""
    where = f"lines {rows[0].line} to {rows[-1].line}"
    if said["code"] == "idempotency_key_reused":
        return (
            f"some of {where} were queued before, in a list that was another then: the file, --account, --batch-id,"
            " --time-zone or --chunk has changed since. Nothing was queued now. Put it back as it was; or send what is"
            " new from a file of its own, or all of it again as a run of its own (--run NAME)"
        )
    if said["location"]:
        return f"{where} were not sent: the API's address redirects to {said['location']}; give that as --url"
    wrong = said["details"].get("messages")
    few = Few()
    if isinstance(wrong, dict):
        for n, what in wrong.items():
            for words in errors(what):
                few.add(f"line {rows[int(n)].line}: {words}")
    return "\n".join([f"{where} were refused: {said['error']}", *few.lines()])


def _said(answer: Answer) -> dict[str, Any]:
    """The API's words, and how long it asks to wait. A proxy in between may have other words, or none."""
    said = answer.body
    after = answer.headers.get("Retry-After", "")
    told = {
        "wait_s": float(after) if after.isdecimal() else 2.0,
        "location": answer.headers.get("Location") if 300 <= answer.status < 400 else None,
    }
    ours = isinstance(said, dict) and isinstance(said.get("error"), str) and isinstance(said.get("details"), dict)
    bare = {"error": f"{answer.status} {answer.reason}", "code": "", "details": {}}
    return (bare | said if ours else bare) | told
