"""The callers: they post what is planned, repeat under the same Idempotency-Key until there is a 202, and cancel some.
And the fans, who write into the same chats upstream.

What the callers have been told is what Paceline is held to.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from deploy.client import NoAnswer
from deploy.faults.caller import PAUSE_S, Caller
from deploy.faults.mail import Mail, Said, api_key

CALLERS = 4
RUSH = 12
"""Messages that each caller posts at once when told to hurry."""


@dataclass(frozen=True, slots=True)
class Posted:
    """A message that got its 202. began_s: when it was first posted (Unix time), from which its times count.
    told_cancelled: a DELETE of it was answered 200."""

    mail: Mail
    message_id: str
    began_s: float
    told_cancelled: bool = False


class Load:
    """Posts from threads of its own, each caller in charge of some accounts: within an account one after the other, so
    that the order of acceptance is known."""

    def __init__(self, api: Caller, upstream: Caller, mails: list[Mail], said: list[Said], until_s: float) -> None:
        self._api = api
        self._upstream = upstream
        self._mails = mails
        self._said = said
        self._until_s = until_s
        self._lock = threading.Lock()
        self._hurried = threading.Condition()
        self._rushes = 0
        self._posted: dict[str, Posted] = {}
        self._refused: list[tuple[Mail, str]] = []
        self._repeated = 0
        self._callers = ThreadPoolExecutor(CALLERS, thread_name_prefix="caller")
        self._cancellers = ThreadPoolExecutor(1, thread_name_prefix="canceller")
        self._fans = ThreadPoolExecutor(1, thread_name_prefix="fans")

    def start(self) -> None:
        began_s = time.monotonic()
        accounts = sorted({mail.account for mail in self._mails})
        shares = [set(accounts[n::CALLERS]) for n in range(CALLERS)]
        self._futures = [
            self._callers.submit(self._post_all, [m for m in self._mails if m.account in share], began_s)
            for share in shares
        ]
        self._futures.append(self._cancellers.submit(self._cancel_all))
        self._futures.append(self._fans.submit(self._say_all, began_s))

    def stop(self) -> None:
        """Give up what has not been accepted yet."""
        self._until_s = 0.0
        with self._hurried:
            self._hurried.notify_all()
        self._callers.shutdown(cancel_futures=True)
        self._cancellers.shutdown(cancel_futures=True)
        self._fans.shutdown(cancel_futures=True)

    def hurry(self) -> None:
        """Post the next few now: something is about to happen to whoever accepts them."""
        with self._hurried:
            self._rushes += 1
            self._hurried.notify_all()

    @property
    def over(self) -> bool:
        """Whether every message has been posted, every cancellation asked for, and all that fans write written. Raises
        what went wrong with that."""
        return all(future.done() and future.result() is None for future in self._futures)

    @property
    def posted(self) -> list[Posted]:
        """What got a 202, each account's in the order of acceptance."""
        with self._lock:
            return list(self._posted.values())

    @property
    def refused(self) -> list[tuple[Mail, str]]:
        """What never got one, and the last word about it."""
        with self._lock:
            return list(self._refused)

    @property
    def repeated(self) -> int:
        """How many posts were repeats."""
        return self._repeated

    def _post_all(self, mails: list[Mail], began_s: float) -> None:
        rushes = at_once = 0
        for mail in mails:
            if time.monotonic() > self._until_s:
                break
            wait_s = 0.0 if at_once else max(0.0, began_s + mail.at_s - time.monotonic())
            with self._hurried:
                self._hurried.wait_for(lambda: self._rushes > rushes or not self._until_s, wait_s)  # noqa: B023
                if self._rushes > rushes:
                    rushes, at_once = self._rushes, RUSH
            self._post(mail)
            at_once = max(0, at_once - 1)

    def _post(self, mail: Mail) -> None:
        began = datetime.now(UTC)
        body = _body(mail, began)  # made once: a repeat must say the same
        words = ""
        while time.monotonic() < self._until_s:
            try:
                answer = self._api.ask("POST", "/send", body, {"Idempotency-Key": mail.key})
                if answer.status == 202:
                    with self._lock:
                        self._posted[mail.key] = Posted(mail, answer.body["messageId"], began.timestamp())
                    return
                words = str(answer)
                if 400 <= answer.status < 500 and answer.status != 429:
                    break
            except NoAnswer as error:
                words = str(error)
            self._repeated += 1
            time.sleep(PAUSE_S)
        with self._lock:
            self._refused.append((mail, words))

    def _say_all(self, began_s: float) -> None:
        for said in self._said:
            with self._hurried:
                wait_s = max(0.0, began_s + said.at_s - time.monotonic())
                self._hurried.wait_for(lambda: not self._until_s, wait_s)
            if time.monotonic() > self._until_s:
                return
            path = f"/_sandbox/chats/{quote(said.recipient, safe='')}/messages"
            self._upstream.until_answered("POST", path, {"key": api_key(said.account), "text": said.text})

    def _cancel_all(self) -> None:
        due: dict[str, float] = {}
        settled: set[str] = set()
        while time.monotonic() < self._until_s:
            no_more = all(caller.done() for caller in self._futures[:CALLERS])
            for posted in self.posted:
                if posted.mail.cancel_after_s is not None:
                    due.setdefault(posted.mail.key, time.monotonic() + posted.mail.cancel_after_s)
            for key in due.keys() - settled:
                if due[key] <= time.monotonic() and self._cancel(self._posted[key]):
                    settled.add(key)
            if no_more and settled == due.keys():
                return
            time.sleep(PAUSE_S)

    def _cancel(self, posted: Posted) -> bool:
        """Whether that is settled. After a repeat, a 409 may also mean that the first was heeded: nothing was told."""
        try:
            status = self._api.ask("DELETE", f"/messages/{posted.message_id}").status
        except NoAnswer:
            return False
        if status == 200:
            with self._lock:
                self._posted[posted.mail.key] = replace(posted, told_cancelled=True)
        return status in (200, 404, 409)


def _body(mail: Mail, now: datetime) -> dict[str, Any]:
    body: dict[str, Any] = {
        "accountId": mail.account,
        "recipientId": mail.recipient,
        "content": mail.text,
        "priority": mail.priority,
    }
    if mail.send_in_s is not None:
        body["sendAt"] = (now + timedelta(seconds=mail.send_in_s)).isoformat()
    if mail.expires_in_s is not None:
        body["expiresAt"] = (now + timedelta(seconds=mail.expires_in_s)).isoformat()
    return body
