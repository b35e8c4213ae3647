"""Tokens on a real Valkey against a model of them in plain Python, through whatever Hypothesis thinks of.

The server's scripts read a clock that stands still until the machine moves it, so both must agree to the microsecond.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from ratelimit import Grant, Limit, Limits, Tokens, Use
from ratelimit.limits import to_us
from ratelimit.tokens import CLOCK_RATE_ERROR
from workers.bootstrap import NAMESPACE, Adapters

KEY = "default"
SECOND = 1_000_000

counts = st.integers(0, 5)
milliseconds = st.integers(0, 90_000).map(lambda ms: ms * 1000)


class Clock(redis.Redis):
    """The real server, whose scripts read the time from a list."""

    def register_script(self, script: Any) -> Any:
        return super().register_script(script.replace("redis.call('TIME')", "redis.call('LRANGE', 'clock', 0, 1)"))

    def set_to(self, now_us: int) -> None:
        self.delete("clock")
        self.rpush("clock", now_us // SECOND, now_us % SECOND)


@dataclass
class Model:
    """Every use that there was, with its end, which for an open loan is the loan's. All times in microseconds."""

    limits: Limits
    now: int = 1_800_000_000 * SECOND
    ends: dict[str, int] = field(default_factory=dict)
    loans: dict[str, tuple[int, int]] = field(default_factory=dict)
    out: list[str] = field(default_factory=list)
    cooldown: int = 0

    def free(self, limit: Limit) -> int:
        return limit.count - sum(end > self.now - limit.period_us for end in self.ends.values())

    def free_now(self) -> int:
        return 0 if self.cooldown > self.now else max(0, min(self.free(limit) for limit in self.limits))

    def next_free(self) -> int:
        """The first moment from now on at which every limit has room: room comes only when a use turns a period old."""
        then = {
            self.now,
            self.cooldown,
            *(end + limit.period_us for end in self.ends.values() for limit in self.limits),
        }
        return min(
            at for at in then if at >= self.now and Model(self.limits, at, self.ends, cooldown=self.cooldown).free_now()
        )

    def borrow(self, tokens: tuple[str, ...], lease: int) -> None:
        for token in tokens:
            self.loans[token] = self.now, self.now + lease
            self.ends[token] = self.now + lease
            self.out.append(token)

    def give_back(self, tokens: Mapping[str, int], lease: int = 0) -> None:
        """token -> for how long its use has been over, of which a little is not believed; nor that it was over before
        it was lent, if it was lent for so long."""
        for token, ago in tokens.items():
            end = self.now - to_us(ago / SECOND * (1 - CLOCK_RATE_ERROR))
            self.ends[token] = max(end, self.ends[token] - lease) if ago else end
            self.out.remove(token)

    def refund(self, tokens: list[str]) -> None:
        for token in tokens:
            del self.ends[token], self.loans[token]
            self.out.remove(token)

    def time_passes(self, until: int) -> None:
        """Whose loan has been over for a whole period has been given up: its place may be another's by now."""
        self.now = until
        longest = max(limit.period_us for limit in self.limits)
        self.out = [token for token in self.out if self.loans[token][1] + longest > until]

    def most_in_one_window(self, limit: Limit) -> int:
        """The most uses that the upstream may have seen in any one period, if each was seen at the worst moment.

        What is seen between its start and its end (and no later than its loan allows) can share a window with a use
        that starts at t if it ends after t - period.
        """
        seen = [(start, min(self.ends[token], loan_end)) for token, (start, loan_end) in self.loans.items()]
        return max(
            (sum(other <= start and end > start - limit.period_us for other, end in seen) for start, _ in seen),
            default=0,
        )


class TokensMachine(RuleBasedStateMachine):
    def __init__(self, adapters: Adapters) -> None:
        super().__init__()
        self.clock = Clock(connection_pool=adapters.redis.connection_pool)
        self.tokens = Tokens(self.clock, NAMESPACE)

    @initialize(text=st.sampled_from(["3/minute", "1/10s", "2/10s,5/minute", "1/2s,3/20s,6/2m", "4/minute,40/hour"]))
    def start(self, text: str) -> None:
        self.model = Model(Limits.parse(text))
        self.clock.flushall()
        self.clock.set_to(self.model.now)
        self.epoch = 1
        self.tokens.enter_epoch("1", self.tokens.origin().server)
        self.tokens.open_new(KEY)

    @rule(want=st.integers(1, 6), lease=milliseconds, returned=counts, ago=st.integers(0, 100), refunded=counts)
    def exchange(self, want: int, lease: int, returned: int, ago: int, refunded: int) -> None:
        """ago: when the returned ones' uses ended, in percent of the time that they were out."""
        out = self.model.out[:returned]
        back = {token: (self.model.now - self.model.loans[token][0]) * ago // 100 for token in out}
        unused = self.model.out[returned : returned + refunded]
        self.model.give_back(back, lease)
        self.model.refund(unused)
        ended = {token: ago / SECOND for token, ago in back.items()}
        self._borrow(want, lease, returned=ended, refunded=unused)

    @rule(want=st.integers(1, 6), lease=milliseconds)
    def borrow(self, want: int, lease: int) -> None:
        self._borrow(want, lease)

    @rule(some=counts)
    def give_back(self, some: int) -> None:
        back = self.model.out[:some]
        self.tokens.give_back(KEY, self.model.limits, back)
        self.model.give_back(dict.fromkeys(back, 0))

    @rule(some=counts)
    def refund(self, some: int) -> None:
        unused = self.model.out[-some:] if some else []
        self.tokens.refund(KEY, self.model.limits, unused)
        self.model.refund(list(unused))

    @rule(pause=milliseconds)
    def time_passes(self, pause: int) -> None:
        self.model.time_passes(self.model.now + pause)
        self.clock.set_to(self.model.now)

    @rule(early=st.sampled_from([0, 1, 1000]))
    def time_passes_until_the_next_token(self, early: int) -> None:
        """To the very moment at which one more is free, or just before it."""
        self.model.time_passes(max(self.model.now, self.model.next_free() - early))
        self.clock.set_to(self.model.now)
        self._borrow(1, 0)

    @rule(pause=milliseconds)
    def cool_down(self, pause: int) -> None:
        self.model.cooldown = max(self.model.cooldown, self.model.now + pause)
        in_force_s = self.tokens.cool_down(KEY, pause / SECOND)
        assert in_force_s == (self.model.cooldown - self.model.now) / SECOND

    @rule()
    def scripts_are_flushed(self) -> None:
        self.clock.script_flush()

    @rule()
    def data_is_lost_and_rebuilt_from_the_books(self) -> None:
        self.clock.flushall()
        self.clock.set_to(self.model.now)
        self._rebuild()

    @rule()
    def a_new_epoch_is_opened_and_what_is_here_agrees_with_the_books(self) -> None:
        self._rebuild()

    def _rebuild(self) -> None:
        self.epoch += 1
        assert self.tokens.enter_epoch(str(self.epoch), self.tokens.origin().server)
        self._is_closed()
        nonces = self.tokens.begin_rebuild({KEY: self.model.limits}, str(self.epoch))
        self._is_closed()
        uses = [Use(token, (end - self.model.now) / SECOND) for token, end in self.model.ends.items()]
        cooldown_s = max(0, self.model.cooldown - self.model.now) / SECOND
        assert self.tokens.finish_rebuild([(KEY, nonces[KEY], self.model.limits, cooldown_s, uses)]) == 1

    @invariant()
    def the_clock_stands_still(self) -> None:
        """For expiry too, which goes by the real time: a busy machine must not lose what is to expire in a second."""
        self.clock.persist(f"paceline:{{{KEY}}}:uses")

    @invariant()
    def the_view_agrees(self) -> None:
        view = self.tokens.view(KEY, self.model.limits)
        assert view.known
        assert view.cooldown_s == max(0, self.model.cooldown - self.model.now) / SECOND
        assert view.available(self.model.limits) == max(0, min(self.model.free(x) for x in self.model.limits))

    @invariant()
    def the_upstream_never_sees_more_than_n_in_a_period(self) -> None:
        assert all(self.model.most_in_one_window(limit) <= limit.count for limit in self.model.limits)

    def _borrow(self, want: int, lease: int, **back: Any) -> None:
        free = self.model.free_now()
        grant: Grant = self.tokens.exchange(KEY, self.model.limits, want=want, lease_s=lease / SECOND, **back)
        assert not grant.lost
        assert len(grant.tokens) == min(want, free)
        assert grant.left == free - len(grant.tokens)
        assert grant.free_s == math.inf or grant.free_s >= 0
        self.model.borrow(grant.tokens, lease)
        assert grant.wait_s == (self.model.next_free() - self.model.now) / SECOND

    def _is_closed(self) -> None:
        grant = self.tokens.borrow(KEY, self.model.limits, want=9, lease_s=1)
        assert grant.lost
        assert grant.tokens == ()


def test_tokens_agree_with_a_model_of_them_to_the_microsecond(adapters: Adapters) -> None:
    run_state_machine_as_test(
        lambda: TokensMachine(adapters),
        settings=settings(
            max_examples=250, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
