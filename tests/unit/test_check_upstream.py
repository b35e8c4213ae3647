"""What an upstream's answer to GET /me says of it and of our key."""

import json

import pytest

from workers.channels.http.exchange import Answer
from workers.channels.http.reach import Asked, judge
from workers.domain.remarks import Level


@pytest.mark.parametrize(
    ("status", "with_key", "level", "says"),
    [
        (200, True, Level.OK, "https://up"),
        (401, True, Level.FAIL, "answers 401 (No such key): it refuses ONLYFANS_API_KEY; set the key that it gave you"),
        (401, False, Level.WARN, "ONLYFANS_API_KEY is not set: only accounts with keys of their own can send"),
        (402, True, Level.FAIL, "it wants to be paid"),
        (403, True, Level.WARN, "see whether ONLYFANS_API_KEY may send messages"),
        (404, True, Level.WARN, "see whether the path in ONLYFANS_BASE_URL is right"),
        (429, True, Level.OK, "throttles us at the moment"),
        (302, True, Level.FAIL, "it redirects to https://elsewhere; set ONLYFANS_BASE_URL"),
        (503, True, Level.WARN, "is in trouble"),
    ],
)
def test_each_answer_has_its_remedy(status: int, with_key: bool, level: Level, says: str) -> None:
    body = json.dumps({"error": "No such key"}).encode()
    remark = judge(
        Asked("https://up", with_key, "ONLYFANS_BASE_URL", "ONLYFANS_API_KEY"),
        Answer(status, {"Location": "https://elsewhere"}, body),
    )
    assert remark.level is level
    assert says in remark.words


def test_words_are_short_and_plain() -> None:
    for body in (b"<html>", b"[1]", b'{"error": "a\\u001b[2Jb' + b"x" * 5000 + b'"}'):
        words = judge(Asked("https://up", True, "ONLYFANS_BASE_URL", "ONLYFANS_API_KEY"), Answer(500, {}, body)).words
        assert len(words) < 400
        assert words.isprintable()
