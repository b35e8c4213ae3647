"""The rules of `paceline check` that need no server: settings that make no sense together."""

from dataclasses import replace
from typing import Any

import pytest

from deploy.check import clock, postgres
from deploy.check.rules import Finding
from deploy.check.settings import Configuration, is_loopback, rules
from workers.domain.remarks import Level
from workers.engine.celery_app import app as celery_app
from workers.settings import Settings

ENOUGH = {
    "DATABASE_URL": "postgresql://localhost/paceline",
    "REDIS_URL": "redis://localhost:6379/0",
    "JWT_SECRET_KEY": "0123456789abcdef0123456789abcdef",
}
CELERY = {"worker_concurrency": 32, "broker_transport_options": {}}
FAR = "https://api.example.com"


def judged(celery: dict[str, Any] | None = None, **environ: str) -> dict[str, Finding]:
    """What the rules say, by what they are about; those that are kept are left out."""
    settings = Settings.from_env({**ENOUGH, **environ})
    found = rules.judge(Configuration(settings, {**CELERY, **(celery or {})}))
    return {finding.what: finding for finding in found if finding.level is not Level.OK}


def test_nothing_is_wrong_with_what_comes_in_the_box() -> None:
    settings = Settings.from_env(ENOUGH)
    found = list(rules.judge(Configuration(settings, celery_app.conf)))
    assert len(found) >= 7
    assert {finding.level for finding in found} == {Level.OK}


@pytest.mark.parametrize(
    ("level", "what", "environ", "remedy"),
    [
        ("FAIL", "token keys", {"JWT_SECRET_KEY": ""}, "set exactly one of JWT_SECRET_KEY"),
        ("FAIL", "token keys", {"JWT_SECRET_KEY": "secret" * 8}, "openssl rand -hex 32"),
        ("warn", "retries", {"RETRY_BASE_SECONDS": "60", "RETRY_MAX_SECONDS": "30"}, "raise the latter"),
        ("warn", "retention", {"RATE_LIMIT": "10/minute,500/7d", "RETENTION_DAYS": "7"}, "8 days"),
        ("warn", "upstream", {"ONLYFANS_BASE_URL": "http://api.example.com"}, "use https"),
        ("warn", "metrics", {"ONLYFANS_BASE_URL": FAR}, "set METRICS_TOKEN"),
    ],
)
def test_settings_that_do_not_go_together(level: str, what: str, environ: dict[str, str], remedy: str) -> None:
    found = judged(**environ)
    assert found[what].level == level
    assert remedy in found[what].words


@pytest.mark.parametrize(
    "environ",
    [
        {"RETRY_BASE_SECONDS": "30", "RETRY_MAX_SECONDS": "30"},
        {"RATE_LIMIT": "10/minute,500/6d", "RETENTION_DAYS": "7"},
        {"ONLYFANS_BASE_URL": FAR, "METRICS_TOKEN": "t"},
        {"ONLYFANS_BASE_URL": "http://localhost:9000"},
        {"ONLYFANS_BASE_URL": "http://[::1]:9000"},
    ],
)
def test_settings_that_just_go_together(environ: dict[str, str]) -> None:
    assert judged(**environ) == {}


def test_redelivery_under_the_send_deadline_is_refused() -> None:
    soon = {"broker_transport_options": {"visibility_timeout": 12}}
    assert judged(soon, SEND_TIMEOUT_SECONDS="5") == {}
    found = judged(soon, SEND_TIMEOUT_SECONDS="10")["redelivery"]
    assert (found.level, "above 15 s" in found.words) == (Level.FAIL, True)
    kept_in_memory = {"broker_transport_options": {"visibility_timeout": 12, "ack_emulation": False}}
    assert judged(kept_in_memory, SEND_TIMEOUT_SECONDS="10") == {}


def test_a_pool_smaller_than_the_threads_need_is_refused() -> None:
    enough = Configuration(Settings.from_env(ENOUGH), CELERY, connections=16)
    assert all(finding.level is Level.OK for finding in rules.judge(enough))
    found = {finding.what: finding for finding in rules.judge(replace(enough, connections=15))}
    assert found["threads and connections"].level is Level.FAIL
    assert "to 30 or less" in found["threads and connections"].words


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "sandbox.localhost"])
def test_what_is_here(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "api.example.com", "10.0.0.1", "localhost.example.com"])
def test_what_is_elsewhere(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("asked_s", "theirs_s", "answered_s", "apart_s"),
    [(100, 100.5, 101, 0), (100, 104, 101, 3), (100, 97, 101, -3), (100, 103, 130, 0)],
)
def test_clocks_differ_by_what_the_way_does_not_explain(
    asked_s: float, theirs_s: float, answered_s: float, apart_s: float
) -> None:
    assert clock.apart_s(asked_s, theirs_s, answered_s) == apart_s


def test_a_clock_far_off_is_told() -> None:
    assert list(clock.compare(lambda: 1000.0, clock=lambda: 1001.0)) == []
    (behind,) = clock.compare(lambda: 1000.0, clock=lambda: 1060.0)
    (ahead,) = clock.compare(lambda: 1000.0, clock=lambda: 940.0)
    assert (behind.level, ahead.level) == (Level.WARN, Level.WARN)
    assert "60 s behind" in behind.words
    assert "60 s ahead of" in ahead.words


@pytest.mark.parametrize("backends", [[1, 2, 1, 2], [7, 9, 7, 9]])
def test_sessions_of_their_own(backends: list[int]) -> None:
    assert not postgres.shared(backends)


@pytest.mark.parametrize("backends", [[1, 1, 1, 1], [1, 2, 2, 1], [1, 2, 3, 2]])
def test_sessions_that_a_pooler_hands_on(backends: list[int]) -> None:
    assert postgres.shared(backends)


def test_report_reads_as_lines() -> None:
    assert str(Finding(Level.OK, "schema", "0002")) == "ok    schema: 0002"
    assert str(Finding(Level.OK, "text")) == "ok    text"
    assert str(Finding(Level.FAIL, "text", "broken; mend it")) == "FAIL  text: broken; mend it"
