"""Every setting, where it comes from, what it means and what is wrong with a bad one.

Read once, at the start of a process. A value that makes no sense stops the process with the variable's name, the value
and what would be right; a variable that was never ours is left alone.
"""

import os
import ssl
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ratelimit import BadLimits, Limits
from ratelimit.tokens import START_WITHIN_S
from workers.channels.registry import kinds
from workers.credentials import Vault, as_fernet_key
from workers.domain.decisions import RetryPolicy
from workers.environment import BadSetting, choice, number, port, read, text, url, variable, whole

_REQUIRED = "must be set; `paceline up` sets it for itself"
BROKERS = ("redis", "rediss", "redis+socket", "amqp", "amqps", "pyamqp")


def _postgres(raw: str) -> str:
    url = raw.replace("postgres://", "postgresql://", 1) if raw.startswith("postgres://") else raw
    if not url.startswith(("postgresql://", "postgresql+psycopg://")):
        raise ValueError("must be a PostgreSQL URL, e.g. postgresql://user:password@host:5432/paceline")
    return url.replace("postgresql+psycopg://", "postgresql://", 1)


def _limits(raw: str) -> Limits:
    return Limits.parse(raw)


def _limits_or_off(raw: str) -> Limits | None:
    try:
        return None if raw.strip().lower() in ("off", "0", "none") else Limits.parse(raw)
    except BadLimits as error:
        raise ValueError(f"{error}; or off") from error


def _secret(raw: str) -> str:
    if len(raw.encode()) < 32:
        raise ValueError("must be at least 32 bytes; make one with: openssl rand -hex 32")
    return raw


def _keys(raw: str) -> tuple[str, ...]:
    try:
        return tuple(as_fernet_key(key) for key in raw.split(","))
    except ValueError:  # without its words, which quote the value
        words = "must be keys of 32 bytes in base64, newest first, separated by commas; one: openssl rand -base64 32"
        raise ValueError(words) from None


def _key_text(raw: str) -> str:
    """A PEM key, in the variable itself or in the file it names."""
    if raw.lstrip().startswith("-----BEGIN"):
        return raw.replace("\\n", "\n")
    return _file(raw).read_text()


def _file(raw: str) -> Path:
    path = Path(raw)
    try:
        if path.is_file():
            return path
    except OSError:  # longer than any path: its words would repeat the value
        pass
    raise ValueError("must name a file that exists")


def _certificates(raw: str) -> Path:
    path = _file(raw)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError:
        raise ValueError("must name a file of certificates in PEM") from None
    return path


def _proxy(raw: str) -> str:
    remedy = "must be http://[user:password@]host:port; what goes through the proxy to the upstream is TLS"
    try:
        parsed = urlsplit(raw)
        usable = parsed.scheme == "http" and parsed.hostname and parsed.port != 0 and not parsed.path.strip("/")
    except ValueError:
        raise ValueError(remedy) from None
    if not usable:
        raise ValueError(remedy)
    return raw


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a Paceline process needs to know. Secrets stay out of its repr."""

    database_url: str = variable("DATABASE_URL", _postgres, required=_REQUIRED)
    """PostgreSQL 15 or newer, the truth."""
    redis_url: str = variable(
        "REDIS_URL", url("redis", "rediss", "unix", example="redis://host:6379/0"), required=_REQUIRED
    )
    """Redis 7 or Valkey 8 or newer: tokens and wake-ups. Without eviction (`maxmemory-policy noeviction`)."""
    celery_broker_url: str = variable(
        "CELERY_BROKER_URL", url(*BROKERS, example="amqp://user:password@host:5672//"), ""
    )
    """Celery's broker; REDIS_URL if empty. RabbitMQ works too."""

    jwt_secret_key: str | None = variable("JWT_SECRET_KEY", _secret)
    """Signs and checks HS256 tokens; at least 32 bytes."""
    jwt_public_key: str | None = variable("JWT_PUBLIC_KEY", _key_text)
    """PEM (or a file with it) of whoever else issues the tokens: RS256, ES256 or EdDSA, as the key is."""
    jwt_jwks_file: Path | None = variable("JWT_JWKS_FILE", _file)
    """A JWKS document with the keys of whoever else issues the tokens."""

    jwt_audience: str | None = variable("JWT_AUDIENCE", text)
    """What a token's `aud` must name. If unset, a token that has one is refused: it is for somebody else."""
    jwt_issuer: str | None = variable("JWT_ISSUER", text)
    """What a token's `iss` must be; anything if unset."""

    credentials_key: tuple[str, ...] = variable("CREDENTIALS_KEY", _keys, "")
    """Encrypts accounts' credentials in the database: keys of 32 bytes in base64, separated by commas, newest first.
    Derived from JWT_SECRET_KEY if not set."""

    https_proxy: str | None = variable("HTTPS_PROXY", _proxy, any_case=True)
    """The HTTP proxy that leads to upstreams whose URL begins with https://. `https_proxy` does as well."""
    no_proxy: str = variable("NO_PROXY", text, "", any_case=True)
    """Names, addresses and networks that are reached without it, separated by commas; `*` is all of them."""
    upstream_ca_file: Path | None = variable("UPSTREAM_CA_FILE", _certificates)
    """Certificates of authorities that are trusted besides the system's own, in PEM."""
    upstream_client_cert: Path | None = variable("UPSTREAM_CLIENT_CERT", _file)
    """The certificate that an upstream is shown if it asks for one, in PEM, and the intermediate ones after it."""
    upstream_client_key: Path | None = variable("UPSTREAM_CLIENT_KEY", _file)
    """Its private key, if that is not in the same file."""

    rate_limit: Limits = variable("RATE_LIMIT", _limits, "10/minute")
    """Limits of accounts that have none of their own."""
    api_rate_limit: Limits | None = variable("API_RATE_LIMIT", _limits_or_off, "60/minute")
    """Requests of one caller (`sub`) to the API that are not reads; `off` for no limit."""
    api_read_limit: Limits | None = variable("API_READ_LIMIT", _limits_or_off, "600/minute")
    """Reads (GET) of one caller, counted apart from the others; `off` for no limit."""
    max_attempts: int = variable("MAX_ATTEMPTS", whole(1, 100, "attempts"), "5")
    """Attempts before a failing message becomes a dead letter."""
    retry_base_seconds: float = variable("RETRY_BASE_SECONDS", number(0, 3600, "seconds"), "5")
    """Ceiling of the first retry's delay; it doubles from attempt to attempt."""
    retry_max_seconds: float = variable("RETRY_MAX_SECONDS", number(0, 86400, "seconds"), "900")
    """Ceiling of every retry's delay."""
    send_timeout_seconds: float = variable("SEND_TIMEOUT_SECONDS", number(0.1, 300, "seconds"), "10")
    """The one deadline of a request upstream, from connecting to the last byte of the answer."""
    max_queue_depth: int = variable("MAX_QUEUE_DEPTH", whole(1, 100_000_000, "messages"), "100000")
    """Messages that may wait on one account before sends are refused with 429."""

    log_format: str = variable("LOG_FORMAT", choice("json", "console"), "json")
    """`json` for machines, `console` for people."""
    metrics_port: int | None = variable("METRICS_PORT", port)
    """Workers and pacers serve /metrics there; not at all if unset."""
    metrics_token: str | None = variable("METRICS_TOKEN", text)
    """Bearer token that /metrics asks for; open if unset."""
    retention_days: int = variable("RETENTION_DAYS", whole(1, 3650, "days"), "30")
    """How long finished messages are kept."""
    audit_retention_days: int = variable("AUDIT_RETENTION_DAYS", whole(1, 36500, "days"), "365")
    """How long the audit is kept."""

    channels: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The settings of each channel kind, by its name, as the kind declares them."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Read the settings. Raises `BadSetting` at the first that makes no sense."""
        settings, wrong = _settings(os.environ if environ is None else environ)
        if settings is None:
            raise wrong[0]
        return settings

    def with_channel(self, kind: str, **changes: Any) -> "Settings":
        """The same settings, but for these of one channel kind."""
        return replace(self, channels={**self.channels, kind: replace(self.channels[kind], **changes)})

    @property
    def broker_url(self) -> str:
        """What Celery connects to. kombu has another word for a Unix socket than redis-py."""
        return self.celery_broker_url or self.redis_url.replace("unix://", "redis+socket://", 1)

    @property
    def vault(self) -> Vault:
        return Vault(self.credentials_key or (), otherwise_from=self.jwt_secret_key)

    @property
    def lease_s(self) -> float:
        """Of a token's loan: enough for the latest start and the whole exchange with the upstream. The last second is
        for clocks whose rates differ (ratelimit.tokens.CLOCK_RATE_ERROR: 0.3 s in the longest loan), and for what
        leaves between the last look at the clock and the wire."""
        return START_WITHIN_S + self.send_timeout_seconds + 1.0

    @property
    def retry_policy(self) -> RetryPolicy:
        return RetryPolicy(self.max_attempts, self.retry_base_seconds, self.retry_max_seconds)

    def __repr__(self) -> str:
        return "Settings(…)"


def problems(environ: Mapping[str, str] | None = None) -> list[BadSetting]:
    """Everything that is wrong with the settings, where `Settings.from_env` stops at the first."""
    return _settings(os.environ if environ is None else environ)[1]


def variables() -> dict[str, str | None]:
    """Every variable and its default, as it would be written in the environment."""
    parts: list[type[Any]] = [Settings, *(kind.settings for kind in kinds().values())]
    abouts = [declared.metadata for part in parts for declared in _of(part)]
    return {about["variable"]: about["default"] for about in abouts}


def _settings(environ: Mapping[str, str]) -> tuple[Settings | None, list[BadSetting]]:
    """The settings, or everything that is wrong with them."""
    wrong: list[BadSetting] = []
    values = _values(Settings, environ, wrong)
    of_kinds = {name: _values(kind.settings, environ, wrong) for name, kind in kinds().items()}
    if {"upstream_client_cert", "upstream_client_key"} <= set(values):
        pair = _wrong_with_pair(values["upstream_client_cert"], values["upstream_client_key"])
        wrong += [pair] if pair else []
    if wrong:
        return None, wrong
    return Settings(**values, channels={name: kinds()[name].settings(**own) for name, own in of_kinds.items()}), []


def _values(part: type[Any], environ: Mapping[str, str], wrong: list[BadSetting]) -> dict[str, Any]:
    """The values of one class of settings. What is wrong with them is added to `wrong`."""
    values = {}
    for declared in _of(part):
        try:
            values[declared.name] = read(declared.metadata, environ)
        except BadSetting as error:
            wrong.append(error)
    return values


def _of(part: type[Any]) -> list[Field[Any]]:
    """The fields that are read from the environment."""
    return [declared for declared in fields(part) if "variable" in declared.metadata]


def _wrong_with_pair(certificate: Path | None, key: Path | None) -> BadSetting | None:
    """Whether a client's certificate and its key belong together."""
    if certificate is None:
        return BadSetting("UPSTREAM_CLIENT_KEY", "(not shown)", "needs UPSTREAM_CLIENT_CERT as well") if key else None
    try:
        # With a password, so that an encrypted key is refused instead of asking for one at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password="")
    except OSError as error:
        remedy = "must name a certificate in PEM, with its unencrypted key in the same file or in UPSTREAM_CLIENT_KEY"
        return BadSetting("UPSTREAM_CLIENT_CERT", str(certificate), f"{remedy} ({error.strerror or error})")
    return None
