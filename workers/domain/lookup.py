"""Compares a message with the upstream's history, to decide whether it arrived. Pure.

Upstreams change stored texts: they trim them, compose accents (NFC), change line ends, or escape HTML. So the
comparison ignores these differences. Absence is proved only if every entry since the attempt is explained: the
recipient wrote it, or it is another message of ours. An unexplained entry may be this message in an unknown form, so
the outcome stays unknown.
"""

import html
import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum

from workers.domain.message import Claim


class Author(StrEnum):
    """Who wrote an entry of a chat's history. UNKNOWN: the platform does not say."""

    ACCOUNT = "account"
    RECIPIENT = "recipient"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a chat's history. media_ids: None if the platform does not tell."""

    id: str
    text: str
    media_ids: tuple[str, ...] | None = None
    author: Author = Author.UNKNOWN


@dataclass(frozen=True, slots=True)
class History:
    """The entries of a chat since the first attempt that may have arrived.

    error: why some entries are missing; the others can still prove presence. away: they are missing because the
    upstream is unavailable."""

    entries: tuple[Entry, ...] = ()
    error: str | None = None
    away: bool = False


class Evidence(StrEnum):
    """The evidence of the upstream's history about a message of unknown outcome."""

    FOUND = "found"
    ABSENT = "absent"
    UNCLEAR = "unclear"
    """Some entries may be the message. There is no proof of either."""
    UNAVAILABLE = "unavailable"
    AWAY = "away"
    """The upstream is unavailable, so the lookup must be repeated later."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a lookup: the evidence, the upstream's id if found, and the reason if there is no proof."""

    evidence: Evidence
    upstream_id: str | None = None
    error: str | None = None


UNEXPLAINED = "the chat has an entry since the attempt that may be this message, written in another way"


def compare(history: History, claim: Claim, others: frozenset[str]) -> Finding:
    """Look for a message in the history of its chat. others: ids of entries that are known to be other messages."""
    unexplained = False
    for entry in history.entries:
        if entry.id in others or entry.author is Author.RECIPIENT:
            continue
        if _is_same(entry, claim):
            return Finding(Evidence.FOUND, upstream_id=entry.id)
        unexplained = True
    if unexplained:
        return Finding(Evidence.UNCLEAR, error=UNEXPLAINED)
    if history.error is not None:
        return Finding(Evidence.AWAY if history.away else Evidence.UNAVAILABLE, error=history.error)
    return Finding(Evidence.ABSENT)


def same_text(ours: str, theirs: str) -> bool:
    """Whether an upstream may have made the one text of the other."""
    return not _readings(ours).isdisjoint(_readings(theirs))


def _is_same(entry: Entry, claim: Claim) -> bool:
    same_media = entry.media_ids is None or entry.media_ids == claim.media_ids
    return same_media and same_text(claim.content, entry.text)


_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")


def _readings(text: str) -> frozenset[str]:
    """Return a text read as plain text and as HTML, because the upstream does not say which of the two it is."""
    return frozenset({_bare(text), _bare(html.unescape(_TAG.sub("", text)))})


def _bare(text: str) -> str:
    """Without what upstreams change: composed (NFC), without white space, control and format characters."""
    composed = unicodedata.normalize("NFC", text)
    return "".join(char for char in composed if not char.isspace() and unicodedata.category(char) not in _UNSEEN)


_UNSEEN = frozenset({"Cc", "Cf"})
