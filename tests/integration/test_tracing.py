"""One trace from the POST to the upstream's answer, however long the message waited in between."""

from collections.abc import Callable, Iterator

import pytest
from flask.testing import FlaskClient
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from deploy.sandbox import Fault, Sandbox
from workers.bootstrap import Adapters
from workers.environment import BadSetting
from workers.services.dispatch import Dispatcher
from workers.telemetry import traces

CALLERS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SEND = "/api/onlyfans/messaging/send"


@pytest.fixture
def spans() -> Iterator[Callable[[], list[ReadableSpan]]]:
    """Those that have ended, in that order."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traces.use(provider)
    yield exporter.get_finished_spans
    traces.use(None)


def post(client: FlaskClient, headers: dict[str, str]) -> str:
    answer = client.post(SEND, json={"recipientId": "fan-1", "content": "not to be traced"}, headers=headers)
    assert answer.status_code == 202
    return answer.json["messageId"]


def test_the_attempt_belongs_to_the_trace_of_its_post(
    spans: Callable[[], list[ReadableSpan]], client: FlaskClient, bearer: Callable[..., dict[str, str]],
    dispatcher: Dispatcher, upstream: Sandbox,
) -> None:  # fmt: skip
    message_id = post(client, bearer() | {"traceparent": CALLERS, "X-Request-Id": "r-1"})
    dispatcher.drain("default")
    posted, sent = spans()
    assert (posted.name, sent.name) == ("POST /api/<channel>/messaging/send", "send")
    assert f"{posted.context.trace_id:032x}" == f"{sent.context.trace_id:032x}" == CALLERS.split("-")[1]
    assert f"{posted.parent.span_id:016x}" == CALLERS.split("-")[2]
    assert sent.parent.span_id == posted.context.span_id
    assert dict(sent.attributes) == {
        "request_id": "r-1",
        "message_id": message_id,
        "account_id": "default",
        "attempt": 1,
        "outcome": "accepted",
        "http.response.status_code": 200,
    }
    assert "not to be traced" not in posted.to_json() + sent.to_json()


def test_every_attempt_has_its_span(
    spans: Callable[[], list[ReadableSpan]], client: FlaskClient, bearer: Callable[..., dict[str, str]],
    dispatcher: Dispatcher, upstream: Sandbox,
) -> None:  # fmt: skip
    upstream.faults.add(Fault("status", status=503))
    post(client, bearer())
    for _ in range(2):
        dispatcher.drain("default")
    posted, *sent = spans()
    assert [(span.attributes["attempt"], span.attributes["outcome"]) for span in sent] == [
        (1, "unknown"),
        (2, "accepted"),
    ]
    assert {span.context.trace_id for span in sent} == {posted.context.trace_id}


def test_a_request_refused_is_a_span_without_its_words(
    spans: Callable[[], list[ReadableSpan]], client: FlaskClient, bearer: Callable[..., dict[str, str]]
) -> None:
    client.post(SEND, json={"recipientId": "fan-1", "content": {"secret": "words"}}, headers=bearer())
    (refused,) = spans()
    assert refused.attributes["error.type"] == "ValidationError"
    assert "words" not in refused.to_json()


def test_untraced_messages_keep_no_trace(
    adapters: Adapters, client: FlaskClient, bearer: Callable[..., dict[str, str]]
) -> None:
    post(client, bearer() | {"traceparent": CALLERS})
    assert adapters.db.one("SELECT traceparent FROM messages") == {"traceparent": None}


def test_it_is_asked_for_by_opentelemetrys_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    named = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
    assert not traces.wanted({})
    assert traces.wanted(named)
    assert not traces.wanted(named | {"OTEL_SDK_DISABLED": "true"})
    monkeypatch.setattr(traces, "trace", None)
    with pytest.raises(BadSetting, match=r"OTEL_EXPORTER_OTLP_ENDPOINT=.*paceline\[otel\]"):
        traces.wanted(named)
