"""The sandbox upstream judges Paceline's guarantees; here it is judged itself.

First the judgement, with a clock that is moved by hand; then the server, over real sockets.
"""

from __future__ import annotations

import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import urllib3

from deploy.sandbox import (
    Answer,
    Arrival,
    Entry,
    Fault,
    Faults,
    Ledger,
    Message,
    Sandbox,
    parse_limits,
    summarize,
)
from deploy.sandbox.ledger import fullest_window

REPOSITORY = Path(__file__).parents[2]
SECOND = 10**9
MICROSECOND = 10**3
MIDNIGHT = datetime(2026, 1, 1, tzinfo=UTC)

# -- the judgement


def judge(ledger: Ledger, at_ns: int, key: str = "k", idempotency_key: str | None = None, text: str = "hi") -> Answer:
    message = Message(key, "fan-1", text, idempotency_key=idempotency_key)
    return ledger.judge(Arrival(message, at_ns, MIDNIGHT + timedelta(microseconds=at_ns // 1000)))


def send(ledger: Ledger, at_s: float, **message: Any) -> Entry:
    judge(ledger, round(at_s * SECOND), **message)
    return ledger.entries[-1]


def verdicts(ledger: Ledger) -> list[str]:
    return [entry.verdict for entry in ledger.entries]


def summary(ledger: Ledger) -> dict[str, Any]:
    return summarize(ledger.entries, ledger.limits)


def test_exactly_one_period_later_is_allowed_again_and_a_microsecond_earlier_is_not() -> None:
    ledger = Ledger("1/2s")
    first = 300_000_000  # 0.3 s: in floats 2.3 - 2 < 0.3, and the edge would be on the wrong side
    judge(ledger, first)
    judge(ledger, first + 2 * SECOND - MICROSECOND)
    judge(ledger, first + 2 * SECOND - 1)
    judge(ledger, first + 2 * SECOND)
    assert verdicts(ledger) == ["accepted", "throttled", "throttled", "accepted"]


def test_the_window_rolls_and_does_not_start_over_with_the_minute() -> None:
    ledger = Ledger("2/minute")
    assert [send(ledger, at_s).verdict for at_s in (59, 59.9, 60, 61)] == [
        "accepted",
        "accepted",
        "throttled",
        "throttled",
    ]
    assert send(ledger, 119).verdict == "accepted", "the one of 59 is a minute old"
    assert send(ledger, 119.8).verdict == "throttled", "the one of 59.9 is not"


def test_several_limits_hold_at_once() -> None:
    ledger = Ledger("1/second,3/10s")
    for at_s in (0, 0.5, 1, 2, 3, 9, 10):
        send(ledger, at_s)
    assert verdicts(ledger) == [
        "accepted",
        "throttled",
        "accepted",
        "accepted",
        "throttled",
        "throttled",
        "accepted",
    ]


def test_every_key_has_a_window_of_its_own() -> None:
    ledger = Ledger("1/minute")
    assert send(ledger, 0, key="a").verdict == "accepted"
    assert send(ledger, 0, key="b").verdict == "accepted"
    assert send(ledger, 1, key="a").verdict == "throttled"


@pytest.mark.parametrize(("at_s", "retry_after"), [(0, "10"), (0.001, "10"), (5, "5"), (5.001, "5"), (9.999, "1")])
def test_retry_after_is_rounded_up_to_whole_seconds(at_s: float, retry_after: str) -> None:
    ledger = Ledger("1/10s")
    send(ledger, 0)
    answer = judge(ledger, round(at_s * SECOND))
    assert (answer.status, answer.headers) == (429, {"Retry-After": retry_after})


def test_who_waits_for_retry_after_is_accepted_by_every_limit() -> None:
    ledger = Ledger("1/second,2/10s")
    send(ledger, 0)
    send(ledger, 1)
    wait_s = int(judge(ledger, 1 * SECOND).headers["Retry-After"])
    assert wait_s == 9, "of the limits that are used up, the one that lasts longest counts"
    assert send(ledger, 1 + wait_s).verdict == "accepted"


def test_without_enforcement_all_are_accepted_and_the_overshoot_is_counted() -> None:
    ledger = Ledger("2/10s", enforce=False)
    assert [send(ledger, at_s).overshoot for at_s in (0, 1, 2, 10, 12)] == [False, False, True, True, False]
    assert summary(ledger)["accepted"] == 5
    assert summary(ledger)["overshoot"] == 2
    assert summary(ledger)["worst_window"] == {"k": {"2/10s": 3}}


def test_those_not_accepted_do_not_fill_the_window() -> None:
    ledger = Ledger("1/10s")
    message = Message("k", "fan-1", "hi")
    ledger.judge(Arrival(message, 0, MIDNIGHT), lambda _: Fault("status", status=503))
    ledger.judge(Arrival(message, 1, MIDNIGHT), lambda _: Fault("cut_before"))
    ledger.refuse(Arrival(message, 2, MIDNIGHT), 400, "no message")
    assert send(ledger, 1).verdict == "accepted"
    assert send(ledger, 9).verdict == "throttled"
    assert send(ledger, 10).verdict == "throttled"
    assert send(ledger, 11).verdict == "accepted"


def test_a_request_stopped_at_the_window_uses_up_no_fault() -> None:
    ledger, faults = Ledger("1/10s"), Faults()
    faults.add(Fault("status", status=500, times=1, text="second"))
    ledger.judge(Arrival(Message("k", "fan-1", "first"), 0, MIDNIGHT), faults.next_for)
    for at_s in (5, 10, 11):
        ledger.judge(Arrival(Message("k", "fan-1", "second"), at_s * SECOND, MIDNIGHT), faults.next_for)
    assert verdicts(ledger) == ["accepted", "throttled", "failed", "accepted"]


def test_the_same_idempotency_key_is_answered_as_before_and_kept_once() -> None:
    ledger = Ledger()
    first, again = judge(ledger, 0, idempotency_key="m1"), judge(ledger, 1, idempotency_key="m1")
    assert again.body == first.body
    assert again.headers == {"Idempotent-Replayed": "true"}
    assert verdicts(ledger) == ["accepted", "replayed"]
    assert len(ledger.chats.page("k", "fan-1", 10)[0]) == 1
    assert summary(ledger)["duplicates"] == 0


def test_a_replay_is_a_request_that_arrived_and_counts_in_the_window() -> None:
    ledger = Ledger("2/10s")
    send(ledger, 0, idempotency_key="m1")
    send(ledger, 1, idempotency_key="m1")
    assert send(ledger, 2, idempotency_key="m1").verdict == "throttled"
    assert send(ledger, 2, idempotency_key="m2").verdict == "throttled"
    assert summary(ledger)["worst_window"] == {"k": {"2/10s": 2}}


def test_another_message_under_a_known_idempotency_key_is_refused_not_swallowed() -> None:
    ledger = Ledger()
    send(ledger, 0, idempotency_key="m1", text="one")
    assert send(ledger, 1, idempotency_key="m1", text="two").status == 409
    assert send(ledger, 2, idempotency_key="m1", text="one").verdict == "replayed"


def test_an_idempotency_key_is_known_to_its_api_key_only() -> None:
    ledger = Ledger()
    assert send(ledger, 0, key="a", idempotency_key="m1").verdict == "accepted"
    assert send(ledger, 0, key="b", idempotency_key="m1").verdict == "accepted"
    assert summary(ledger)["duplicates"] == 1, "sent by two accounts is sent twice"


def test_duplicates_are_acceptances_beyond_the_first_of_one_idempotency_key() -> None:
    ledger = Ledger(idempotent=False)
    for idempotency_key in ("m1", "m2", "m1", "m1", "m3", None, None):
        send(ledger, 0, idempotency_key=idempotency_key)
    assert summary(ledger)["accepted"] == 7
    assert summary(ledger)["duplicates"] == 2
    assert len(ledger.chats.page("k", "fan-1", 10)[0]) == 7


@pytest.mark.parametrize(
    ("times_ns", "period_ns", "fullest"),
    [
        ([], 10, 0),
        ([7], 10, 1),
        ([0, 10], 10, 1),  # half open: exactly a period apart is not in one window
        ([0, 9], 10, 2),
        ([0, 6, 9, 12, 15, 16, 40], 10, 4),  # (6, 16]
        ([5, 5, 5], 1, 3),
    ],
)
def test_fullest_window(times_ns: list[int], period_ns: int, fullest: int) -> None:
    assert fullest_window(times_ns, period_ns) == fullest


def test_worst_window_names_every_key_and_every_limit() -> None:
    ledger = Ledger("2/second,3/minute", enforce=False)
    for at_s in (0, 0.5, 0.9, 1.4, 59):
        send(ledger, at_s, key="a")
    send(ledger, 60, key="b")
    assert summary(ledger)["worst_window"] == {"a": {"2/1s": 3, "3/60s": 5}, "b": {"2/1s": 1, "3/60s": 1}}


def test_judgement_agrees_with_counting_every_window_by_hand() -> None:
    """Any schedule: each request is let through if, and only if, no limit's window would then be too full."""
    chance = random.Random(7)
    for _ in range(50):
        limits = parse_limits(chance.choice(["3/10s", "1/second,4/10s", "2/2s,3/3s,5/20s"]))
        ledger = Ledger(",".join(map(str, limits)))
        at_ns, accepted = 0, list[int]()
        for _ in range(200):
            at_ns += chance.choice([0, 1, SECOND // 2, SECOND, SECOND - 1, 3 * SECOND])
            fits = all(
                sum(at_ns - limit.period_ns < before <= at_ns for before in accepted) < limit.count for limit in limits
            )
            judge(ledger, at_ns)
            assert verdicts(ledger)[-1] == ("accepted" if fits else "throttled")
            accepted += [at_ns] * fits
        worst = summary(ledger)["worst_window"]["k"]
        assert worst == {
            str(limit): max(sum(t - limit.period_ns < other <= t for other in accepted) for t in accepted)
            for limit in limits
        }


def test_time_cannot_go_back() -> None:
    ledger = Ledger()
    send(ledger, 2)
    with pytest.raises(ValueError, match="cannot go back"):
        send(ledger, 1)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("10/minute", ["10/60s"]),
        ("10/2s", ["10/2s"]),
        ("5/0.25s", ["5/0.25s"]),
        ("1/second, 10/minute,1000/day", ["1/1s", "10/60s", "1000/86400s"]),
        ("7/hour", ["7/3600s"]),
    ],
)
def test_limits_are_read(text: str, shown: list[str]) -> None:
    assert [str(limit) for limit in parse_limits(text)] == shown


@pytest.mark.parametrize("text", ["", "10", "0/minute", "10/0s", "-1/minute", "10/fortnight", "10/minute,", "x/s"])
def test_limits_that_make_no_sense_are_told(text: str) -> None:
    with pytest.raises(ValueError, match="right would be 10/minute"):
        parse_limits(text)


# -- over HTTP


class Client:
    """A sender with a connection that it keeps, and no patience beyond `timeout_s`."""

    def __init__(self, url: str, key: str = "key-a", timeout_s: float = 5) -> None:
        self.pool = urllib3.connection_from_url(url, timeout=timeout_s, retries=False, maxsize=1)
        self.key = key

    def call(self, method: str, path: str, body: object = None, **headers: str) -> urllib3.BaseHTTPResponse:
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        auth = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.pool.request(method, path, body=content, headers=auth | named)

    def send(
        self, text: str = "hi", chat_id: str = "fan", idempotency_key: str = "", **fields: object
    ) -> urllib3.BaseHTTPResponse:
        headers = {"Idempotency_Key": idempotency_key} if idempotency_key else {}
        return self.call("POST", "/chats/send-message", {"chat_id": chat_id, "text": text} | fields, **headers)

    def texts(self, chat_id: str = "fan") -> list[str]:
        """What the upstream's history of a chat holds, newest first."""
        return [message["text"] for message in self.call("GET", f"/chats/{chat_id}/messages").json()["messages"]]


@pytest.fixture
def upstream() -> Iterator[Sandbox]:
    with Sandbox(limits="1000/second") as sandbox:
        yield sandbox


@pytest.fixture
def client(upstream: Sandbox) -> Client:
    return Client(upstream.url)


def test_an_accepted_message_has_an_id_and_is_in_its_chats_history(client: Client) -> None:
    sent = client.send("hello", chat_id="fan/7 ü", media_ids=["media_1"])
    assert sent.status == 200
    page = client.call("GET", "/chats/fan%2F7%20%C3%BC/messages").json()
    assert page == {"messages": [sent.json()], "next_id": None}
    message = page["messages"][0]
    assert message["id"]
    assert (message["chat_id"], message["text"], message["media_ids"]) == ("fan/7 ü", "hello", ["media_1"])
    assert message["created_at"].endswith("Z")
    age = datetime.now(UTC) - datetime.strptime(message["created_at"], "%Y-%m-%dT%H:%M:%S.%f%z")
    assert abs(age) < timedelta(seconds=5)
    assert [chat["id"] for chat in client.call("GET", "/chats").json()["chats"]] == ["fan/7 ü"]


def test_history_is_paged_newest_first_and_later_messages_move_nothing(client: Client) -> None:
    for number in range(5):
        client.send(str(number))
    first = client.call("GET", "/chats/fan/messages?limit=2").json()
    client.send("late")
    second = client.call("GET", f"/chats/fan/messages?limit=2&next_id={first['next_id']}").json()
    third = client.call("GET", f"/chats/fan/messages?limit=2&next_id={second['next_id']}").json()
    pages = [[message["text"] for message in page["messages"]] for page in (first, second, third)]
    assert pages == [["4", "3"], ["2", "1"], ["0"]]
    assert third["next_id"] is None
    assert client.call("GET", "/chats/fan/messages?limit=6").json()["next_id"] is None, "nothing is left"
    assert client.call("GET", "/chats/fan/messages?next_id=up_9").status == 400


def test_history_belongs_to_the_api_key(upstream: Sandbox, client: Client) -> None:
    client.send("mine")
    other = Client(upstream.url, key="key-b")
    assert other.texts() == []
    assert client.texts() == ["mine"]
    assert other.call("GET", "/me").json() != client.call("GET", "/me").json()
    assert "key-a" not in client.call("GET", "/me").data.decode()


def test_an_upstream_without_history(upstream: Sandbox, client: Client) -> None:
    upstream.history = False
    assert client.send().status == 200
    assert client.call("GET", "/chats/fan/messages").status == 404


# -- a history that is not as it was sent


@pytest.mark.parametrize(
    ("keeps", "sent", "kept"),
    [
        ("as sent", " Cafe\u0301\r\n ", " Cafe\u0301\r\n "),
        ("trimmed", "Hello Anna \n", "Hello Anna"),
        ("nfc", "Cafe\u0301", "Caf\u00e9"),
        ("lf", "one\r\ntwo\rthree", "one\ntwo\nthree"),
        ("html", "a & b\n<i>", "<p>a &amp; b<br />&lt;i&gt;</p>"),
        ("html, trimmed,lf,nfc", " Cafe\u0301 & b\r\nthree\r\n", "<p>Caf\u00e9 &amp; b<br />three</p>"),
    ],
)
def test_the_history_keeps_a_text_in_its_own_way(
    upstream: Sandbox, client: Client, keeps: str, sent: str, kept: str
) -> None:
    upstream.ledger.chats.keeps = keeps
    answer = client.send(sent, idempotency_key="m1")
    assert client.texts() == [kept]
    assert answer.json()["text"] == sent, "only the history is rewritten"
    assert upstream.ledger.entries[0].arrival.message.text == sent
    assert client.send(sent, idempotency_key="m1").headers["Idempotent-Replayed"] == "true"


def test_the_history_says_who_wrote_what(upstream: Sandbox, client: Client) -> None:
    me = client.call("GET", "/me").json()["id"]
    client.send("ours", chat_id="fan-7")
    upstream.fan_says("key-a", "fan-7", "ok")
    upstream.typed_by_hand("key-a", "fan-7", "by hand")
    page = client.call("GET", "/chats/fan-7/messages").json()["messages"]
    wrote = [(message["text"], message["from_user"]["id"]) for message in page]
    assert wrote == [("by hand", me), ("ok", "fan-7"), ("ours", me)]
    assert [message["id"] for message in page] == sorted((message["id"] for message in page), reverse=True)
    upstream.ledger.chats.authors = False
    page = client.call("GET", "/chats/fan-7/messages").json()["messages"]
    assert [message.keys() for message in page] == [{"id", "chat_id", "text", "media_ids", "created_at"}] * 3
    assert len(upstream.ledger.entries) == 1, "the ledger judges requests alone"


def test_messages_that_no_request_brought_over_http(upstream: Sandbox, client: Client) -> None:
    path = "/_sandbox/chats/fan%2F7/messages"
    upstream.ledger.chats.keeps = "trimmed"
    written = client.call("POST", path, {"key": "key-a", "text": " ok "})
    assert written.status == 200
    assert client.call("POST", path, {"key": "key-a", "text": "hand", "by": "user"}).status == 200
    assert client.texts("fan%2F7") == ["hand", "ok"]
    for body in ({}, {"key": "key-a"}, {"key": "", "text": "x"}, {"key": "k", "text": "x", "by": "me"}):
        assert client.call("POST", path, body).status == 400


@pytest.mark.parametrize("hangs", ["fan-1", "key-a"])
def test_the_history_of_one_chat_or_of_one_key_can_hang(upstream: Sandbox, hangs: str) -> None:
    upstream.history_hangs = {hangs}
    hasty, other = Client(upstream.url, timeout_s=0.2), Client(upstream.url, key="key-b")
    with pytest.raises(urllib3.exceptions.ReadTimeoutError):
        hasty.texts("fan-1")
    assert other.texts("fan-2") == []


# -- switches


def test_all_switches_are_read_and_thrown_over_http(upstream: Sandbox, client: Client) -> None:
    assert client.call("GET", "/_sandbox/switches").json() == {
        "enforce": True,
        "idempotent": True,
        "keeps_refusals": False,
        "keeps": "as sent",
        "authors": True,
        "history": True,
        "history_hangs": [],
        "latency_ms": 0,
    }
    wanted = {
        "enforce": False,
        "idempotent": False,
        "keeps_refusals": True,
        "keeps": "trimmed,html",
        "authors": False,
        "history": False,
        "history_hangs": ["fan-1"],
        "latency_ms": 1.5,
    }
    assert client.call("PATCH", "/_sandbox/switches", wanted).json() == wanted
    assert upstream.ledger.idempotent is False
    assert client.call("GET", "/chats/fan/messages").status == 404
    upstream.switch(Sandbox().switches())
    assert client.call("GET", "/_sandbox/switches").json()["keeps"] == "as sent"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"authors": "no"}, "authors cannot be"),
        ({"keeps": "upside down"}, "unknown: upside down"),
        ({"keeps": 7}, "keeps cannot be"),
        ({"history_hangs": "fan"}, "history_hangs cannot be"),
        ({"latency_ms": -1}, "latency_ms cannot be"),
        ({"light": True}, "unknown: light"),
        ([], "must be a JSON object"),
    ],
)
def test_a_switch_that_makes_no_sense_is_told_and_changes_nothing(client: Client, body: object, words: str) -> None:
    before = client.call("GET", "/_sandbox/switches").json()
    also = {"enforce": False} | body if isinstance(body, dict) else body
    answer = client.call("PATCH", "/_sandbox/switches", also)
    assert answer.status == 400
    assert words in answer.json()["error"]
    assert client.call("GET", "/_sandbox/switches").json() == before


def test_a_file_is_uploaded_as_multipart(client: Client) -> None:
    body, content_type = urllib3.encode_multipart_formdata({"file": ("cat.jpg", b"\xff\xd8\r\n--", "image/jpeg")})
    first, second = (client.call("POST", "/medias", body, Content_Type=content_type).json() for _ in range(2))
    assert first["media_id"] != second["media_id"]
    body, content_type = urllib3.encode_multipart_formdata({"photo": b"x"})
    assert client.call("POST", "/medias", body, Content_Type=content_type).status == 400
    assert client.call("POST", "/medias", {"file": "x"}).status == 400


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"chat_id": ', "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        ([1], "must be a JSON object"),
        ({"text": "hi"}, "chat_id"),
        ({"chat_id": 7, "text": "hi"}, "chat_id"),
        ({"chat_id": "", "text": "hi"}, "chat_id"),
        ({"chat_id": "fan"}, "text"),
        ({"chat_id": "fan", "text": None}, "text"),
        ({"chat_id": "fan", "text": "hi", "media_ids": "m"}, "media_ids"),
        ({"chat_id": "fan", "text": "hi", "media_ids": [None]}, "media_ids"),
        ({"chat_id": "fan", "text": "", "media_ids": []}, "only with media_ids"),
    ],
)
def test_a_body_that_is_no_message_is_refused_and_recorded(
    upstream: Sandbox, client: Client, body: object, words: str
) -> None:
    answer = client.call("POST", "/chats/send-message", body)
    assert answer.status == 400
    assert words in answer.json()["error"]
    assert upstream.summary()["by_verdict"]["refused"] == 1
    assert client.send("", media_ids=["m"]).status == 200


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "Basic a2V5", "key-a"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/chats/send-message"),
        ("POST", "/medias"),
        ("GET", "/chats/fan/messages"),
        ("GET", "/chats"),
        ("GET", "/me"),
    ],
)
def test_no_bearer_no_answer(upstream: Sandbox, method: str, path: str, authorization: str | None) -> None:
    stranger = Client(upstream.url, key="")
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = stranger.call(method, path, {"chat_id": "fan", "text": "hi"}, **headers)
    assert answer.status == 401
    assert answer.json()["error"]
    assert upstream.summary()["accepted"] == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("POST", "/me"),
        ("GET", "/chats/fan"),
        ("GET", "/_sandbox/x"),
        ("DELETE", "/_sandbox/rates"),
    ],
)
def test_unknown_paths_are_404_in_json(client: Client, method: str, path: str) -> None:
    answer = client.call(method, path)
    assert answer.status == 404
    assert "error" in answer.json()


def test_over_the_limit_is_429_and_not_in_the_history(upstream: Sandbox, client: Client) -> None:
    upstream.ledger.limits = parse_limits("2/minute")
    assert [client.send(text).status for text in ("one", "two", "three")] == [200, 200, 429]
    throttled = client.send("four")
    assert 58 <= int(throttled.headers["Retry-After"]) <= 60
    assert throttled.json()["error"]
    assert client.texts() == ["two", "one"]
    assert upstream.summary()["overshoot"] == 2


def test_a_crowd_at_once_gets_exactly_the_limit() -> None:
    with Sandbox(limits="10/minute") as upstream, ThreadPoolExecutor(40) as crowd:
        together = threading.Barrier(40)

        def rush(number: int) -> int:
            client = Client(upstream.url)
            client.call("GET", "/me")
            together.wait(5)
            return client.send(str(number)).status

        assert Counter(crowd.map(rush, range(40))) == {200: 10, 429: 30}
        assert upstream.summary()["worst_window"] == {"key-a": {"10/60s": 10}}
        at_ns = [entry.arrival.at_ns for entry in upstream.ledger.entries]
        assert at_ns == sorted(at_ns)


def test_a_crowd_with_one_idempotency_key_is_accepted_once(upstream: Sandbox) -> None:
    with ThreadPoolExecutor(20) as crowd:
        answers = list(crowd.map(lambda _: Client(upstream.url).send(idempotency_key="m1"), range(20)))
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum(answer.headers.get("Idempotent-Replayed") == "true" for answer in answers) == 19
    counts = upstream.summary()
    assert (counts["accepted"], counts["replayed"], counts["duplicates"]) == (1, 19, 0)


def test_one_connection_serves_many_requests_also_after_errors(upstream: Sandbox) -> None:
    connection = http.client.HTTPConnection(upstream.host, upstream.port, timeout=5)
    connection.connect()
    connection.auto_open = 0  # never reconnect in silence
    good, bounced = b'{"chat_id": "fan", "text": "hi"}', b'{"chat_id": "bounce-1", "text": "hi"}'
    for path, body, status in [
        ("/chats/send-message", good, 200),
        ("/chats/send-message", bounced, 400),
        ("/chats/send-message", b"not JSON", 400),
        ("/nowhere", b"a body that nobody asked for", 404),
        ("/chats/send-message", good, 200),
    ]:
        connection.request("POST", path, body, {"Authorization": "Bearer key-a"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status
    connection.close()


# -- a request is judged when it has been read to its end


def raw_request(body: bytes) -> bytes:
    head = b"POST /chats/send-message HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer key-a\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def connect(upstream: Sandbox) -> socket.socket:
    return socket.create_connection((upstream.host, upstream.port), timeout=5)


def test_a_request_arrives_with_its_last_byte(upstream: Sandbox, client: Client) -> None:
    request = raw_request(b'{"chat_id": "fan", "text": "slow to arrive"}')
    with connect(upstream) as slow:
        slow.sendall(request[:-1])
        client.send("overtakes")
        slow.sendall(request[-1:])
        assert slow.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")
    assert client.texts() == ["slow to arrive", "overtakes"]


def test_a_request_cut_off_on_its_way_leaves_no_trace(upstream: Sandbox) -> None:
    with connect(upstream) as dying:
        dying.sendall(raw_request(b'{"chat_id": "fan", "text": "hi"}')[:-1])
        dying.shutdown(socket.SHUT_WR)
        assert dying.recv(4096) == b"", "closed without an answer"
    assert upstream.ledger.entries == []


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"BREW /me HTTP/1.1\r\nHost: x\r\n\r\n", 501),
        (b"POST /medias HTTP/1.1\r\nHost: x\r\nContent-Length: ten\r\n\r\n", 400),
        (b"POST /medias HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n", 413),
        (b"POST /medias HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
    ],
)
def test_what_is_hardly_http_is_answered_in_json_and_closed(
    upstream: Sandbox, request_bytes: bytes, status: int
) -> None:
    with connect(upstream) as odd:
        odd.sendall(request_bytes)
        head, _, body = odd.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"Connection: close" in head
    assert "error" in json.loads(body)


# -- misbehaviour, as the client sees it


def misbehave(client: Client, kind: str, **fields: object) -> None:
    assert client.call("POST", "/_sandbox/faults", {"kind": kind, "times": 1} | fields).status == 200


@pytest.mark.parametrize(
    ("status", "retry_after_s", "header", "verdict"),
    [
        (503, None, None, "failed"),
        (503, 2.5, "3", "failed"),
        (429, None, "1", "throttled"),
        (429, 30, "30", "throttled"),
        (403, None, None, "refused"),
        (307, None, None, "failed"),
    ],
)
def test_status(
    upstream: Sandbox,
    client: Client,
    status: int,
    retry_after_s: float | None,
    header: str | None,
    verdict: str,
) -> None:
    misbehave(client, "status", status=status, retry_after_s=retry_after_s, error="out of order")
    answer = client.send("once more")
    assert (answer.status, answer.json()) == (status, {"error": "out of order"})
    assert answer.headers.get("Retry-After") == header
    assert client.texts() == [], "not accepted"
    assert client.send("once more").status == 200
    assert [entry.verdict for entry in upstream.ledger.entries] == [verdict, "accepted"]
    assert upstream.ledger.entries[0].overshoot is False


@pytest.mark.parametrize(("kind", "texts", "verdict"), [("cut", ["hi"], "accepted"), ("cut_before", [], "dropped")])
def test_cut_and_cut_before_look_alike_and_only_the_history_tells(
    upstream: Sandbox, client: Client, kind: str, texts: list[str], verdict: str
) -> None:
    misbehave(client, kind)
    with pytest.raises(urllib3.exceptions.ProtocolError, match="closed connection without response"):
        client.send("hi")
    assert client.texts() == texts
    entry = upstream.ledger.entries[0]
    assert (entry.verdict, entry.status, entry.fault) == (verdict, None, kind)


def test_cut_midway(upstream: Sandbox, client: Client) -> None:
    misbehave(client, "cut_midway")
    with pytest.raises(urllib3.exceptions.ProtocolError, match="IncompleteRead"):
        client.send("hi")
    assert client.texts() == ["hi"]


def test_late_is_accepted_at_the_end_of_its_wait_also_if_nobody_waits(upstream: Sandbox) -> None:
    hasty = Client(upstream.url, timeout_s=0.1)
    misbehave(hasty, "late", delay_s=0.5)
    start = time.monotonic()
    with pytest.raises(urllib3.exceptions.ReadTimeoutError):
        hasty.send("hi")
    assert hasty.texts() == [], "not accepted yet"
    while not hasty.texts():
        assert time.monotonic() - start < 5
        time.sleep(0.02)
    assert time.monotonic() - start >= 0.5
    (entry,) = upstream.ledger.entries
    assert (entry.verdict, entry.status, entry.fault) == ("accepted", None, "late")


def test_late_ends_with_a_cut(client: Client) -> None:
    misbehave(client, "late", delay_s=0.1)
    with pytest.raises(urllib3.exceptions.ProtocolError, match="closed connection without response"):
        client.send("hi")
    assert client.texts() == ["hi"]


def test_late_counts_from_when_it_is_accepted() -> None:
    ledger = Ledger("1/10s")
    message = Message("k", "fan-1", "hi")
    late = Fault("late")
    assert ledger.judge(Arrival(message, 0, MIDNIGHT), lambda _: late).held
    assert ledger.entries == []
    ledger.judge(Arrival(message, 2 * SECOND, MIDNIGHT), held=late)
    assert ledger.entries[0].verdict == "accepted"
    assert ledger.wait_ns("k", 10 * SECOND) == 2 * SECOND


def test_late_finds_the_window_full_if_it_was_filled_meanwhile() -> None:
    ledger = Ledger("1/10s")
    message = Message("k", "fan-1", "hi")
    late = Fault("late")
    ledger.judge(Arrival(message, 0, MIDNIGHT), lambda _: late)
    judge(ledger, SECOND)
    ledger.judge(Arrival(message, 2 * SECOND, MIDNIGHT), held=late)
    assert [(entry.verdict, entry.overshoot) for entry in ledger.entries] == [("accepted", False), ("throttled", True)]


# -- keys in use, and refusals that are kept


def in_use(ledger: Ledger, at_s: float, fault: Fault, **message: Any) -> Answer:
    first = Message("k", "fan-1", "hi", **message)
    return ledger.judge(Arrival(first, round(at_s * SECOND), MIDNIGHT), lambda _: fault)


def test_a_key_is_in_use_until_the_work_on_its_first_request_is_over() -> None:
    ledger = Ledger("3/10s")
    first = in_use(ledger, 0, Fault("in_use", retry_after_s=2), idempotency_key="m1")
    assert first.held
    again = judge(ledger, SECOND, idempotency_key="m1")
    assert (again.status, again.headers, again.body) == (
        409,
        {"Retry-After": "2"},
        {"error": "This Idempotency-Key is in use"},
    )
    assert ledger.chats.page("k", "fan-1", 10)[0] == [], "not to be seen yet"
    assert send(ledger, 2, idempotency_key="m2").verdict == "accepted", "nobody else waits for it"
    ledger.finish(first)
    assert judge(ledger, 3 * SECOND, idempotency_key="m1").body == first.body
    assert verdicts(ledger) == ["accepted", "refused", "accepted", "replayed"]
    assert [each["id"] for each in ledger.chats.page("k", "fan-1", 10)[0]] == [
        ledger.entries[2].id,
        ledger.entries[0].id,
    ], "in the place of its arrival"
    assert (summary(ledger)["duplicates"], summary(ledger)["overshoot"]) == (0, 0)


def test_a_request_that_meets_a_key_in_use_uses_up_no_fault_and_no_place_in_the_window() -> None:
    ledger, faults = Ledger("2/10s"), Faults()
    first = in_use(ledger, 0, Fault("in_use"), idempotency_key="m1")
    faults.add(Fault("status", times=1))
    for at_s in (1, 2):
        message = Message("k", "fan-1", "hi", idempotency_key="m1")
        assert ledger.judge(Arrival(message, at_s * SECOND, MIDNIGHT), faults.next_for).status == 409
    ledger.finish(first)
    assert faults.to_json()["faults"]
    assert ledger.wait_ns("k", 3 * SECOND) == 0


def test_without_idempotency_no_key_is_in_use_and_each_request_ends_by_itself() -> None:
    ledger = Ledger(idempotent=False)
    answers = [in_use(ledger, at_s, Fault("in_use"), idempotency_key="m1") for at_s in (0, 1)]
    assert [answer.held for answer in answers] == [True, True]
    for answer in answers:
        ledger.finish(answer)
    assert len(ledger.chats.page("k", "fan-1", 10)[0]) == 2
    assert summary(ledger)["duplicates"] == 1


def test_work_that_outlives_a_cleared_ledger_leaves_nothing_in_it() -> None:
    ledger = Ledger()
    first = in_use(ledger, 0, Fault("in_use"), idempotency_key="m1")
    ledger.clear()
    ledger.finish(first)
    assert ledger.chats.page("k", "fan-1", 10)[0] == []
    assert send(ledger, 1, idempotency_key="m1").verdict == "accepted"


def test_in_use_over_http(client: Client, upstream: Sandbox) -> None:
    misbehave(client, "in_use", delay_s=0.5)
    with ThreadPoolExecutor(1) as background:
        first = background.submit(Client(upstream.url).send, "hi", idempotency_key="m1")
        wait_for_arrival(upstream.url)
        again = client.send("hi", idempotency_key="m1")
        assert (again.status, again.headers.get("Retry-After")) == (409, None)
        assert first.result(timeout=5).status == 200
    assert client.send("hi", idempotency_key="m1").headers["Idempotent-Replayed"] == "true"
    assert client.texts() == ["hi"]


def test_in_use_cut_hangs_up_at_once_and_works_on(client: Client, upstream: Sandbox) -> None:
    misbehave(client, "in_use_cut", delay_s=0.5)
    start = time.monotonic()
    with pytest.raises(urllib3.exceptions.ProtocolError):
        client.send("hi", idempotency_key="m1")
    assert time.monotonic() - start < 0.4
    assert client.send("hi", idempotency_key="m1").status == 409
    while not client.texts():
        assert time.monotonic() - start < 5
        time.sleep(0.02)
    assert time.monotonic() - start >= 0.5
    assert client.send("hi", idempotency_key="m1").headers["Idempotent-Replayed"] == "true"
    first, second, third = upstream.ledger.entries
    assert [each.verdict for each in (first, second, third)] == ["accepted", "refused", "replayed"]
    assert (first.status, first.fault) == (None, "in_use_cut")
    assert upstream.summary()["duplicates"] == 0


def test_an_outage_does_not_end_the_work_on_a_key_in_use(upstream: Sandbox, client: Client) -> None:
    misbehave(client, "in_use_cut", delay_s=30)
    with pytest.raises(urllib3.exceptions.ProtocolError):
        client.send("hi", idempotency_key="m1")
    upstream.stop()
    upstream.start()
    assert Client(upstream.url).send("hi", idempotency_key="m1").headers["Idempotent-Replayed"] == "true"


def test_a_kept_refusal_is_replayed_for_ever_under_its_key_and_under_no_other(
    upstream: Sandbox, client: Client
) -> None:
    upstream.ledger.keeps_refusals = True
    misbehave(client, "status", status=400, error="This chat is closed")
    answers = [client.send("hi", idempotency_key=key) for key in ("m1", "m1", "m1", "m1.2")]
    assert [answer.status for answer in answers] == [400, 400, 400, 200]
    assert {answer.data for answer in answers[:3]} == {b'{"error":"This chat is closed"}'}
    assert [answer.headers.get("Idempotent-Replayed") for answer in answers] == [None, "true", "true", None]
    assert client.send("other", idempotency_key="m1").status == 409
    assert verdicts(upstream.ledger) == ["refused", "refused", "refused", "accepted", "refused"]


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 503])
def test_what_says_to_try_again_is_not_kept(upstream: Sandbox, client: Client, status: int) -> None:
    upstream.ledger.keeps_refusals = True
    misbehave(client, "status", status=status)
    assert [client.send("hi", idempotency_key="m1").status for _ in range(2)] == [status, 200]


def test_refusals_are_not_kept_unless_told_and_never_without_idempotency(upstream: Sandbox, client: Client) -> None:
    misbehave(client, "status", status=400)
    assert [client.send("hi", idempotency_key="m1").status for _ in range(2)] == [400, 200]
    upstream.ledger.keeps_refusals, upstream.ledger.idempotent = True, False
    misbehave(client, "status", status=400)
    assert [client.send("hi", idempotency_key="m2").status for _ in range(2)] == [400, 200]


def test_the_second_key_of_a_message_that_was_accepted_under_its_first_makes_a_duplicate() -> None:
    ledger = Ledger()
    for idempotency_key in ("m1", "m1.2", "m2.2", "m3.2", "m3.3"):
        send(ledger, 0, idempotency_key=idempotency_key)
    assert summary(ledger)["duplicates"] == 2


# -- away


def test_an_outage_refuses_everybody_for_so_long_and_forgets_nothing(client: Client) -> None:
    client.send("before")
    start = time.monotonic()
    assert client.call("POST", "/_sandbox/outage", {"for_s": 0.5}).status == 200
    refused = 0
    while time.monotonic() - start < 5:
        try:
            texts = client.texts()
            if refused:
                break
        except urllib3.exceptions.HTTPError:
            refused += 1
        time.sleep(0.02)
    assert refused
    assert texts == ["before"]
    assert time.monotonic() - start >= 0.5


def test_an_upstream_that_is_away_may_answer_503_to_everything(upstream: Sandbox, client: Client) -> None:
    upstream.ledger.limits = parse_limits("1/minute")
    client.send("fills the window")
    upstream.away = Fault("status", retry_after_s=2.5, error="Down for maintenance")
    for method, path in [
        ("POST", "/chats/send-message"),
        ("POST", "/medias"),
        ("GET", "/chats/fan/messages"),
        ("GET", "/me"),
    ]:
        answer = client.call(method, path, {"chat_id": "fan", "text": "hi"})
        assert (answer.status, answer.headers["Retry-After"]) == (503, "3")
        assert answer.json() == {"error": "Down for maintenance"}
    assert client.call("GET", "/_sandbox/health").status == 200
    upstream.away = None
    assert client.texts() == ["fills the window"]
    assert [(entry.verdict, entry.fault) for entry in upstream.ledger.entries[1:]] == [("failed", "status")]


def test_an_upstream_that_is_away_may_take_requests_in_and_say_nothing(upstream: Sandbox) -> None:
    hasty = Client(upstream.url, timeout_s=0.2)
    upstream.away = Fault("swallow")
    with pytest.raises(urllib3.exceptions.ReadTimeoutError):
        hasty.send("hi")
    with pytest.raises(urllib3.exceptions.ReadTimeoutError):
        hasty.texts()
    upstream.away = None
    assert hasty.texts() == [], "not accepted"
    assert [(entry.verdict, entry.status) for entry in upstream.ledger.entries] == [("dropped", None)]


def test_an_outage_with_a_fault_lasts_for_so_long(client: Client) -> None:
    outage = {"for_s": 0.4, "kind": "status", "status": 503, "retry_after_s": 1}
    start = time.monotonic()
    assert client.call("POST", "/_sandbox/outage", outage).status == 200
    statuses = set()
    while time.monotonic() - start < 5 and statuses != {200, 503}:
        statuses = statuses & {503} | {client.call("GET", "/me").status}
        time.sleep(0.02)
    assert time.monotonic() - start >= 0.4
    assert statuses == {200, 503}


@pytest.mark.parametrize(
    "body",
    [{}, {"for_s": 0}, {"for_s": "1"}, {"for_s": 10**6}, {"for_s": 1, "kind": "cut"}, {"for_s": 1, "kind": "x"}],
)
def test_an_outage_that_makes_no_sense_is_told(client: Client, body: object) -> None:
    assert client.call("POST", "/_sandbox/outage", body).status == 400


def test_hang_outlasts_the_client(upstream: Sandbox) -> None:
    hasty = Client(upstream.url, timeout_s=0.2)
    misbehave(hasty, "hang")
    with pytest.raises(urllib3.exceptions.ReadTimeoutError):
        hasty.send("hi")
    assert hasty.texts() == ["hi"], "accepted all the same"


def test_swallow_is_a_hang_that_accepts_nothing(client: Client) -> None:
    misbehave(client, "swallow", delay_s=0.2)
    start = time.monotonic()
    with pytest.raises(urllib3.exceptions.ProtocolError, match="closed connection without response"):
        client.send("hi")
    assert 0.2 <= time.monotonic() - start < 2
    assert client.texts() == []


def test_hang_ends_with_a_cut(client: Client) -> None:
    misbehave(client, "hang", delay_s=0.2)
    start = time.monotonic()
    with pytest.raises(urllib3.exceptions.ProtocolError, match="closed connection without response"):
        client.send("hi")
    assert 0.2 <= time.monotonic() - start < 2


def test_delay_is_of_the_answer_not_of_the_arrival(upstream: Sandbox, client: Client) -> None:
    misbehave(client, "delay", delay_s=0.3)
    start = time.monotonic()
    assert client.send("hi").status == 200
    answered = time.monotonic()
    client.send("now")
    assert 0.3 <= answered - start < 2
    slow, quick = upstream.ledger.entries
    assert quick.arrival.at_ns - slow.arrival.at_ns >= 0.3 * SECOND


def test_drip_defeats_a_timeout_per_read(upstream: Sandbox) -> None:
    hasty = Client(upstream.url, timeout_s=0.2)
    misbehave(hasty, "drip", delay_s=0.5)
    start = time.monotonic()
    answer = hasty.send("hi")
    assert 0.5 <= time.monotonic() - start < 2
    assert answer.json()["text"] == "hi"


def test_garbage(client: Client) -> None:
    misbehave(client, "garbage")
    answer = client.send("hi")
    assert answer.status == 200
    with pytest.raises(ValueError, match="Expecting value"):
        answer.json()
    assert client.texts() == ["hi"]


def test_no_id(client: Client) -> None:
    misbehave(client, "no_id")
    answer = client.send("hi")
    assert answer.status == 200
    assert "id" not in answer.json()
    assert answer.json()["text"] == "hi"
    assert client.texts() == ["hi"]


@pytest.mark.parametrize("kind", ["cut", "cut_midway"])
def test_after_a_cut_an_idempotent_upstream_gives_the_answer_that_was_lost(
    upstream: Sandbox, client: Client, kind: str
) -> None:
    misbehave(client, kind)
    with pytest.raises(urllib3.exceptions.ProtocolError):
        client.send("hi", idempotency_key="m1")
    again = client.send("hi", idempotency_key="m1")
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.json()["id"] == upstream.ledger.entries[0].id
    assert upstream.summary()["duplicates"] == 0


def test_after_a_cut_blind_sending_to_any_other_upstream_is_a_duplicate(upstream: Sandbox, client: Client) -> None:
    upstream.ledger.idempotent = False
    misbehave(client, "cut")
    with pytest.raises(urllib3.exceptions.ProtocolError):
        client.send("hi", idempotency_key="m1")
    assert client.send("hi", idempotency_key="m1").status == 200
    assert client.texts() == ["hi", "hi"]
    assert upstream.summary()["duplicates"] == 1


def test_rules_apply_in_order_to_whom_they_are_meant_for_until_used_up(client: Client) -> None:
    misbehave(client, "status", status=500, chat_id="fan-1", times=2)
    misbehave(client, "status", status=502, text="odd")
    misbehave(client, "status", status=504, chat_id="fan-2", times=None)
    sent = [("fan-1", "odd"), ("fan-3", "hi"), ("fan-1", "hi"), ("fan-1", "odd"), ("fan-1", "odd")]
    assert [client.send(text, chat_id=chat_id).status for chat_id, text in sent] == [500, 200, 500, 502, 200]
    assert [client.send(chat_id="fan-2").status for _ in range(5)] == [504] * 5
    left = client.call("GET", "/_sandbox/faults").json()["faults"]
    assert [(rule["status"], rule["times"]) for rule in left] == [(504, None)]
    client.call("DELETE", "/_sandbox/faults")
    assert client.send(chat_id="fan-2").status == 200


def test_faults_are_added_in_process_too(upstream: Sandbox, client: Client) -> None:
    upstream.faults.add(Fault("status", status=500))
    assert [client.send().status for _ in range(2)] == [500, 200]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "kind must be one of"),
        ({"kind": ["cut"]}, "kind must be one of"),
        ({"kind": "explode"}, "kind must be one of"),
        ({"kind": "status", "status": 200}, "status must be"),
        ({"kind": "cut", "times": 0}, "times must be"),
        ({"kind": "hang", "delay_s": -1}, "delay_s must be"),
        ({"kind": "cut", "chatId": "fan"}, "unknown: chatId"),
        ([], "must be a JSON object"),
    ],
)
def test_a_fault_that_makes_no_sense_is_told(client: Client, body: object, words: str) -> None:
    answer = client.call("POST", "/_sandbox/faults", body)
    assert answer.status == 400
    assert words in answer.json()["error"]


def test_recipients_who_misbehave_by_name(client: Client) -> None:
    bounced = client.send(chat_id="bounce-1")
    assert (bounced.status, bounced.json()["error"]) == (400, "This user does not accept messages")
    assert [client.send("a", chat_id="flaky-1").status for _ in range(3)] == [503, 503, 200]
    assert client.send("b", chat_id="flaky-1").status == 503, "another message"
    keyed = [client.send("a", chat_id="flaky-1", idempotency_key=key).status for key in ("x", "y", "x", "x")]
    assert keyed == [503, 503, 503, 200], "known by their keys, although the text is the same"
    assert [client.send(chat_id="throttle-1").status for _ in range(2)] == [429, 200]
    with pytest.raises(urllib3.exceptions.ProtocolError):
        client.send(chat_id="cut-1")
    assert client.send(chat_id="cut-1").status == 200
    jammed = [client.send(chat_id="jammed-1") for _ in range(3)]
    assert [(answer.status, answer.headers["Retry-After"]) for answer in jammed] == [(429, "1")] * 3
    assert {client.send(chat_id="blocked-1").status for _ in range(3)} == {403}
    assert {client.send(chat_id="gone-1").status for _ in range(3)} == {404}
    assert client.send(chat_id="gone-1").json() == {"error": "This chat does not exist"}
    assert client.send(chat_id="bouncer").status == 200, "a name needs its hyphen"


def test_the_slow_recipient_takes_two_seconds_every_time() -> None:
    faults = Faults()
    for _ in range(3):
        fault = faults.next_for(Message("k", "slow-1", "hi"))
        assert fault is not None
        assert (fault.kind, fault.wait_s) == ("delay", 2)


def test_chance_is_seeded(upstream: Sandbox, client: Client) -> None:
    def fates(seed: int) -> list[int]:
        rates = {"status:503": 0.3, "status:500": 0.2}
        assert client.call("PUT", "/_sandbox/rates", {"rates": rates, "seed": seed}).status == 200
        return [client.send().status for _ in range(200)]

    first, again, other = fates(7), fates(7), fates(8)
    assert first == again != other
    counts = Counter(first)
    assert 35 < counts[503] < 85
    assert 20 < counts[500] < 60
    client.call("PUT", "/_sandbox/rates", {"rates": {}})
    assert {client.send().status for _ in range(20)} == {200}


def test_a_rate_may_carry_its_number() -> None:
    faults = Faults(seed=1)
    faults.set_rates({"hang:0.5": 1})
    fault = faults.next_for(Message("k", "fan", "hi"))
    assert fault is not None
    assert (fault.kind, fault.wait_s) == ("hang", 0.5)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"rates": []},
        {"rates": {"cut": 2}},
        {"rates": {"cut": "1"}},
        {"rates": {"explode": 0.1}},
        {"rates": {"cut": 0.6, "hang": 0.6}},
        {"rates": {"status:abc": 0.1}},
        {"rates": {}, "seed": "x"},
        {"cut": 0.1},
    ],
)
def test_rates_that_make_no_sense_are_told_and_change_nothing(client: Client, body: object) -> None:
    client.call("PUT", "/_sandbox/rates", {"rates": {"cut": 0.5}})
    answer = client.call("PUT", "/_sandbox/rates", body)
    assert answer.status == 400
    assert answer.json()["error"]
    assert client.call("GET", "/_sandbox/faults").json()["rates"] == {"cut": 0.5}


def test_latency_delays_the_answers_of_the_upstream_but_not_of_its_controls(upstream: Sandbox, client: Client) -> None:
    upstream.latency_ms = 200
    start = time.monotonic()
    client.send()
    assert 0.2 <= time.monotonic() - start < 1
    start = time.monotonic()
    client.call("GET", "/_sandbox/health")
    assert time.monotonic() - start < 0.15


# -- evidence


def test_the_ledger_shows_each_arrival_and_can_be_followed(client: Client) -> None:
    client.send("one", idempotency_key="m1")
    client.send("two", chat_id="bounce-1")
    page = client.call("GET", "/_sandbox/ledger").json()
    first, second = page["entries"]
    assert first == {
        "n": 1,
        "at": pytest.approx(first["at"]),
        "wall": first["wall"],
        "key": "key-a",
        "chat_id": "fan",
        "text": "one",
        "idempotency_key": "m1",
        "verdict": "accepted",
        "status": 200,
        "id": first["id"],
        "overshoot": False,
        "fault": None,
    }
    assert (second["n"], second["verdict"], second["status"], second["id"]) == (2, "refused", 400, None)
    assert 0 < first["at"] < second["at"]
    client.send("three")
    later = client.call("GET", f"/_sandbox/ledger?since={page['last']}").json()
    assert [entry["text"] for entry in later["entries"]] == ["three"]
    assert client.call("GET", f"/_sandbox/ledger?since={later['last']}").json() == {"entries": [], "last": 3}
    assert client.call("GET", "/_sandbox/ledger?since=-1").status == 400


def test_the_summary_is_the_same_over_http_and_in_process(upstream: Sandbox, client: Client) -> None:
    for chat_id in ("fan", "bounce-1", "throttle-1", "throttle-1", "flaky-1"):
        client.send(chat_id=chat_id)
    counts = client.call("GET", "/_sandbox/summary").json()
    assert counts == upstream.summary()
    assert counts["by_verdict"] == {
        "accepted": 2,
        "replayed": 0,
        "throttled": 1,
        "refused": 1,
        "failed": 1,
        "dropped": 0,
    }
    assert counts["worst_window"] == {"key-a": {"1000/1s": 2}}


def test_emptying_the_ledger_empties_windows_history_and_memory(upstream: Sandbox, client: Client) -> None:
    upstream.ledger.limits = parse_limits("1/minute")
    assert client.send(chat_id="throttle-1").status == 429
    client.send(idempotency_key="m1")
    assert client.send(idempotency_key="m1").status == 429
    client.call("DELETE", "/_sandbox/ledger")
    assert client.send(chat_id="throttle-1").status == 429, "once more the first request"
    client.call("DELETE", "/_sandbox/ledger")
    assert client.texts() == []
    assert client.call("GET", "/_sandbox/summary").json()["arrivals"] == 0
    fresh = client.send(idempotency_key="m1")
    assert fresh.status == 200
    assert "Idempotent-Replayed" not in fresh.headers
    assert upstream.ledger.entries[0].n == 1


def test_nothing_is_printed(upstream: Sandbox, client: Client, capfd: pytest.CaptureFixture[str]) -> None:
    client.send()
    client.call("GET", "/nowhere")
    misbehave(client, "cut")
    with pytest.raises(urllib3.exceptions.ProtocolError):
        client.send()
    upstream.stop()
    assert capfd.readouterr() == ("", "")


# -- stopping


def wait_for_arrival(url: str) -> None:
    control, deadline = Client(url), time.monotonic() + 5
    while control.call("GET", "/_sandbox/summary").json()["arrivals"] == 0:
        assert time.monotonic() < deadline, "no request arrived"
        time.sleep(0.01)


def test_stop_cuts_what_hangs_and_what_idles_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    upstream = Sandbox().start()
    idle, hanging = Client(upstream.url), Client(upstream.url)
    misbehave(idle, "hang")
    with ThreadPoolExecutor(1) as background:
        request = background.submit(hanging.send)
        wait_for_arrival(upstream.url)
        start = time.monotonic()
        upstream.stop()
        assert time.monotonic() - start < 0.5
        with pytest.raises(urllib3.exceptions.ProtocolError):
            request.result(timeout=1)
    with pytest.raises(urllib3.exceptions.HTTPError):
        idle.send("too late")
    for thread in set(threading.enumerate()) - before:
        thread.join(0.5)
        assert not thread.is_alive()


class HeldBack(Faults):
    """Keeps a request in the middle of its judgement until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.released = threading.Event(), threading.Event()

    def next_for(self, message: Message) -> Fault | None:
        self.reached.set()
        self.released.wait(5)
        return None


def test_stop_waits_for_a_judgement_that_has_begun_and_then_the_ledger_is_closed() -> None:
    upstream = Sandbox()
    upstream.faults = held = HeldBack()
    with upstream, ThreadPoolExecutor(2) as background:
        background.submit(Client(upstream.url).send)
        assert held.reached.wait(5)
        stopped = background.submit(upstream.stop)
        with pytest.raises(TimeoutError):
            stopped.result(timeout=0.2)
        held.released.set()
        stopped.result(timeout=1)
        assert len(upstream.ledger.entries) == 1


def test_started_again_it_is_the_same_upstream_back_from_an_outage() -> None:
    with Sandbox(limits="1/minute") as upstream:
        url = upstream.url
        assert Client(url).send("before").status == 200
        upstream.stop()
        with pytest.raises(urllib3.exceptions.NewConnectionError):
            Client(url).send("meanwhile")
        upstream.start()
        assert upstream.url == url
        assert Client(url).send("after").status == 429
        assert Client(url).texts() == ["before"]


def run(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "deploy.sandbox", "--port", "0", *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_as_a_process_it_says_where_it_listens_and_stops_within_a_second(how: signal.Signals) -> None:
    options = ("--limits", "1/minute", "--no-enforce", "--no-history", "--no-idempotent")
    with run(*options) as process, ThreadPoolExecutor(1) as background:
        try:
            assert process.stdout is not None
            word, url = process.stdout.readline().split()
            assert word == "sandbox"
            client = Client(url)
            assert [client.send(idempotency_key="m1").status for _ in range(2)] == [200, 200]
            assert client.call("GET", "/chats/fan/messages").status == 404
            counts = client.call("GET", "/_sandbox/summary").json()
            assert (counts["overshoot"], counts["duplicates"]) == (1, 1)
            client.call("DELETE", "/_sandbox/ledger")
            misbehave(client, "hang")
            hanging = background.submit(Client(url).send)
            wait_for_arrival(url)
            start = time.monotonic()
            process.send_signal(how)
            assert process.wait(5) == 0
            assert time.monotonic() - start < 1
            with pytest.raises(urllib3.exceptions.ProtocolError):
                hanging.result(timeout=1)
            assert process.communicate() == ("", "")
        finally:
            process.kill()


def test_limits_that_make_no_sense_stop_the_command_line_with_the_reason() -> None:
    with run("--limits", "ten a minute") as process:
        _, said = process.communicate(timeout=10)
    assert process.returncode == 2
    assert "right would be 10/minute" in said
