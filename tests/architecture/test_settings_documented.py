"""Every setting is in the docs and in .env.example as the code has it, and a bad one is refused in words that help."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import click
import pytest

from deploy.cli import paceline
from workers.environment import BadSetting
from workers.settings import Settings, problems, variables

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "configuration.md").read_text()
EXAMPLE = (ROOT / ".env.example").read_text()
COMPOSE = (ROOT / "docker-compose.yml").read_text()

ENOUGH = {"DATABASE_URL": "postgresql://localhost/paceline", "REDIS_URL": "redis://localhost:6379/0"}
PASSWORD = "hunter2-hunter2"

BAD = {
    "DATABASE_URL": ("mysql://localhost/paceline", "postgresql://"),
    "REDIS_URL": ("http://localhost:6379", "redis://"),
    "CELERY_BROKER_URL": ("somewhere", "://"),
    "JWT_SECRET_KEY": ("too short", "32 bytes"),
    "JWT_PUBLIC_KEY": ("/nowhere/key.pem", "file that exists"),
    "JWT_JWKS_FILE": ("/nowhere/jwks.json", "file that exists"),
    "CREDENTIALS_KEY": ("c2hvcnQ=", "32 bytes"),
    "ONLYFANS_BASE_URL": ("api.example.com", "https://"),
    "ONLYFANS_API_KEY": ("key\n", "no line end"),
    "ONLYFANS_IDEMPOTENT": ("perhaps", "1 or 0"),
    "HTTPS_PROXY": ("socks5://proxy:1080", "http://"),
    "UPSTREAM_CA_FILE": (__file__, "certificates in PEM"),
    "UPSTREAM_CLIENT_CERT": (__file__, "UPSTREAM_CLIENT_KEY"),
    "UPSTREAM_CLIENT_KEY": (__file__, "UPSTREAM_CLIENT_CERT"),
    "RATE_LIMIT": ("ten a minute", "10/minute"),
    "API_RATE_LIMIT": ("60", "10/minute"),
    "API_READ_LIMIT": ("600 a minute", "10/minute"),
    "MAX_ATTEMPTS": ("0", "1 to 100"),
    "RETRY_BASE_SECONDS": ("-1", "0 to 3600"),
    "RETRY_MAX_SECONDS": ("nan", "0 to 86400"),
    "SEND_TIMEOUT_SECONDS": ("0", "0.1 to 300"),
    "MAX_QUEUE_DEPTH": ("1e6", "whole number"),
    "LOG_FORMAT": ("xml", "json or console"),
    "METRICS_PORT": ("65536", "1 to 65535"),
    "RETENTION_DAYS": ("forever", "1 to 3650"),
    "AUDIT_RETENTION_DAYS": ("0", "1 to 36500"),
}
"""One bad value each, and a part of the remedy."""

ANY_TEXT = {"NO_PROXY", "METRICS_TOKEN", "JWT_AUDIENCE", "JWT_ISSUER"}


def documented() -> dict[str, str | None]:
    """The first two columns of the table of settings; a default in words is none."""
    table = DOCS.partition("## Settings")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", table, re.MULTILINE)
    return {name: default.strip("`") if default.startswith("`") else None for name, default in rows}


def exemplified() -> dict[str, str]:
    return dict(re.findall(r"^#?([A-Z][A-Z_]+)=(.*)$", EXAMPLE, re.MULTILINE))


def test_docs_have_every_setting_with_its_default_and_no_other() -> None:
    assert documented() == variables()


def test_env_example_has_every_setting_with_its_default_and_no_other() -> None:
    for_compose = set(re.findall(r"\$\{(\w+)", COMPOSE)) - set(variables())
    assert exemplified() == {name: default or "" for name, default in variables().items()} | dict.fromkeys(
        for_compose, ""
    )


def test_env_example_sets_only_secrets() -> None:
    """A default that is written out would go before the one of docker-compose.yml."""
    assert set(re.findall(r"^([A-Z_]+)=", EXAMPLE, re.MULTILINE)) == {"JWT_SECRET_KEY", "POSTGRES_PASSWORD"}


def test_env_example_says_something_about_each() -> None:
    lines = EXAMPLE.splitlines()
    silent = [line for above, line in pairwise(lines) if re.match(r"#?\w+=", line) and above[:2] != "# "]
    assert silent == []


def test_docs_name_no_variable_that_does_not_exist() -> None:
    source = COMPOSE + "".join(path.read_text() for name in ("api", "deploy", "workers") for path in python(name))
    named = set(re.findall(r"`([A-Z]+_[A-Z_]+)`", DOCS))
    assert {name for name in named if name not in variables() and name not in source} == set()


def test_docs_have_every_command_and_option_and_no_other() -> None:
    section = DOCS.partition("## Command line")[2]
    assert set(re.findall(r"`paceline (\w+)`", section)) == set(paceline.commands)
    documented = {
        (command, option)
        for row in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (`--[^|]*) \|", section, re.MULTILINE)
        for command in re.findall(r"`(\w+)`", row[0])
        for option in re.findall(r"`(--[\w-]+)`", row[1])
    }
    assert documented == set(options())


def test_every_setting_has_a_bad_value_here() -> None:
    assert set(BAD) | ANY_TEXT == set(variables())


@pytest.mark.parametrize("variable", sorted(BAD))
def test_bad_value_is_refused_with_name_and_remedy(variable: str) -> None:
    value, remedy = BAD[variable]
    with pytest.raises(BadSetting) as refused:
        Settings.from_env({**ENOUGH, variable: value})
    assert refused.value.variable == variable
    assert str(refused.value).startswith(f"{variable}=")
    assert remedy in str(refused.value)


@pytest.mark.parametrize("variable", ["DATABASE_URL", "REDIS_URL"])
def test_missing_server_is_refused_with_name_and_remedy(variable: str) -> None:
    with pytest.raises(BadSetting, match=f"{variable}=.*must be set"):
        Settings.from_env({name: value for name, value in ENOUGH.items() if name != variable})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DATABASE_URL", f"mysql://paceline:{PASSWORD}@host/paceline"),
        ("REDIS_URL", f"http://:{PASSWORD}@host:6379"),
        ("JWT_SECRET_KEY", PASSWORD),
        ("JWT_PUBLIC_KEY", PASSWORD),
        ("CREDENTIALS_KEY", PASSWORD),
        ("JWT_PUBLIC_KEY", PASSWORD * 100),  # too long even to be looked for as a file
        ("ONLYFANS_BASE_URL", f"ftp://user:{PASSWORD}@host"),
        ("ONLYFANS_API_KEY", f"{PASSWORD}\n"),
        ("HTTPS_PROXY", f"user:{PASSWORD}@proxy:3128"),
        ("HTTPS_PROXY", f"http://user:{PASSWORD}@proxy:port"),
    ],
)
def test_refusal_does_not_tell_the_secret(variable: str, value: str) -> None:
    with pytest.raises(BadSetting) as refused:
        Settings.from_env({**ENOUGH, variable: value})
    assert PASSWORD not in str(refused.value)


def test_settings_do_not_tell_their_secrets() -> None:
    url = f"postgresql://paceline:{PASSWORD}@host/paceline"
    secrets = {"JWT_SECRET_KEY": PASSWORD * 3, "ONLYFANS_API_KEY": PASSWORD, "METRICS_TOKEN": PASSWORD}
    settings = Settings.from_env({**ENOUGH, "DATABASE_URL": url, **secrets})
    assert settings.channels["onlyfans"].api_key == PASSWORD
    assert PASSWORD not in f"{settings!r} {settings!s}"


def test_a_proxy_may_be_named_in_lower_case_as_other_programs_have_it() -> None:
    lower = {**ENOUGH, "https_proxy": "http://lower:3128", "no_proxy": "example.com"}
    assert Settings.from_env(lower).https_proxy == "http://lower:3128"
    assert Settings.from_env(lower).no_proxy == "example.com"
    assert Settings.from_env({**lower, "HTTPS_PROXY": "http://upper:3128"}).https_proxy == "http://upper:3128"
    assert Settings.from_env({**ENOUGH, "retention_days": "1"}).retention_days == 30  # the others may not


def test_every_problem_is_told_and_a_pair_once() -> None:
    wrong = {**ENOUGH, "UPSTREAM_CLIENT_KEY": __file__, "MAX_ATTEMPTS": "0"}
    assert [error.variable for error in problems(wrong)] == ["MAX_ATTEMPTS", "UPSTREAM_CLIENT_KEY"]


def test_empty_counts_as_not_set() -> None:
    empty = dict.fromkeys(variables(), "")
    kept = {field: getattr(Settings.from_env({**empty, **ENOUGH}), field) for field in ("max_attempts", "metrics_port")}
    assert kept == {"max_attempts": 5, "metrics_port": None}


def options() -> Iterator[tuple[str, str]]:
    for name, command in paceline.commands.items():
        for option in command.params:
            if isinstance(option, click.Option):
                yield from ((name, flag) for flag in (*option.opts, *option.secondary_opts))


def python(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))
