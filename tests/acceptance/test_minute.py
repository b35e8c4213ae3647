"""The promise at its real pace: ten a minute, as the upstream sees it, and estimates that hold."""

import time
from collections.abc import Callable
from datetime import datetime

import pytest

from deploy.stack import Stack
from tests.acceptance.conftest import Api, upstream

pytestmark = pytest.mark.acceptance


def test_twenty_five_at_ten_a_minute(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()  # 10/minute is the default
    api = Api(stack)
    began = time.monotonic()
    receipts = [api.send(f"fan-{n}", f"Hello {n}") for n in range(25)]
    assert [receipt["position"] for receipt in receipts[:1]] == [1]

    time.sleep(5)
    early = upstream(stack, "/ledger")["entries"]
    assert len(early) == 10, "ten at once after a quiet minute, and no eleventh"

    assert api.await_over(130) == ["sent"] * 25
    assert time.monotonic() - began < 125
    summary = upstream(stack, "/summary")
    assert (summary["accepted"], summary["throttled"], summary["overshoot"], summary["duplicates"]) == (25, 0, 0, 0)
    assert max(summary["worst_window"]["sandbox"].values()) == 10

    entries = {entry["idempotency_key"]: entry for entry in upstream(stack, "/ledger")["entries"]}
    errors = sorted(
        abs(seconds(entries[receipt["messageId"]]["wall"]) - seconds(receipt["estimatedSendTime"]))
        for receipt in receipts
    )
    assert errors[-2] <= 2, f"nineteen in twenty within 2 s: {errors}"


def seconds(iso: str) -> float:
    return datetime.fromisoformat(iso).timestamp()
