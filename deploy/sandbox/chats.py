"""The chats as the platform keeps and shows them: the text rewritten, with or without authors.

Platforms do not keep a text as it was sent. Some trim it, some normalise its Unicode or its line ends, some keep it as
HTML; and a chat also holds what the fan wrote and what the account's user typed by hand. Pure, like the ledger.
"""

from __future__ import annotations

import hashlib
import html
import unicodedata
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Final

AS_SENT: Final = "as sent"
REWRITES: Final[Mapping[str, Callable[[str], str]]] = {
    "nfc": lambda text: unicodedata.normalize("NFC", text),
    "lf": lambda text: text.replace("\r\n", "\n").replace("\r", "\n"),
    "trimmed": str.strip,
    "html": lambda text: f"<p>{html.escape(text).replace(chr(10), '<br />')}</p>",
}
"""What a platform may do to a text, in the order in which it is done."""


def user_of(key: str) -> dict[str, object]:
    """Who an API key belongs to: the answer of GET /me."""
    name = hashlib.sha256(key.encode()).hexdigest()[:12]
    return {"id": f"user_{name}", "name": f"Sandbox user {name}"}


class Chats:
    """The messages of every chat of every API key, oldest first. `keeps` and `authors` may be switched at any time."""

    def __init__(self, keeps: str = AS_SENT, *, authors: bool = True) -> None:
        self.keeps = keeps
        self.authors = authors
        """Whether a page of the history says who wrote each message (`from_user`)."""
        self.clear()

    def clear(self) -> None:
        """Forget all messages."""
        self._chats: defaultdict[str, dict[str, list[dict[str, Any]]]] = defaultdict(dict)

    @property
    def keeps(self) -> str:
        """How texts are kept from now on: "as sent", or names of REWRITES joined by commas: "trimmed,html"."""
        return ",".join(self._rewrites) or AS_SENT

    @keeps.setter
    def keeps(self, how: str) -> None:
        names = set() if how == AS_SENT else {name.strip() for name in how.split(",")}
        if unknown := names - REWRITES.keys():
            known = ", ".join(REWRITES)
            raise ValueError(f"keeps must be {AS_SENT!r} or some of {known}; unknown: {', '.join(sorted(unknown))}")
        self._rewrites = tuple(name for name in REWRITES if name in names)

    def keep(self, key: str, record: Mapping[str, Any]) -> None:
        """Add a message to its chat, in the place of its id."""
        text = str(record["text"])
        for name in self._rewrites:
            text = REWRITES[name](text)
        messages = self._chats[key].setdefault(record["chat_id"], [])
        insort(messages, {**record, "text": text}, key=_id)

    def page(
        self, key: str, chat_id: str, limit: int, before_id: str | None = None
    ) -> tuple[list[dict[str, Any]], str | None]:
        """A page of a chat, newest first, and the id to ask for the next page with, None on the last.

        Pages are cut by id, so what arrives between two of them moves nothing. ValueError for an unknown id.
        """
        messages = self._chats.get(key, {}).get(chat_id, [])
        end = len(messages)
        if before_id is not None:
            end = bisect_left(messages, before_id, key=_id)
            if end == len(messages) or messages[end]["id"] != before_id:
                raise ValueError("next_id is not a message of this chat")
        page = [self._shown(message) for message in messages[max(0, end - limit) : end][::-1]]
        return page, _id(page[-1]) if end > limit else None

    def of(self, key: str) -> list[dict[str, object]]:
        """The chats of a key, each with its number of messages and the newest of them."""
        chats = self._chats.get(key, {}).items()
        return [{"id": id, "messages": len(each), "last_message": self._shown(each[-1])} for id, each in chats]

    def _shown(self, message: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in message.items() if self.authors or name != "from_user"}


def _id(message: Mapping[str, Any]) -> str:
    return str(message["id"])
