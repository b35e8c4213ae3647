"""The upstream: can it be reached, and does it take our key? Asked the way messages are sent, by the same proxy."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass

from deploy.check.rules import Finding, Remark, fail, note, warn
from workers.bootstrap import network
from workers.channels.http.exchange import Answer, NoAnswer, NotSent
from workers.channels.http.transport import Transport
from workers.channels.http.upstream import Upstream
from workers.settings import Settings

WHAT = "upstream answers"
_MOST_WORDS = 200


@dataclass(frozen=True, slots=True)
class Asked:
    """Whom we asked: the address without a password, and whether with a key."""

    address: str
    with_key: bool


def findings(settings: Settings) -> Iterator[Finding]:
    upstream = Upstream.at(settings.onlyfans_base_url, network(settings))
    scheme = "http" if upstream.tls is None else "https"
    asked = Asked(f"{scheme}://{upstream.netloc}{upstream.path}", bool(settings.onlyfans_api_key))
    try:
        answer = asyncio.run(_who_are_we(upstream, settings))
        remark = judge(asked, answer)
    except NotSent as error:
        remark = fail(f"{asked.address}: {error}; {_remedy(str(error))}")
    except NoAnswer as error:
        remark = fail(f"{asked.address}: no HTTP answer ({error}); see whether http or https, and the port, are right")
    yield Finding(remark.level, WHAT, remark.words)


async def _who_are_we(upstream: Upstream, settings: Settings) -> Answer:
    """The answer to GET /me. Raises NotSent or NoAnswer."""
    headers = {"Accept": "application/json", "User-Agent": "paceline"}
    if settings.onlyfans_api_key:
        headers["Authorization"] = f"Bearer {settings.onlyfans_api_key}"
    transport = Transport(upstream, connections=1)
    try:
        return await transport.request("GET", "/me", headers=headers, timeout_s=settings.send_timeout_seconds)
    finally:
        transport.close()


def judge(asked: Asked, answer: Answer) -> Remark:
    """What an answer to GET /me says of the upstream and the key."""
    said = f"{asked.address} answers {answer.status}{_words(answer)}"
    match answer.status:
        case status if 200 <= status < 300:
            return note(asked.address)
        case 401 | 403 if not asked.with_key:
            return warn(f"{said}, since ONLYFANS_API_KEY is not set: only accounts with keys of their own can send")
        case 401:
            return fail(f"{said}: it refuses ONLYFANS_API_KEY; set the key that it gave you")
        case 402:
            return fail(f"{said}: it wants to be paid before it sends; messages wait until then")
        case status if 300 <= status < 400:
            where = answer.headers.get("Location", "elsewhere")
            return fail(f"{said}: it redirects to {where[:_MOST_WORDS]}; set ONLYFANS_BASE_URL to where it is")
        case 403:
            return warn(f"{said} to GET /me; see whether ONLYFANS_API_KEY may send messages")
        case 404 | 405:
            return warn(f"{said} to GET /me; see whether the path in ONLYFANS_BASE_URL is right")
        case 429:
            return note(f"{said}: it can be reached, and throttles us at the moment")
        case _:
            return warn(f"{said}: it can be reached, and is in trouble")


def _words(answer: Answer) -> str:
    """The upstream's own words, if it has some that are short."""
    try:
        said = json.loads(answer.body)
        words = said.get("error") or said.get("message") or ""
    except (ValueError, AttributeError, RecursionError):
        return ""
    plain = "".join(character for character in str(words)[:_MOST_WORDS] if character.isprintable())
    return f" ({plain})" if plain else ""


def _remedy(words: str) -> str:
    if "look up" in words:
        return "correct the name in ONLYFANS_BASE_URL, or see to this machine's DNS"
    if "certificate" in words.lower() or "tls" in words.lower() or "ssl" in words.lower():
        return "see whether ONLYFANS_BASE_URL is https, and its certificate one that this machine trusts"
    return "correct ONLYFANS_BASE_URL, or see to the upstream and the network; messages wait meanwhile"
