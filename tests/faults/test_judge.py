"""The judge can say no: doctored ledgers and answers, and each of them is found out."""

import io

import pytest
from rich.console import Console

from deploy.faults import report
from deploy.faults.evidence import ABSENT, BURNT, FOUND, UNAVAILABLE, Arrival, Evidence, Told, collect, understood
from deploy.faults.judge import Verdict, judge
from deploy.faults.load import Posted
from deploy.faults.mail import Mail
from deploy.faults.schedule import Kind, Limit, Options

SECOND = 10**9
NOON = 1_800_000_000.0
LIMIT = Limit(2, 10_000)


def posted(id: str, recipient: str = "", *, told_cancelled: bool = False, **more: object) -> Posted:
    mail = {"at_s": 0.0, "key": id, "account": "a", "recipient": recipient or f"fan-{id}", "text": "Hi", "priority": 5}
    return Posted(Mail(**(mail | more)), id, NOON, told_cancelled)  # type: ignore[arg-type]


def arrival(id: str | None, at_s: float, verdict: str = "accepted", **more: object) -> Arrival:
    known = {
        "at_ns": round(at_s * SECOND),
        "wall_s": NOON + at_s,
        "key": "key-of-a",
        "message_id": id,
        "verdict": verdict,
    }
    return Arrival(**(known | more))  # type: ignore[arg-type]


def verdict_on(
    posts: list[Posted], told: dict[str, Told], arrivals: list[Arrival], *unclear: tuple[str, str]
) -> Verdict:
    return judge(Evidence(tuple(posts), told, tuple(arrivals), frozenset(unclear)), [LIMIT])


def all_sent(*ids: str) -> dict[str, Told]:
    return dict.fromkeys(ids, Told("sent"))


def test_a_clean_run_holds() -> None:
    verdict = verdict_on(
        [posted("m1"), posted("m2"), posted("m3", told_cancelled=True), posted("m4"), posted("m5", "blocked-1")],
        all_sent("m1", "m2")
        | {"m3": Told("cancelled"), "m4": Told("expired"), "m5": Told("failed", "recipient_refused")},
        [arrival("m1", 0), arrival("m2", 0), arrival("m2", 10, "replayed")],
    )
    assert verdict.holds
    assert (verdict.accepted, verdict.unresolved, verdict.overshoot, verdict.worst[LIMIT]) == (5, 0, 0, {"key-of-a": 2})
    assert verdict.ended == {"sent": 2, "cancelled": 1, "expired": 1, "failed: recipient_refused": 1}


@pytest.mark.parametrize(
    ("told", "arrived", "words"),
    [
        (None, False, "m1 was accepted and is missing"),
        (None, True, "m1 was accepted and is missing, and has arrived"),
        (Told("queued"), False, "m1 was accepted and is queued"),
        (Told("sending"), False, "m1 was accepted and is sending"),
        (Told("sending"), True, "m1 was accepted and is sending, and has arrived"),
        (Told("sent"), False, "m1 is said to be sent, and has never arrived"),
        (Told("cancelled"), True, "m1 is said to be cancelled, and has arrived"),
        (Told("expired"), True, "m1 is said to be expired, and has arrived"),
        (Told("failed", "rejected"), True, "m1 is said to be failed: rejected, and has arrived"),
        (Told("failed", "recipient_refused"), True, "m1 is said to be failed: recipient_refused, and has arrived"),
    ],
)
def test_a_lost_message_is_found(told: Told | None, arrived: bool, words: str) -> None:
    verdict = verdict_on([posted("m1")], {"m1": told} if told else {}, [arrival("m1", 0)] if arrived else [])
    assert list(verdict.lost) == [words]
    assert not verdict.holds


@pytest.mark.parametrize("status", ["queued", "sending"])
def test_what_is_still_queued_is_counted(status: str) -> None:
    assert verdict_on([posted("m1")], {"m1": Told(status)}, []).unresolved == 1


@pytest.mark.parametrize("verdict", ["replayed", "throttled", "refused", "failed", "dropped"])
def test_only_an_acceptance_is_an_arrival(verdict: str) -> None:
    found = verdict_on([posted("m1")], all_sent("m1"), [arrival("m1", 0, verdict)])
    assert list(found.lost) == ["m1 is said to be sent, and has never arrived"]


def test_a_cancellation_that_was_told_and_not_kept_is_found() -> None:
    verdict = verdict_on([posted("m1", told_cancelled=True)], all_sent("m1"), [arrival("m1", 0)])
    assert list(verdict.lost) == ["m1 was said to be cancelled, and is sent"]


def test_an_unknown_outcome_is_left_to_a_person_only_where_nobody_could_find_out() -> None:
    told = {"m1": Told("failed", "outcome_unknown")}
    for arrivals in ([], [arrival("m1", 0)]):
        assert verdict_on([posted("m1", "fan")], told, arrivals, ("key-of-a", "fan")).holds
        verdict = verdict_on([posted("m1", "fan")], told, arrivals, ("key-of-b", "fan"), ("key-of-a", "other"))
        assert list(verdict.unexpected) == ["m1 to a/fan is failed: outcome_unknown"]
        assert not verdict.holds


@pytest.mark.parametrize(
    ("recipient", "reason", "needless"),
    [
        ("fan", "rejected", True),
        ("fan", "recipient_refused", True),
        ("fan", "retries_exhausted", True),
        ("blocked-0", "recipient_refused", False),
        ("gone-0", "recipient_refused", False),
        ("blocked-0", "rejected", True),
        ("gone-0", "retries_exhausted", True),
        ("jammed-0", "recipient_refused", True),
    ],
)
def test_a_dead_letter_needs_its_reason(recipient: str, reason: str, needless: bool) -> None:
    verdict = verdict_on([posted("m1", recipient, expires_in_s=9.0)], {"m1": Told("failed", reason)}, [])
    assert list(verdict.unexpected) == ([f"m1 to a/{recipient} is failed: {reason}"] if needless else [])
    assert verdict.holds is not needless


def test_an_attempt_that_an_outage_has_cost_is_found() -> None:
    told = {
        "m1": Told("sent", attempts=(BURNT, BURNT, "accepted")),
        "m2": Told("sent", attempts=("failed", "accepted")),
    }
    verdict = verdict_on([posted("m1"), posted("m2")], told, [arrival("m1", 0), arrival("m2", 20)])
    assert list(verdict.burnt) == ["m1 lost 2 attempts to an outage"]
    assert not verdict.holds


@pytest.mark.parametrize(
    ("recipient", "tries", "pressed"), [("jammed-0", 10, False), ("jammed-0", 11, True), ("fan", 60, False)]
)
def test_a_chat_that_throttles_is_left_alone_longer_each_time(recipient: str, tries: int, pressed: bool) -> None:
    post = posted("m1", recipient, expires_in_s=60.0)
    arrivals = [arrival("m1", 10.0 * n, "throttled", fault="status") for n in range(tries)]
    verdict = verdict_on([post], {"m1": Told("expired")}, arrivals)
    words = [f"m1 was tried {tries} times in 60.0 s at a chat that throttles"]
    assert list(verdict.pressed) == (words if pressed else [])
    assert verdict.holds is not pressed


def test_one_given_up_that_had_arrived_is_pointed_out() -> None:
    verdict = verdict_on([posted("m1")], {"m1": Told("failed", "retries_exhausted")}, [arrival("m1", 0)])
    assert list(verdict.doubtful) == ["m1 was given up, and had arrived"]
    assert not verdict.holds


def test_a_message_sent_twice_is_found() -> None:
    verdict = verdict_on([posted("m1")], all_sent("m1"), [arrival("m1", 0), arrival("m1", 20)])
    assert list(verdict.twice) == ["m1 accepted 2 times"]
    assert not verdict.holds


def test_a_message_sent_twice_from_two_accounts_is_found() -> None:
    verdict = verdict_on([posted("m1")], all_sent("m1"), [arrival("m1", 0), arrival("m1", 20, key="key-of-b")])
    assert len(verdict.twice) == 1


def test_a_message_that_nobody_was_told_202_for_is_found() -> None:
    verdict = verdict_on([], {}, [arrival("m9", 0)])
    assert list(verdict.strays) == ["m9 arrived, and nobody had been told 202"]
    assert not verdict.holds


def test_a_third_within_a_period_is_an_overshoot() -> None:
    verdict = verdict_on(
        [posted(id) for id in ("m1", "m2", "m3")],
        all_sent("m1", "m2", "m3"),
        [arrival("m1", 0), arrival("m2", 5), arrival("m3", 9.999_999_999)],
    )
    assert (verdict.overshoot, verdict.worst[LIMIT]) == (1, {"key-of-a": 3})
    assert not verdict.holds


def test_of_several_limits_each_must_hold() -> None:
    limits = (Limit(2, 1_000), Limit(3, 10_000))
    arrivals = tuple(arrival(None, at_s) for at_s in (0, 2, 4, 6))
    verdict = judge(Evidence((), {}, arrivals), limits)
    assert (verdict.overshoot, verdict.worst) == (1, {limits[0]: {"key-of-a": 1}, limits[1]: {"key-of-a": 4}})


def test_exactly_a_period_later_is_none() -> None:
    verdict = verdict_on(
        [posted(id) for id in ("m1", "m2", "m3")],
        all_sent("m1", "m2", "m3"),
        [arrival("m1", 0), arrival("m2", 5), arrival("m3", 10)],
    )
    assert verdict.overshoot == 0


@pytest.mark.parametrize("verdict", ["replayed", "failed", "refused", "dropped"])
def test_a_request_counts_whatever_the_upstream_made_of_it(verdict: str) -> None:
    arrivals = [arrival("m1", 0, verdict), arrival("m1", 1, verdict), arrival("m1", 2)]
    assert verdict_on([posted("m1")], all_sent("m1"), arrivals).overshoot == 1


def test_each_account_has_a_window_of_its_own() -> None:
    arrivals = [arrival(None, at, key=key) for key in ("a", "b", "c") for at in (0, 1)]
    assert verdict_on([], {}, arrivals).overshoot == 0


def test_a_request_that_the_upstream_found_too_many_is_an_overshoot() -> None:
    """Although by our own count there was room: its word counts, too."""
    verdict = verdict_on([posted("m1")], all_sent("m1"), [arrival("m1", 0, "throttled", full=True), arrival("m1", 20)])
    assert (verdict.overshoot, verdict.throttled_by_limit, verdict.throttled_by_fault) == (1, 1, 0)


def test_an_injected_429_is_told_from_one_of_the_limit() -> None:
    verdict = verdict_on([], {}, [arrival("m1", 0, "throttled", fault="status")])
    assert (verdict.overshoot, verdict.throttled_by_limit, verdict.throttled_by_fault) == (0, 0, 1)


def test_overtaking_is_found() -> None:
    posts = [posted("m1", "fan"), posted("m2", "fan"), posted("m3", "fan")]
    arrivals = [arrival("m1", 0), arrival("m3", 20), arrival("m2", 40)]
    verdict = verdict_on(posts, all_sent("m1", "m2", "m3"), arrivals)
    assert list(verdict.misordered) == ["m3 overtook m2 to a/fan, priority 5"]
    assert not verdict.holds


@pytest.mark.parametrize("other", [{"priority": 6}, {"recipient": "another"}, {"account": "b"}, {"send_in_s": 3.0}])
def test_no_order_is_promised_between_lines(other: dict[str, object]) -> None:
    posts = [posted("m1", "fan"), posted("m2", **({"recipient": "fan"} | other))]  # type: ignore[arg-type]
    assert verdict_on(posts, all_sent("m1", "m2"), [arrival("m2", 5), arrival("m1", 20)]).holds


def test_one_that_failed_has_no_place_in_the_order() -> None:
    posts = [posted("m1", "fan"), posted("m2", "fan")]
    told = {"m1": Told("failed", "outcome_unknown"), "m2": Told("sent")}
    assert verdict_on(posts, told, [arrival("m2", 0), arrival("m1", 20)], ("key-of-a", "fan")).holds


def test_the_first_acceptance_is_what_counts_for_the_order() -> None:
    posts = [posted("m1", "fan"), posted("m2", "fan")]
    arrivals = [arrival("m1", 0), arrival("m2", 20), arrival("m1", 40, "replayed")]
    assert verdict_on(posts, all_sent("m1", "m2"), arrivals).holds


@pytest.mark.parametrize(
    ("times", "age_s", "words"),
    [
        ({"send_in_s": 10.0}, 9.99, "m1 arrived 0.010 s before its sendAt"),
        ({"send_in_s": 10.0}, 10.0, None),
        ({"expires_in_s": 10.0}, 9.0, None),
        ({"expires_in_s": 10.0}, 14.9, None),  # it may have left in time
        ({"expires_in_s": 10.0}, 15.5, "m1 arrived 5.500 s after its expiresAt"),
    ],
)
def test_one_before_or_after_its_time_is_found(times: dict[str, object], age_s: float, words: str | None) -> None:
    verdict = verdict_on([posted("m1", **times)], all_sent("m1"), [arrival("m1", 0, wall_s=NOON + age_s)])
    assert list(verdict.mistimed) == ([words] if words else [])
    assert verdict.holds is (words is None)


def test_the_second_key_of_a_message_names_the_same_message() -> None:
    class Upstream:
        def until_answered(self, method: str, path: str) -> dict[str, object]:
            entry = {"at": 0.0, "key": "key-of-a", "verdict": "accepted", "wall": "2026-01-01T00:00:00Z"}
            entry |= {"overshoot": False, "fault": None}
            return {"entries": [entry | {"idempotency_key": key} for key in ("m1", "m1.2", None)]}

    class Api:
        def until_answered(self, method: str, path: str) -> dict[str, object]:
            return {"messages": [], "nextCursor": None, "total": 0}

    evidence = collect(Api(), Upstream(), [posted("m1")])  # type: ignore[arg-type]
    assert [each.message_id for each in evidence.arrivals] == ["m1", "m1", None]
    assert list(judge(evidence, [LIMIT]).twice) == ["m1 accepted 2 times"]


@pytest.mark.parametrize(
    ("outcome", "error", "status", "shown"),
    [
        ("accepted", None, 200, "accepted"),
        ("unknown", "connection cut", None, "unknown"),
        (None, None, None, None),
        ("failed", "connection refused", None, BURNT),
        ("failed", "The sandbox was told to answer 503", 503, "failed"),
        ("failed", UNAVAILABLE, 503, BURNT),
        ("unknown", UNAVAILABLE, 503, BURNT),
        ("unavailable", "connection refused", None, BURNT),
        ("accepted", "connection cut; looked up: it arrived", None, FOUND),
        ("failed", "connection cut; looked up: it did not arrive", None, ABSENT),
    ],
)
def test_an_attempt_on_record_is_understood(
    outcome: str | None, error: str | None, status: int | None, shown: str | None
) -> None:
    assert understood(outcome, error or "", status) == shown


def test_unknown_outcomes_are_told_by_how_they_were_resolved() -> None:
    told = {
        "m1": Told("sent", attempts=("unknown", "accepted")),
        "m2": Told("sent", attempts=("unknown", FOUND)),
        "m6": Told("sent", attempts=(ABSENT, "accepted")),
        "m3": Told("failed", "outcome_unknown", ("failed", "unknown")),
        "m4": Told("sent", attempts=("failed", "accepted")),
        "m5": Told("expired", attempts=("unknown",)),
    }
    assert verdict_on([], told, []).unknowns == {
        "sent again": 2,
        "found in the history": 1,
        "not found in the history": 1,
        "ended as failed: outcome_unknown": 1,
        "ended as expired": 1,
    }


def test_the_table_shows_what_was_found() -> None:
    verdict = verdict_on(
        [posted("m1"), posted("m2"), posted("m3", "fan"), posted("m4", "fan")],
        all_sent("m1", "m3", "m4"),
        [arrival("m2", 0), arrival("m2", 1), arrival("m9", 2), arrival("m4", 3), arrival("m3", 4)],
    )
    console = Console(file=io.StringIO(), width=120)
    options = Options.scaled(4, 0.5, 7)
    report.show(console, options, verdict, done={Kind.KILL: 3}, repeated=1, refused=["k: 400"], wall_s=12.0)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for words in (
        "m1 is said to be sent, and has never arrived",
        "m2 was accepted and is missing, and has arrived",
        "m2 accepted 2 times",
        "m9 arrived, and nobody had been told 202",
        "m4 overtook m3",
        "Not every guarantee held.",
    ):
        assert words in shown
