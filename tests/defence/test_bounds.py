"""What one request can cost the API is bounded, whatever it holds: memory by the process's own measure, and the size of
the answer. Memory, because it does not depend on the machine; whatever takes minutes takes gigabytes as well.
"""

import http.client
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.architecture.test_routes import BODIES, ROUTES, Route
from tests.defence.conftest import Process

ROOT = "/api/onlyfans/messaging"
MIB = 1024 * 1024
BODY = 8 * MIB
MOST_GROWTH = 192 * MIB
"""The body itself, its text (four bytes a character if one of them needs them), and 500,000 names and values."""
MOST_ANSWER = 128 * 1024


def filled(start: str, piece: str, end: str) -> bytes:
    """As many pieces as fit into a body."""
    room = BODY - len((start + end).encode())
    return (start + piece * (room // len(piece)) + end).encode()


def of_many_names(start: str, end: str) -> bytes:
    """As many names as fit, all of them different."""
    return (start + ",".join(f'"{n:x}":1' for n in range(BODY // 11)) + end).encode()


MESSAGE = '{"recipientId":"fan-1","content":"Hello"}'
START = '{"recipientId":"x","content":"x",'
WRONG_900_TIMES = "{" + ",".join(f'"{n}":1' for n in range(900)) + "}"
HOSTILE: dict[str, Callable[[], bytes]] = {
    "messages that are empty": lambda: filled('{"messages":[{}', ",{}", "]}"),
    "messages that are numbers": lambda: filled('{"messages":[1', ",1", "]}"),
    "messages that are long numbers": lambda: filled('{"messages":[1', "," + "9" * 4300, "]}"),
    "messages that are floats": lambda: filled('{"messages":[1', ",0.5", "]}"),
    "messages that are texts": lambda: filled('{"messages":[1', ',"ab"', "]}"),
    "messages that are lists": lambda: filled('{"messages":[1', ",[]", "]}"),
    "messages with an unknown name": lambda: filled('{"messages":[1', ',{"x":1}', "]}"),
    "10,000 messages, all wrong": lambda: b'{"messages":[' + b",".join([b"{}"] * 10_000) + b"]}",
    "wrong in many ways": lambda: f'{{"messages":[{",".join([WRONG_900_TIMES] * 200)}]}}'.encode(),
    "media without an end": lambda: filled(START + '"mediaIds":[1', ",1", "]}"),
    "400,000 media, all wrong": lambda: f'{START}"mediaIds":[1{",1" * 399_999}]}}'.encode(),
    "a million unknown names": lambda: of_many_names("{", "}"),
    "names of 8 KiB": lambda: ("{" + ",".join(f'"{n}{"x" * 8192}":1' for n in range(900)) + "}").encode(),
    "one name of 8 MiB": lambda: filled('{"', "x", '":1}'),
    "the same name again and again": lambda: filled('{"a":1', ',"a":1', "}"),
    "metadata of a million names": lambda: of_many_names(START + '"metadata":{', "}}"),
    "metadata that is deep": lambda: (START + '"metadata":' + '{"a":' * 900 + "1" + "}" * 901).encode(),
    "metadata of a list": lambda: filled(START + '"metadata":{"a":[1', ",1", "]}}"),
    "as many small objects as may be": lambda: (START + '"x":[' + '{"ab":1},' * 166_000 + "1]}").encode(),
    "as many small lists as may be": lambda: (START + '"x":[' + "[0.5]," * 249_000 + "1]}").encode(),
    "as many texts as may be": lambda: (START + '"x":[' + '"😀abcdefg",' * 499_000 + "1]}").encode(),
    "arrays in arrays": lambda: filled("", "[", ""),
    "objects in objects": lambda: filled("", '{"a":', ""),
    "a number of 8 million digits": lambda: filled('{"priority":', "9", "}"),
    "a float of 8 million digits": lambda: filled('{"priority":0.', "9", "}"),
    "an exponent of 8 million digits": lambda: filled('{"priority":1e', "9", "}"),
    "a text of 8 MiB": lambda: filled('{"recipientId":"x","content":"', "x", '"}'),
    "a text of 8 MiB, four bytes a character": lambda: filled('{"recipientId":"x","content":"😀', "x", '"}'),
    "a text of escapes": lambda: filled('{"recipientId":"x","content":"', "\\u0041", '"}'),
    "a time of 8 MiB": lambda: filled(START + '"sendAt":"', "2", '"}'),
    "quotation marks": lambda: filled("{", '"', "}"),
    "commas in a text without an end": lambda: filled('{"a":"', ",", ""),
    "backslashes": lambda: filled('{"a":"', "\\", ""),
    "spaces": lambda: filled('{"a":', " ", "}"),
}
"""Bodies of up to 8 MiB. They are made when they are needed."""


class Memory:
    """The memory of an API and its worker processes: by how much it has grown, at its peak, since all this began."""

    def __init__(self, api: Process) -> None:
        parent = psutil.Process(api.pid)
        self._pids = [process.pid for process in (parent, *parent.children(recursive=True))]
        self._at_first = self._peak()

    def growth(self) -> int:
        return self._peak() - self._at_first

    def begin_anew(self) -> None:
        """Measure from now on: what came before may have taken more than what comes."""
        for pid in self._pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # proc(5): the peak is what is resident now
        self._at_first = self._peak()

    def _peak(self) -> int:
        peaks = [Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0] for pid in self._pids]
        return sum(map(int, peaks)) * 1024


@pytest.fixture(scope="module")
def memory(api: Process) -> Memory:
    return Memory(api)


def ask(api: Process, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=120)
    told = {"Authorization": f"Bearer {api.token()}", "Content-Type": "application/json", **headers}
    connection.request(method, path, body, told)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


@pytest.mark.parametrize("name", HOSTILE)
def test_no_body_costs_more_than_its_share(api: Process, memory: Memory, name: str) -> None:
    body = HOSTILE[name]()
    assert len(body) <= BODY
    status, answer = ask(api, "POST", f"{ROOT}/{'send/bulk' if b'messages' in body[:20] else 'send'}", body)
    assert status in (400, 413), answer[:500]
    assert json.loads(answer)["code"] in ("invalid_request", "too_large")
    assert len(answer) <= MOST_ANSWER
    assert memory.growth() <= MOST_GROWTH


@pytest.mark.parametrize("route", [route for route in ROUTES if route.declared.body], ids=str)
def test_no_route_looks_through_what_it_does_not_know(api: Process, memory: Memory, route: Route) -> None:
    """Whatever its body is: unknown names, and its own names with a list that does not end."""
    for body in (
        HOSTILE["a million unknown names"](),
        json.dumps({name: [[]] * 100_000 for name in (*BODIES[route.name], "accountId", "reason", "as")}).encode(),
    ):
        status, answer = ask(api, route.method, route.path(), body)
        assert status in (400, 404, 413), answer[:500]
        assert len(answer) <= MOST_ANSWER
    assert memory.growth() <= MOST_GROWTH


LONG = 60_000
HEADS = {
    "a long path": f"{ROOT}/messages/{'x' * LONG}",
    "a long account": f"{ROOT}/accounts/{'x' * LONG}/resume",
    "a long value": f"{ROOT}/messages?recipientId={'x' * LONG}",
    "a long name": f"{ROOT}/messages?{'x' * LONG}=1",
    "very many names": f"{ROOT}/messages?" + "&".join(f"{n:x}=" for n in range(10_000)),
    "one name very often": f"{ROOT}/messages?" + "&".join(["a="] * 20_000),
    "a long number": f"{ROOT}/messages?limit={'9' * LONG}",
    "a long time": f"{ROOT}/failed?since={'9' * LONG}",
    "a long cursor": f"{ROOT}/audit?cursor={'9' * LONG}",
    "an offset beyond everything": f"{ROOT}/failed?offset=1000000000",
}
"""Paths and queries of nearly the 64 KiB that a request's head may have."""


@pytest.mark.parametrize("path", HEADS.values(), ids=HEADS)
def test_no_path_or_query_costs_more_than_its_share(api: Process, memory: Memory, path: str) -> None:
    for method in ("GET", "POST"):
        status, answer = ask(api, method, path)
        assert status in (200, 400, 404, 405), answer[:500]
        assert len(answer) <= MOST_ANSWER
    assert memory.growth() <= MOST_GROWTH


@pytest.mark.parametrize("header", ["Idempotency-Key", "X-Request-Id", "traceparent", "Authorization", "X-Unknown"])
def test_no_header_costs_more_than_its_share(api: Process, memory: Memory, header: str) -> None:
    status, answer = ask(api, "POST", f"{ROOT}/send", MESSAGE.encode(), **{header: "x" * LONG})
    assert status in (202, 400, 401)
    assert len(answer) <= MOST_ANSWER
    assert memory.growth() <= MOST_GROWTH


def test_a_refused_body_is_forgotten_at_once(api: Process, memory: Memory) -> None:
    body = HOSTILE["as many texts as may be"]()
    with ThreadPoolExecutor(12) as callers:
        answers = list(callers.map(lambda _: ask(api, "POST", f"{ROOT}/send", body), range(24)))
    assert {status for status, _ in answers} == {400}
    assert memory.growth() <= 3 * MOST_GROWTH


def test_a_list_as_long_as_may_be_is_taken(api: Process, memory: Memory) -> None:
    """So that the bounds above leave room for what is allowed: 10,000 messages with every field."""
    message = {
        "recipientId": "fan-1", "content": "Hello: one, two", "priority": 5, "accountId": "default",
        "mediaIds": ["m-1", "m-2"], "batchId": "newsletter", "sendAt": "2090-01-01T00:00:00Z",
        "expiresAt": "2091-01-01T00:00:00Z", "metadata": {"a": [1, 2, {"b": None}], "c": "x" * 200, "d": {}},
    }  # fmt: skip
    body = json.dumps({"messages": [message] * 10_000}, separators=(",", ":")).encode()
    memory.begin_anew()
    assert ask(api, "POST", f"{ROOT}/send/bulk", body)[0] == 202
    assert memory.growth() <= 2 * MOST_GROWTH
