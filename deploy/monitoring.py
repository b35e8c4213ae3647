"""Manifests for Kubernetes from what Prometheus and Grafana read elsewhere: one source for both.

`make manifests` writes them; a test holds the files to it. Kustomize itself reads no files outside its directory.
"""

from pathlib import Path

DEPLOY = Path(__file__).parent
COMPONENT = DEPLOY / "kubernetes" / "components" / "monitoring"
_GENERATED = "# Made by `make manifests` from deploy/{source}: change that, not this.\n"
_RULE = """apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: paceline-{name}
spec:
"""
_DASHBOARD = """apiVersion: v1
kind: ConfigMap
metadata:
  name: paceline-dashboard
  labels: {grafana_dashboard: "1"}  # by which Grafana's sidecar finds it
data:
  paceline.json: |
"""


def manifests() -> dict[str, str]:
    """The text of every generated file, by its name."""
    return {
        "rules.yaml": _rule("rules"),
        "alerts.yaml": _rule("alerts"),
        "dashboard.yaml": _GENERATED.format(source="grafana/dashboards/paceline.json")
        + _DASHBOARD
        + _indented((DEPLOY / "grafana" / "dashboards" / "paceline.json").read_text(), 4),
    }


def _rule(name: str) -> str:
    source = f"prometheus/{name}.yml"
    text = (DEPLOY / source).read_text()
    groups = text[text.index("groups:\n") :]
    return _GENERATED.format(source=source) + _RULE.format(name=name) + _indented(groups, 2)


def _indented(text: str, spaces: int) -> str:
    return "".join(f"{' ' * spaces}{line}" if line.strip() else line for line in text.splitlines(keepends=True))


if __name__ == "__main__":
    for name, text in manifests().items():
        (COMPONENT / name).write_text(text)
