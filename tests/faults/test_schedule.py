"""The schedule is a pure function of the options: a seed names it, and it does what was asked for."""

from collections import Counter
from itertools import pairwise

import pytest

from deploy.faults import mail
from deploy.faults.chaos import BURST, RATES
from deploy.faults.schedule import (
    FAULTS_UNTIL,
    LONGEST_LEASE_S,
    OUTAGES,
    PROCESSES,
    SEND_TIMEOUT_S,
    Event,
    Kind,
    Options,
    plan,
)
from deploy.sandbox import Faults
from deploy.sandbox import parse_limits as as_the_upstream_reads_it
from deploy.sandbox.chats import REWRITES
from ratelimit import Limits
from ratelimit.tokens import START_WITHIN_S

THE_BIG_ONE = Options.scaled(10_000, 10.0, 1, accounts=50, kills=100, hangs=20, redis_losses=10, postgres_restarts=5)


def test_the_same_seed_is_the_same_schedule() -> None:
    for seed in range(20):
        options = Options.scaled(500, 2.0, seed)
        assert plan(options) == plan(Options.scaled(500, 2.0, seed))
        assert mail.write(options) == mail.write(Options.scaled(500, 2.0, seed))


def test_another_seed_is_another_schedule() -> None:
    assert len({plan(Options.scaled(500, 2.0, seed)) for seed in range(20)}) == 20


def test_one_schedule_as_it_stands() -> None:
    """Also between versions: whoever quotes a seed means this."""
    options = Options.scaled(100, 0.5, 7, kills=3, hangs=1, redis_losses=1, postgres_restarts=1)
    assert plan(options)[:3] == SEED_7


def struck(events: tuple[Event, ...]) -> Counter[Kind]:
    return Counter(event.kind for event in events for _ in event.targets or (None,))


def test_the_big_one_has_what_it_must_have() -> None:
    done = struck(plan(THE_BIG_ONE))
    assert done[Kind.KILL] == 100
    assert done[Kind.HANG] == 20
    assert done[Kind.REDIS_EMPTIED] + done[Kind.REDIS_KILLED] == 10
    assert done[Kind.POSTGRES_RESTARTED] + done[Kind.POSTGRES_CRASHED] == 5
    assert done[Kind.REDIS_FAILED_OVER] == 5
    assert sum(done[kind] for kind in OUTAGES) == 10
    assert min(done[kind] for kind in Kind) >= 1


@pytest.mark.parametrize("seed", range(10))
def test_every_kind_of_fault_comes_even_in_a_short_run(seed: int) -> None:
    options = Options.scaled(200, 0.5, seed)
    assert set(struck(plan(options))) == set(Kind)


@pytest.mark.parametrize("seed", range(10))
def test_several_processes_are_killed_at_once_and_all_sorts_of_them(seed: int) -> None:
    kills = [event for event in plan(Options.scaled(1000, 5.0, seed)) if event.kind is Kind.KILL]
    assert any(len(event.targets) > 1 for event in kills)
    assert {name.rstrip("0123456789") for event in kills for name in event.targets} == {"worker", "pacer", "api"}
    assert all(len(set(event.targets)) == len(event.targets) for event in kills)


@pytest.mark.parametrize("seed", range(10))
def test_faults_of_servers_and_upstream_take_turns(seed: int) -> None:
    shared = [event for event in plan(Options.scaled(1000, 5.0, seed)) if event.kind not in PROCESSES]
    assert all(one.at_s + one.for_s <= other.at_s for one, other in pairwise(shared))


@pytest.mark.parametrize("seed", range(10))
def test_the_end_of_a_run_is_for_recovering(seed: int) -> None:
    options = Options.scaled(1000, 5.0, seed)
    assert max(event.at_s for event in plan(options)) <= FAULTS_UNTIL * options.duration_s


def test_what_hangs_hangs_for_longer_than_every_lease() -> None:
    assert LONGEST_LEASE_S >= START_WITHIN_S + SEND_TIMEOUT_S + 1.0
    hangs = [event for event in plan(THE_BIG_ONE) if event.kind in (Kind.HANG, Kind.POSTGRES_LOCKED)]
    assert min(event.for_s for event in hangs) > LONGEST_LEASE_S


@pytest.mark.parametrize("rates", [RATES, BURST])
def test_a_late_acceptance_is_within_the_send_timeout(rates: dict[str, float]) -> None:
    """Beyond it nobody could promise anything: not even the history knows what is yet to be accepted."""
    Faults().set_rates(rates)
    late_s = [float(name.partition(":")[2]) for name in rates if name.startswith("late:")]
    assert late_s
    assert max(late_s) < SEND_TIMEOUT_S
    in_use_s = [float(name.partition(":")[2]) for name in rates if name.startswith("in_use")]
    assert max(in_use_s, default=0.0) < SEND_TIMEOUT_S


@pytest.mark.parametrize("options", [THE_BIG_ONE, Options.scaled(200, 0.5, 1), Options.scaled(77, 3.0, 1)])
def test_paceline_and_the_upstream_read_the_same_limit(options: Options) -> None:
    for limit in options.limits:
        (ours,) = Limits.parse(limit.ours)
        (theirs,) = as_the_upstream_reads_it(limit.theirs)
        assert (ours.count, ours.period_us * 1000) == (theirs.count, theirs.period_ns)


def test_the_long_limit_is_remembered_for_longer_than_a_rebuild_takes() -> None:
    """Otherwise nothing would be missing if nothing were brought back."""
    for options in (THE_BIG_ONE, Options.scaled(200, 0.5, 1)):
        assert options.limits[1].period_ms > 1000 * 2 * START_WITHIN_S


def test_the_mail_is_mixed() -> None:
    mails = mail.write(THE_BIG_ONE)
    assert len(mails) == 10_000
    assert len({letter.key for letter in mails}) == 10_000
    keys = Counter(mail.api_key(letter.account) for letter in mails)
    assert len(keys) == 49
    assert set(keys.values()) == {204, 205}
    shared = Counter(letter.account for letter in mails if letter.account in mail.SHARING)
    assert len(shared) == 2
    assert min(shared.values()) > 100, "two accounts take turns under one key"
    lines = Counter((letter.account, letter.recipient, letter.priority) for letter in mails)
    assert sum(n > 3 for n in lines.values()) > 100, "lines, in which there is an order to keep"
    texts = Counter((letter.account, letter.recipient, letter.text) for letter in mails)
    assert sum(n > 1 for n in texts.values()) > 50, "two messages of the same text to the same recipient"
    for condition in ("send_in_s", "expires_in_s", "cancel_after_s"):
        assert sum(getattr(letter, condition) is not None for letter in mails) > 300
    for rewrite in REWRITES.values():
        assert sum(rewrite(letter.text) not in (letter.text, f"<p>{letter.text}</p>") for letter in mails) > 500


def test_an_outcome_may_stay_unknown_only_where_nothing_tells() -> None:
    def unclear(**given: bool) -> set[tuple[str, str]]:
        return mail.unclear(Options.scaled(1000, 5.0, 1, **given))

    assert unclear() == unclear(idempotent=False) == set()
    everywhere = {(mail.api_key(one.account), one.recipient) for one in mail.write(Options.scaled(1000, 5.0, 1))}
    assert unclear(idempotent=False, history=False) == everywhere
    by_key = unclear(history=False)
    assert ("key-of-a003", "blocked-0") in by_key
    assert len(by_key) < len(everywhere) / 4
    by_text = unclear(authors=False)
    assert by_text
    assert all(recipient.startswith("often-") for _, recipient in by_text)


def test_some_recipients_are_difficult_and_their_messages_end_all_the_same() -> None:
    mails = mail.write(THE_BIG_ONE)
    difficult = Counter(letter.recipient for letter in mails if letter.recipient in mail.DIFFICULT)
    assert min(difficult[recipient] for recipient in mail.DIFFICULT) > 50
    assert all(letter.expires_in_s for letter in mails if letter.throttled)
    assert {letter.recipient for letter in mails if letter.refused} == {"gone-0", "blocked-0", "blocked-1"}
    refusing = [recipient for recipient in mail.DIFFICULT if recipient.startswith("blocked-")]
    assert len(refusing) < 3, "three different ones in a row, and the account is paused (contract, section 2)"


@pytest.mark.parametrize("authors", [True, False])
def test_fans_write_what_the_account_writes_only_where_authors_are_named(authors: bool) -> None:
    options = Options.scaled(1000, 5.0, 1, authors=authors)
    said = mail.talk(options)
    assert said == mail.talk(options)
    assert len(said) > 300
    written = {(letter.account, letter.recipient, letter.text) for letter in mail.write(options)}
    assert {(one.account, one.recipient) for one in said} < {chat[:2] for chat in written}
    assert any((one.account, one.recipient, one.text) in written for one in said) is authors


SEED_7 = (
    Event(1.04, Kind.UPSTREAM_REFUSES, (), 2.44),
    Event(2.17, Kind.HANG, ("worker1",), 7.73),
    Event(3.22, Kind.TERMINATE, ("worker2",), 0.0),
)
