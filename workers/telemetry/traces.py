"""Distributed traces, for who wants them: one from the POST to the upstream's answer, however long the message waited.

Optional twice over: needs the extra `paceline[otel]`, and OTEL_EXPORTER_OTLP_ENDPOINT (OpenTelemetry's own variables
say the rest: sampling, headers, timeouts). Otherwise nothing here costs anything. Spans carry ids and outcomes, never
content or credentials, and exceptions by their type alone: their words may quote either.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from workers.environment import BadSetting

try:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:  # the extra is not installed
    trace = None  # type: ignore[assignment]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

_tracer: Any = None


def wanted(environ: Mapping[str, str] | None = None) -> bool:
    """Whether the environment names a collector. Raises BadSetting if it does and the extra is not installed."""
    environ = os.environ if environ is None else environ
    endpoint = next((name for name in _ENDPOINTS if environ.get(name)), None)
    if endpoint is None or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if trace is None:
        raise BadSetting(endpoint, environ[endpoint], "needs OpenTelemetry: pip install 'paceline[otel]'")
    return True


def configure(service: str) -> None:
    """Trace this process from here on, if that is wanted. To be called in the process that makes the spans, not in one
    that forks it: spans leave through a thread."""
    if not wanted():
        return
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    use(provider)


def use(provider: Any) -> None:
    """Trace through this provider; None: no more."""
    global _tracer
    _tracer = None if provider is None else provider.get_tracer("paceline")


def traceparent() -> str | None:
    """The span that is open now, as W3C Trace Context writes it; None if there is none."""
    if _tracer is None:
        return None
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


def trace_id() -> str | None:
    """Of the trace that is open now: what finds it from a line in the log."""
    found = traceparent()
    return found and found.split("-")[1]


@contextmanager
def span(
    name: str, *, kind: Literal["SERVER", "CLIENT"], parent: str | None, attributes: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """A request that we answer (SERVER), or one that we make (CLIENT), perhaps long after the one that asked for it.

    parent: the `traceparent` it came with; None begins a trace. What is put into the yielded dictionary while it lasts
    becomes attributes as well.
    """
    found: dict[str, Any] = {}
    if _tracer is None:
        yield found
        return
    context = TraceContextTextMapPropagator().extract({"traceparent": parent}) if parent else None
    with _tracer.start_as_current_span(
        name, context, SpanKind[kind], record_exception=False, set_status_on_exception=False
    ) as opened:
        try:
            yield found
        except BaseException as error:
            found["error.type"] = type(error).__name__
            raise
        finally:
            opened.set_attributes({key: value for key, value in {**attributes, **found}.items() if value is not None})
