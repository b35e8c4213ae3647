"""deploy/prometheus fits the code: rules ask for metrics that exist; every alert has been seen to fire and to be
silent, and says what to do. What an expression means is promtool's to say, from Debian's package `prometheus`."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.architecture import promql
from tests.architecture.promql import PROMETHEUS, ROOT

CONFIG = (PROMETHEUS / "prometheus.yml").read_text()
RECORDED = promql.recorded()
DOCUMENTATION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Documentation"]
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in promql.groups("alerts.yml") for rule in group["rules"]
}
EXPRESSIONS = RECORDED | {name: rule["expr"] for name, rule in ALERTS.items()}
CASES = sorted((PROMETHEUS / "tests").glob("*.yml"))
IDLE = PROMETHEUS / "tests" / "idle.yml"

THERE_OR_NOT = {"ApiDown", "NoWorker", "NoPacer", "TargetDown"}
"""Alerts whose summary has no number to tell."""


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed; Debian has it in its package `prometheus`")
    return found


def run(*words: str | Path) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def alert_cases() -> list[tuple[str, bool, str]]:
    """(alert, whether it is expected to fire, file) of every case next to its threshold."""
    return [
        (case["alertname"], bool(case["exp_alerts"]), path.name)
        for path in CASES
        if path != IDLE
        for test in yaml.safe_load(path.read_text())["tests"]
        for case in test.get("alert_rule_test", [])
    ]


def test_configuration_and_rules_are_valid(promtool: str, tmp_path: Path) -> None:
    """The token's file is written when the container starts; here it is put next to the configuration."""
    shutil.copytree(PROMETHEUS, tmp_path, dirs_exist_ok=True)
    token = tmp_path / "metrics_token"
    token.touch()
    assert "/tmp/metrics_token" in CONFIG
    (tmp_path / "prometheus.yml").write_text(CONFIG.replace("/tmp/metrics_token", str(token)))
    run(promtool, "check", "config", tmp_path / "prometheus.yml")


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_rules_do_as_their_cases_say(promtool: str, path: Path) -> None:
    run(promtool, "test", "rules", path)


@pytest.mark.parametrize("name", ALERTS)
def test_alert_has_been_seen_to_fire_and_to_be_silent(name: str) -> None:
    assert {fires for alert, fires, _ in alert_cases() if alert == name} == {True, False}


def test_no_case_is_of_an_alert_that_is_gone() -> None:
    """promtool would take it for silent."""
    assert {alert for alert, _, _ in alert_cases()} == set(ALERTS)


def test_every_alert_is_silent_on_an_idle_system() -> None:
    (test,) = yaml.safe_load(IDLE.read_text())["tests"]
    assert [(case["alertname"], case["exp_alerts"]) for case in test["alert_rule_test"]] == [
        (name, []) for name in ALERTS
    ]
    present = {re.split("[{ ]", series["series"])[0] for series in test["input_series"]}
    read = {name for expression in EXPRESSIONS.values() for name, _ in promql.read(expression).series}
    all_may_send = {"paceline_account_state", "paceline_upstream_resting_seconds"}
    assert read - set(RECORDED) - present == all_may_send


def test_every_recorded_series_has_a_case() -> None:
    tests = yaml.safe_load((PROMETHEUS / "tests" / "rules.yml").read_text())["tests"]
    tried = {case["expr"] for test in tests for case in test["promql_expr_test"] if case["exp_samples"]}
    assert tried == set(RECORDED)


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expression_reads_what_exists(name: str) -> None:
    assert promql.unknown(EXPRESSIONS[name]) == []


def test_reading_notices_what_does_not_exist() -> None:
    assert promql.unknown("sum by (outcome) (rate(paceline_attempt_total[5m]))") == [
        "no series paceline_attempt_total",
        "no label outcome to group by",
    ]
    assert promql.unknown('paceline_attempts_total{result="sent"}') == ["no label result on paceline_attempts_total"]
    assert promql.unknown("account:paceline_queue_depth:max and on (channel) up == 1") == [
        "no label channel to group by"
    ]
    assert promql.unknown('max_over_time(up{job="api"}[1h] offset 5m) unless on () paceline_store_up == 0 or 1e3') == []


def test_jobs_are_named_alike_wherever_they_run() -> None:
    """An alert that asks for another job never fires, or always."""
    named = {
        job
        for expression in EXPRESSIONS.values()
        for jobs in re.findall(r'job=~?"([^"]+)"', expression)
        for job in jobs.split("|")
    }
    assert named == {job["job_name"] for job in yaml.safe_load(CONFIG)["scrape_configs"]} - {"prometheus"}
    monitors = ROOT / "deploy" / "kubernetes" / "components" / "monitoring" / "pod-monitors.yaml"
    labels = [monitor["spec"]["jobLabel"] for monitor in yaml.safe_load_all(monitors.read_text())]
    assert set(labels) == {"app.kubernetes.io/component"}
    pods = (ROOT / "deploy" / "kubernetes" / "base").glob("*.yaml")
    components = set(re.findall(r"app.kubernetes.io/component: (\w+)", "".join(pod.read_text() for pod in pods)))
    assert named <= components


def test_buckets_that_are_named_exist() -> None:
    bounds = promql.bounds()
    named = [
        (name, le)
        for expression in EXPRESSIONS.values()
        for name, le in re.findall(r'(\w+_bucket)\{le="([^"]+)"', expression)
    ]
    assert named
    assert [(name, le) for name, le in named if le not in bounds[name]] == []


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_what_every_api_process_says_is_not_added_up(name: str) -> None:
    """Each reads it from the same rows: twice as many API processes are not twice as many messages."""
    expression = EXPRESSIONS[name]
    for gauge in promql.GAUGES:
        for use in re.finditer(rf"(?<![:\w]){gauge}(?![:\w])", expression):
            assert re.search(r"\b(max|min|count)( by \([^)]*\))? ?\($", expression[: use.start()])


@pytest.mark.parametrize("name", RECORDED)
def test_name_says_which_labels_are_left(name: str) -> None:
    level, metric, operation = name.split(":")
    first = next(iter(re.findall(r"by \(([^)]*)\)", RECORDED[name])), "")
    assert level == ("_".join(label for label in first.split(", ") if label not in ("le", "")) or "all")
    assert metric in RECORDED[name]
    assert not metric.endswith("_total")
    assert operation


@pytest.mark.parametrize("name", ALERTS)
def test_alert_says_what_is_seen_why_and_what_to_do(name: str) -> None:
    alert = ALERTS[name]
    assert set(alert["annotations"]) == {"summary", "description", "first_step", "runbook_url"}
    assert all(text.strip() == text and len(text) > 20 for text in alert["annotations"].values())
    assert set(alert["labels"]) == {"severity"}
    assert alert["labels"]["severity"] in {"page", "ticket"}
    assert ("$value" in alert["annotations"]["summary"]) == (name not in THERE_OR_NOT)


@pytest.mark.parametrize("name", ALERTS)
def test_alert_names_labels_that_it_has(name: str) -> None:
    named = set(re.findall(r"\$labels\.(\w+)", str(ALERTS[name]["annotations"])))
    series = promql.known()
    assert named <= set().union(*(series[read] for read, _ in promql.read(ALERTS[name]["expr"]).series))


@pytest.mark.parametrize("name", ALERTS)
def test_alert_waits_before_it_calls(name: str) -> None:
    """One bad scrape calls nobody; one request beyond a limit does."""
    assert ("for" in ALERTS[name]) == (name != "LimitOvershot")


@pytest.mark.parametrize("name", ALERTS)
def test_runbook_exists(name: str) -> None:
    """At an absolute address, which whoever is called can follow from wherever the call reached them."""
    page, _, anchor = ALERTS[name]["annotations"]["runbook_url"].partition("#")
    assert anchor == name.lower()
    assert page.startswith(f"{DOCUMENTATION}/")
    text = (ROOT / "docs" / page.removeprefix(f"{DOCUMENTATION}/")).read_text()
    assert re.search(rf"^#+ {name}$", text, re.MULTILINE)
