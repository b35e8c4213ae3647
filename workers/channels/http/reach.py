"""Asks an HTTP upstream who we are: can it be reached, and does it take our key? The way messages are sent, by the same
proxy."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass

from workers.channels.http.exchange import Answer, NoAnswer, NotSent
from workers.channels.http.transport import Transport
from workers.channels.http.upstream import Upstream
from workers.domain.remarks import Remark, fail, note, warn

_MOST_WORDS = 200


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked, and of whom: the address without a password, and whether with a key. url_variable, key_variable:
    the settings that these come from."""

    address: str
    with_key: bool
    url_variable: str
    key_variable: str
    path: str = "/me"


def ask(
    upstream: Upstream, headers: Mapping[str, str], *, url_variable: str, key_variable: str, path: str, timeout_s: float
) -> Remark:
    """What the answer to a GET shows. headers: with the key, if there is one, as `Authorization`."""
    scheme = "http" if upstream.tls is None else "https"
    address = f"{scheme}://{upstream.netloc}{upstream.path}"
    asked = Asked(address, "Authorization" in headers, url_variable, key_variable, path)
    try:
        return judge(asked, asyncio.run(_get(upstream, headers, path, timeout_s)))
    except NotSent as error:
        return fail(f"{asked.address}: {error}; {_remedy(asked, str(error))}")
    except NoAnswer as error:
        return fail(f"{asked.address}: no HTTP answer ({error}); see whether http or https, and the port, are right")


async def _get(upstream: Upstream, headers: Mapping[str, str], path: str, timeout_s: float) -> Answer:
    """Raises NotSent or NoAnswer."""
    transport = Transport(upstream, connections=1)
    try:
        return await transport.request("GET", path, headers=headers, timeout_s=timeout_s)
    finally:
        transport.close()


def judge(asked: Asked, answer: Answer) -> Remark:
    """What an answer says of the upstream and the key."""
    said = f"{asked.address} answers {answer.status}{_words(answer)}"
    match answer.status:
        case status if 200 <= status < 300:
            return note(asked.address)
        case 401 | 403 if not asked.with_key:
            return warn(f"{said}, since {asked.key_variable} is not set: only accounts with keys of their own can send")
        case 401:
            return fail(f"{said}: it refuses {asked.key_variable}; set the key that it gave you")
        case 402:
            return fail(f"{said}: it wants to be paid before it sends; messages wait until then")
        case status if 300 <= status < 400:
            where = answer.headers.get("Location", "elsewhere")
            return fail(f"{said}: it redirects to {where[:_MOST_WORDS]}; set {asked.url_variable} to where it is")
        case 403:
            return warn(f"{said} to GET {asked.path}; see whether {asked.key_variable} may send messages")
        case 404 | 405:
            return warn(f"{said} to GET {asked.path}; see whether the path in {asked.url_variable} is right")
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


def _remedy(asked: Asked, words: str) -> str:
    if "look up" in words:
        return f"correct the name in {asked.url_variable}, or see to this machine's DNS"
    if "certificate" in words.lower() or "tls" in words.lower() or "ssl" in words.lower():
        return f"see whether {asked.url_variable} is https, and its certificate one that this machine trusts"
    return f"correct {asked.url_variable}, or see to the upstream and the network; messages wait meanwhile"
