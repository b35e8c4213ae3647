"""Every row of the contract's table of answers (§2), and the waits."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.domain.decisions import (
    DEFAULT_COOLDOWN_S,
    KEY_MARGIN_S,
    LINE_REST_S,
    LONGEST_COOLDOWN_S,
    LONGEST_LINE_REST_S,
    LOOKUPS,
    VERIFY_AFTER_S,
    AwaitVerification,
    Bury,
    ConfirmSent,
    DeadLetterReason,
    Decision,
    Defer,
    DeferralReason,
    GiveUp,
    LookAgain,
    LookupDecision,
    MarkSent,
    RetryPolicy,
    ScheduleRetry,
    SendAgain,
    backoff_s,
    decide,
    decide_lookup,
    line_rest_s,
    may_send,
    rest_s,
)
from workers.domain.lookup import Evidence, Finding
from workers.domain.message import Claim
from workers.domain.outcome import Blame, Capabilities, Outcome, OutcomeKind

POLICY = RetryPolicy(max_attempts=5, base_s=5, max_s=900)
NOTHING = Capabilities()
KEYS = Capabilities(idempotent=True)
HISTORY = Capabilities(history=True)
BOTH = Capabilities(idempotent=True, history=True)
UNKNOWN = Outcome(OutcomeKind.UNKNOWN, Blame.UPSTREAM)
FAILED = Outcome(OutcomeKind.FAILED, Blame.UPSTREAM, http_status=500)
REJECTED = Outcome(OutcomeKind.REJECTED, Blame.MESSAGE, http_status=400)
LOOK_UP = AwaitVerification(VERIFY_AFTER_S)


def claim(tries: int = 1, **more: Any) -> Claim:
    return Claim(
        message_id="msg_1", account_id="a", recipient_id="fan-1", priority=5, content="x", media_ids=(),
        attempt=tries, tries=tries, token="t", **more,
    )  # fmt: skip


def decision(outcome: Outcome, tries: int = 1, upstream: Capabilities = NOTHING, **more: Any) -> Decision:
    return decide(outcome, claim(tries, **more), POLICY, upstream, time_left_s=3)


def test_accepted_is_sent() -> None:
    assert decision(Outcome(OutcomeKind.ACCEPTED, upstream_id="u1")) == MarkSent("u1")


# --- throttled


def throttled(retry_after_s: float | None = 30.0, blame: Blame | None = None) -> Outcome:
    return Outcome(OutcomeKind.THROTTLED, blame, http_status=429, retry_after_s=retry_after_s)


@pytest.mark.parametrize(
    ("asked", "given"), [(30.0, 30.0), (None, DEFAULT_COOLDOWN_S), (0.0, 0.0), (-1.0, 0.0), (1e9, LONGEST_COOLDOWN_S)]
)
def test_429_cools_the_identity_down_and_the_line_a_little_longer(asked: float | None, given: float) -> None:
    assert decision(throttled(asked), tries=99) == Defer(DeferralReason.THROTTLED, given + LINE_REST_S, given)


def test_a_line_that_is_throttled_again_rests_longer_each_time() -> None:
    rests = [line_rest_s(n) for n in range(1, 15)]
    assert rests[:4] == [LINE_REST_S * factor for factor in (1, 2, 4, 8)]
    assert max(rests) == rests[-1] == LONGEST_LINE_REST_S == 300
    assert decision(throttled(1.0), throttles=3) == Defer(DeferralReason.THROTTLED, 1.0 + line_rest_s(4), 1.0)


def test_a_line_that_is_throttled_while_others_get_through_rests_alone() -> None:
    assert decision(throttled(1.0), throttles=9, others_passed=True) == Defer(DeferralReason.THROTTLED, line_rest_s(10))
    assert decision(throttled(600.0), throttles=1, others_passed=True) == Defer(DeferralReason.THROTTLED, 600.0)


def test_where_tokens_come_rarely_a_throttled_line_lets_one_pass() -> None:
    """100 a day: a token every 864 s, and the line's own rest would be over at each of them."""
    often = decide(throttled(1.0), claim(throttles=3), POLICY, NOTHING, turn_s=864.0)
    assert often == Defer(DeferralReason.THROTTLED, 1.0 + 1.5 * 864, 1.0)
    assert decide(throttled(1.0), claim(), POLICY, NOTHING, turn_s=864.0) == decision(throttled(1.0))


def test_a_line_rests_alone_where_the_kind_says_so() -> None:
    assert decision(throttled(7.0, Blame.RECIPIENT)) == Defer(DeferralReason.THROTTLED, 7.0)


# --- nothing is burnt that is not the message's fault


@pytest.mark.parametrize("doubt_s", [None, 9.0])
def test_an_upstream_that_serves_nobody_costs_no_attempt(doubt_s: float | None) -> None:
    away = Outcome(OutcomeKind.UNAVAILABLE, Blame.UPSTREAM, left=False)
    assert decision(away, tries=99, upstream=BOTH, doubt_s=doubt_s) == Defer(DeferralReason.UPSTREAM)


@pytest.mark.parametrize("blame", [Blame.ACCOUNT, Blame.CREDENTIAL])
def test_a_fault_of_the_account_or_its_credential_pauses_and_burns_nothing(blame: Blame) -> None:
    assert decision(Outcome(OutcomeKind.REJECTED, blame), tries=5) == Defer(DeferralReason.PAUSED)


def test_out_of_credit_rests_until_a_probe_and_burns_nothing() -> None:
    broke = Outcome(OutcomeKind.REJECTED, Blame.CREDENTIAL, http_status=402, probe_after_s=300)
    assert decision(broke, tries=5) == Defer(DeferralReason.CREDIT)
    assert not broke.serves


def test_one_that_was_never_started_is_deferred_whatever_else() -> None:
    late = Outcome(OutcomeKind.FAILED, left=False, interrupted=True)
    assert decision(late, tries=5, doubt_s=1.0) == Defer(DeferralReason.INTERRUPTED)


# --- rejected


@pytest.mark.parametrize(
    ("blame", "follows"),
    [
        (Blame.MESSAGE, Bury(DeadLetterReason.REJECTED)),
        (Blame.RECIPIENT, Bury(DeadLetterReason.RECIPIENT_REFUSED)),
        (None, Bury(DeadLetterReason.RECIPIENT_REFUSED, suspicious=True)),
    ],
)
def test_a_rejected_message_is_dead_and_its_letter_says_whose_fault_it_is(blame: Blame | None, follows: Bury) -> None:
    assert decision(Outcome(OutcomeKind.REJECTED, blame, http_status=403)) == follows


def test_a_failed_one_is_tried_again_until_the_attempts_are_used_up() -> None:
    assert isinstance(decision(FAILED, tries=4), ScheduleRetry)
    assert decision(FAILED, tries=5) == Bury(DeadLetterReason.RETRIES_EXHAUSTED)


@pytest.mark.parametrize("last", [REJECTED, FAILED, Outcome(OutcomeKind.REJECTED, Blame.RECIPIENT)])
def test_whatever_the_last_answer_if_an_earlier_attempt_may_have_arrived_that_is_what_counts(last: Outcome) -> None:
    assert decision(last, tries=5, upstream=BOTH, doubt_s=60.0) == LOOK_UP
    assert decision(last, tries=5, upstream=KEYS, doubt_s=60.0) == Bury(DeadLetterReason.OUTCOME_UNKNOWN)


# --- in progress


def test_while_the_first_use_of_its_key_runs_it_waits_and_burns_nothing() -> None:
    running = Outcome(OutcomeKind.IN_PROGRESS, http_status=409)
    assert decision(running, tries=5, upstream=KEYS, doubt_s=2.0) == Defer(DeferralReason.IN_PROGRESS, 1.0)
    asked = Outcome(OutcomeKind.IN_PROGRESS, http_status=409, retry_after_s=7.0)
    assert decision(asked, tries=5, upstream=KEYS, doubt_s=2.0) == Defer(DeferralReason.IN_PROGRESS, 7.0)


def test_past_the_keys_lifetime_it_is_looked_up() -> None:
    running = Outcome(OutcomeKind.IN_PROGRESS, http_status=409)
    assert decision(running, upstream=BOTH, doubt_s=BOTH.key_lifetime_s) == LOOK_UP
    assert decision(running, upstream=KEYS, doubt_s=KEYS.key_lifetime_s) == Bury(DeadLetterReason.OUTCOME_UNKNOWN)


def test_a_conflict_over_a_key_that_was_never_used_is_a_refusal() -> None:
    assert decision(Outcome(OutcomeKind.IN_PROGRESS, http_status=409), upstream=KEYS) == Bury(DeadLetterReason.REJECTED)


# --- unknown


def test_unknown_goes_again_where_the_upstream_honours_the_key() -> None:
    assert isinstance(decision(UNKNOWN, upstream=BOTH), ScheduleRetry)
    assert isinstance(decision(UNKNOWN, tries=2, upstream=BOTH, doubt_s=60.0), ScheduleRetry)


def test_unknown_because_a_worker_died_need_not_spare_the_upstream() -> None:
    assert decision(Outcome(OutcomeKind.UNKNOWN), tries=4, upstream=KEYS) == ScheduleRetry(0.0)


def test_unknown_is_looked_up_once_the_request_can_no_longer_arrive() -> None:
    assert decision(UNKNOWN, upstream=HISTORY) == AwaitVerification(3 + VERIFY_AFTER_S)
    assert decision(UNKNOWN, tries=5, upstream=BOTH) == AwaitVerification(3 + VERIFY_AFTER_S)
    old = KEYS.key_lifetime_s
    assert decision(UNKNOWN, tries=2, upstream=BOTH, doubt_s=old) == AwaitVerification(3 + VERIFY_AFTER_S)


def test_unknown_with_neither_is_for_a_person() -> None:
    assert decision(UNKNOWN) == Bury(DeadLetterReason.OUTCOME_UNKNOWN)
    assert decision(UNKNOWN, tries=5, upstream=KEYS) == Bury(DeadLetterReason.OUTCOME_UNKNOWN)


@pytest.mark.parametrize(
    ("doubt_s", "upstream", "allowed"),
    [
        (None, NOTHING, True),
        (60.0, NOTHING, False),
        (60.0, HISTORY, False),
        (60.0, KEYS, True),
        (KEYS.key_lifetime_s - KEY_MARGIN_S - 1, KEYS, True),
        (KEYS.key_lifetime_s - KEY_MARGIN_S, KEYS, False),
    ],
)
def test_what_may_have_arrived_leaves_again_only_under_a_key_that_is_honoured(
    doubt_s: float | None, upstream: Capabilities, allowed: bool
) -> None:
    assert may_send(claim(doubt_s=doubt_s), upstream) is allowed


def test_under_another_credential_no_key_protects_and_no_history_proves_absence() -> None:
    """Cut off, and then the account was given another key: to that, idempotency key and chat may be unknown."""
    rekeyed = claim(2, doubt_s=60.0, rekeyed=True)
    assert not may_send(rekeyed, BOTH)
    follows = decide_lookup(Finding(Evidence.ABSENT), rekeyed, 1, POLICY, is_anothers=False)
    assert isinstance(follows, GiveUp)
    assert follows.reason is DeadLetterReason.OUTCOME_UNKNOWN
    assert decide_lookup(Finding(Evidence.FOUND, "u"), rekeyed, 1, POLICY, is_anothers=False) == ConfirmSent("u")


def test_a_history_out_of_reach_for_a_day_leaves_it_to_a_person() -> None:
    away = Finding(Evidence.AWAY, error="refused")
    assert isinstance(decide_lookup(away, claim(doubt_s=86_000.0), 1, POLICY, is_anothers=False), LookAgain)
    assert isinstance(decide_lookup(away, claim(doubt_s=86_400.0), 1, POLICY, is_anothers=False), GiveUp)


def test_what_was_withheld_is_cleared_up() -> None:
    withheld = Outcome(OutcomeKind.UNKNOWN, left=False, withheld=True)
    assert decision(withheld, upstream=HISTORY, doubt_s=60.0) == LOOK_UP
    assert decision(withheld, upstream=NOTHING, doubt_s=60.0) == Bury(DeadLetterReason.OUTCOME_UNKNOWN)


@given(
    st.sampled_from(sorted(OutcomeKind)),
    st.sampled_from([*Blame, None]),
    st.integers(1, 7),
    st.none() | st.floats(0, 1e6),
    st.booleans(),
    st.booleans(),
)
def test_nothing_that_may_have_arrived_is_called_refused_or_exhausted(
    kind: OutcomeKind, blame: Blame | None, tries: int, doubt_s: float | None, idempotent: bool, history: bool
) -> None:
    upstream = Capabilities(idempotent=idempotent, history=history)
    follows = decision(Outcome(kind, blame), tries, upstream, doubt_s=doubt_s)
    if isinstance(follows, Bury) and (kind is OutcomeKind.UNKNOWN or doubt_s is not None):
        assert follows.reason is DeadLetterReason.OUTCOME_UNKNOWN


# --- lookups


def after(
    evidence: Evidence, tries: int = 1, lookups: int = 1, is_anothers: bool = False, doubt_s: float | None = None
) -> LookupDecision:
    found = Finding(evidence, upstream_id="u", error="why")
    return decide_lookup(found, claim(tries, doubt_s=doubt_s), lookups, POLICY, is_anothers=is_anothers)


def test_found_is_sent_and_absent_goes_again() -> None:
    assert after(Evidence.FOUND) == ConfirmSent("u")
    assert after(Evidence.ABSENT) == SendAgain()


def test_absent_after_the_last_attempt_is_given_up() -> None:
    follows = after(Evidence.ABSENT, tries=5)
    assert isinstance(follows, GiveUp)
    assert follows.reason is DeadLetterReason.RETRIES_EXHAUSTED


@pytest.mark.parametrize("evidence", [Evidence.UNCLEAR, Evidence.UNAVAILABLE])
def test_what_proves_nothing_is_asked_again_and_then_left_to_a_person(evidence: Evidence) -> None:
    assert isinstance(after(evidence, lookups=LOOKUPS - 1), LookAgain)
    follows = after(evidence, lookups=LOOKUPS)
    assert isinstance(follows, GiveUp)
    assert (follows.reason, "why" in follows.error) == (DeadLetterReason.OUTCOME_UNKNOWN, True)


@pytest.mark.parametrize(("doubt_s", "delay_s"), [(None, 5), (2, 5), (40, 10), (1200, 300), (80_000, 300)])
def test_an_upstream_that_is_away_costs_no_lookup_and_is_asked_more_and_more_rarely(
    doubt_s: float | None, delay_s: float
) -> None:
    for lookups in (1, LOOKUPS, 10 * LOOKUPS):
        assert after(Evidence.AWAY, lookups=lookups, doubt_s=doubt_s) == LookAgain(delay_s, counted=False)


def test_what_may_be_another_message_of_the_same_text_proves_nothing() -> None:
    assert isinstance(after(Evidence.FOUND, is_anothers=True), LookAgain)
    assert isinstance(after(Evidence.FOUND, lookups=LOOKUPS, is_anothers=True), GiveUp)


# --- keys


def test_each_answered_refusal_uses_up_a_key() -> None:
    assert [claim(refusals=n).key for n in range(3)] == ["msg_1", "msg_1.2", "msg_1.3"]


# --- waits


def test_a_rest_doubles_up_to_five_minutes_with_jitter_down_to_half() -> None:
    assert [rest_s(n, draw=1.0) for n in (1, 2, 3, 6, 7, 1000)] == [5, 10, 20, 160, 300, 300]
    assert rest_s(7, draw=0.0) == 150
    assert rest_s(1, asked_s=60.0) == 60
    assert rest_s(1, asked_s=1e9) == LONGEST_COOLDOWN_S


def test_backoff_doubles_up_to_its_ceiling() -> None:
    ceilings = [backoff_s(tries, POLICY, draw=1.0) for tries in (1, 2, 3, 8, 9, 1000)]
    assert ceilings == [5, 10, 20, 640, 900, 900]


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_backoff_has_full_jitter(tries: int, draw: float) -> None:
    assert 0 <= backoff_s(tries, POLICY, draw) <= POLICY.max_s
    assert backoff_s(tries, POLICY, 0.0) == 0
