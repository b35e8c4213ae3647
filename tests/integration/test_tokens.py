"""Tokens on a real Valkey. Most tests stop its clock, so that "one microsecond too early" can be said and meant."""

import math
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from deploy.servers import Servers
from ratelimit import Limits, Tokens, TokensUnavailable, Use, connect
from ratelimit.tokens import CLOCK_RATE_ERROR
from workers.bootstrap import NAMESPACE, Adapters

TEN_PER_MINUTE = Limits.parse("10/minute")
ONE_PER_MINUTE = Limits.parse("1/minute")
LEASE_S = 13.0
A_MOMENT_S = 0.000_001
FILLED = "paceline:filled"
EPOCH = "17"
"""Which a test enters after a loss."""
USES, GATE = "paceline:{default}:uses", "paceline:{default}:gate"

_START_S = 1_800_000_000


class Clock(redis.Redis):
    """The real server, whose scripts read the time from a list: it stands still until a test moves it."""

    def register_script(self, script: Any) -> Any:
        return super().register_script(script.replace("redis.call('TIME')", "redis.call('LRANGE', 'clock', 0, 1)"))

    def at(self, seconds: float) -> None:
        """Set it to so many seconds after the start of the test."""
        now_us = round((_START_S + seconds) * 1_000_000)
        self.delete("clock")
        self.rpush("clock", now_us // 1_000_000, now_us % 1_000_000)

    def lose_everything(self) -> None:
        now = self.lrange("clock", 0, 1)
        self.flushall()
        self.rpush("clock", *now)

    def be_another_server(self) -> None:
        """As after a failover, or a restart from a snapshot: the data is there, but perhaps not the latest."""
        self.hset(FILLED, "server", "a server that is gone")


@pytest.fixture
def real_tokens(adapters: Adapters) -> Tokens:
    """By the server's own clock."""
    return adapters.tokens


@pytest.fixture
def clock(adapters: Adapters, real_tokens: Tokens) -> Clock:
    clock = Clock(connection_pool=adapters.redis.connection_pool)
    clock.at(0)
    return clock


@pytest.fixture
def tokens(clock: Clock) -> Tokens:
    return Tokens(clock, NAMESPACE)


def borrow(tokens: Tokens, limits: Limits, want: int = 1) -> tuple[str, ...]:
    return tokens.borrow("default", limits, want=want, lease_s=LEASE_S).tokens


def use_at(tokens: Tokens, clock: Clock, limits: Limits, *times_s: float) -> None:
    """Use one at each of these times, each answered at once."""
    for time_s in times_s:
        clock.at(time_s)
        (token,) = borrow(tokens, limits)
        tokens.give_back("default", limits, [token])


def begin(tokens: Tokens, keys: Mapping[str, Limits]) -> dict[str, str]:
    """Of an epoch of which nothing is lost a part is rebuilt; else a new one is entered."""
    origin = tokens.origin()
    epoch = origin.epoch or EPOCH
    assert tokens.enter_epoch(epoch, origin.server)
    return tokens.begin_rebuild(keys, epoch)


def rebuild(tokens: Tokens, limits: Limits, uses: Sequence[Use] = (), cooldown_s: float = 0.0) -> int:
    nonces = begin(tokens, {"default": limits})
    return tokens.finish_rebuild([(key, nonce, limits, cooldown_s, uses) for key, nonce in nonces.items()])


# --- borrow and return


def test_ten_go_at_once_and_no_eleventh(tokens: Tokens) -> None:
    assert len(borrow(tokens, TEN_PER_MINUTE, want=10)) == 10
    assert borrow(tokens, TEN_PER_MINUTE) == ()


def test_the_eleventh_waits_for_the_first_tokens_return(tokens: Tokens, clock: Clock) -> None:
    out = borrow(tokens, TEN_PER_MINUTE, want=10)
    clock.at(1)
    tokens.give_back("default", TEN_PER_MINUTE, out[:1])
    clock.at(4)
    assert tokens.borrow("default", TEN_PER_MINUTE, lease_s=LEASE_S).wait_s == 57  # returned at 1, usable at 61
    clock.at(61 - A_MOMENT_S)
    denied = tokens.borrow("default", TEN_PER_MINUTE, lease_s=LEASE_S)
    assert (denied.tokens, denied.wait_s) == ((), A_MOMENT_S)
    clock.at(61)
    assert len(borrow(tokens, TEN_PER_MINUTE, want=10)) == 1


def test_the_example_in_the_lua(tokens: Tokens, clock: Clock) -> None:
    """2 per 10 s, uses ended at 1 and 4: at 10.9 both count; at 11.0 one token is free."""
    limits = Limits.parse("2/10s")
    use_at(tokens, clock, limits, 1, 4)
    clock.at(10.9)
    assert borrow(tokens, limits, want=2) == ()
    clock.at(11)
    assert len(borrow(tokens, limits, want=2)) == 1


def test_a_use_counts_from_its_return_and_not_from_its_start(tokens: Tokens, clock: Clock) -> None:
    (token,) = borrow(tokens, ONE_PER_MINUTE)
    clock.at(10)
    tokens.give_back("default", ONE_PER_MINUTE, [token])
    clock.at(60)
    assert borrow(tokens, ONE_PER_MINUTE) == ()
    clock.at(70)
    assert borrow(tokens, ONE_PER_MINUTE)


def test_a_refunded_token_is_usable_at_once(tokens: Tokens) -> None:
    out = borrow(tokens, TEN_PER_MINUTE, want=10)
    tokens.refund("default", TEN_PER_MINUTE, out[:3])
    assert len(borrow(tokens, TEN_PER_MINUTE, want=10)) == 3


def test_a_token_never_returned_holds_its_place_until_loan_end_and_a_period(tokens: Tokens, clock: Clock) -> None:
    borrow(tokens, ONE_PER_MINUTE)
    clock.at(LEASE_S + 60 - A_MOMENT_S)
    assert borrow(tokens, ONE_PER_MINUTE) == ()
    clock.at(LEASE_S + 60)
    assert borrow(tokens, ONE_PER_MINUTE)


def test_while_a_loan_is_out_the_wait_is_the_latest_it_can_be(tokens: Tokens, clock: Clock) -> None:
    borrow(tokens, ONE_PER_MINUTE)
    clock.at(3)
    assert tokens.borrow("default", ONE_PER_MINUTE, lease_s=LEASE_S).wait_s == LEASE_S + 60 - 3


def test_a_token_returned_after_its_loan_has_ended_counts_from_its_return(tokens: Tokens, clock: Clock) -> None:
    (token,) = borrow(tokens, ONE_PER_MINUTE)
    clock.at(LEASE_S + 20)
    tokens.give_back("default", ONE_PER_MINUTE, [token])
    clock.at(LEASE_S + 80 - A_MOMENT_S)
    assert borrow(tokens, ONE_PER_MINUTE) == ()
    clock.at(LEASE_S + 80)
    assert borrow(tokens, ONE_PER_MINUTE)


def give_back(tokens: Tokens, limits: Limits, *out: str) -> int:
    """Returns the overshoot."""
    return tokens.exchange("default", limits, want=0, lease_s=0, returned=dict.fromkeys(out, 0.0)).overshoot


def test_a_return_so_late_that_its_token_was_lent_again_is_an_overshoot(tokens: Tokens, clock: Clock) -> None:
    (late,) = borrow(tokens, ONE_PER_MINUTE)
    clock.at(LEASE_S + 60)
    (other,) = borrow(tokens, ONE_PER_MINUTE)
    assert give_back(tokens, ONE_PER_MINUTE, late) == 1
    assert give_back(tokens, ONE_PER_MINUTE, late) == 0  # once more, because the first answer was lost: told already
    assert give_back(tokens, ONE_PER_MINUTE, other) == 0  # in time


def test_an_overshoot_is_told_with_whatever_else_the_exchange_does(tokens: Tokens, clock: Clock) -> None:
    limits = Limits.parse("2/minute")
    late = borrow(tokens, limits, want=2)
    clock.at(LEASE_S + 60)
    assert len(borrow(tokens, limits, want=2)) == 2
    grant = tokens.exchange("default", limits, want=5, lease_s=LEASE_S, returned=dict.fromkeys(late, 0.0))
    assert (grant.tokens, grant.overshoot) == ((), 2)
    assert tokens.borrow("default", limits, lease_s=LEASE_S).overshoot == 0


def test_a_late_return_whose_token_nobody_had_is_none(tokens: Tokens, clock: Clock) -> None:
    (late,) = borrow(tokens, ONE_PER_MINUTE)
    clock.at(LEASE_S + 90)
    assert give_back(tokens, ONE_PER_MINUTE, late) == 0


def test_a_return_after_the_loan_but_within_the_period_is_none(tokens: Tokens, clock: Clock) -> None:
    """Its place was kept: nobody can have had its token."""
    (late,) = borrow(tokens, ONE_PER_MINUTE)
    clock.at(LEASE_S + 60 - A_MOMENT_S)
    assert borrow(tokens, ONE_PER_MINUTE) == ()
    assert give_back(tokens, ONE_PER_MINUTE, late) == 0


def test_a_token_is_free_one_period_after_its_use_and_not_after_its_return(tokens: Tokens, clock: Clock) -> None:
    (token,) = borrow(tokens, ONE_PER_MINUTE)
    clock.at(8)
    ended_s = 5 + 3 * CLOCK_RATE_ERROR  # 3 s ago, of which a little is not believed
    grant = tokens.exchange("default", ONE_PER_MINUTE, want=1, lease_s=LEASE_S, returned={token: 3.0})
    assert (grant.tokens, grant.wait_s) == ((), pytest.approx(ended_s + 60 - 8))
    clock.at(ended_s + 60 - A_MOMENT_S)
    assert borrow(tokens, ONE_PER_MINUTE) == ()
    clock.at(ended_s + 60)
    assert borrow(tokens, ONE_PER_MINUTE)


def test_an_answer_in_time_is_no_overshoot_however_late_its_return(tokens: Tokens, clock: Clock) -> None:
    """Such as a worker's that was cut off from Redis: the token was another's by right."""
    (token,) = borrow(tokens, ONE_PER_MINUTE)
    clock.at(LEASE_S + 60)
    borrow(tokens, ONE_PER_MINUTE)
    clock.at(LEASE_S + 70)
    grant = tokens.exchange("default", ONE_PER_MINUTE, want=0, lease_s=LEASE_S, returned={token: LEASE_S + 69})
    assert grant.overshoot == 0


def test_a_use_that_ended_after_its_loan_is_an_overshoot_however_long_ago(tokens: Tokens, clock: Clock) -> None:
    (token,) = borrow(tokens, ONE_PER_MINUTE)
    clock.at(LEASE_S + 60)
    borrow(tokens, ONE_PER_MINUTE)
    clock.at(LEASE_S + 70)
    grant = tokens.exchange("default", ONE_PER_MINUTE, want=0, lease_s=LEASE_S, returned={token: 5})
    assert grant.overshoot == 1


def test_no_use_ends_before_it_begins(tokens: Tokens, clock: Clock) -> None:
    """Redis's machine stood still for a minute, and its clock with it; the worker's went on."""
    clock.at(100)
    (token,) = borrow(tokens, ONE_PER_MINUTE)
    clock.at(101)
    grant = tokens.exchange("default", ONE_PER_MINUTE, want=1, lease_s=LEASE_S, returned={token: 60})
    assert (grant.tokens, grant.wait_s) == ((), 59)


def test_what_was_borrowed_again_but_not_used_is_none(tokens: Tokens, clock: Clock) -> None:
    (late,) = borrow(tokens, ONE_PER_MINUTE)
    clock.at(LEASE_S + 60)
    other = borrow(tokens, ONE_PER_MINUTE)
    grant = tokens.exchange("default", ONE_PER_MINUTE, want=0, lease_s=0, returned={late: 0.0}, refunded=other)
    assert grant.overshoot == 0


def test_of_several_limits_the_one_exceeded_counts(tokens: Tokens, clock: Clock) -> None:
    limits = Limits.parse("1/second,10/minute")
    (late,) = borrow(tokens, limits)
    clock.at(LEASE_S + 1)
    borrow(tokens, limits)
    assert give_back(tokens, limits, late) == 1


def test_a_limit_lowered_meanwhile_is_no_overshoot(tokens: Tokens, clock: Clock) -> None:
    out = borrow(tokens, TEN_PER_MINUTE, want=10)
    clock.at(1)
    assert give_back(tokens, ONE_PER_MINUTE, *out) == 0


def test_a_short_loan_does_not_shorten_a_long_one(tokens: Tokens, clock: Clock) -> None:
    """Redis drops the uses when all of them are over, and not when the latest loan is."""
    limits = Limits.parse("2/s")
    tokens.borrow("default", limits, lease_s=1000)
    tokens.borrow("default", limits, lease_s=1)
    assert clock.pttl(USES) > 500_000


def test_returning_what_was_never_borrowed_takes_no_token(tokens: Tokens) -> None:
    tokens.give_back("default", TEN_PER_MINUTE, ["made-up.1"])
    tokens.refund("default", TEN_PER_MINUTE, ["made-up.2"])
    assert len(borrow(tokens, TEN_PER_MINUTE, want=11)) == 10


def test_returned_and_borrowed_in_one_step(tokens: Tokens, clock: Clock) -> None:
    out = borrow(tokens, TEN_PER_MINUTE, want=10)
    clock.at(5)
    grant = tokens.exchange(
        "default", TEN_PER_MINUTE, want=5, lease_s=LEASE_S, returned=dict.fromkeys(out[:4], 0.0), refunded=out[4:6]
    )
    assert len(grant.tokens) == 2
    assert grant.wait_s == 60
    clock.at(65)
    assert len(borrow(tokens, TEN_PER_MINUTE, want=10)) == 4


def test_giving_back_asks_for_nothing(tokens: Tokens, clock: Clock) -> None:
    (token,) = borrow(tokens, TEN_PER_MINUTE)
    tokens.give_back("default", TEN_PER_MINUTE, [token])
    assert clock.zcard(USES) == 1


def test_tokens_have_names_of_their_own(tokens: Tokens) -> None:
    out = borrow(tokens, TEN_PER_MINUTE, want=5) + borrow(tokens, TEN_PER_MINUTE, want=5)
    assert len(set(out)) == 10


def test_accounts_do_not_share_tokens(tokens: Tokens) -> None:
    tokens.open_new("other")
    borrow(tokens, TEN_PER_MINUTE, want=10)
    assert len(tokens.borrow("other", TEN_PER_MINUTE, want=10, lease_s=LEASE_S).tokens) == 10


def test_thousands_at_once(tokens: Tokens) -> None:
    limits = Limits.parse("20000/s")
    assert len(borrow(tokens, limits, want=30_000)) == 20_000


# --- how many, for how long


def test_whoever_wants_more_than_is_free_gets_what_is_free(tokens: Tokens) -> None:
    assert len(borrow(tokens, TEN_PER_MINUTE, want=7)) == 7
    assert len(borrow(tokens, TEN_PER_MINUTE, want=7)) == 3
    assert len(borrow(tokens, TEN_PER_MINUTE, want=7)) == 0


def test_left_says_how_many_more_are_free(tokens: Tokens, clock: Clock) -> None:
    def left(want: int) -> tuple[int, float]:
        grant = tokens.borrow("default", TEN_PER_MINUTE, want=want, lease_s=LEASE_S)
        return grant.left, grant.wait_s

    assert left(3) == (7, 0)
    assert left(6) == (1, 0)
    assert left(1) == (0, LEASE_S + 60)
    clock.at(1)
    assert left(1) == (0, LEASE_S + 60 - 1)


def test_free_s_says_for_how_long_the_token_had_been_free(tokens: Tokens, clock: Clock) -> None:
    limits = Limits.parse("1/10s")
    use_at(tokens, clock, limits, 0)
    clock.at(9)
    assert borrow(tokens, limits) == ()
    clock.at(12.5)
    assert tokens.borrow("default", limits, lease_s=LEASE_S).free_s == 2.5


def test_free_s_is_of_the_last_one_granted(tokens: Tokens, clock: Clock) -> None:
    limits = Limits.parse("3/10s")
    use_at(tokens, clock, limits, 0, 1, 2)
    clock.at(13)
    assert tokens.borrow("default", limits, want=2, lease_s=LEASE_S).free_s == 2  # free since 10 and 11
    assert tokens.borrow("default", limits, want=1, lease_s=LEASE_S).free_s == 1  # free since 12


def test_free_s_is_zero_at_the_very_moment(tokens: Tokens, clock: Clock) -> None:
    use_at(tokens, clock, ONE_PER_MINUTE, 0)
    clock.at(60)
    assert tokens.borrow("default", ONE_PER_MINUTE, lease_s=LEASE_S).free_s == 0


def test_free_s_goes_by_the_limit_that_freed_last(tokens: Tokens, clock: Clock) -> None:
    limits = Limits.parse("1/5s,2/10s")
    use_at(tokens, clock, limits, 0, 6)
    clock.at(12)
    assert tokens.borrow("default", limits, lease_s=LEASE_S).free_s == 1  # free since 11 and 10


def test_free_s_goes_by_the_end_of_a_cooldown(tokens: Tokens, clock: Clock) -> None:
    tokens.cool_down("default", 20)
    clock.at(23)
    assert tokens.borrow("default", TEN_PER_MINUTE, lease_s=LEASE_S).free_s == 3


def test_free_s_is_infinite_for_a_token_never_used_or_unused_for_long(tokens: Tokens, clock: Clock) -> None:
    assert tokens.borrow("default", TEN_PER_MINUTE, lease_s=0).free_s == math.inf
    clock.at(3600)
    assert tokens.borrow("default", TEN_PER_MINUTE, want=10, lease_s=LEASE_S).free_s == math.inf


# --- several limits at once


def test_every_limit_holds(tokens: Tokens, clock: Clock) -> None:
    limits = Limits.parse("1/second,3/10s")
    granted = []
    for tenth in range(0, 250):
        clock.at(tenth / 10)
        if out := borrow(tokens, limits, want=5):
            granted += [tenth / 10] * len(out)
            tokens.give_back("default", limits, out)
    assert granted == [0, 1, 2, 10, 11, 12, 20, 21, 22]


def test_the_smallest_rest_of_all_limits_is_what_is_granted(tokens: Tokens, clock: Clock) -> None:
    limits = Limits.parse("3/second,5/10s")
    assert len(borrow(tokens, limits, want=9)) == 3
    clock.at(30)
    out = borrow(tokens, limits, want=9)
    tokens.give_back("default", limits, out)
    clock.at(31)
    assert len(borrow(tokens, limits, want=9)) == 2


def test_who_is_denied_by_one_limit_spends_none_of_another(tokens: Tokens, clock: Clock) -> None:
    """Ten denials by the ten-second limit leave the one-second limit as it was."""
    limits = Limits.parse("1/second,2/10s")
    use_at(tokens, clock, limits, 0, 1)
    for tenth in range(20, 100):
        clock.at(tenth / 10)
        assert borrow(tokens, limits) == ()
    clock.at(10)
    assert len(borrow(tokens, limits)) == 1


def test_the_wait_is_for_the_last_of_all_limits(tokens: Tokens, clock: Clock) -> None:
    limits = Limits.parse("1/second,2/10s")
    use_at(tokens, clock, limits, 0)
    assert tokens.borrow("default", limits, lease_s=0).wait_s == 1
    use_at(tokens, clock, limits, 1)
    assert tokens.borrow("default", limits, lease_s=0).wait_s == 9


def test_a_lowered_limit_holds_at_once(tokens: Tokens, clock: Clock) -> None:
    use_at(tokens, clock, TEN_PER_MINUTE, 0, 1, 2, 3)
    lowered = Limits.parse("2/minute")
    grant = tokens.borrow("default", lowered, want=5, lease_s=LEASE_S)
    assert (grant.tokens, grant.left, grant.wait_s) == ((), 0, 59)  # when the use at 2 is a minute old
    clock.at(62)
    assert len(borrow(tokens, lowered, want=5)) == 1


# --- cooldown


def test_a_cooldown_closes_the_account_until_its_end(tokens: Tokens, clock: Clock) -> None:
    assert tokens.cool_down("default", 30) == 30
    grant = tokens.borrow("default", TEN_PER_MINUTE, want=10, lease_s=LEASE_S)
    assert (grant.tokens, grant.left, grant.wait_s) == ((), 0, 30)
    clock.at(30 - A_MOMENT_S)
    assert borrow(tokens, TEN_PER_MINUTE) == ()
    clock.at(30)
    assert len(borrow(tokens, TEN_PER_MINUTE, want=10)) == 10


def test_a_cooldown_is_only_ever_extended(tokens: Tokens, clock: Clock) -> None:
    tokens.cool_down("default", 30)
    clock.at(10)
    assert tokens.cool_down("default", 5) == 20
    assert tokens.borrow("default", TEN_PER_MINUTE, lease_s=LEASE_S).wait_s == 20
    assert tokens.cool_down("default", 40) == 40
    assert tokens.borrow("default", TEN_PER_MINUTE, lease_s=LEASE_S).wait_s == 40


def test_a_cooldown_survives_whatever_else_is_done(tokens: Tokens, clock: Clock) -> None:
    (token,) = borrow(tokens, TEN_PER_MINUTE)
    tokens.cool_down("default", 30)
    clock.at(1)
    tokens.give_back("default", TEN_PER_MINUTE, [token])
    tokens.refund("default", TEN_PER_MINUTE, [token])
    tokens.open_new("default")
    assert rebuild(tokens, TEN_PER_MINUTE) == 0
    assert tokens.view("default", TEN_PER_MINUTE).cooldown_s == 29
    assert tokens.borrow("default", TEN_PER_MINUTE, lease_s=LEASE_S).wait_s == 29


def test_the_wait_is_for_cooldown_and_token_both(tokens: Tokens, clock: Clock) -> None:
    use_at(tokens, clock, ONE_PER_MINUTE, 0)
    tokens.cool_down("default", 30)
    assert tokens.borrow("default", ONE_PER_MINUTE, lease_s=LEASE_S).wait_s == 60
    tokens.cool_down("default", 90)
    assert tokens.borrow("default", ONE_PER_MINUTE, lease_s=LEASE_S).wait_s == 90


# --- looking


def test_a_view_shows_uses_loans_and_cooldown(tokens: Tokens, clock: Clock) -> None:
    use_at(tokens, clock, TEN_PER_MINUTE, 0)
    clock.at(10)
    borrow(tokens, TEN_PER_MINUTE)
    tokens.cool_down("default", 5)
    view = tokens.view("default", TEN_PER_MINUTE)
    assert view.uses == (-10, LEASE_S)
    assert (view.cooldown_s, view.known, view.available(TEN_PER_MINUTE)) == (5, True, 8)
    clock.at(60)
    assert tokens.view("default", TEN_PER_MINUTE).uses == (LEASE_S - 50,)  # the first is a minute old


def test_looking_changes_nothing_and_sees_what_borrowing_would_get(tokens: Tokens, clock: Clock) -> None:
    limits = Limits.parse("2/second,3/10s")
    use_at(tokens, clock, limits, 0, 1, 1.5)
    for time_s, free in ((9.9, 0), (10, 1), (10.9, 1), (11, 2), (11.5, 2), (30, 2)):
        clock.at(time_s)
        assert tokens.view("default", limits).available(limits) == free
    clock.at(11)
    assert len(borrow(tokens, limits, want=5)) == 2


def test_many_are_seen_at_once_in_the_order_asked_for(tokens: Tokens, clock: Clock) -> None:
    tokens.open_new("other")
    borrow(tokens, TEN_PER_MINUTE)
    views = tokens.views([("other", TEN_PER_MINUTE), ("default", TEN_PER_MINUTE), ("unheard-of", ONE_PER_MINUTE)])
    assert [(view.known, len(view.uses)) for view in views] == [(True, 0), (True, 1), (False, 0)]
    assert tokens.views([]) == []


# --- callers


def test_a_caller_spends_on_the_spot(tokens: Tokens, clock: Clock) -> None:
    limits = Limits.parse("3/minute")
    grants = [tokens.spend("caller.alice", limits) for _ in range(4)]
    assert [len(grant.tokens) for grant in grants] == [1, 1, 1, 0]
    assert [grant.left for grant in grants] == [2, 1, 0, 0]
    assert [grant.wait_s for grant in grants] == [0, 0, 60, 60]
    clock.at(60 - A_MOMENT_S)
    assert not tokens.spend("caller.alice", limits).tokens
    clock.at(60)
    assert tokens.spend("caller.alice", limits).tokens


def test_a_callers_past_is_forgotten_with_the_data(tokens: Tokens, clock: Clock) -> None:
    assert tokens.spend("caller.alice", ONE_PER_MINUTE).tokens
    clock.lose_everything()
    grant = tokens.spend("caller.alice", ONE_PER_MINUTE)
    assert (len(grant.tokens), grant.lost) == (1, False)


def test_a_caller_who_stays_away_leaves_nothing_behind(tokens: Tokens, clock: Clock) -> None:
    tokens.spend("caller.alice", ONE_PER_MINUTE)
    left = [clock.pttl(key) for key in clock.keys("*caller.alice*")]
    assert len(left) == 2
    assert all(60_000 <= ms <= 120_000 for ms in left)


# --- lost data


def test_after_a_loss_nothing_is_handed_out(tokens: Tokens, clock: Clock) -> None:
    borrow(tokens, TEN_PER_MINUTE)
    clock.lose_everything()
    grant = tokens.borrow("default", TEN_PER_MINUTE, want=10, lease_s=LEASE_S)
    assert (grant.tokens, grant.left, grant.lost) == ((), 0, True)
    assert tokens.lost()
    assert not tokens.view("default", TEN_PER_MINUTE).known


def test_a_cooldown_after_a_loss_does_not_open_the_gate(tokens: Tokens, clock: Clock) -> None:
    clock.lose_everything()
    tokens.cool_down("default", 1)
    clock.at(2)
    assert tokens.borrow("default", TEN_PER_MINUTE, lease_s=LEASE_S).lost


def test_a_token_returned_after_a_loss_is_left_to_the_books(tokens: Tokens, clock: Clock) -> None:
    (token,) = borrow(tokens, TEN_PER_MINUTE)
    clock.lose_everything()
    tokens.give_back("default", TEN_PER_MINUTE, [token])
    assert clock.exists(USES) == 0


def test_what_was_reported_lost_is_known_again_when_declared_so(tokens: Tokens) -> None:
    assert not tokens.lost()
    tokens.report_loss()
    assert tokens.lost()
    tokens.declare_known(tokens.origin().epoch)
    assert not tokens.lost()


def test_a_rebuild_gives_out_nothing_before_it_is_finished(tokens: Tokens, clock: Clock) -> None:
    clock.lose_everything()
    nonces = begin(tokens, {"default": TEN_PER_MINUTE})
    assert tokens.borrow("default", TEN_PER_MINUTE, lease_s=LEASE_S).lost
    tokens.open_new("default")
    assert tokens.borrow("default", TEN_PER_MINUTE, lease_s=LEASE_S).lost
    assert tokens.finish_rebuild([("default", nonces["default"], TEN_PER_MINUTE, 0, [])]) == 1
    assert len(borrow(tokens, TEN_PER_MINUTE, want=10)) == 10


def test_a_rebuild_brings_the_uses_back(tokens: Tokens, clock: Clock) -> None:
    clock.lose_everything()
    assert rebuild(tokens, TEN_PER_MINUTE, [Use("a", -50.0), Use("b", -10.0), Use("old", -60.0)]) == 1
    grant = tokens.borrow("default", TEN_PER_MINUTE, want=10, lease_s=LEASE_S)
    assert (len(grant.tokens), grant.wait_s) == (8, 10)
    clock.at(10)
    assert len(borrow(tokens, TEN_PER_MINUTE, want=10)) == 1


def test_a_rebuild_brings_an_open_loan_back_which_can_be_returned(tokens: Tokens, clock: Clock) -> None:
    (token,) = borrow(tokens, ONE_PER_MINUTE)
    clock.at(3)
    clock.lose_everything()
    rebuild(tokens, ONE_PER_MINUTE, [Use(token, LEASE_S - 3)])
    assert tokens.borrow("default", ONE_PER_MINUTE, lease_s=LEASE_S).wait_s == LEASE_S - 3 + 60
    clock.at(5)
    tokens.give_back("default", ONE_PER_MINUTE, [token])
    assert tokens.borrow("default", ONE_PER_MINUTE, lease_s=LEASE_S).wait_s == 60


def test_rebuilt_uses_last_as_long_as_they_count(tokens: Tokens, clock: Clock) -> None:
    clock.lose_everything()
    rebuild(tokens, TEN_PER_MINUTE, [Use("a", -50.0), Use("open", 1000.0)])
    assert 1_000_000 < clock.pttl(USES) <= 1_061_000


def test_a_rebuild_brings_the_cooldown_back(tokens: Tokens, clock: Clock) -> None:
    clock.lose_everything()
    rebuild(tokens, TEN_PER_MINUTE, cooldown_s=20)
    assert tokens.borrow("default", TEN_PER_MINUTE, lease_s=LEASE_S).wait_s == 20


def test_a_cooldown_that_began_during_the_rebuild_is_kept(tokens: Tokens, clock: Clock) -> None:
    clock.lose_everything()
    nonces = begin(tokens, {"default": TEN_PER_MINUTE})
    tokens.cool_down("default", 30)
    tokens.finish_rebuild([("default", nonces["default"], TEN_PER_MINUTE, 20, [])])
    assert tokens.borrow("default", TEN_PER_MINUTE, lease_s=LEASE_S).wait_s == 30


def test_after_a_second_loss_the_first_rebuilders_picture_is_refused(tokens: Tokens, clock: Clock) -> None:
    clock.lose_everything()
    outdated = begin(tokens, {"default": TEN_PER_MINUTE})["default"]
    clock.lose_everything()
    assert tokens.finish_rebuild([("default", outdated, TEN_PER_MINUTE, 0, [])]) == 0
    assert tokens.borrow("default", TEN_PER_MINUTE, lease_s=LEASE_S).lost
    current = begin(tokens, {"default": TEN_PER_MINUTE})["default"]
    assert tokens.finish_rebuild([("default", outdated, TEN_PER_MINUTE, 0, [])]) == 0
    assert tokens.borrow("default", TEN_PER_MINUTE, lease_s=LEASE_S).lost
    assert tokens.finish_rebuild([("default", current, TEN_PER_MINUTE, 0, [Use("a", -1.0)])]) == 1
    assert len(borrow(tokens, TEN_PER_MINUTE, want=10)) == 9


def test_of_two_rebuilders_one_opens_the_gate_and_the_other_does_no_harm(tokens: Tokens, clock: Clock) -> None:
    clock.lose_everything()
    first, second = begin(tokens, {"default": TEN_PER_MINUTE}), begin(tokens, {"default": TEN_PER_MINUTE})
    assert first == second
    assert tokens.finish_rebuild([("default", second["default"], ONE_PER_MINUTE, 0, [])]) == 1
    assert borrow(tokens, ONE_PER_MINUTE)
    assert tokens.finish_rebuild([("default", first["default"], ONE_PER_MINUTE, 99, [Use("a", -1.0)])]) == 0
    clock.at(LEASE_S + 60)
    assert borrow(tokens, ONE_PER_MINUTE)


def test_only_what_is_lost_is_rebuilt(tokens: Tokens) -> None:
    assert begin(tokens, {"default": TEN_PER_MINUTE}) == {}
    assert list(begin(tokens, dict.fromkeys(["default", "lost-1", "lost-2"], TEN_PER_MINUTE))) == [
        "lost-1",
        "lost-2",
    ]
    assert begin(tokens, {}) == {}
    assert tokens.finish_rebuild([]) == 0
    assert len(borrow(tokens, TEN_PER_MINUTE, want=10)) == 10


def test_many_are_rebuilt_in_one_step(tokens: Tokens, clock: Clock) -> None:
    clock.lose_everything()
    nonces = begin(tokens, dict.fromkeys(["default", "other"], TEN_PER_MINUTE))
    uses = {"default": [Use("a", -1.0)], "other": [Use("b", -1.0), Use("c", -2.0)]}
    assert tokens.finish_rebuild([(key, nonce, TEN_PER_MINUTE, 0, uses[key]) for key, nonce in nonces.items()]) == 2
    left = [view.available(TEN_PER_MINUTE) for view in tokens.views([(key, TEN_PER_MINUTE) for key in nonces])]
    assert left == [9, 8]


# --- scripts, servers, connections


def test_scripts_flushed_in_the_middle_are_loaded_again(tokens: Tokens, clock: Clock) -> None:
    def flushed() -> Tokens:
        clock.script_flush()
        return tokens

    (token,) = borrow(flushed(), TEN_PER_MINUTE)
    flushed().give_back("default", TEN_PER_MINUTE, [token])
    assert flushed().cool_down("default", 5) == 5
    assert flushed().view("default", TEN_PER_MINUTE).uses == (0,)
    assert len(flushed().views([("default", TEN_PER_MINUTE)] * 3)) == 3
    assert flushed().spend("caller.alice", TEN_PER_MINUTE).tokens
    nonce = begin(flushed(), {"lost": TEN_PER_MINUTE})["lost"]
    assert flushed().finish_rebuild([("lost", nonce, TEN_PER_MINUTE, 0, [Use("a", -1.0)])]) == 1


def test_every_grant_says_where_it_comes_from_and_counts(tokens: Tokens) -> None:
    now = tokens.origin()
    first, second = (tokens.borrow("default", TEN_PER_MINUTE, lease_s=LEASE_S).origin for _ in range(2))
    assert (first.server, first.epoch, first.given) == (now.server, now.epoch, now.given + 1)
    assert (second.server, second.epoch, second.given) == (now.server, now.epoch, now.given + 2)
    assert tokens.origin().given == second.given
    tokens.spend("caller.alice", TEN_PER_MINUTE)
    assert tokens.origin().given == second.given, "of callers' limits no books are kept"


def test_another_server_than_before_is_not_trusted(tokens: Tokens, clock: Clock) -> None:
    tokens.open_new("other")
    (token,) = borrow(tokens, ONE_PER_MINUTE)
    clock.be_another_server()
    assert tokens.lost()
    assert tokens.origin().epoch == ""
    assert tokens.borrow("default", ONE_PER_MINUTE, lease_s=LEASE_S).lost
    assert tokens.borrow("other", ONE_PER_MINUTE, lease_s=LEASE_S).lost
    assert not tokens.view("default", ONE_PER_MINUTE).known
    tokens.open_new("new")
    assert tokens.borrow("new", ONE_PER_MINUTE, lease_s=LEASE_S).lost
    assert rebuild(tokens, ONE_PER_MINUTE, [Use(token, LEASE_S)], cooldown_s=5) == 1
    assert tokens.view("default", ONE_PER_MINUTE).cooldown_s == 5
    assert tokens.borrow("default", ONE_PER_MINUTE, lease_s=LEASE_S).wait_s == LEASE_S + 60


def test_another_server_ends_a_rebuild_that_was_under_way(tokens: Tokens, clock: Clock) -> None:
    clock.lose_everything()
    nonce = begin(tokens, {"default": TEN_PER_MINUTE})["default"]
    clock.be_another_server()
    tokens.finish_rebuild([("default", nonce, TEN_PER_MINUTE, 0, [])])
    assert tokens.borrow("default", TEN_PER_MINUTE, lease_s=LEASE_S).lost


def test_times_by_another_servers_clock_count_for_nothing(tokens: Tokens, clock: Clock) -> None:
    """Its clock was an hour ahead. What the books know, they know by a clock of their own."""
    clock.at(3600)
    (token,) = borrow(tokens, ONE_PER_MINUTE)
    tokens.cool_down("default", 30)
    clock.at(0)
    clock.be_another_server()
    rebuild(tokens, ONE_PER_MINUTE, [Use(token, -1.0)])
    assert tokens.borrow("default", ONE_PER_MINUTE, lease_s=LEASE_S).wait_s == 59


def test_a_new_epoch_closes_every_gate_of_the_one_before(tokens: Tokens) -> None:
    """The address led elsewhere for a while; this server has lost nothing, but was not the only one."""
    (token,) = borrow(tokens, ONE_PER_MINUTE)
    assert tokens.enter_epoch("18", tokens.origin().server)
    assert tokens.lost()
    assert tokens.borrow("default", ONE_PER_MINUTE, lease_s=LEASE_S).lost
    nonces = tokens.begin_rebuild({"default": ONE_PER_MINUTE}, "18")
    elsewhere = Use("borrowed elsewhere", -1.0)
    assert tokens.finish_rebuild([("default", nonces["default"], ONE_PER_MINUTE, 0, [elsewhere])]) == 1
    tokens.declare_known("18")
    assert not tokens.lost()
    grant = tokens.borrow("default", ONE_PER_MINUTE, lease_s=LEASE_S)
    assert grant.wait_s == LEASE_S + 60, "what it has by its own clock counts, too"
    tokens.refund("default", ONE_PER_MINUTE, [token])
    assert tokens.borrow("default", ONE_PER_MINUTE, lease_s=LEASE_S).wait_s == 59


def test_an_epoch_entered_twice_is_one(tokens: Tokens) -> None:
    server = tokens.origin().server
    assert tokens.enter_epoch("18", server)
    nonces = tokens.begin_rebuild({"default": TEN_PER_MINUTE}, "18")
    tokens.finish_rebuild([("default", nonces["default"], TEN_PER_MINUTE, 0, [])])
    tokens.declare_known("18")
    assert tokens.enter_epoch("18", server)  # by another reconciler
    assert not tokens.lost()
    assert tokens.begin_rebuild({"default": TEN_PER_MINUTE}, "18") == {}
    assert tokens.borrow("default", TEN_PER_MINUTE, lease_s=LEASE_S).origin.epoch == "18"


def test_an_epoch_meant_for_another_server_is_not_entered(tokens: Tokens) -> None:
    assert not tokens.enter_epoch("18", "a server that is gone")
    assert borrow(tokens, TEN_PER_MINUTE)


def test_a_rebuilder_of_an_epoch_that_is_over_opens_nothing(tokens: Tokens) -> None:
    server = tokens.origin().server
    tokens.enter_epoch("18", server)
    outdated = tokens.begin_rebuild({"default": TEN_PER_MINUTE}, "18")["default"]
    tokens.enter_epoch("19", server)
    tokens.begin_rebuild({"default": TEN_PER_MINUTE}, "19")
    assert tokens.finish_rebuild([("default", outdated, TEN_PER_MINUTE, 0, [])]) == 0
    tokens.declare_known("18")
    assert tokens.lost()


def test_the_count_of_grants_never_goes_back_by_a_loss(tokens: Tokens, clock: Clock) -> None:
    borrow(tokens, TEN_PER_MINUTE)
    server = tokens.origin().server
    clock.lose_everything()
    tokens.enter_epoch("18", server, given=100)
    assert tokens.origin().given == 100
    tokens.enter_epoch("19", server, given=50)
    assert tokens.origin().given == 100


def test_where_the_books_know_of_a_later_end_than_an_old_copy_the_later_one_holds(tokens: Tokens, clock: Clock) -> None:
    (token,) = borrow(tokens, ONE_PER_MINUTE)  # the copy has the loan, which ended at 13, but not its return at 19
    tokens.enter_epoch("18", tokens.origin().server)
    clock.at(20)
    nonces = tokens.begin_rebuild({"default": ONE_PER_MINUTE}, "18")
    tokens.finish_rebuild([("default", nonces["default"], ONE_PER_MINUTE, 0, [Use(token, -1.0)])])
    clock.at(79 - A_MOMENT_S)
    assert borrow(tokens, ONE_PER_MINUTE) == ()
    clock.at(79)
    assert borrow(tokens, ONE_PER_MINUTE)


def test_a_replica_that_takes_writes_gives_out_nothing(servers: Servers, real_tokens: Tokens) -> None:
    """Demoted and promoted, it has another name than before."""
    with connect(servers.redis_url) as client:
        before = real_tokens.origin()
        client.config_set("replica-read-only", "no")
        try:
            client.replicaof("127.0.0.1", 1)
            assert real_tokens.origin().server == ""
            assert real_tokens.borrow("default", TEN_PER_MINUTE, lease_s=LEASE_S).lost
            client.replicaof("no", "one")
            assert real_tokens.origin().server not in ("", before.server)
            assert real_tokens.borrow("default", TEN_PER_MINUTE, lease_s=LEASE_S).lost
        finally:
            client.replicaof("no", "one")
            client.config_set("replica-read-only", "yes")


def test_no_answer_is_tokens_unavailable(tmp_path: Path) -> None:
    tokens = Tokens(connect(f"unix://{tmp_path}/nobody-listens.sock"), NAMESPACE)
    calls = [
        lambda: tokens.borrow("default", TEN_PER_MINUTE, lease_s=LEASE_S),
        lambda: tokens.spend("caller.alice", TEN_PER_MINUTE),
        lambda: tokens.cool_down("default", 1),
        lambda: tokens.view("default", TEN_PER_MINUTE),
        lambda: tokens.open_new("default"),
        lambda: tokens.lost(),
        lambda: tokens.origin(),
        lambda: tokens.enter_epoch(EPOCH, "a server"),
        lambda: tokens.begin_rebuild({"default": TEN_PER_MINUTE}, EPOCH),
        lambda: tokens.finish_rebuild([("default", "?", TEN_PER_MINUTE, 0, [])]),
    ]
    for call in calls:
        with pytest.raises(TokensUnavailable, match="Redis did not answer"):
            call()


def test_both_keys_of_an_account_live_on_one_node_of_a_cluster(tokens: Tokens, clock: Clock) -> None:
    borrow(tokens, TEN_PER_MINUTE)
    keys = clock.keys("*default*")
    assert sorted(keys) == sorted([USES, GATE])
    assert len({key_slot(key.encode()) for key in keys}) == 1


def test_an_account_at_ten_per_minute_takes_less_than_one_kib(tokens: Tokens, clock: Clock) -> None:
    for second in range(0, 600, 5):
        clock.at(second)
        out = borrow(tokens, TEN_PER_MINUTE, want=10)
        clock.at(second + 0.2)
        tokens.give_back("default", TEN_PER_MINUTE, out)
    tokens.cool_down("default", 60)
    assert sum(clock.memory_usage(key) for key in (USES, GATE)) < 1024


# --- the server's own clock, and many at once


def test_by_the_servers_own_clock_the_wait_is_exact(adapters: Adapters, real_tokens: Tokens) -> None:
    tokens, limits = real_tokens, TEN_PER_MINUTE
    out = tokens.borrow("default", limits, want=10, lease_s=LEASE_S).tokens
    tokens.give_back("default", limits, out)
    before_s = _server_time_s(adapters)
    wait_s = tokens.borrow("default", limits, lease_s=LEASE_S).wait_s
    after_s = _server_time_s(adapters)
    returned_s = adapters.redis.zrange(USES, 0, 0, withscores=True)[0][1] / 1_000_000
    assert returned_s + 60 - after_s <= wait_s + 0.001
    assert wait_s - 0.001 <= returned_s + 60 - before_s


def test_time_passes_for_tokens_and_cooldowns(real_tokens: Tokens) -> None:
    tokens, limits = real_tokens, Limits.parse("1/300ms")
    (token,) = tokens.borrow("default", limits, lease_s=LEASE_S).tokens
    tokens.give_back("default", limits, [token])
    for wait_s in (tokens.borrow("default", limits, lease_s=0).wait_s, tokens.cool_down("default", 0.3)):
        assert 0 < wait_s <= 0.3
        time.sleep(wait_s + 0.005)
        assert tokens.borrow("default", limits, lease_s=0).tokens


def test_of_eight_at_once_only_ten_get_a_token(real_tokens: Tokens) -> None:
    together = threading.Barrier(8)

    def grab(_: int) -> int:
        together.wait()
        grants = [real_tokens.borrow("default", TEN_PER_MINUTE, lease_s=LEASE_S) for _ in range(5)]
        return sum(len(grant.tokens) for grant in grants)

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(grab, range(8))) == 10


def test_eight_threads_never_use_more_than_five_in_any_300_ms(real_tokens: Tokens) -> None:
    """Each use is noted at a random moment between borrow and return, as an upstream would. Some are not used."""
    limits, seen, lock = Limits.parse("5/300ms"), [], threading.Lock()

    def work(number: int) -> None:
        chance = random.Random(number)
        while len(seen) < 40:
            out = real_tokens.borrow("default", limits, want=chance.randint(1, 3), lease_s=LEASE_S).tokens
            time.sleep(chance.uniform(0, 0.01))
            if chance.random() < 0.1:
                real_tokens.refund("default", limits, out)
                continue
            with lock:
                seen.extend([time.monotonic()] * len(out))
            time.sleep(chance.uniform(0, 0.01))
            assert give_back(real_tokens, limits, *out) == 0

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    seen.sort()
    closest_s = min(later - earlier for earlier, later in zip(seen, seen[5:], strict=False))
    assert closest_s >= 0.3 - 0.001  # the two clocks may drift that much


def _server_time_s(adapters: Adapters) -> float:
    seconds, microseconds = adapters.redis.time()
    return seconds + microseconds / 1_000_000


def test_a_longer_limit_than_before_is_given_nothing_until_its_past_is_known(tokens: Tokens) -> None:
    """Uses are forgotten after the longest period; 10/minute cannot tell what 100/day needs to know."""
    tokens.borrow("default", TEN_PER_MINUTE, lease_s=1)
    daily = Limits.parse("10/minute,100/day")
    assert tokens.borrow("default", daily, lease_s=1).lost
    nonces = begin(tokens, {"default": daily})
    yesterday = [Use(f"t{n}", -3600.0) for n in range(100)]
    assert tokens.finish_rebuild([("default", nonces["default"], daily, 0, yesterday)]) == 1
    grant = tokens.borrow("default", daily, lease_s=1)
    assert (grant.tokens, grant.lost) == ((), False)
    assert grant.wait_s == pytest.approx(23 * 3600, abs=60)


def test_a_new_key_is_known_for_any_limit_and_a_shorter_one_needs_nothing(tokens: Tokens) -> None:
    tokens.open_new("new")
    assert tokens.borrow("new", Limits.parse("5/day"), lease_s=1).tokens
    assert tokens.borrow("new", TEN_PER_MINUTE, lease_s=1).tokens


@pytest.mark.parametrize(
    "call",
    [
        lambda tokens: tokens.borrow("default", TEN_PER_MINUTE, lease_s=LEASE_S),
        lambda tokens: tokens.spend("caller.alice", TEN_PER_MINUTE),
        lambda tokens: tokens.begin_rebuild({"new": TEN_PER_MINUTE}, EPOCH),
        lambda tokens: tokens.cool_down("default", 1.0),
    ],
    ids=["borrow", "spend", "begin_rebuild", "cool_down"],
)
def test_a_server_that_may_not_write_is_as_good_as_away(
    real_tokens: Tokens, adapters: Adapters, call: Callable[[Tokens], object]
) -> None:
    """A master cut off from its replicas must not go on giving out tokens, nor make a drain forget what it has out. In
    a pipeline redis-py puts words of its own in front of the server's."""
    adapters.redis.config_set("min-replicas-to-write", 1)
    try:
        with pytest.raises(TokensUnavailable, match="NOREPLICAS"):
            call(real_tokens)
    finally:
        adapters.redis.config_set("min-replicas-to-write", 0)
    assert real_tokens.borrow("default", TEN_PER_MINUTE, lease_s=LEASE_S).tokens


def test_uses_live_for_as_long_as_they_are_said_to_be_known(tokens: Tokens, clock: Clock) -> None:
    """Two periods: a limit made nearly twice as long still finds them."""
    tokens.give_back("default", TEN_PER_MINUTE, borrow(tokens, TEN_PER_MINUTE))
    borrow(tokens, TEN_PER_MINUTE)
    (uses,) = clock.keys("*default*:uses")
    known_us = int(clock.hget("paceline:{default}:gate", "known") or 0)
    assert clock.pttl(uses) * 1000 >= known_us >= 60_000_000


def test_a_fork_gives_names_of_its_own(real_tokens: Tokens) -> None:
    mine = real_tokens._new_grant()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, real_tokens._new_grant().encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reader, 100).decode()
    assert len({mine, theirs, real_tokens._new_grant()}) == 3


def test_keys_in_redis_are_those_of_running_systems(real_tokens: Tokens, adapters: Adapters) -> None:
    """Under other names, a new version would not see the tokens that an older one has out."""
    adapters.redis.flushall()
    server = real_tokens.origin().server
    real_tokens.enter_epoch(EPOCH, server)
    real_tokens.open_new("acct_1")
    real_tokens.borrow("acct_1", TEN_PER_MINUTE, lease_s=LEASE_S)
    real_tokens.spend("caller.alice", TEN_PER_MINUTE)
    real_tokens.declare_known(EPOCH)
    assert sorted(adapters.redis.keys("*")) == [
        "paceline:filled", "paceline:known",
        "paceline:{acct_1}:gate", "paceline:{acct_1}:uses",
        "paceline:{caller.alice}:gate", "paceline:{caller.alice}:uses",
    ]  # fmt: skip


def test_two_namespaces_share_a_redis_and_no_token(real_tokens: Tokens, adapters: Adapters) -> None:
    others = Tokens(adapters.redis, "another.system")
    assert others.spend("caller.alice", ONE_PER_MINUTE).tokens
    assert real_tokens.spend("caller.alice", ONE_PER_MINUTE).tokens
    assert not others.spend("caller.alice", ONE_PER_MINUTE).tokens
