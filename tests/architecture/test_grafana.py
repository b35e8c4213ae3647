"""deploy/grafana fits the code: the dashboard asks its questions in their order, of metrics that exist, and says what
each panel means. No Grafana runs here; what can be read is held."""

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.architecture import promql
from tests.architecture.promql import ROOT

GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "paceline.json").read_text())
ROWS = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
PANELS: dict[str, dict[str, Any]] = {panel["title"]: panel for panel in DASHBOARD["panels"] if panel["type"] != "row"}
TARGETS = [(panel, target) for panel in PANELS.values() for target in panel["targets"]]
EXPRESSIONS = [target["expr"] for _, target in TARGETS]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
SOURCE = {"type": "prometheus", "uid": "${datasource}"}

UNITS = {"none", "s", "bytes", "percentunit", "mps", "cps", "reqps"}
"""Grafana's names: a number, seconds, bytes, a share of 1; messages, counts, requests a second."""


def yaml_of(*names: str) -> Any:
    return yaml.safe_load(GRAFANA.joinpath("provisioning", *names).read_text())


def test_four_questions_in_their_order() -> None:
    assert ROWS == [
        "Are we keeping our promises?",
        "Who is waiting, and why?",
        "What fails?",
        "Are the machines well?",
    ]
    assert DASHBOARD["panels"][0]["type"] == "row"


def test_every_panel_is_there_once() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == len(ROWS) + len(PANELS)


@pytest.mark.parametrize("title", PANELS)
def test_panel_says_what_it_means(title: str) -> None:
    panel = PANELS[title]
    assert len(panel["description"]) > 40
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert panel["targets"]


@pytest.mark.parametrize("title", PANELS)
def test_alerts_that_a_panel_names_exist(title: str) -> None:
    alerts = {rule["alert"] for group in promql.groups("alerts.yml") for rule in group["rules"]}
    named = " ".join(re.findall(r"\(alerts? ([^)]*)\)", PANELS[title]["description"]))
    assert set(re.findall(r"\b[A-Z][a-z]+(?:[A-Z][A-Za-z]+)+\b", named)) <= alerts


@pytest.mark.parametrize(("panel", "target"), TARGETS, ids=[target["expr"] for _, target in TARGETS])
def test_panel_asks_for_what_exists(panel: dict[str, Any], target: dict[str, Any]) -> None:
    assert promql.unknown(target["expr"]) == []
    assert panel["datasource"] == target["datasource"] == SOURCE
    series = promql.known()
    labels = set().union(*(series[name] for name, _ in promql.read(target["expr"]).series))
    assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels


def test_every_metric_is_shown_or_watched() -> None:
    """Directly, or by way of a recorded series."""
    recorded = promql.recorded()
    alerts = [rule["expr"] for group in promql.groups("alerts.yml") for rule in group["rules"]]
    read = {name for expression in EXPRESSIONS + alerts for name, _ in promql.read(expression).series}
    read |= {name for series in read & set(recorded) for name, _ in promql.read(recorded[series]).series}
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in promql.exposed()}
    assert families - {re.sub(r"_(bucket|count|sum)$", "", name) for name in read} == set()


def test_nothing_is_recorded_for_nobody() -> None:
    alerts = [rule["expr"] for group in promql.groups("alerts.yml") for rule in group["rules"]]
    read = {name for expression in EXPRESSIONS + alerts for name, _ in promql.read(expression).series}
    assert set(promql.recorded()) - read == set()


def test_expressions_are_promql(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; Debian has it in its package `prometheus`")
    rules = [
        {"record": f"panel:number_{n}:as_asked", "expr": re.sub(r"\$__(range|rate_interval)", "5m", expression)}
        for n, expression in enumerate(EXPRESSIONS)
    ]
    file = tmp_path / "dashboard.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_variables_are_used_and_known() -> None:
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"])))
    assert {name for name in used if not name.startswith("__")} == set(VARIABLES) == {"datasource", "account"}
    assert VARIABLES["account"]["datasource"] == SOURCE
    asked = re.fullmatch(r"label_values\((.*), (\w+)\)", VARIABLES["account"]["definition"])
    assert asked
    assert asked[2] in promql.known()[asked[1]]


def test_annotations_come_from_the_same_source() -> None:
    (pages,) = DASHBOARD["annotations"]["list"]
    assert pages["datasource"] == SOURCE
    assert promql.unknown(pages["expr"]) == []


def test_panels_neither_overlap_nor_stick_out() -> None:
    taken = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x, y in itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        )
    ]
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) < 24


def test_source_is_the_prometheus_of_compose_at_its_pace() -> None:
    (source,) = yaml_of("datasources", "prometheus.yml")["datasources"]
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    config = yaml.safe_load((promql.PROMETHEUS / "prometheus.yml").read_text())
    assert source["url"] == "http://prometheus:9090"
    assert services["prometheus"]["ports"] == ["127.0.0.1:9090:9090"]
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    assert VARIABLES["datasource"]["current"]["value"] == source["uid"]
    assert VARIABLES["datasource"]["query"] == source["type"]


def test_dashboards_are_found_where_compose_puts_them() -> None:
    (provider,) = yaml_of("dashboards", "paceline.yml")["providers"]
    grafana = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]
    path = provider["options"]["path"]
    assert f"./deploy/grafana/dashboards:{path}:ro" in grafana["volumes"]
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == f"{path}/paceline.json"
    assert provider["allowUiUpdates"] is False
