"""deploy/kubernetes fits the code: what kustomize makes of the example, or, without kubectl, what stands in the files.

No cluster runs here. What is held is what a cluster would only notice when it hurts: names that lead nowhere, settings
that do not exist, pods that are not locked down, probes and grace periods that do not fit the processes.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from wsgiref.simple_server import make_server

import pytest
import yaml

from deploy import monitoring
from deploy.cli import paceline
from tests.architecture import promql
from workers.settings import Settings, variables
from workers.telemetry import metrics
from workers.telemetry.exposition import beside
from workers.telemetry.pulse import STALE_S, Pulse

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
EXAMPLE = KUBERNETES / "overlays" / "example"
DOCKERFILE = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()
Object = dict[str, Any]

KUBECTL = shutil.which("kubectl")
needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="needs kubectl")
OTHERS_PODS = {"kube-dns"}


def documents(text: str) -> list[Object]:
    return [document for document in yaml.safe_load_all(text) if document]


def built() -> list[Object]:
    assert KUBECTL is not None
    command = [KUBECTL, "kustomize", str(EXAMPLE)]
    return documents(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)


def written() -> list[Object]:
    """The objects as they stand in the files, with the patch of all of them put in by hand."""
    files = [path for path in sorted(KUBERNETES.rglob("*.yaml")) if path.name not in NOT_OBJECTS]
    found = [document for path in files for document in documents(path.read_text())]
    (patch,) = documents((KUBERNETES / "base" / "locked-down.yaml").read_text())
    common = patch["spec"]["template"]["spec"]
    for document in found:
        labels = document["metadata"].setdefault("labels", {})
        labels["app.kubernetes.io/name"] = "paceline"
        if document["kind"] in ("Deployment", "Job"):
            pod = document["spec"]["template"]
            pod["metadata"]["labels"]["app.kubernetes.io/name"] = "paceline"
            pod["spec"] = {**common, **pod["spec"]}
            pod["spec"]["containers"] = [common["containers"][0] | pod["spec"]["containers"][0]]
    found.append({"kind": "ConfigMap", "metadata": {"name": "paceline"}, "data": settings_env()})
    return found


NOT_OBJECTS = {"kustomization.yaml", "locked-down.yaml"}


def settings_env() -> dict[str, str]:
    lines = (KUBERNETES / "base" / "settings.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


OBJECTS = built() if KUBECTL else written()


def of_kind(*kinds: str) -> list[Object]:
    found = [document for document in OBJECTS if document["kind"] in kinds]
    assert found, f"there is no {' or '.join(kinds)}"
    return found


def named(document: Object) -> str:
    return document["metadata"]["name"]


WORKLOADS = {named(document): document for document in of_kind("Deployment", "Job")}
PODS = {name: document["spec"]["template"] for name, document in WORKLOADS.items()}
SECRET = of_kind("Secret")[0]["stringData"]
CONFIG = next(document["data"] for document in of_kind("ConfigMap") if "paceline.json" not in document["data"])
every_workload = pytest.mark.parametrize("name", sorted(WORKLOADS))


def containers(name: str) -> Iterator[Object]:
    yield from PODS[name]["spec"].get("initContainers", [])
    yield from PODS[name]["spec"]["containers"]


def main(name: str) -> Object:
    (container,) = PODS[name]["spec"]["containers"]
    return container


def environment(container: Object) -> dict[str, Any]:
    """Variable → its value, or where it comes from."""
    own = {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container.get("env", [])}
    return {**(CONFIG if "envFrom" in container else {}), **own}


def resolved(container: Object) -> dict[str, str]:
    """What the process would find."""
    found = {}
    for variable, value in environment(container).items():
        if isinstance(value, str):
            found[variable] = value
        elif value["secretKeyRef"]["key"] in SECRET:
            found[variable] = SECRET[value["secretKeyRef"]["key"]]
    return found


def settings(container: Object) -> Settings:
    """What the process makes of it, once the keys in the Secret are real ones."""
    environ = resolved(container)
    return Settings.from_env(environ | {variable: key for variable, key in REAL.items() if variable in environ})


REAL = {
    "JWT_SECRET_KEY": "0123456789abcdef" * 2,
    "CREDENTIALS_KEY": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
    "METRICS_TOKEN": "0123456789abcdef",
}


def test_all_the_processes_are_there() -> None:
    assert set(WORKLOADS) == {f"paceline-{name}" for name in ("api", "worker", "pacer", "migrate")}
    assert WORKLOADS["paceline-api"]["spec"]["replicas"] >= 2
    assert WORKLOADS["paceline-pacer"]["spec"]["replicas"] == 2


@every_workload
def test_command_is_one_of_paceline(name: str) -> None:
    for container in containers(name):
        command, *arguments = container["args"]
        paceline.commands[command].make_context(command, list(arguments))  # raises for an option that is wrong


@every_workload
def test_image_is_the_one_of_the_dockerfile(name: str) -> None:
    assert len({container["image"] for container in containers(name)}) == 1
    assert 'ENTRYPOINT ["paceline"]' in DOCKERFILE
    assert all("command" not in container for container in containers(name))


@every_workload
def test_pod_is_locked_down(name: str) -> None:
    pod = PODS[name]["spec"]
    assert pod["serviceAccountName"] == "paceline"
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert f"USER {pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" in DOCKERFILE
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert all(set(volume) <= {"name", "emptyDir"} for volume in pod["volumes"])
    for container in containers(name):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]


@every_workload
def test_what_is_written_to_is_there(name: str) -> None:
    shared = re.findall(r"PROMETHEUS_MULTIPROC_DIR=(\S+)", DOCKERFILE)
    volumes = {volume["name"] for volume in PODS[name]["spec"]["volumes"]}
    assert [mount["mountPath"] for mount in main(name)["volumeMounts"]] == shared
    assert {mount["name"] for mount in main(name)["volumeMounts"]} == volumes


@every_workload
def test_environment_is_of_settings_that_exist(name: str) -> None:
    for container in containers(name):
        assert set(environment(container)) <= set(variables())


@every_workload
def test_secrets_come_from_the_secret_and_nothing_else_does(name: str) -> None:
    secret = {"DATABASE_URL", "REDIS_URL", "CELERY_BROKER_URL"} | {
        variable for variable in variables() if re.search("SECRET|_KEY|TOKEN", variable)
    }
    for container in containers(name):
        for variable, value in environment(container).items():
            if variable in secret:
                reference = value["secretKeyRef"]
                assert reference["name"] == "paceline"
                assert reference["key"] == variable
                assert reference["key"] in SECRET or reference.get("optional"), f"the Secret lacks {variable}"
            else:
                assert isinstance(value, str)


def test_each_knows_no_more_secrets_than_it_needs() -> None:
    known = {name: {v for v, value in environment(main(name)).items() if isinstance(value, dict)} for name in PODS}
    assert known["paceline-migrate"] == {"DATABASE_URL", "REDIS_URL"}
    assert not {"JWT_SECRET_KEY", "CREDENTIALS_KEY", "ONLYFANS_API_KEY"} & known["paceline-pacer"]
    assert "JWT_SECRET_KEY" not in known["paceline-worker"]
    assert "ONLYFANS_API_KEY" not in known["paceline-api"]


@every_workload
def test_settings_make_sense_once_the_secrets_are_real(name: str) -> None:
    for container in containers(name):
        settings(container)


@pytest.mark.parametrize("name", ["paceline-api", "paceline-worker", "paceline-pacer"])
def test_pods_wait_for_the_schema(name: str) -> None:
    (waits,) = PODS[name]["spec"]["initContainers"]
    assert waits["args"] == ["migrate", "--wait"]


def test_what_is_in_flight_may_be_finished() -> None:
    """A worker takes SEND_TIMEOUT_SECONDS and 5 s at most; the API its 30 s, after the 5 s of its preStop."""
    send_timeout_s = settings(main("paceline-worker")).send_timeout_seconds
    assert PODS["paceline-worker"]["spec"]["terminationGracePeriodSeconds"] > send_timeout_s + 5 + 5
    assert main("paceline-api")["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "5"]
    assert PODS["paceline-api"]["spec"]["terminationGracePeriodSeconds"] > 5 + 30


@pytest.mark.parametrize(
    ("name", "port"), [("paceline-api", 8000), ("paceline-worker", 9100), ("paceline-pacer", 9100)]
)
def test_probes_ask_where_the_process_listens(name: str, port: int) -> None:
    container = main(name)
    assert port == (settings(container).metrics_port or 8000)
    ((port_name, number),) = [(p["name"], p["containerPort"]) for p in container["ports"]]
    assert number == port
    probes = {kind: container[kind]["httpGet"] for kind in container if kind.endswith("Probe")}
    assert {"livenessProbe", "startupProbe"} <= set(probes)
    assert {(probe["path"], probe["port"]) for probe in probes.values()} == {("/healthz", port_name)}


@pytest.mark.parametrize(("state", "exit_code"), [("beating", 0), ("resting", 0), ("hung", 1)])
def test_the_image_checks_its_own_health(state: str, exit_code: int) -> None:
    command = json.loads(re.findall(r"HEALTHCHECK .*\\\n +CMD (\[.*\])", DOCKERFILE)[0])
    now_s = 0.0
    pulse = Pulse(lambda: now_s)
    if state != "resting":
        pulse.beat()
    if state == "hung":
        now_s = STALE_S
    assert pulse.state() == state
    server = make_server("127.0.0.1", 0, beside(lambda environ, start_response: [], pulse))
    threading.Thread(target=server.handle_request, daemon=True).start()
    environ = {**os.environ, "METRICS_PORT": str(server.server_port)}
    found = subprocess.run([sys.executable, *command[1:]], env=environ, capture_output=True, timeout=60)
    server.server_close()
    assert found.returncode == exit_code


def test_no_api_pod_is_killed_while_it_waits_for_its_database() -> None:
    """Every thread may wait as long as `workers.store.session` has patience, and then again."""
    from workers.store.session import PATIENCE_S

    probe = main("paceline-api")["livenessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > 2 * PATIENCE_S
    assert "readinessProbe" in main("paceline-api")


def selected(selector: Mapping[str, Any]) -> set[str]:
    """The workloads whose pods a selector finds."""
    found = set()
    for name, pod in PODS.items():
        labels = pod["metadata"]["labels"]
        exact = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
        among = all(
            e["operator"] == "In" and labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", [])
        )
        if exact and among:
            found.add(name)
    return found


def test_selectors_find_their_own_pods_and_no_others() -> None:
    for deployment in of_kind("Deployment"):
        assert selected(deployment["spec"]["selector"]) == {named(deployment)}
        assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    for budget in of_kind("PodDisruptionBudget"):
        assert selected(budget["spec"]["selector"]) == {named(budget)}
        assert budget["spec"]["maxUnavailable"] == 1
    for service in of_kind("Service"):
        assert selected({"matchLabels": service["spec"]["selector"]}) == {named(service)}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports(named(service))
    assert {named(budget) for budget in of_kind("PodDisruptionBudget")} == set(WORKLOADS) - {"paceline-migrate"}


def ports(name: str) -> set[str]:
    return {port["name"] for port in main(name)["ports"]}


@pytest.mark.parametrize("name", ["paceline-api", "paceline-worker", "paceline-pacer"])
def test_pods_of_a_kind_stay_apart(name: str) -> None:
    pod = PODS[name]["spec"]
    apart = [constraint["labelSelector"] for constraint in pod.get("topologySpreadConstraints", [])]
    for preference in (
        pod.get("affinity", {}).get("podAntiAffinity", {}).get("preferredDuringSchedulingIgnoredDuringExecution", [])
    ):
        apart.append(preference["podAffinityTerm"]["labelSelector"])
    assert apart
    assert all(selected(selector) == {name} for selector in apart)


def policies() -> dict[str, Object]:
    return {named(policy): policy["spec"] for policy in of_kind("NetworkPolicy")}


def test_nobody_talks_to_anybody_unless_it_says_so() -> None:
    nobody = policies()["paceline-nobody"]
    assert selected(nobody["podSelector"]) == set(WORKLOADS)
    assert set(nobody["policyTypes"]) == {"Ingress", "Egress"}
    assert not {"ingress", "egress"} & set(nobody)


def test_only_workers_reach_the_upstream_and_nothing_private() -> None:
    outward = {
        name: rule
        for name, spec in policies().items()
        for rule in spec.get("egress", [])
        if any(peer.get("ipBlock", {}).get("cidr") == "0.0.0.0/0" for peer in rule["to"])
    }
    assert set(outward) == {"paceline-upstream"}
    assert selected(policies()["paceline-upstream"]["podSelector"]) == {"paceline-worker"}
    (peer,) = outward["paceline-upstream"]["to"]
    assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"} <= set(peer["ipBlock"]["except"])
    assert [port["port"] for port in outward["paceline-upstream"]["ports"]] == [443]


def test_ingress_is_to_ports_that_listen() -> None:
    let_in = {}
    for spec in policies().values():
        for rule in spec.get("ingress", []):
            for name in selected(spec["podSelector"]):
                assert {port["port"] for port in rule["ports"]} <= ports(name)
                let_in[name] = rule["from"]
    assert set(let_in) == {"paceline-api", "paceline-worker", "paceline-pacer"}
    assert all(peers for peers in let_in.values())


def test_all_may_ask_for_names_and_reach_their_servers() -> None:
    spec = policies()["paceline-names-and-servers"]
    assert selected(spec["podSelector"]) == set(WORKLOADS)
    open_ports = {port["port"] for rule in spec["egress"] for port in rule["ports"]}
    assert {53, 5432, 6379, 5672} <= open_ports
    # kustomize puts our label into every matchLabels of a policy, those of other people's pods included.
    (names,) = [rule["to"][0] for rule in spec["egress"] if {p["port"] for p in rule["ports"]} == {53}]
    assert "matchLabels" not in names["podSelector"]
    assert set(names["podSelector"]["matchExpressions"][0]["values"]) == OTHERS_PODS


def test_workers_are_scaled_by_a_metric_that_exists() -> None:
    (scaled,) = of_kind("ScaledObject")
    target = scaled["spec"]["scaleTargetRef"]["name"]
    assert target == "paceline-worker"
    if KUBECTL:
        assert "replicas" not in WORKLOADS[target]["spec"], "an apply would undo the autoscaler's work"
    query = next(t["metadata"]["query"] for t in scaled["spec"]["triggers"] if t["type"] == "prometheus")
    (metric,) = metrics.dispatch_delay.collect()
    buckets = {sample.labels.get("le") for sample in metric.samples}
    assert set(re.findall(r"paceline_\w+?(?=_count|_bucket)", query)) == {metric.name}
    assert set(re.findall(r'le="([^"]+)"', query)) <= buckets
    assert any(t["type"] == "cpu" for t in scaled["spec"]["triggers"])
    assert "cpu" in main(target)["resources"]["requests"]


def test_everything_is_scraped_with_the_token() -> None:
    scraped: set[str] = set()
    for monitor in of_kind("PodMonitor"):
        for name in selected(monitor["spec"]["selector"]):
            for endpoint in monitor["spec"]["podMetricsEndpoints"]:
                assert endpoint["port"] in ports(name)
                assert endpoint["path"] == "/metrics"
                assert endpoint["authorization"]["credentials"] == {"name": "paceline", "key": "METRICS_TOKEN"}
                assert "METRICS_TOKEN" in environment(main(name))
            scraped.add(name)
    assert scraped == set(WORKLOADS) - {"paceline-migrate"}


def test_nobody_gets_a_token_of_the_cluster() -> None:
    assert [account["automountServiceAccountToken"] for account in of_kind("ServiceAccount")] == [False]


def test_the_example_is_refused_as_it_stands() -> None:
    """Whoever forgets to put in a key of their own has no key that everybody can read here."""
    from workers.settings import problems

    wrong = {error.variable for error in problems(SECRET)}
    assert {"JWT_SECRET_KEY", "CREDENTIALS_KEY"} <= wrong


def test_migration_job_is_replaced_and_not_changed() -> None:
    job = WORKLOADS["paceline-migrate"]
    assert job["spec"]["ttlSecondsAfterFinished"] > 0
    assert job["metadata"]["annotations"]["argocd.argoproj.io/hook"] == "Sync"
    assert job["metadata"]["annotations"]["kustomize.toolkit.fluxcd.io/force"] == "enabled"
    assert PODS["paceline-migrate"]["spec"]["restartPolicy"] == "OnFailure"


@needs_kubectl
def test_files_alone_say_the_same() -> None:
    """So that the other tests mean something where there is no kubectl."""

    def outline(objects: list[Object]) -> set[tuple[str, str]]:
        return {(document["kind"], re.sub("-[a-z0-9]{10}$", "", named(document))) for document in objects}

    assert outline(written()) == outline(OBJECTS)
    assert json.dumps(OBJECTS)  # no anchors, no dates: plain data


# Alerts and dashboard


@pytest.mark.parametrize("name", sorted(monitoring.manifests()))
def test_manifests_are_those_of_prometheus_and_grafana(name: str) -> None:
    """`make manifests` brings them up to date."""
    assert (monitoring.COMPONENT / name).read_text() == monitoring.manifests()[name]


def test_the_cluster_gets_every_rule_and_the_whole_dashboard() -> None:
    rules = of_kind("PrometheusRule")
    found = [group for document in rules for group in document["spec"]["groups"]]
    wanted = [group for name in ("alerts.yml", "rules.yml") for group in promql.groups(name)]
    assert sorted(found, key=str) == sorted(wanted, key=str)
    (dashboard,) = (document for document in of_kind("ConfigMap") if "paceline.json" in document["data"])
    source = (ROOT / "deploy" / "grafana" / "dashboards" / "paceline.json").read_text()
    assert json.loads(dashboard["data"]["paceline.json"]) == json.loads(source)
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
