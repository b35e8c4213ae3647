"""docs/operations.md is true where it can be tried: its SQL runs, its names exist, its links lead somewhere."""

import re
from pathlib import Path

import psycopg
import pytest
import yaml

from deploy.cli import paceline
from deploy.servers import Servers
from workers.settings import variables

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "operations.md").read_text()
SQL = re.findall(r"^ *```sql\n(.*?)^ *```", DOCS, re.MULTILINE | re.DOTALL)


def anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", text, re.MULTILINE)


@pytest.mark.parametrize("statements", SQL)
def test_sql_runs(servers: Servers, statements: str) -> None:
    with psycopg.connect(servers.database_url) as connection:
        connection.execute("CREATE ROLE paceline")
        connection.execute(statements)  # type: ignore[arg-type]  # several at once: no parameters
        connection.rollback()


def test_sql_that_pauses_everything_does(servers: Servers) -> None:
    (pause,) = [statements for statements in SQL if "UPDATE accounts" in statements]
    with psycopg.connect(servers.database_url) as connection:
        connection.execute("INSERT INTO accounts (id) VALUES ('one'), ('other')")
        connection.execute(pause)  # type: ignore[arg-type]
        assert connection.execute("SELECT count(*) FROM accounts WHERE paused_at IS NULL").fetchone() == (0,)
        connection.rollback()


def test_every_alert_has_its_section_and_every_section_its_alert() -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
    alerts = {rule["alert"]: rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    section = DOCS.partition("## What to do for each alert")[2]
    assert set(re.findall(r"^### (\w+)$", section, re.MULTILINE)) == set(alerts)
    for name, rule in alerts.items():
        assert f"### {name}\n\n*{rule['labels']['severity']}.*" in section


def test_links_lead_somewhere() -> None:
    own = {anchor(heading) for heading in headings(DOCS)}
    for target in re.findall(r"\]\(([^)]+)\)", DOCS):
        path, _, fragment = target.partition("#")
        assert not path or (ROOT / "docs" / path).is_file(), target
        assert path or fragment in own, target


def test_metrics_exist() -> None:
    known = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE))
    assert known >= {"dispatch_delay_seconds", "queue_depth"}
    named = set(re.findall(r"\bpaceline_(\w+)", DOCS))
    named |= set(re.findall(r"`([a-z]\w+_(?:seconds|total|depth|up|flight))\b[^`]*`", DOCS))
    assert {name.removeprefix("paceline_") for name in named} <= known


def test_commands_and_variables_exist() -> None:
    assert set(re.findall(r"`paceline (\w+)", DOCS)) <= set(paceline.commands)
    assert set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", DOCS)) <= set(variables())


def test_it_is_to_be_found() -> None:
    assert "docs/operations.md" in (ROOT / "README.md").read_text()
