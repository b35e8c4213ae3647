"""The judge: compares what callers were told with what the upstream saw. Pure.

It takes nobody's word for the windows: it counts every request that reached the upstream, refused and failed ones
included, where the sandbox itself counts only those that it accepted.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from deploy.faults.evidence import ABSENT, BURNT, FOUND, Arrival, Evidence, Told
from deploy.faults.load import Posted
from deploy.faults.mail import Mail, api_key
from deploy.faults.schedule import LONGEST_LEASE_S, Limit

MILLISECOND_S = 0.0011
"""The ledger's wall clock and the API's times are rounded to it."""
OVER = ("sent", "failed", "cancelled", "expired")
NOT_ARRIVED = ("cancelled", "expired", "failed: rejected", "failed: recipient_refused")
"""What a caller is told of a message that has not arrived, and is not going to."""
RETRY_AFTER_S, FIRST_REST_S = 1.0, 0.25
"""A line that is throttled rests for what the upstream asks for, and for no less than FIRST_REST_S, doubled with each
429 that follows."""
SPARE_TRIES = 2
"""Requests beyond that: a worker may die before it has written down the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """accepted: messages that got a 202. ended: how many of them ended how. unresolved: those in no final state.
    lost, twice, strays, misordered, mistimed, unexpected, burnt, pressed: findings, one line each, for people.

    lost: not known any more, in no final state, `sent` without having arrived, or arrived and told otherwise.
    strays: arrived without ever having been accepted from anybody. mistimed: before their sendAt, or after their
    expiresAt. unexpected: given up, without a recipient who refuses or an outcome that nobody can find out. burnt: an
    outage cost attempts. pressed: tried more often than a line may be that is throttled each time.
    overshoot: requests beyond a limit in some rolling period. worst: the most in any period, by limit and API key.
    unknowns: how attempts with an unknown outcome were resolved. doubtful: given up as `retries_exhausted`, and
    arrived.
    """

    accepted: int
    ended: Mapping[str, int]
    unresolved: int
    lost: Sequence[str]
    twice: Sequence[str]
    strays: Sequence[str]
    misordered: Sequence[str]
    mistimed: Sequence[str]
    unexpected: Sequence[str]
    burnt: Sequence[str]
    pressed: Sequence[str]
    doubtful: Sequence[str]
    overshoot: int
    worst: Mapping[Limit, Mapping[str, int]]
    throttled_by_limit: int
    throttled_by_fault: int
    verdicts: Mapping[str, int]
    unknowns: Mapping[str, int]
    faults: Mapping[str, int] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether every guarantee that the suite puts to the test held."""
        found = (
            self.lost, self.twice, self.strays, self.misordered, self.mistimed,
            self.unexpected, self.burnt, self.pressed,
        )  # fmt: skip
        return not (any(found) or self.overshoot)


def judge(evidence: Evidence, limits: Sequence[Limit]) -> Verdict:
    """The verdict on a run in which these limits hold at once, for every account."""
    arrivals = sorted(evidence.arrivals, key=lambda arrival: arrival.at_ns)
    accepted: defaultdict[str, list[int]] = defaultdict(list)
    for arrival in arrivals:
        if arrival.verdict == "accepted" and arrival.message_id is not None:
            accepted[arrival.message_id].append(arrival.at_ns)
    ended = Counter(_ending(evidence.told.get(posted.message_id)) for posted in evidence.posted)
    worst, beyond = _windows(arrivals, limits)
    throttled = Counter(arrival.fault is None for arrival in arrivals if arrival.verdict == "throttled")
    known = {posted.message_id for posted in evidence.posted}
    return Verdict(
        accepted=len(evidence.posted),
        ended=ended,
        unresolved=sum(n for ending, n in ended.items() if not ending.startswith(OVER)),
        lost=[words for posted in evidence.posted for words in _losses(posted, evidence.told, accepted)],
        twice=[f"{id} accepted {len(times)} times" for id, times in accepted.items() if len(times) > 1],
        strays=[f"{id} arrived, and nobody had been told 202" for id in accepted if id not in known],
        misordered=list(_misorders(evidence, accepted)),
        mistimed=list(_mistimes(evidence, arrivals)),
        unexpected=list(_unexpected(evidence)),
        burnt=list(_burnt(evidence)),
        pressed=list(_pressed(evidence, arrivals)),
        doubtful=[
            f"{posted.message_id} was given up, and had arrived"
            for posted in evidence.posted
            if posted.message_id in accepted
            and _ending(evidence.told.get(posted.message_id)) == "failed: retries_exhausted"
        ],
        overshoot=beyond,
        worst=worst,
        throttled_by_limit=throttled[True],
        throttled_by_fault=throttled[False],
        verdicts=Counter(arrival.verdict for arrival in arrivals),
        unknowns=_unknowns(evidence.told.values()),
        faults=Counter(arrival.fault for arrival in arrivals if arrival.fault),
    )


def _ending(told: Told | None) -> str:
    if told is None:
        return "missing"
    return f"{told.status}: {told.reason}" if told.status == "failed" else told.status


def _losses(posted: Posted, told: Mapping[str, Told], accepted: Mapping[str, list[int]]) -> Iterable[str]:
    id = posted.message_id
    ending, arrived = _ending(told.get(id)), id in accepted
    if not ending.startswith(OVER):
        yield f"{id} was accepted and is {ending}{', and has arrived' if arrived else ''}"
    elif ending == "sent" and not arrived:
        yield f"{id} is said to be sent, and has never arrived"
    elif ending in NOT_ARRIVED and arrived:
        yield f"{id} is said to be {ending}, and has arrived"
    if posted.told_cancelled and ending != "cancelled":
        yield f"{id} was said to be cancelled, and is {ending}"


def _windows(arrivals: Sequence[Arrival], limits: Sequence[Limit]) -> tuple[dict[Limit, dict[str, int]], int]:
    """The fullest window (t - period, t] of each limit and key, and how many requests found one of theirs full."""
    fullest: dict[Limit, dict[str, int]] = {limit: {} for limit in limits}
    windows: defaultdict[tuple[Limit, str], deque[int]] = defaultdict(deque)
    beyond = 0
    for arrival in arrivals:
        too_many = arrival.full
        for limit in limits:
            window = windows[limit, arrival.key]
            window.append(arrival.at_ns)
            while window[0] <= arrival.at_ns - limit.period_ms * 10**6:
                window.popleft()
            fullest[limit][arrival.key] = max(fullest[limit].get(arrival.key, 0), len(window))
            too_many = too_many or len(window) > limit.count
        beyond += too_many
    return fullest, beyond


def _misorders(evidence: Evidence, accepted: Mapping[str, list[int]]) -> Iterable[str]:
    """To one recipient, those of one priority must have arrived in the order of acceptance. What did not get through,
    and what came with a sendAt, has no place in that order."""
    last: dict[tuple[str, str, int], tuple[int, str]] = {}
    for posted in evidence.posted:
        id, mail = posted.message_id, posted.mail
        if not mail.ordered or id not in accepted or _ending(evidence.told.get(id)) != "sent":
            continue
        line, arrived_ns = (mail.account, mail.recipient, mail.priority), accepted[id][0]
        before = last.get(line)
        if before is not None and arrived_ns < before[0]:
            yield f"{id} overtook {before[1]} to {mail.account}/{mail.recipient}, priority {mail.priority}"
        else:
            last[line] = (arrived_ns, id)


def _mistimes(evidence: Evidence, arrivals: Sequence[Arrival]) -> Iterable[str]:
    """One that left in time may arrive as late as its attempt may last."""
    for arrival in arrivals:
        posted = evidence.by_id.get(arrival.message_id or "")
        if posted is None or arrival.verdict != "accepted":
            continue
        age_s, mail = arrival.wall_s - posted.began_s, posted.mail
        if mail.send_in_s is not None and age_s < mail.send_in_s - MILLISECOND_S:
            yield f"{posted.message_id} arrived {mail.send_in_s - age_s:.3f} s before its sendAt"
        if mail.expires_in_s is not None and age_s > mail.expires_in_s + LONGEST_LEASE_S:
            yield f"{posted.message_id} arrived {age_s - mail.expires_in_s:.3f} s after its expiresAt"


def _unexpected(evidence: Evidence) -> Iterable[str]:
    """Dead letters that need not be, and those that have the wrong reason."""
    for posted in evidence.posted:
        told, mail = evidence.told.get(posted.message_id), posted.mail
        if told is None or told.status != "failed":
            continue
        unclear = told.reason == "outcome_unknown" and (api_key(mail.account), mail.recipient) in evidence.unclear
        if not unclear and not (told.reason == "recipient_refused" and mail.refused):
            yield f"{posted.message_id} to {mail.account}/{mail.recipient} is {_ending(told)}"


def _burnt(evidence: Evidence) -> Iterable[str]:
    for id, told in evidence.told.items():
        if attempts := told.attempts.count(BURNT):
            yield f"{id} lost {attempts} attempts to an outage"


def _pressed(evidence: Evidence, arrivals: Sequence[Arrival]) -> Iterable[str]:
    tries = Counter(arrival.message_id for arrival in arrivals)
    for posted in evidence.posted:
        number, mail = tries[posted.message_id], posted.mail
        if mail.throttled and number > _most_tries(mail):
            yield f"{posted.message_id} was tried {number} times in {mail.expires_in_s} s at a chat that throttles"


def _most_tries(mail: Mail) -> int:
    assert mail.expires_in_s is not None, "what can never be sent must end by its expiresAt"
    tries, age_s = 0, 0.0
    while age_s <= mail.expires_in_s:
        age_s += max(RETRY_AFTER_S, FIRST_REST_S * 2**tries)
        tries += 1
    return tries + SPARE_TRIES


def _unknowns(told: Iterable[Told]) -> Counter[str]:
    """How each unknown outcome was resolved."""
    resolved: Counter[str] = Counter()
    for message in told:
        for number, outcome in enumerate(message.attempts, start=1):
            if outcome in (FOUND, ABSENT):
                resolved[outcome.removeprefix("unknown, then ")] += 1
            elif outcome == "unknown":
                last = number == len(message.attempts)
                resolved[f"ended as {_ending(message)}" if last else "sent again"] += 1
    return resolved
