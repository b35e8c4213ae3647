"""The `onlyfans` channel: contract §2, row by row."""

import asyncio
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from workers.channels.http.exchange import Answer, Exchange, NoAnswer, NotSent, TooLate
from workers.channels.http.retry_after import answered_at, retry_after_s
from workers.channels.http.transport import Transport
from workers.channels.http.upstream import Network, Upstream
from workers.clock import monotonic_s
from workers.domain.message import Claim
from workers.domain.outcome import Evidence, Finding, Outcome, OutcomeKind

_TRY_AGAIN = frozenset({408, 425})
_ACCOUNT_FAULT = frozenset({401, 403})
_PAGE = 20
_PAGES = 100
_MAX_PAGE = 16 * 1024 * 1024
"""Bytes of a page of history: room for 20 messages of the longest text there is, all of it escaped."""
_SKEW_S = 3.0
"""Tolerance between the upstream's Date header (whole seconds) and its created_at, on top of the request's way."""
_CONTROL = re.compile(r"[\x00-\x20\x7f]+")


class OnlyFans:
    """`send` belongs to one event loop; everything else is thread-safe."""

    name = "onlyfans"
    has_history = True

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str = "",
        idempotent: bool = False,
        connections: int = 64,
        network: Network | None = None,
    ) -> None:
        self.idempotent = idempotent
        self._api_key = api_key
        self._upstream = Upstream.at(base_url, network)
        self._transport = Transport(self._upstream, connections=connections)

    async def send(self, claim: Claim, api_key: str | None, *, start_by_s: float, timeout_s: float) -> Outcome:
        body = {"chat_id": claim.recipient_id, "text": claim.content, "media_ids": list(claim.media_ids)}
        started = monotonic_s()
        try:
            answer = await self._transport.request(
                "POST",
                "/chats/send-message",
                headers=self._headers(api_key) | {"Idempotency-Key": claim.message_id},
                body=json.dumps(body).encode(),
                start_by_s=start_by_s,
                timeout_s=timeout_s,
            )
        except NotSent as error:
            late = isinstance(error, TooLate)
            return Outcome(
                OutcomeKind.FAILED,
                left=False,
                interrupted=late,
                error=_plain(error),
                latency_s=monotonic_s() - started,
            )
        except NoAnswer as error:
            return Outcome(OutcomeKind.UNKNOWN, error=_plain(error), latency_s=monotonic_s() - started)
        latency_s = monotonic_s() - started
        try:
            return outcome_of(answer, latency_s)
        except Exception as error:  # whatever it was that the upstream thought of, the request has left
            words = f"unreadable answer: {type(error).__name__}"
            return Outcome(OutcomeKind.UNKNOWN, http_status=answer.status, error=words, latency_s=latency_s)

    def find(
        self,
        claim: Claim,
        api_key: str | None,
        *,
        started_ago_s: float,
        known_ids: frozenset[str],
        timeout_s: float,
    ) -> Finding:
        # On a loop of its own: to read a page of long messages takes time, and sends must not wait for it.
        loop, transport = asyncio.new_event_loop(), Transport(self._upstream, connections=1)
        try:
            return loop.run_until_complete(
                self._find(transport, claim, api_key, started_ago_s, known_ids, timeout_s),
            )
        except (NotSent, NoAnswer) as error:
            return Finding(Evidence.UNAVAILABLE, error=_plain(error))
        except Exception as error:  # only its kind: its words may quote other people's messages
            return Finding(Evidence.UNAVAILABLE, error=f"unreadable history: {type(error).__name__}")
        finally:
            transport.close()
            loop.close()

    async def _find(
        self,
        transport: Exchange,
        claim: Claim,
        api_key: str | None,
        started_ago_s: float,
        known_ids: frozenset[str],
        timeout_s: float,
    ) -> Finding:
        """Raises whatever reading a page of history may raise."""
        if claim.recipient_id in (".", ".."):  # however it is written, a path with it leads to another resource
            return Finding(Evidence.UNAVAILABLE, error="no path can name this chat")
        began = monotonic_s()
        next_id: str | None = None
        for _ in range(_PAGES):
            left_s = timeout_s - (monotonic_s() - began)
            if left_s <= 0:
                return Finding(Evidence.UNAVAILABLE, error="the look-up took too long")
            query = urlencode({"limit": _PAGE} | ({"next_id": next_id} if next_id else {}))
            answer = await transport.request(
                "GET",
                f"/chats/{quote(claim.recipient_id, safe='')}/messages?{query}",
                headers=self._headers(api_key),
                timeout_s=left_s,
                max_answer=_MAX_PAGE,
            )
            if answer.status >= 400:
                return Finding(Evidence.UNAVAILABLE, error=f"HTTP {answer.status}: {_words(answer)}")
            page = _json_object(answer.body)
            entries = page.get("messages") if page else None
            if answer.status != 200 or page is None or not isinstance(entries, list):
                return Finding(Evidence.UNAVAILABLE, error=f"HTTP {answer.status}: not a page of messages")
            now = answered_at(answer.headers)
            oldest_s = started_ago_s + (monotonic_s() - began) + _SKEW_S
            for entry in entries:
                created = datetime.fromisoformat(entry["created_at"])
                created = created if created.tzinfo else created.replace(tzinfo=UTC)
                if (now - created).total_seconds() > oldest_s:
                    return Finding(Evidence.ABSENT)
                if _plain(entry["id"]) not in known_ids and _same(entry, claim):
                    return Finding(Evidence.FOUND, upstream_id=_plain(entry["id"]))
            next_id = page.get("next_id")
            if not entries or not next_id:
                return Finding(Evidence.ABSENT)
        return Finding(Evidence.UNAVAILABLE, error=f"not found in {_PAGES * _PAGE} messages, and there are more")

    def close(self) -> None:
        self._transport.close()

    def _headers(self, api_key: str | None) -> dict[str, str]:
        key = api_key or self._api_key
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "paceline"}
        return headers | {"Authorization": f"Bearer {key}"} if key else headers


def outcome_of(answer: Answer, latency_s: float) -> Outcome:
    """The contract's table of answers."""
    status = answer.status
    if 200 <= status < 300:
        found = _json_object(answer.body) or {}
        upstream_id = "" if found.get("id") is None else _plain(found["id"])
        if upstream_id:
            return Outcome(OutcomeKind.ACCEPTED, upstream_id=upstream_id, http_status=status, latency_s=latency_s)
        return Outcome(
            OutcomeKind.UNKNOWN, http_status=status, error="success without a message id", latency_s=latency_s
        )
    words = _words(answer)
    if status == 429:
        return Outcome(
            OutcomeKind.THROTTLED,
            http_status=status,
            error=words,
            retry_after_s=retry_after_s(answer.headers),
            latency_s=latency_s,
        )
    if status in _ACCOUNT_FAULT:
        return Outcome(OutcomeKind.REJECTED, account_fault=True, http_status=status, error=words, latency_s=latency_s)
    if 400 <= status < 500 and status not in _TRY_AGAIN:
        return Outcome(OutcomeKind.REJECTED, http_status=status, error=words, latency_s=latency_s)
    # 408, 425, 5xx; and a redirect, which is a matter of configuration: the messages are not to blame.
    return Outcome(OutcomeKind.FAILED, http_status=status, error=words, latency_s=latency_s)


def _same(entry: Mapping[str, Any], claim: Claim) -> bool:
    media = tuple(str(media_id) for media_id in entry.get("media_ids") or ())
    return entry.get("text", "") == claim.content and media == claim.media_ids


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


def _plain(text: object) -> str:
    """Text that UTF-8 and PostgreSQL can hold: upstreams also send NUL, and half a surrogate pair ("\\ud83d")."""
    return str(text).encode("utf-8", "replace").decode().replace("\0", "")[:500]
