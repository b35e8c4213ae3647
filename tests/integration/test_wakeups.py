"""Wake-ups on a real Valkey. Most tests stop its clock; where a test sleeps, it is the server that is asked to."""

import threading
from pathlib import Path
from typing import Any

import pytest
import redis

from ratelimit import TokensUnavailable, connect
from workers.bootstrap import Adapters
from workers.wakeups import DRAIN_LEASE_S, EXPECTED_LATENCY_S, PUBLISHED_FOR_S, Nudges, Wakeups

A_MOMENT_S = 0.000_001
_START_S = 1_800_000_000


class Clock(redis.Redis):
    """The real server, whose time stands still until a test moves it."""

    def register_script(self, script: Any) -> Any:
        return super().register_script(script.replace("redis.call('TIME')", "redis.call('LRANGE', 'clock', 0, 1)"))

    def time(self, **_: Any) -> Any:
        seconds, microseconds = self.lrange("clock", 0, 1)
        return int(seconds), int(microseconds)

    def at(self, seconds: float) -> None:
        """Set it to so many seconds after the start of the test."""
        now_us = round((_START_S + seconds) * 1_000_000)
        self.delete("clock")
        self.rpush("clock", now_us // 1_000_000, now_us % 1_000_000)


@pytest.fixture
def clock(adapters: Adapters) -> Clock:
    clock = Clock(connection_pool=adapters.redis.connection_pool)
    clock.at(0)
    return clock


@pytest.fixture
def wakeups(clock: Clock) -> Wakeups:
    return Wakeups(clock)


def test_what_a_server_refuses_that_may_not_write_is_as_good_as_lost(adapters: Adapters) -> None:
    adapters.redis.config_set("min-replicas-to-write", 1)
    try:
        with pytest.raises(TokensUnavailable):
            adapters.wakeups.beat("worker", "1", 5)
        adapters.wakeups.try_wake_many({"default": 0.0})
    finally:
        adapters.redis.config_set("min-replicas-to-write", 0)


def taken(wakeups: Wakeups, most: int = 500) -> tuple[str, ...]:
    return wakeups.take_due(most).accounts


@pytest.fixture
def nudges(wakeups: Wakeups) -> Nudges:
    """Heard from now on."""
    return listening(wakeups)


def listening(wakeups: Wakeups) -> Nudges:
    nudges = wakeups.listen()
    while nudges.wait(0.1):
        pass
    return nudges


def nudged(nudges: Nudges) -> bool:
    """Whether a pacer asleep would have been woken."""
    return nudges.wait(0.05)


# --- wake and take


def test_an_account_is_due_when_its_time_has_come_and_not_before(wakeups: Wakeups, clock: Clock) -> None:
    wakeups.wake("a", 10)
    clock.at(10 - A_MOMENT_S)
    assert taken(wakeups) == ()
    clock.at(10)
    assert taken(wakeups) == ("a",)


def test_of_two_wake_ups_the_earlier_wins(wakeups: Wakeups, clock: Clock) -> None:
    wakeups.wake("a", 10)
    wakeups.wake("a", 5)
    wakeups.wake("a", 20)
    assert wakeups.take_due().next_s == 5
    clock.at(5)
    assert taken(wakeups) == ("a",)
    clock.at(60)
    assert taken(wakeups) == ()


def test_without_a_delay_an_account_is_due_at_once(wakeups: Wakeups) -> None:
    wakeups.wake("a")
    assert taken(wakeups) == ("a",)


def test_what_has_been_taken_is_not_taken_again(wakeups: Wakeups) -> None:
    wakeups.wake("a")
    assert taken(wakeups) == ("a",)
    assert taken(wakeups) == ()


def test_a_pacer_learns_when_to_come_back_and_how_late_it_is(wakeups: Wakeups, clock: Clock) -> None:
    assert wakeups.take_due().next_s is None
    for account_id, delay_s in (("a", 1), ("b", 2), ("c", 30)):
        wakeups.wake(account_id, delay_s)
    clock.at(4)
    due = wakeups.take_due()
    assert (due.accounts, due.late_s, due.next_s) == (("a", "b"), 3, 26)
    due = wakeups.take_due()
    assert (due.accounts, due.late_s, due.next_s) == ((), 0, 26)


def test_of_very_many_the_longest_due_are_taken_first_and_the_rest_at_once(wakeups: Wakeups, clock: Clock) -> None:
    for n in range(5):
        wakeups.wake(f"account-{n}", n)
    clock.at(10)
    due = wakeups.take_due(2)
    assert (due.accounts, due.next_s) == (("account-0", "account-1"), 0)
    assert taken(wakeups, 2) == ("account-2", "account-3")
    assert taken(wakeups, 2) == ("account-4",)


def test_of_two_pacers_one_takes_an_account(adapters: Adapters) -> None:
    """For real: eight at once, each account once."""
    wakeups = adapters.wakeups
    for n in range(200):
        wakeups.wake(f"account-{n}")
    found: list[str] = []
    together = threading.Barrier(8)

    def take() -> None:
        together.wait()
        while accounts := wakeups.take_due(7).accounts:
            found.extend(accounts)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(f"account-{n}" for n in range(200))


# --- published drains


def test_while_a_drain_is_published_and_has_not_begun_no_other_is(wakeups: Wakeups, clock: Clock) -> None:
    wakeups.wake("a")
    assert taken(wakeups) == ("a",)
    wakeups.wake("a")
    assert taken(wakeups) == ()
    clock.at(60)
    assert taken(wakeups) == ()  # dropped: the published drain would have seen what it was for


def test_once_the_drain_has_begun_the_next_wake_up_is_published_again(wakeups: Wakeups) -> None:
    wakeups.wake("a")
    taken(wakeups)
    assert wakeups.begin_drain("a", "drain-1", most=1)
    wakeups.wake("a")
    assert taken(wakeups) == ("a",)


def test_a_published_drain_that_does_not_begin_counts_as_lost(wakeups: Wakeups, clock: Clock) -> None:
    wakeups.wake("a")
    taken(wakeups)
    wakeups.wake("a", PUBLISHED_FOR_S - A_MOMENT_S)
    clock.at(PUBLISHED_FOR_S - A_MOMENT_S)
    assert taken(wakeups) == ()
    wakeups.wake("a", A_MOMENT_S)
    clock.at(PUBLISHED_FOR_S)
    assert taken(wakeups) == ("a",)


def test_one_accounts_published_drain_does_not_hold_back_another(wakeups: Wakeups) -> None:
    wakeups.wake("a")
    taken(wakeups)
    wakeups.wake("a")
    wakeups.wake("b")
    assert taken(wakeups) == ("b",)


# --- copies of a drain


def published(wakeups: Wakeups) -> int:
    wakeups.wake("a")
    due = wakeups.take_due()
    assert due.accounts == ("a",)
    return due.publication


def test_a_stale_copy_does_not_begin_since_another_has_seen_all_it_was_for(wakeups: Wakeups, clock: Clock) -> None:
    copies = []
    for n in range(3):  # no worker is free meanwhile
        clock.at(n * PUBLISHED_FOR_S)
        copies.append(published(wakeups))
    assert wakeups.begin_drain("a", "drain-1", 4, copies[0])
    assert not wakeups.begin_drain("a", "drain-2", 4, copies[1])
    assert not wakeups.begin_drain("a", "drain-3", 4, copies[2])
    assert wakeups.begin_drain("a", "drain-4", 4, published(wakeups))


def test_a_stale_copy_does_not_stand_for_a_drain_published_since(wakeups: Wakeups, clock: Clock) -> None:
    first = published(wakeups)
    clock.at(PUBLISHED_FOR_S)
    stale = published(wakeups)
    wakeups.begin_drain("a", "drain-1", 2, first)
    published(wakeups)
    assert not wakeups.begin_drain("a", "drain-2", 2, stale)
    wakeups.wake("a")
    assert taken(wakeups) == ()  # that one has not begun yet


def test_a_copy_for_one_account_is_not_stale_because_of_another(wakeups: Wakeups) -> None:
    number = published(wakeups)
    wakeups.begin_drain("b", "drain-1", 1)
    assert wakeups.begin_drain("a", "drain-2", 1, number)


def test_no_clock_makes_a_copy_stale(wakeups: Wakeups, clock: Clock) -> None:
    for an_hour_s in (3600, -3600):
        number = published(wakeups)
        clock.at(an_hour_s)
        assert wakeups.begin_drain("a", f"drain {an_hour_s}", 4, number)


# --- places for drains


def test_as_many_drains_as_there_are_places(wakeups: Wakeups) -> None:
    assert wakeups.begin_drain("a", "drain-1", most=2)
    assert wakeups.begin_drain("a", "drain-2", most=2)
    assert not wakeups.begin_drain("a", "drain-3", most=2)
    assert wakeups.begin_drain("b", "drain-4", most=2)


def test_a_refused_drain_has_the_account_looked_at_when_a_place_is_free(wakeups: Wakeups, nudges: Nudges) -> None:
    wakeups.begin_drain("a", "drain-1", most=1)
    assert not wakeups.begin_drain("a", "drain-2", most=1)
    assert taken(wakeups) == ()  # nobody polls meanwhile
    wakeups.end_drain("a", "drain-1")
    assert nudged(nudges)
    assert taken(wakeups) == ("a",)


def test_a_drain_that_ends_without_having_been_in_the_way_wakes_nobody(wakeups: Wakeups) -> None:
    wakeups.begin_drain("a", "drain-1", most=1)
    wakeups.end_drain("a", "drain-1")
    assert taken(wakeups) == ()


def test_a_drain_that_ends_leaves_a_wake_up(wakeups: Wakeups, nudges: Nudges) -> None:
    wakeups.end_drain("a", "drain-1", next_s=10)
    assert nudged(nudges)
    assert wakeups.take_due().next_s == 10
    wakeups.end_drain("a", "drain-2", next_s=20)
    wakeups.end_drain("a", "drain-3")
    assert wakeups.take_due().next_s == 10
    assert not nudged(nudges)


def test_a_refused_drain_comes_before_what_the_other_leaves(wakeups: Wakeups) -> None:
    wakeups.begin_drain("a", "drain-1", most=1)
    assert not wakeups.begin_drain("a", "drain-2", most=1)
    wakeups.end_drain("a", "drain-1", next_s=10)
    assert taken(wakeups) == ("a",)


def test_a_refused_drain_does_not_put_off_an_earlier_wake_up(wakeups: Wakeups) -> None:
    wakeups.begin_drain("a", "drain-1", most=1)
    wakeups.wake("a", 0.01)
    wakeups.begin_drain("a", "drain-2", most=1)
    assert wakeups.take_due().next_s == 0.01


def test_a_dead_workers_places_are_cleared_and_nobody_elses(wakeups: Wakeups) -> None:
    wakeups.begin_drain("a", "7.one", most=2)
    wakeups.begin_drain("a", "77.two", most=2)
    assert wakeups.evict(["a", "b"], [7]) == 1
    assert wakeups.begin_drain("a", "8.three", most=2)
    assert not wakeups.begin_drain("a", "8.four", most=2)


def test_a_drain_that_ends_makes_room(wakeups: Wakeups) -> None:
    wakeups.begin_drain("a", "drain-1", most=1)
    wakeups.end_drain("a", "another drain")
    assert not wakeups.begin_drain("a", "drain-2", most=1)
    wakeups.end_drain("a", "drain-1")
    assert wakeups.begin_drain("a", "drain-2", most=1)


def test_a_drain_that_does_not_renew_its_place_loses_it(wakeups: Wakeups, clock: Clock) -> None:
    wakeups.begin_drain("a", "killed", most=1)
    clock.at(DRAIN_LEASE_S - A_MOMENT_S)
    assert not wakeups.begin_drain("a", "drain-2", most=1)
    clock.at(DRAIN_LEASE_S)
    assert wakeups.begin_drain("a", "drain-2", most=1)


def test_a_drain_that_renews_its_place_keeps_it(wakeups: Wakeups, clock: Clock) -> None:
    wakeups.begin_drain("a", "long", most=1)
    clock.at(DRAIN_LEASE_S - 1)
    wakeups.renew_drain("a", "long")
    clock.at(2 * DRAIN_LEASE_S - 1 - A_MOMENT_S)
    assert not wakeups.begin_drain("a", "drain-2", most=1)
    clock.at(2 * DRAIN_LEASE_S - 1)
    assert wakeups.begin_drain("a", "drain-2", most=1)


def test_renewing_does_not_take_the_place_of_a_published_drain(wakeups: Wakeups) -> None:
    """A published drain has not begun because another one goes on."""
    wakeups.begin_drain("a", "long", most=2)
    wakeups.wake("a")
    taken(wakeups)
    wakeups.renew_drain("a", "long")
    wakeups.wake("a")
    assert taken(wakeups) == ()


# --- the reconciler's reminder


def test_only_the_forgotten_are_woken(wakeups: Wakeups, clock: Clock) -> None:
    wakeups.wake("has-a-wake-up", 30)
    wakeups.begin_drain("is-drained", "drain-1", most=1)
    wakeups.begin_drain("was-drained", "drain-2", most=1)
    wakeups.end_drain("was-drained", "drain-2")
    assert wakeups.wake_all(["has-a-wake-up", "is-drained", "was-drained", "forgotten"]) == 2
    assert sorted(taken(wakeups)) == ["forgotten", "was-drained"]
    assert wakeups.take_due().next_s == 30


def test_whose_drain_has_died_is_woken(wakeups: Wakeups, clock: Clock) -> None:
    wakeups.begin_drain("a", "killed", most=1)
    assert wakeups.wake_all(["a"]) == 0
    clock.at(DRAIN_LEASE_S + A_MOMENT_S)
    assert wakeups.wake_all(["a"]) == 1
    assert taken(wakeups) == ("a",)


def test_nobody_to_wake(wakeups: Wakeups) -> None:
    assert wakeups.wake_all([]) == 0


# --- nudges


def test_a_wake_up_earlier_than_all_others_nudges(wakeups: Wakeups, nudges: Nudges) -> None:
    wakeups.wake("a", 10)
    assert nudged(nudges)
    wakeups.wake("b", 20)
    assert not nudged(nudges)
    wakeups.wake("c", 5)
    assert nudged(nudges)
    wakeups.wake("c", 7)
    assert not nudged(nudges)


def test_nudges_do_not_pile_up(wakeups: Wakeups, nudges: Nudges) -> None:
    for n in range(100, 0, -1):
        wakeups.wake(f"account-{n}", n)
    assert nudged(nudges)
    nudged(nudges)  # the last of them may have been on its way still
    assert not nudged(nudges)


def test_every_pacer_hears(wakeups: Wakeups, nudges: Nudges) -> None:
    """One of them may be dead, or busy."""
    other = listening(wakeups)
    wakeups.wake("a")
    assert nudged(nudges)
    assert nudged(other)


def test_a_sleeping_pacer_is_woken(adapters: Adapters) -> None:
    woken: list[bool] = []
    nudges = listening(adapters.wakeups)
    sleeper = threading.Thread(target=lambda: woken.append(nudges.wait(1.5)))
    sleeper.start()
    adapters.wakeups.wake("a")
    sleeper.join()
    assert woken == [True]


def test_a_pacer_that_nobody_nudges_wakes_by_itself(adapters: Adapters) -> None:
    assert not listening(adapters.wakeups).wait(0.05)


def test_a_pacer_whose_connection_died_hears_again(adapters: Adapters) -> None:
    nudges = listening(adapters.wakeups)
    adapters.redis.client_kill_filter(_type="pubsub")
    assert not nudges.wait(0.05)
    adapters.wakeups.wake("a")
    assert nudged(nudges)


# --- signs of life


def test_alive_is_who_has_said_so_lately(wakeups: Wakeups, clock: Clock) -> None:
    assert wakeups.alive("worker") == 0
    wakeups.beat("worker", "1", for_s=5)
    wakeups.beat("worker", "2", for_s=10)
    wakeups.beat("pacer", "3", for_s=5)
    assert (wakeups.alive("worker"), wakeups.alive("pacer")) == (2, 1)
    clock.at(7)
    assert (wakeups.alive("worker"), wakeups.alive("pacer")) == (1, 0)


def test_who_beats_again_lives_on_and_counts_once(wakeups: Wakeups, clock: Clock) -> None:
    wakeups.beat("worker", "1", for_s=5)
    clock.at(4)
    wakeups.beat("worker", "1", for_s=5)
    clock.at(8)
    assert wakeups.alive("worker") == 1
    clock.at(10)
    assert wakeups.alive("worker") == 0


def test_the_long_dead_are_forgotten(wakeups: Wakeups, clock: Clock) -> None:
    wakeups.beat("worker", "1", for_s=5)
    clock.at(100)
    wakeups.beat("worker", "2", for_s=5)
    assert clock.zcard("paceline:alive:worker") == 1


# --- what people see


def test_the_latest_message_of_several_accounts_is_remembered(wakeups: Wakeups, clock: Clock) -> None:
    assert wakeups.last_processed_s(["a", "b"]) is None
    assert wakeups.last_processed_s([]) is None
    for account, at_s in (("a", 10.5), ("b", 20.000_25), ("other", 90)):
        clock.at(at_s)
        wakeups.end_drain(account, "drain-1", latency_s=0.3)
    clock.at(95)
    wakeups.end_drain("a", "drain-2")  # which found nothing to do
    assert wakeups.last_processed_s(["a", "b", "never"]) == _START_S + 20.000_25


def test_latency_is_the_accounts_own_and_a_guess_at_first(wakeups: Wakeups) -> None:
    assert wakeups.latency_s("a") == EXPECTED_LATENCY_S
    wakeups.end_drain("a", "drain-1", latency_s=0.75)
    assert wakeups.latency_s("a") == 0.75
    assert wakeups.latency_s("b") == EXPECTED_LATENCY_S


# --- faults


def test_scripts_flushed_in_the_middle_are_loaded_again(wakeups: Wakeups, clock: Clock) -> None:
    clock.script_flush()
    wakeups.wake("a")
    clock.script_flush()
    assert taken(wakeups) == ("a",)
    clock.script_flush()
    assert wakeups.begin_drain("a", "drain-1", most=1)


def test_no_answer_is_tokens_unavailable(tmp_path: Path) -> None:
    wakeups = Wakeups(connect(f"unix://{tmp_path}/nobody-listens.sock"))
    calls = [
        lambda: wakeups.wake("a"),
        lambda: wakeups.wake_all(["a"]),
        lambda: wakeups.take_due(),
        lambda: wakeups.listen().wait(1),
        lambda: wakeups.begin_drain("a", "drain-1", most=1),
        lambda: wakeups.end_drain("a", "drain-1"),
        lambda: wakeups.latency_s("a"),
        lambda: wakeups.beat("worker", "1", 5),
        lambda: wakeups.alive("worker"),
    ]
    for call in calls:
        with pytest.raises(TokensUnavailable, match="Redis did not answer"):
            call()
