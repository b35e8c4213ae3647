"""The `onlyfans` channel: contract §2, row by row."""

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from marshmallow import validate

from workers.channels.base import Kind, Sender
from workers.channels.fields import HEADER_TEXT, HEADER_WORDS, Flag, Matches, Strict, Text
from workers.channels.http import reach
from workers.channels.http.exchange import Answer, Exchange, NoAnswer, NotSent, TooLate
from workers.channels.http.retry_after import http_date, retry_after_s
from workers.channels.http.transport import Transport
from workers.channels.http.upstream import Network, Upstream
from workers.clock import monotonic_s
from workers.domain.lookup import Author, Entry, History
from workers.domain.message import Claim
from workers.domain.outcome import Blame, Capabilities, Outcome, OutcomeKind
from workers.domain.remarks import Remark
from workers.environment import flag, header, url, variable

OUT_OF_CREDIT_S = 300.0
"""After a 402 one message asks again this often whether there is credit."""
_PAGE = 20
_PAGES = 100
_MAX_PAGE = 16 * 1024 * 1024
"""Bytes of a page of history: room for 20 messages of the longest text there is, all of it escaped."""
_SKEW_S = 3.0
"""Tolerance between the upstream's Date header (whole seconds) and its created_at, on top of the request's way."""
_QUOTED = 4
"""Characters from which on a piece of the upstream's words is taken for a quotation."""
_CONTROL = re.compile(r"[\x00-\x20\x7f]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlyFansSettings:
    """What the environment says of it."""

    base_url: str = variable(
        "ONLYFANS_BASE_URL", url("http", "https", example="https://api.example.com"), "http://127.0.0.1:9000"
    )
    """Where the `onlyfans` channel sends."""
    api_key: str = variable("ONLYFANS_API_KEY", header, "")
    """For accounts without a key of their own."""
    idempotent: bool = variable("ONLYFANS_IDEMPOTENT", flag, "0")
    """1: the upstream honours Idempotency-Key, so an unknown outcome may be sent again."""


class Credentials(Strict):
    api_key = Text(
        data_key="apiKey",
        required=True,
        validate=[validate.Length(1, 1000), Matches(HEADER_TEXT, error=f"{HEADER_WORDS} ({HEADER_TEXT}).")],
        metadata={"examples": ["key-of-the-shop"]},
    )


class AccountSettings(Strict):
    trust5xx = Flag(
        metadata={
            "description": "true: a 5xx of the upstream means that the message was not sent, and may be retried",
            "examples": [False],
        },
    )


class OnlyFans:
    """`send` belongs to one event loop; everything else is thread-safe."""

    name = "onlyfans"

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str = "",
        idempotent: bool = False,
        connections: int = 64,
        network: Network | None = None,
        exchange: Callable[..., Exchange] = Transport,
    ) -> None:
        """exchange: makes the requests to an upstream; called with that and `connections`, how many to keep alive."""
        self.capabilities = Capabilities(idempotent=idempotent, history=True)
        self._api_key = api_key
        self._upstream = Upstream.at(base_url, network)
        self._exchange = exchange
        self._transport = exchange(self._upstream, connections=connections)
        self._names: dict[str, str] = {}

    async def send(self, claim: Claim, sender: Sender, *, start_by_s: float, timeout_s: float) -> Outcome:
        body = {"chat_id": claim.recipient_id, "text": claim.content, "media_ids": list(claim.media_ids)}
        started = monotonic_s()
        try:
            answer = await self._transport.request(
                "POST",
                "/chats/send-message",
                headers=self._headers(sender) | {"Idempotency-Key": claim.key},
                body=json.dumps(body).encode(),
                start_by_s=start_by_s,
                timeout_s=timeout_s,
            )
        except TooLate as error:
            words, latency_s = _plain(error), monotonic_s() - started
            return Outcome(OutcomeKind.FAILED, left=False, interrupted=True, error=words, latency_s=latency_s)
        except NotSent as error:
            words, latency_s = _plain(error), monotonic_s() - started
            return Outcome(OutcomeKind.UNAVAILABLE, Blame.UPSTREAM, left=False, error=words, latency_s=latency_s)
        except NoAnswer as error:
            words, latency_s = _plain(error), monotonic_s() - started
            return Outcome(OutcomeKind.UNKNOWN, Blame.UPSTREAM, error=words, latency_s=latency_s)
        latency_s = monotonic_s() - started
        try:
            judged = outcome_of(
                answer,
                idempotent=self.capabilities.idempotent,
                trust_5xx=bool(sender.settings.get("trust5xx")),
            )
            hidden = (claim.content, self._key(sender))
            return replace(judged, error=judged.error and _without(judged.error, *hidden), latency_s=latency_s)
        except Exception as error:  # whatever it was that the upstream thought of, the request has left
            words = f"unreadable answer: {type(error).__name__}"
            return _unknown(answer, words, latency_s=latency_s)

    def history(self, chat_id: str, sender: Sender, *, since_s: float, timeout_s: float) -> History:
        # On a loop of its own: to read a page of long messages takes time, and sends must not wait for it.
        loop, transport = asyncio.new_event_loop(), self._exchange(self._upstream, connections=1)
        reading = _Reading(transport, self._headers(sender), chat_id, since_s, monotonic_s() + timeout_s)
        try:
            loop.run_until_complete(self._read(reading, sender))
            return reading.history()
        except NotSent as error:
            return reading.history(_plain(error), away=True)
        except NoAnswer as error:
            return reading.history(_plain(error))
        except _Unusable as error:
            return reading.history(str(error), away=isinstance(error, _Away))
        except Exception as error:  # only its kind: its words may quote other people's messages
            return reading.history(f"unreadable history: {type(error).__name__}")
        finally:
            transport.close()
            loop.close()

    async def _read(self, reading: "_Reading", sender: Sender) -> None:
        await reading.read()
        if any(author is not None for author in reading.authors):
            reading.me = await self._name(reading, sender)

    async def _name(self, reading: "_Reading", sender: Sender) -> str:
        """What the upstream calls the owner of a key. Remembered: it does not change."""
        key = self._key(sender)
        if key not in self._names:
            found = await reading.ask("/me")
            if found is None or found.get("id") is None:
                raise _Unusable("GET /me does not say who the key belongs to")
            self._names[key] = _plain(found["id"])
        return self._names[key]

    def close(self) -> None:
        self._transport.close()

    def _key(self, sender: Sender) -> str:
        key: str = sender.credentials.get("apiKey") or self._api_key
        return key

    def _headers(self, sender: Sender) -> dict[str, str]:
        return {"Content-Type": "application/json"} | _headers(self._key(sender))


class _Unusable(Exception):
    """The history cannot prove anything; the words say why."""


class _Away(_Unusable):
    """The upstream serves nobody just now, or asks to be left alone for a while, or refuses the key."""


class _Reading:
    """One reading of a chat's history, page by page, newest first, until the entries are too old."""

    def __init__(
        self, transport: Exchange, headers: dict[str, str], chat_id: str, since_s: float, deadline_s: float
    ) -> None:
        self._transport, self._headers = transport, headers
        self._chat_id, self._since_s, self._deadline_s = chat_id, since_s, deadline_s
        self._began_s = monotonic_s()
        self._entries: list[Entry] = []
        self.authors: list[str | None] = []
        self.me: str | None = None

    async def read(self) -> None:
        """Raises whatever reading a page of history may raise."""
        if self._chat_id in (".", ".."):  # however it is written, a path with it leads to another resource
            raise _Unusable("no path can name this chat")
        next_id: str | None = None
        for _ in range(_PAGES):
            query = urlencode({"limit": _PAGE} | ({"next_id": next_id} if next_id else {}))
            page = await self.ask(f"/chats/{quote(self._chat_id, safe='')}/messages?{query}")
            entries = page.get("messages") if page else None
            if page is None or not isinstance(entries, list):
                raise _Unusable("HTTP 200: not a page of messages")
            if self._take(entries):
                return
            next_id = page.get("next_id")
            if not entries or not next_id:
                return
        raise _Unusable(f"not found in {_PAGES * _PAGE} messages, and there are more")

    async def ask(self, path: str) -> dict[str, Any] | None:
        """The JSON object there."""
        left_s = self._deadline_s - monotonic_s()
        if left_s <= 0:
            raise _Unusable("the lookup took too long")
        answer = await self._transport.request(
            "GET", path, headers=self._headers, timeout_s=left_s, max_answer=_MAX_PAGE
        )
        if answer.status != 200:
            words = f"HTTP {answer.status}: {_words(answer)}"
            raise _Away(words) if _serves_nobody(outcome_of(answer)) else _Unusable(words)
        self._now = http_date(answer.headers.get("Date", "").strip())
        return _json_object(answer.body)

    def _take(self, entries: list[Any]) -> bool:
        """Keep those that are young enough. Returns whether there was an older one: then the history is complete."""
        if self._now is None:
            raise _Unusable("the upstream does not say what time it is (no Date), so its entries have no age")
        oldest_s = self._since_s + (monotonic_s() - self._began_s) + _SKEW_S
        for entry in entries:
            created = datetime.fromisoformat(entry["created_at"])
            created = created if created.tzinfo else created.replace(tzinfo=UTC)
            if (self._now - created).total_seconds() > oldest_s:
                return True
            self._entries.append(_entry(entry))
            self.authors.append(_author(entry))
        return False

    def history(self, error: str | None = None, *, away: bool = False) -> History:
        pairs = zip(self._entries, self.authors, strict=True)
        return History(tuple(replace(entry, author=self._role(author)) for entry, author in pairs), error, away)

    def _role(self, author: str | None) -> Author:
        if author is None:
            return Author.UNKNOWN
        if author == self.me:
            return Author.ACCOUNT
        # Before it is known who we are, only the recipient's own entries are certain.
        return Author.RECIPIENT if self.me is not None or author == self._chat_id else Author.UNKNOWN


def _entry(entry: Mapping[str, Any]) -> Entry:
    media = entry.get("media_ids")
    return Entry(
        id=_plain(entry["id"]),
        text=str(entry.get("text") or ""),
        media_ids=None if media is None else tuple(str(media_id) for media_id in media),
    )


def _author(entry: Mapping[str, Any]) -> str | None:
    """The id of whoever wrote an entry, where the platform gives it: `from_user` or `fromUser`, an object or an id."""
    author = entry.get("from_user", entry.get("fromUser"))
    if isinstance(author, Mapping):
        author = author.get("id")
    return None if author is None else _plain(author)


def outcome_of(answer: Answer, *, idempotent: bool = False, trust_5xx: bool = False) -> Outcome:
    """The contract's table of answers (§2).

    idempotent: the upstream honours Idempotency-Key. trust_5xx: its 5xx mean that it did not deliver the message.
    """
    status = answer.status
    if 200 <= status < 300:
        found = _json_object(answer.body) or {}
        upstream_id = "" if found.get("id") is None else _plain(found["id"])
        if upstream_id:
            return Outcome(OutcomeKind.ACCEPTED, upstream_id=upstream_id, http_status=status)
        return _unknown(answer, "success without a message id")
    words, wait_s = _words(answer), retry_after_s(answer.headers)

    def judged(kind: OutcomeKind, blame: Blame | None, **more: Any) -> Outcome:
        return Outcome(kind, blame, http_status=status, error=words, **more)

    match status:
        case 429:
            return judged(OutcomeKind.THROTTLED, None, retry_after_s=wait_s)
        case 503 if wait_s is not None:
            return judged(OutcomeKind.UNAVAILABLE, Blame.UPSTREAM, retry_after_s=wait_s)
        case 307 | 308:  # the request is to be made elsewhere: a matter of configuration, and nothing was done here
            return judged(OutcomeKind.UNAVAILABLE, Blame.UPSTREAM)
        case 401:
            return judged(OutcomeKind.REJECTED, Blame.CREDENTIAL)
        case 402:
            return judged(OutcomeKind.REJECTED, Blame.CREDENTIAL, probe_after_s=OUT_OF_CREDIT_S)
        case 403:
            return judged(OutcomeKind.REJECTED, None)
        case 404 | 410:  # of the chat, if the platform itself says so; else perhaps of a wrong base URL
            return judged(OutcomeKind.REJECTED, Blame.RECIPIENT if _json_object(answer.body) else None)
        case 409 if idempotent:
            return judged(OutcomeKind.IN_PROGRESS, None, retry_after_s=wait_s)
        case 408 | 425:
            return _unknown(answer, words)
        case _ if 400 <= status < 500:
            return judged(OutcomeKind.REJECTED, Blame.MESSAGE)
        case _ if status >= 500 and trust_5xx:
            return judged(OutcomeKind.FAILED, Blame.UPSTREAM)
    return _unknown(answer, words)


def _serves_nobody(outcome: Outcome) -> bool:
    """Whether the upstream refuses all requests, at least under this key, and not just this one."""
    return outcome.kind in (OutcomeKind.THROTTLED, OutcomeKind.UNAVAILABLE) or outcome.blame is Blame.CREDENTIAL


def _unknown(answer: Answer, words: str, *, latency_s: float = 0.0) -> Outcome:
    status = answer.status
    return Outcome(OutcomeKind.UNKNOWN, Blame.UPSTREAM, http_status=status, error=words, latency_s=latency_s)


def _json_object(body: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _words(answer: Answer) -> str:
    """The upstream's own words for people: its error or message, else the beginning of what it said."""
    found = _json_object(answer.body) or {}
    words = found.get("error") or found.get("message") or found.get("detail")
    if isinstance(words, dict):
        words = words.get("message")
    if not words or not isinstance(words, str):
        words = answer.body[:4000].decode("utf-8", "replace")
    return _plain(_CONTROL.sub(" ", words).strip()) or f"HTTP {answer.status}"


def _without(words: str, *hidden: str) -> str:
    """An upstream may quote the message or the key; neither belongs into logs and letters."""
    for text in hidden:
        if len(text) >= _QUOTED:
            words = words.replace(text, "…")
    return words


def _plain(text: object) -> str:
    """Text that UTF-8 and PostgreSQL can hold: upstreams also send NUL, and half a surrogate pair ("\\ud83d")."""
    return str(text).encode("utf-8", "replace").decode().replace("\0", "")[:500]


def _headers(key: str) -> dict[str, str]:
    headers = {"Accept": "application/json", "User-Agent": "paceline"}
    return headers | {"Authorization": f"Bearer {key}"} if key else headers


def _identity(config: OnlyFansSettings, credentials: Mapping[str, Any]) -> str | None:
    key = credentials.get("apiKey")
    return None if key is None or key == config.api_key else str(key)


def _build(config: OnlyFansSettings, network: Network, connections: int) -> OnlyFans:
    return OnlyFans(
        config.base_url,
        api_key=config.api_key,
        idempotent=config.idempotent,
        connections=connections,
        network=network,
    )


def _check(config: OnlyFansSettings, network: Network, timeout_s: float) -> Remark:
    return reach.ask(
        Upstream.at(config.base_url, network),
        _headers(config.api_key),
        url_variable="ONLYFANS_BASE_URL",
        key_variable="ONLYFANS_API_KEY",
        path="/me",
        timeout_s=timeout_s,
    )


KIND = Kind(
    name="onlyfans",
    platform="onlyfans",
    settings=OnlyFansSettings,
    credentials=Credentials,
    account_settings=AccountSettings,
    identity=_identity,
    build=_build,
    check=_check,
)
