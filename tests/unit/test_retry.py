"""Every row of the contract's outcome table, and the delays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.domain.outcome import Outcome, OutcomeKind
from workers.domain.retry import (
    DEFAULT_COOLDOWN_S,
    LONGEST_COOLDOWN_S,
    VERIFY_AFTER_S,
    AwaitVerification,
    Bury,
    DeadLetterReason,
    Decision,
    Defer,
    DeferralReason,
    MarkSent,
    RetryPolicy,
    ScheduleRetry,
    backoff_s,
    decide,
)

POLICY = RetryPolicy(max_attempts=5, base_s=5, max_s=900)


def decision(outcome: Outcome, tries: int = 1, *, idempotent: bool = False, has_history: bool = False) -> Decision:
    return decide(outcome, tries, POLICY, idempotent=idempotent, has_history=has_history, time_left_s=3)


def test_accepted_is_sent() -> None:
    assert decision(Outcome(OutcomeKind.ACCEPTED, upstream_id="u1")) == MarkSent("u1")


def test_429_cools_down_for_what_was_asked() -> None:
    throttled = Outcome(OutcomeKind.THROTTLED, retry_after_s=30)
    assert decision(throttled, tries=99) == Defer(DeferralReason.THROTTLED, 30)


@pytest.mark.parametrize(
    ("asked", "given"), [(None, DEFAULT_COOLDOWN_S), (0.0, 0.0), (-1.0, 0.0), (1e9, LONGEST_COOLDOWN_S)]
)
def test_429_with_an_odd_retry_after(asked: float | None, given: float) -> None:
    throttled = Outcome(OutcomeKind.THROTTLED, retry_after_s=asked)
    assert decision(throttled) == Defer(DeferralReason.THROTTLED, given)


def test_an_accounts_fault_pauses_it_and_burns_nothing() -> None:
    assert decision(Outcome(OutcomeKind.REJECTED, account_fault=True), tries=5) == Defer(DeferralReason.PAUSED)


def test_a_rejected_message_is_dead() -> None:
    assert decision(Outcome(OutcomeKind.REJECTED)) == Bury(DeadLetterReason.REJECTED)


def test_a_failed_one_is_tried_again_until_the_attempts_are_used_up() -> None:
    failed = Outcome(OutcomeKind.FAILED)
    assert isinstance(decision(failed, tries=4), ScheduleRetry)
    assert decision(failed, tries=5) == Bury(DeadLetterReason.RETRIES_EXHAUSTED)


def test_one_that_was_never_started_is_deferred_whatever_else() -> None:
    late = Outcome(OutcomeKind.FAILED, left=False, interrupted=True)
    assert decision(late, tries=5) == Defer(DeferralReason.INTERRUPTED)


UNKNOWN = Outcome(OutcomeKind.UNKNOWN)


def test_unknown_goes_again_where_the_upstream_honours_the_key() -> None:
    assert isinstance(decision(UNKNOWN, idempotent=True, has_history=True), ScheduleRetry)


def test_unknown_is_looked_up_once_the_request_can_no_longer_arrive() -> None:
    assert decision(UNKNOWN, has_history=True) == AwaitVerification(3 + VERIFY_AFTER_S)
    assert decision(UNKNOWN, tries=5, idempotent=True, has_history=True) == AwaitVerification(3 + VERIFY_AFTER_S)


def test_unknown_with_neither_is_for_a_person() -> None:
    assert decision(UNKNOWN) == Bury(DeadLetterReason.OUTCOME_UNKNOWN)
    assert decision(UNKNOWN, tries=5, idempotent=True) == Bury(DeadLetterReason.OUTCOME_UNKNOWN)


def test_backoff_doubles_up_to_its_ceiling() -> None:
    ceilings = [backoff_s(tries, POLICY, draw=1.0) for tries in (1, 2, 3, 8, 9, 1000)]
    assert ceilings == [5, 10, 20, 640, 900, 900]


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_backoff_has_full_jitter(tries: int, draw: float) -> None:
    assert 0 <= backoff_s(tries, POLICY, draw) <= POLICY.max_s
    assert backoff_s(tries, POLICY, 0.0) == 0
