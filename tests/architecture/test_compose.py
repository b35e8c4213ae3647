"""docker-compose.yml and the Dockerfile fit the code. No Docker runs here; what can be read is held."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from deploy.cli import paceline
from workers.environment import BadSetting
from workers.settings import Settings, variables

ROOT = Path(__file__).parents[2]
SOURCE = (ROOT / "docker-compose.yml").read_text()
COMPOSE = yaml.safe_load(SOURCE)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SCRAPED = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
DOCKERFILE = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()

WATCHERS = {"prometheus", "grafana"}
THEIRS = {"postgres", "valkey"} | WATCHERS
OURS = set(SERVICES) - THEIRS
WITH_SETTINGS = OURS - {"sandbox"}
SECRETS = {"POSTGRES_PASSWORD": "0123456789abcdef", "JWT_SECRET_KEY": "0123456789abcdef" * 2}

NEEDS_A_FILE = {"JWT_PUBLIC_KEY", "JWT_JWKS_FILE", "UPSTREAM_CA_FILE", "UPSTREAM_CLIENT_CERT", "UPSTREAM_CLIENT_KEY"}
"""With a mount: docs/configuration.md."""


def interpolate(text: str, environ: Mapping[str, str]) -> str:
    """`${A:-default}`, `${A:+other}` and `${A:?error}`, from the inside out, as Compose does it."""
    innermost = re.compile(r"\$\{(\w+)(?::([-+?])([^{}]*))?\}")

    def put(match: re.Match[str]) -> str:
        name, operator, rest = match.groups()
        value = environ.get(name, "")
        if operator == "?" and not value:
            raise KeyError(f"{name}: {rest}")
        return rest if operator == "+" and value else "" if operator == "+" else value or rest or ""

    while "${" in text:
        text = innermost.sub(put, text)
    return text


def environment(service: str, environ: Mapping[str, str]) -> dict[str, str]:
    """What the service's process would find."""
    given = SERVICES[service].get("environment") or {}
    found = {name: environ.get(name, "") if raw is None else interpolate(raw, environ) for name, raw in given.items()}
    return {name: value for name, value in found.items() if value}


def test_services_are_all_there() -> None:
    assert THEIRS | {"migrate", "api", "worker", "pacer", "sandbox"} == set(SERVICES)


def test_ours_are_one_image_built_once() -> None:
    assert len({SERVICES[name]["image"] for name in OURS}) == 1
    assert [name for name in SERVICES if "build" in SERVICES[name]] == ["migrate"]
    assert (ROOT / SERVICES["migrate"]["build"]["dockerfile"]).is_file()


@pytest.mark.parametrize("name", sorted(OURS))
def test_ours_are_locked_down(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["stop_grace_period"] == "20s"
    assert service["restart"] == ("no" if name == "migrate" else "unless-stopped")
    assert "user" not in service  # the image's own, which is not root
    assert "privileged" not in service


@pytest.mark.parametrize("name", sorted(OURS))
def test_command_is_one_of_paceline(name: str) -> None:
    command, *arguments = [interpolate(word, {}) for word in SERVICES[name]["command"]]
    paceline.commands[command].make_context(command, arguments)  # raises for an option or a value that is wrong


def test_command_of_the_image_is_one_of_paceline() -> None:
    assert 'ENTRYPOINT ["paceline"]' in DOCKERFILE
    command, *arguments = yaml.safe_load(re.findall(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)[-1])
    paceline.commands[command].make_context(command, arguments)


def test_a_wrong_command_would_be_noticed() -> None:
    with pytest.raises(click.UsageError):
        paceline.commands["api"].make_context("api", ["--hots", "0.0.0.0"])


@pytest.mark.parametrize("name", sorted(OURS))
def test_environment_is_of_variables_that_exist(name: str) -> None:
    assert set(SERVICES[name].get("environment") or {}) <= set(variables())


def test_no_setting_is_out_of_reach() -> None:
    reached = {variable for name in OURS for variable in SERVICES[name].get("environment") or {}}
    assert set(variables()) - reached == NEEDS_A_FILE


@pytest.mark.parametrize("name", sorted(WITH_SETTINGS))
def test_settings_make_sense_as_they_come(name: str) -> None:
    settings = Settings.from_env(environment(name, SECRETS))
    assert settings.channels["onlyfans"].base_url == "http://sandbox:9000"
    assert settings.channels["onlyfans"].idempotent is True
    assert settings.send_timeout_seconds + 5 < 20  # the grace period


@pytest.mark.parametrize("missing", sorted(SECRETS))
def test_secrets_must_be_given(missing: str) -> None:
    with pytest.raises(KeyError, match=f"{missing}.*openssl"):
        environment("api", {**SECRETS, missing: ""})


def test_another_upstream_does_not_get_the_sandboxs_key() -> None:
    another = {**SECRETS, "ONLYFANS_BASE_URL": "https://api.example.com", "ONLYFANS_IDEMPOTENT": "0"}
    with pytest.raises(BadSetting, match=r"ONLYFANS_API_KEY=.*must be the upstream's key"):
        Settings.from_env(environment("worker", another))
    settings = Settings.from_env(environment("worker", {**another, "ONLYFANS_API_KEY": "mine"}))
    assert settings.channels["onlyfans"].api_key == "mine"
    assert Settings.from_env(environment("worker", SECRETS)).channels["onlyfans"].api_key == "sandbox"


def test_another_upstream_is_not_taken_for_idempotent() -> None:
    another = {**SECRETS, "ONLYFANS_BASE_URL": "https://api.example.com", "ONLYFANS_API_KEY": "mine"}
    with pytest.raises(BadSetting, match="must be 1 or 0"):
        Settings.from_env(environment("worker", another))
    assert (
        not Settings.from_env(environment("worker", {**another, "ONLYFANS_IDEMPOTENT": "0"}))
        .channels["onlyfans"]
        .idempotent
    )


def test_values_reach_the_services() -> None:
    chosen = {**SECRETS, "RATE_LIMIT": "3/second", "MAX_ATTEMPTS": "7"}
    settings = Settings.from_env(environment("worker", chosen))
    assert (str(settings.rate_limit), settings.max_attempts) == ("3/second", 7)
    assert "3/second" in [interpolate(word, chosen) for word in SERVICES["sandbox"]["command"]]


def test_nobody_outside_reaches_more_than_the_api_and_the_watchers() -> None:
    assert {name: service["ports"] for name, service in SERVICES.items() if "ports" in service} == {
        "api": ["127.0.0.1:8000:8000"],
        "prometheus": ["127.0.0.1:9090:9090"],
        "grafana": ["127.0.0.1:3000:3000"],
    }


def test_processes_wait_for_the_schema() -> None:
    for name in WITH_SETTINGS - {"migrate"}:
        assert SERVICES[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert SERVICES["migrate"]["depends_on"]["postgres"] == {"condition": "service_healthy"}
    assert all("healthcheck" in SERVICES[name] for name in THEIRS | {"api"})


def test_valkey_keeps_everything_but_nothing_on_disk() -> None:
    words = SERVICES["valkey"]["command"]
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert options == {"--save": "", "--appendonly": "no", "--maxmemory-policy": "noeviction"}


@pytest.mark.parametrize("name", sorted(WATCHERS))
def test_watchers_are_locked_down(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["restart"] == "unless-stopped"
    assert service["user"].partition(":")[0] not in ("", "0", "root")
    assert re.fullmatch(r"[\w/-]+:v?\d+\.\d+\.\d+", service["image"])


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_mounts_are_of_files_that_exist_and_cannot_be_changed(name: str) -> None:
    for source, _, rest in (mount.partition(":") for mount in SERVICES[name].get("volumes", [])):
        if source in COMPOSE["volumes"]:
            continue
        assert any((ROOT / source).iterdir())
        assert rest.endswith(":ro")


def test_prometheus_scrapes_every_process_of_ours_that_counts() -> None:
    """By the names and ports of this file: a service has an A record for each of its containers."""
    targets = {
        job["job_name"]: [(name, found["port"]) for found in job["dns_sd_configs"] for name in found["names"]]
        for job in SCRAPED
        if "dns_sd_configs" in job
    }
    assert set(targets) == WITH_SETTINGS - {"migrate"}
    for job, found in targets.items():
        port = environment(job, SECRETS).get("METRICS_PORT") or SERVICES[job]["ports"][0].rpartition(":")[2]
        assert found == [(job, int(port))]


def test_prometheus_has_the_token_it_may_need() -> None:
    _, _, script, _ = SERVICES["prometheus"]["entrypoint"]
    written = re.search(r'"\$\$METRICS_TOKEN" > (\S+) ', script)
    assert written
    assert {job["authorization"]["credentials_file"] for job in SCRAPED if "dns_sd_configs" in job} == {written[1]}
    assert environment("prometheus", {"METRICS_TOKEN": "s3cret"}) == {"METRICS_TOKEN": "s3cret"}
    assert written[1].startswith(tuple(f"{path}/" for path in SERVICES["prometheus"]["tmpfs"]))


def test_prometheus_reads_what_is_mounted_and_forgets_in_time() -> None:
    options = dict(word.split("=") for word in SERVICES["prometheus"]["command"][1:])
    mounts = dict(mount.split(":")[:2][::-1] for mount in SERVICES["prometheus"]["volumes"])
    directory, _, file = options["--config.file"].rpartition("/")
    assert (ROOT / mounts[directory] / file).is_file()
    assert mounts[options["--storage.tsdb.path"]] in COMPOSE["volumes"]
    assert options["--storage.tsdb.retention.time"] == "30d"
    assert "--storage.tsdb.retention.size" in options


def test_grafana_shows_and_lets_nobody_in() -> None:
    given = SERVICES["grafana"]["environment"]
    assert given["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert given["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"  # no admin/admin
    assert given["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert given["GF_AUTH_BASIC_ENABLED"] == "false"


def test_image_is_locked_and_runs_as_nobody_much() -> None:
    stages = DOCKERFILE.split("\nFROM ")
    assert all("--require-hashes" in line for line in DOCKERFILE.splitlines() if "pip" in line and " -r " in line)
    assert re.search(r"^USER 10001", stages[-1], re.MULTILINE)
    assert "pip " not in stages[-1]
    assert "apt" not in DOCKERFILE


def test_everything_the_image_copies_is_in_its_context() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
    sources = {source.split("/")[0] for line in copied for source in line.split()[:-1]}
    assert "*" in lines
    assert let_in == sources
