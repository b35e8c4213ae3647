"""The metrics, as the contract names them.

Labels come from small fixed sets. Counters and histograms are counted where things happen, in several processes
(`counts`). Gauges that say how things stand are read from the store when asked for (`api.operations`).
docs/metrics.md says of each metric what it means and what to do about it. A test holds the two to each other.
"""

from collections.abc import Iterable

from prometheus_client import Counter, Gauge, Histogram

from workers.domain.decisions import DeferralReason
from workers.domain.outcome import OutcomeKind
from workers.telemetry import counts as counts  # before the first metric is defined: it decides where counts are kept

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LONG_SECONDS = (0.1, 1, 5, 15, 60, 300, 900, 3600, 6 * 3600, 24 * 3600, 7 * 24 * 3600)

messages_accepted = Counter("paceline_messages_accepted_total", "Messages accepted (committed)", ["channel"])
messages_processed = Counter("paceline_messages_processed_total", "Messages that came to an end", ["outcome"])
attempts = Counter("paceline_attempts_total", "Requests that may have left", ["outcome"])
deferrals = Counter("paceline_deferrals_total", "Claims given back without counting an attempt", ["reason"])
send_latency = Histogram("paceline_send_latency_seconds", "Upstream call", ["channel"], buckets=_SECONDS)
dispatch_delay = Histogram(
    "paceline_dispatch_delay_seconds", "Token free and message due, to request on the wire", buckets=_SECONDS
)
queue_wait = Histogram("paceline_queue_wait_seconds", "Accepted to sent", buckets=_LONG_SECONDS)
estimate_error = Histogram(
    "paceline_estimate_error_seconds",
    "Sent time minus the estimate given on acceptance (late is positive)",
    buckets=(-300, -60, -10, -5, -2, -1, 0, 1, 2, 5, 10, 60, 300),
)
upstream_throttled = Counter("paceline_upstream_throttled_total", "429s from upstream", ["channel"])
limit_overshoot = Counter("paceline_limit_overshoot_total", "Requests beyond a limit; must stay 0")
outcome_unknown = Counter("paceline_outcome_unknown_total", "Attempts whose outcome is unknown")
rescued = Counter("paceline_rescued_total", "Messages taken over from dead or hung workers")
http_requests = Counter("paceline_http_requests_total", "Answers of the API", ["route", "status"])
http_request_seconds = Histogram("paceline_http_request_seconds", "Time to answer", ["route"], buckets=_SECONDS)
caller_limit_open = Counter(
    "paceline_caller_limit_open_total", "Requests that no caller's limit was held to, Redis being away"
)
pacer_lag = Gauge(
    "paceline_pacer_lag_seconds", "How late the pacer took its latest wake-up", multiprocess_mode="livemax"
)


_NEVER_ATTEMPTS = (OutcomeKind.THROTTLED, OutcomeKind.UNAVAILABLE, OutcomeKind.IN_PROGRESS)
"""Outcomes of deferrals."""


def begin_at_zero(channels: Iterable[str]) -> None:
    """Have every series there from the start: the first event of one that appears with it would be no increase."""
    for outcome in ("sent", "failed", "cancelled", "expired"):
        messages_processed.labels(outcome)
    for kind in OutcomeKind:
        if kind not in _NEVER_ATTEMPTS:
            attempts.labels(str(kind))
    for reason in DeferralReason:
        deferrals.labels(str(reason))
    for channel in channels:
        for metric in (messages_accepted, send_latency, upstream_throttled):
            metric.labels(channel)
