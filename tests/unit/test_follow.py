"""What the terminal shows of the services' logs."""

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.local.follow import MOST_LINES, Follower, line

AT = "2026-11-27T08:15:00.123456Z"


def event(name: str, **more: Any) -> dict[str, Any]:
    ids = {"message_id": "msg_1", "account_id": "shop", "attempt": 1, "request_id": "r"}
    return {"event": name, "timestamp": AT, "level": "info", "service": "worker1"} | ids | more


@pytest.mark.parametrize(
    ("name", "facts", "words", "shown"),
    [
        ("message_accepted", {"state": "queued"}, None, "accepted   msg_1  shop  queued"),
        ("message_sent", {"http_status": 200, "latency_ms": 34}, None, "sent       msg_1  shop  in 34 ms"),
        (
            "message_failed",
            {"reason": "rejected", "outcome": "rejected", "http_status": 400},
            "Not wanted",
            "failed     msg_1  shop  rejected, HTTP 400: Not wanted",
        ),
        (
            "message_retry_scheduled",
            {"outcome": "failed", "http_status": 503, "delay_s": 4.56},
            "Back soon\x1b[2J\nreally",
            "retry      msg_1  shop  failed, HTTP 503, again in 4.6 s: Back soon [2J really",
        ),
        (
            "message_deferred",
            {"reason": "throttled", "http_status": 429, "cooldown_s": 30.0},
            None,
            "deferred   msg_1  shop  throttled, HTTP 429, closed for 30.0 s",
        ),
        ("message_unheard_of", {}, None, "unheard of  msg_1  shop"),
        (
            "messages_accepted",
            {"count": 3, "first_id": "msg_a", "last_id": "msg_c", "message_id": None, "account_id": None},
            None,
            "accepted   3 messages, msg_a to msg_c",
        ),
        (
            "store_unavailable",
            {"error": "no route", "message_id": None, "account_id": None, "attempt": None, "tries": 2},
            None,
            "store unavailable  worker1  tries=2: no route",
        ),
    ],
)
def test_an_event_as_people_read_it(name: str, facts: dict[str, Any], words: str | None, shown: str) -> None:
    assert line(event(name, **facts), words).partition("  ")[2] == shown


def test_only_what_is_added_from_now_on_and_is_ours(tmp_path: Path) -> None:
    def write(name: str, *events: dict[str, Any]) -> None:
        with (tmp_path / name).open("a") as log:
            log.writelines(json.dumps(one) + "\n" for one in events)

    said: list[str] = []
    write("api.log", event("message_accepted", message_id="old"))
    follower = Follower(tmp_path, said.append, words=lambda message_id: f"words of {message_id}")
    follower.look()
    assert said == []
    write("worker1.log", event("message_failed", timestamp="2026-11-27T08:15:02Z"), event("message_sending"))
    write("api.log", event("message_accepted"), event("not_ready", level="warning"), event("worker_started"))
    write("api.log", event("A library says so.", level="warning"), event("unhandled_error", level="error"))
    (tmp_path / "api.log").open("a").write(
        "Traceback\n" + json.dumps(event("message_accepted", message_id="half"))[:-5]
    )
    follower.look()
    assert [text.split()[1] for text in said] == ["accepted", "unhandled", "failed"]
    assert said[-1].endswith("  words of msg_1")
    said.clear()
    follower.look()
    assert said == []


def test_of_very_many_only_the_number_is_told(tmp_path: Path) -> None:
    said: list[str] = []
    follower = Follower(tmp_path, said.append)
    events = [event("message_accepted")] * (MOST_LINES + 1200) + [event("message_sent", timestamp="2027")] * 34
    (tmp_path / "api.log").write_text("".join(json.dumps(one) + "\n" for one in events))
    follower.look()
    assert len(said) == MOST_LINES + 1
    assert said[-1] == "… and 1,234 more: 1,200 accepted, 34 sent"
