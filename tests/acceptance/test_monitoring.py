"""A real Prometheus on a real stack: it takes the configuration and the token, reaches every process, works out every
rule, and has an answer to whatever the dashboard asks. It comes from Debian's package `prometheus`."""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from deploy.stack import Stack, free_port
from tests.acceptance.conftest import Api

pytestmark = pytest.mark.acceptance

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "paceline.json").read_text())
PANELS = [
    target["expr"].replace("$account", ".*").replace("$__range", "5m").replace("$__rate_interval", "1m")
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", [])
]
RECORDED = [
    rule["record"]
    for group in yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
EMPTY_IF_ALL_IS_WELL = {'topk(10, route_status:paceline_http_requests:rate5m{status=~"5.."} > 0)'}
JOBS = ("api", "worker", "pacer", "prometheus")
TOKEN = "a token for tests"
WITHIN_S = 180.0


class Prometheus:
    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **query: str) -> Any:
        with urlopen(f"{self._url}/api/v1/{path}?{urlencode(query)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def answers(self, expression: str) -> bool:
        return bool(self.get("query", query=expression)["result"])

    def down(self) -> dict[str, str]:
        """Jobs that do not answer, each with why; one that has not been asked yet counts as well."""
        targets = {one["labels"]["job"]: one for one in self.get("targets", state="active")["activeTargets"]}
        unseen = {job: {"health": "unknown", "lastError": "no target"} for job in JOBS}
        return {job: one["lastError"] for job, one in (unseen | targets).items() if one["health"] != "up"}


@pytest.fixture
def stack(make_stack: Callable[..., Stack]) -> Stack:
    return make_stack(RATE_LIMIT="10/1s", METRICS_TOKEN=TOKEN, METRICS_PORT=str(two_free_ports()))


@pytest.fixture
def prometheus(stack: Stack, tmp_path: Path) -> Iterator[Prometheus]:
    """It asks every other second, and finds its targets by address: there is no DNS of containers here."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is not installed; Debian has it in its package of that name")
    port = free_port()
    metrics_port = stack.settings.metrics_port
    assert metrics_port is not None
    addresses = {"api": stack.port, "worker": metrics_port, "pacer": metrics_port + 1, "prometheus": port}
    (tmp_path / "token").write_text(TOKEN)
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), "2s")
    for job in config["scrape_configs"]:
        job.pop("dns_sd_configs", None)
        job["static_configs"] = [{"targets": [f"127.0.0.1:{addresses[job['job_name']]}"]}]
        if "authorization" in job:
            job["authorization"] = {"credentials_file": str(tmp_path / "token")}
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    for name in config["rule_files"]:
        shutil.copy(DEPLOY / "prometheus" / name, tmp_path)
    with running(
        [
            binary,
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        tmp_path / "log",
    ):
        yield Prometheus(port)


@contextmanager
def running(command: list[str], log: Path) -> Iterator[None]:
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            yield
        finally:
            process.terminate()


def two_free_ports() -> int:
    """The first of two: the worker's, then the pacer's."""
    while True:
        port = free_port()
        with suppress(OSError, OverflowError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port + 1))
            return port


def make_traffic(api: Api, n: int) -> None:
    """Something of everything that a panel shows."""
    for recipient, account in (("fan", "default"), ("bounce", "default"), ("throttle", "second"), ("fan", "paused")):
        api.send(f"{recipient}-{n}", accountId=account)
    assert api("POST", "/send", {})[0] == 400


def test_prometheus_reaches_everybody_and_answers_every_panel(stack: Stack, prometheus: Prometheus) -> None:
    api = Api(stack)
    for account in ("second", "paused"):
        assert api("PUT", f"/accounts/{account}", {"credentials": {"apiKey": account}})[0] == 200
    assert api("POST", "/accounts/paused/pause", {"reason": "for the panel that shows it"})[0] == 200

    wanted = {*PANELS, *RECORDED} - EMPTY_IF_ALL_IS_WELL
    down, started, n = dict.fromkeys(JOBS, "not asked yet"), time.monotonic(), 0
    while (wanted or down) and time.monotonic() - started < WITHIN_S:
        n += 1
        make_traffic(api, n)
        with suppress(OSError):  # it is only starting
            down = prometheus.down()
            wanted = {expression for expression in wanted if not prometheus.answers(expression)}
    assert down == {}
    assert wanted == set()

    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"]: rule.get("lastError", "") for rule in rules if rule["health"] != "ok"} == {}
