"""The upstream counts by key: accounts that send with one key keep its limit together, over processes and faults."""

from collections.abc import Callable

import pytest

from deploy.stack import Stack
from tests.acceptance.conftest import Api, await_arrivals, upstream
from workers.bootstrap import build

pytestmark = pytest.mark.acceptance
MESSAGES = 20
"""Of each account."""


@pytest.mark.parametrize(
    "body", [{}, {"credentials": {"apiKey": "one-key-for-both"}}], ids=["the channel's key", "a key of their own"]
)
def test_two_accounts_two_workers_and_an_emptied_redis(
    make_stack: Callable[..., Stack], body: dict[str, dict[str, str]]
) -> None:
    stack = make_stack(RATE_LIMIT="10/2s", workers=2)
    api = Api(stack)
    for account in ("a", "b"):
        assert api("PUT", f"/accounts/{account}", body)[0] == 200
    for n in range(MESSAGES):
        for account in ("a", "b"):
            api.send(f"fan-{n}", accountId=account)
    await_arrivals(stack, 15)
    adapters = build(stack.settings)
    adapters.redis.flushall()
    adapters.close()
    assert api.await_over(60) == ["sent"] * 2 * MESSAGES
    summary = upstream(stack, "/summary")
    assert (summary["accepted"], summary["throttled"], summary["overshoot"], summary["duplicates"]) == (40, 0, 0, 0)
    [worst] = summary["worst_window"].values()
    assert max(worst.values()) == 10
