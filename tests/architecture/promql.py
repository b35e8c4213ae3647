"""Just enough of PromQL to hold rules and dashboard to the metrics there are: which series an expression reads, and
which labels it uses. The rest of the grammar is promtool's.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.utils import floatToGoString

from api.operations import GAUGES
from workers.telemetry import metrics

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"

TARGET = {"job", "instance"}
"""Labels that Prometheus puts on whatever it scrapes."""
NOT_OURS = {
    "up": TARGET,
    "process_cpu_seconds_total": TARGET,
    "process_resident_memory_bytes": TARGET,
    "ALERTS": {"alertname", "alertstate", "severity", "account", "kind"},
}
"""Series that Prometheus or its client library make."""

_STRING = re.compile(r'"[^"]*"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SERIES = re.compile(r"(?<![\w:$.])([a-zA-Z_:][\w:]*)(?![\w:])(?!\s*\()\s*(?:\{([^}]*)\})?")
_WORDS = {"and", "or", "unless", "offset", "bool"}


@dataclass(frozen=True, slots=True)
class Reading:
    """What an expression reads: (series, the labels it is picked by) each time, and the labels it is grouped by."""

    series: list[tuple[str, frozenset[str]]]
    grouped: frozenset[str]


def read(expression: str) -> Reading:
    bare = re.sub(r"\[[^\]]*\]", "", _STRING.sub('""', expression))
    grouped = frozenset(re.findall(r"\w+", " ".join(_GROUPING.findall(bare))))
    found = [
        (match[1], frozenset(re.findall(r"(\w+)\s*[=!]~?", match[2] or "")))
        for match in _SERIES.finditer(_GROUPING.sub("", bare))
        if match[1] not in _WORDS
    ]
    return Reading(found, grouped)


def exposed() -> dict[str, set[str]]:
    """Every series of a scrape and its labels, without those of the target."""
    found: dict[str, set[str]] = {name: set(labels) for name, (_, labels) in GAUGES.items()}
    for metric in declared():
        name, labels = metric.describe()[0].name, set(metric._labelnames)
        if isinstance(metric, Histogram):
            found |= {f"{name}_bucket": labels | {"le"}, f"{name}_count": labels, f"{name}_sum": labels}
        else:
            found[f"{name}_total" if isinstance(metric, Counter) else name] = labels
    return found


def declared() -> list[MetricWrapperBase]:
    return [metric for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)]


def bounds() -> dict[str, set[str]]:
    """The `le` values of every histogram's buckets, as they are written."""
    return {
        f"{metric.describe()[0].name}_bucket": set(map(floatToGoString, metric._upper_bounds))
        for metric in declared()
        if isinstance(metric, Histogram)
    }


def groups(name: str) -> list[dict[str, Any]]:
    return yaml.safe_load((PROMETHEUS / name).read_text())["groups"]


def recorded() -> dict[str, str]:
    """Recording rules: name and expression."""
    return {rule["record"]: rule["expr"] for group in groups("rules.yml") for rule in group["rules"]}


def known() -> dict[str, set[str]]:
    """Every series there can be, and its labels. A recorded one has those of its level (`a_b:metric:operation`)."""
    levels = {name: name.partition(":")[0] for name in recorded()}
    made = {name: set() if level == "all" else set(level.split("_")) for name, level in levels.items()}
    return {name: labels | TARGET for name, labels in exposed().items()} | NOT_OURS | made


def unknown(expression: str) -> list[str]:
    """What the expression asks for and will not find, in words; empty if nothing."""
    series, reading = known(), read(expression)
    wrong = [f"no series {name}" for name, _ in reading.series if name not in series]
    there = [(name, labels) for name, labels in reading.series if name in series]
    wrong += [f"no label {label} on {name}" for name, labels in there for label in sorted(labels - series[name])]
    everything = set().union(*(series[name] for name, _ in there))
    return wrong + [f"no label {label} to group by" for label in sorted(reading.grouped - everything)]
