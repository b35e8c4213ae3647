"""docs/metrics.md has every metric with its type and labels, and no other; the contract's are among them."""

import re
from pathlib import Path

from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

from api.operations import GAUGES

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "metrics.md").read_text()
PREFIX = "paceline_"

CONTRACT = {
    "queue_depth": ("account",),
    "in_flight": ("account",),
    "dead_letters": ("account",),
    "oldest_message_age_seconds": ("account",),
    "tokens_available": ("account",),
    "messages_accepted_total": ("channel",),
    "messages_processed_total": ("outcome",),
    "attempts_total": ("outcome",),
    "deferrals_total": ("reason",),
    "send_latency_seconds": ("channel",),
    "dispatch_delay_seconds": (),
    "queue_wait_seconds": (),
    "estimate_error_seconds": (),
    "upstream_throttled_total": ("channel",),
    "limit_overshoot_total": (),
    "outcome_unknown_total": (),
    "rescued_total": (),
    "http_requests_total": ("route", "status"),
    "http_request_seconds": ("route",),
    "pacer_lag_seconds": (),
}
"""Name: labels."""

Metrics = dict[str, tuple[str, tuple[str, ...]]]


def defined() -> Metrics:
    """Of the code: name without the prefix, type, labels."""
    found: Metrics = {}
    for metric in REGISTRY._collector_to_names:
        if isinstance(metric, MetricWrapperBase) and metric._name.startswith(PREFIX):
            name = metric._name + ("_total" if metric._type == "counter" else "")
            found[name.removeprefix(PREFIX)] = (metric._type, tuple(metric._labelnames))
    read = {name.removeprefix(PREFIX): ("gauge", tuple(labels)) for name, (_, labels) in GAUGES.items()}
    return found | read


def documented() -> Metrics:
    table = [re.split(r"\s*\|\s*", row)[1:-1] for row in re.findall(r"^\| `.*", DOCS, re.MULTILINE)]
    return {name.strip("`"): (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels, *_ in table}


def test_docs_have_every_metric_and_no_other() -> None:
    assert documented() == defined()


def test_docs_say_of_each_what_it_means_and_what_to_do() -> None:
    for row in re.findall(r"^\| `.*", DOCS, re.MULTILINE):
        assert all(len(words) > 10 for words in re.split(r"\s*\|\s*", row)[4:6]), row


def test_contracts_metrics_are_there_with_its_labels() -> None:
    assert {name: labels for name, (_, labels) in defined().items() if name in CONTRACT} == CONTRACT


def test_account_is_a_label_of_gauges_alone() -> None:
    assert {kind for kind, labels in defined().values() if "account" in labels} == {"gauge"}


def test_docs_name_no_metric_that_does_not_exist() -> None:
    prose = set(re.findall(rf"{PREFIX}(\w+)", DOCS)) - {""}
    mentioned = set(re.findall(r"`(\w+(?:_total|_seconds))`", DOCS))
    assert prose | mentioned <= set(defined())
