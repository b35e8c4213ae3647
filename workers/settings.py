"""Every setting, where it comes from, what it means and what is wrong with a bad one.

Read once, at the start of a process. A value that makes no sense stops the process with the variable's name, the value
and what would be right; a variable that was never ours is left alone.
"""

import os
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ratelimit import BadLimits, Limits
from ratelimit.tokens import START_WITHIN_S
from workers.credentials import Vault, as_fernet_key
from workers.domain.decisions import RetryPolicy

BROKERS = ("redis", "rediss", "redis+socket", "amqp", "amqps", "pyamqp")


class BadSetting(ValueError):
    """A setting makes no sense. The message names the variable, the value and the remedy."""

    def __init__(self, variable: str, value: object, remedy: str) -> None:
        super().__init__(f"{variable}={value!r}: {remedy}")
        self.variable = variable

    @classmethod
    def of(cls, words: str) -> "BadSetting":
        """One that is not about a single variable's value."""
        error = cls("", "", "")
        error.args = (words,)
        return error


def _text(raw: str) -> str:
    return raw


def _number(low: float, high: float, unit: str) -> Callable[[str], float]:
    def parse(raw: str) -> float:
        try:
            value = float(raw)
        except ValueError:
            raise ValueError(f"must be a number of {unit} from {low:g} to {high:g}") from None
        if not low <= value <= high:
            raise ValueError(f"must be a number of {unit} from {low:g} to {high:g}")
        return value

    return parse


def _whole(low: int, high: int, unit: str) -> Callable[[str], int]:
    def parse(raw: str) -> int:
        if not raw.strip().isascii() or not raw.strip().isdigit() or not low <= int(raw) <= high:
            raise ValueError(f"must be a whole number of {unit} from {low} to {high}")
        return int(raw)

    return parse


def _port(raw: str) -> int:
    if not raw.isascii() or not raw.isdigit() or not 1 <= int(raw) <= 65535:
        raise ValueError("must be a port, from 1 to 65535")
    return int(raw)


def _flag(raw: str) -> bool:
    if raw.lower() in ("1", "true", "yes", "on"):
        return True
    if raw.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError("must be 1 or 0")


def _url(*schemes: str, example: str) -> Callable[[str], str]:
    def parse(raw: str) -> str:
        if urlsplit(raw).scheme not in schemes:
            raise ValueError(f"must be a URL beginning with {' or '.join(f'{s}://' for s in schemes)}, e.g. {example}")
        return raw

    return parse


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


def _header(raw: str) -> str:
    try:
        sendable = not re.search(r"[\x00-\x1f\x7f]", raw) and bool(raw.encode("latin-1"))
    except UnicodeEncodeError:
        sendable = False
    if not sendable:
        raise ValueError(
            "must be the upstream's key, which a header can hold: no line end, no control character, Latin letters"
        )
    return raw


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


def _choice(*choices: str) -> Callable[[str], str]:
    def parse(raw: str) -> str:
        if raw not in choices:
            raise ValueError(f"must be {' or '.join(choices)}")
        return raw

    return parse


def _from(variable: str, parse: Callable[[str], Any], default: str | None = None, *, any_case: bool = False) -> Any:
    """A field read from an environment variable; the default is written as it would be there.

    any_case: the variable may be written in lower case instead, as other programs have it.
    """
    names = (variable, variable.lower()) if any_case else (variable,)
    return field(metadata={"variable": variable, "names": names, "parse": parse, "default": default})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a Paceline process needs to know. Secrets stay out of its repr."""

    database_url: str = _from("DATABASE_URL", _postgres)
    """PostgreSQL 15 or newer, the truth."""
    redis_url: str = _from("REDIS_URL", _url("redis", "rediss", "unix", example="redis://host:6379/0"))
    """Redis 7 or Valkey 8 or newer: tokens and wake-ups. Without eviction (`maxmemory-policy noeviction`)."""
    celery_broker_url: str = _from("CELERY_BROKER_URL", _url(*BROKERS, example="amqp://user:password@host:5672//"), "")
    """Celery's broker; REDIS_URL if empty. RabbitMQ works too."""

    jwt_secret_key: str | None = _from("JWT_SECRET_KEY", _secret)
    """Signs and checks HS256 tokens; at least 32 bytes."""
    jwt_public_key: str | None = _from("JWT_PUBLIC_KEY", _key_text)
    """PEM (or a file with it) of whoever else issues the tokens: RS256, ES256 or EdDSA, as the key is."""
    jwt_jwks_file: Path | None = _from("JWT_JWKS_FILE", _file)
    """A JWKS document with the keys of whoever else issues the tokens."""

    jwt_audience: str | None = _from("JWT_AUDIENCE", _text)
    """What a token's `aud` must name. If unset, a token that has one is refused: it is for somebody else."""
    jwt_issuer: str | None = _from("JWT_ISSUER", _text)
    """What a token's `iss` must be; anything if unset."""

    credentials_key: tuple[str, ...] = _from("CREDENTIALS_KEY", _keys, "")
    """Encrypts accounts' credentials in the database: keys of 32 bytes in base64, separated by commas, newest first.
    Derived from JWT_SECRET_KEY if not set."""

    onlyfans_base_url: str = _from(
        "ONLYFANS_BASE_URL", _url("http", "https", example="https://api.example.com"), "http://127.0.0.1:9000"
    )
    """Where the `onlyfans` channel sends."""
    onlyfans_api_key: str = _from("ONLYFANS_API_KEY", _header, "")
    """For accounts without a key of their own."""
    onlyfans_idempotent: bool = _from("ONLYFANS_IDEMPOTENT", _flag, "0")
    """1: the upstream honours Idempotency-Key, so an unknown outcome may be sent again."""

    https_proxy: str | None = _from("HTTPS_PROXY", _proxy, any_case=True)
    """The HTTP proxy that leads to upstreams whose URL begins with https://. `https_proxy` does as well."""
    no_proxy: str = _from("NO_PROXY", _text, "", any_case=True)
    """Names, addresses and networks that are reached without it, separated by commas; `*` is all of them."""
    upstream_ca_file: Path | None = _from("UPSTREAM_CA_FILE", _certificates)
    """Certificates of authorities that are trusted besides the system's own, in PEM."""
    upstream_client_cert: Path | None = _from("UPSTREAM_CLIENT_CERT", _file)
    """The certificate that an upstream is shown if it asks for one, in PEM, and the intermediate ones after it."""
    upstream_client_key: Path | None = _from("UPSTREAM_CLIENT_KEY", _file)
    """Its private key, if that is not in the same file."""

    rate_limit: Limits = _from("RATE_LIMIT", _limits, "10/minute")
    """Limits of accounts that have none of their own."""
    api_rate_limit: Limits | None = _from("API_RATE_LIMIT", _limits_or_off, "60/minute")
    """Requests of one caller (`sub`) to the API that are not reads; `off` for no limit."""
    api_read_limit: Limits | None = _from("API_READ_LIMIT", _limits_or_off, "600/minute")
    """Reads (GET) of one caller, counted apart from the others; `off` for no limit."""
    max_attempts: int = _from("MAX_ATTEMPTS", _whole(1, 100, "attempts"), "5")
    """Attempts before a failing message becomes a dead letter."""
    retry_base_seconds: float = _from("RETRY_BASE_SECONDS", _number(0, 3600, "seconds"), "5")
    """Ceiling of the first retry's delay; it doubles from attempt to attempt."""
    retry_max_seconds: float = _from("RETRY_MAX_SECONDS", _number(0, 86400, "seconds"), "900")
    """Ceiling of every retry's delay."""
    send_timeout_seconds: float = _from("SEND_TIMEOUT_SECONDS", _number(0.1, 300, "seconds"), "10")
    """The one deadline of a request upstream, from connecting to the last byte of the answer."""
    max_queue_depth: int = _from("MAX_QUEUE_DEPTH", _whole(1, 100_000_000, "messages"), "100000")
    """Messages that may wait on one account before sends are refused with 429."""

    log_format: str = _from("LOG_FORMAT", _choice("json", "console"), "json")
    """`json` for machines, `console` for people."""
    metrics_port: int | None = _from("METRICS_PORT", _port)
    """Workers and pacers serve /metrics there; not at all if unset."""
    metrics_token: str | None = _from("METRICS_TOKEN", _text)
    """Bearer token that /metrics asks for; open if unset."""
    retention_days: int = _from("RETENTION_DAYS", _whole(1, 3650, "days"), "30")
    """How long finished messages are kept."""
    audit_retention_days: int = _from("AUDIT_RETENTION_DAYS", _whole(1, 36500, "days"), "365")
    """How long the audit is kept."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Read the settings. Raises `BadSetting` at the first that makes no sense."""
        environ = os.environ if environ is None else environ
        values = {setting.name: _read(setting.metadata, environ) for setting in fields(cls)}
        settings = cls(**values)
        if wrong := _wrong_with_pair(settings.upstream_client_cert, settings.upstream_client_key):
            raise wrong
        return settings

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
    environ = os.environ if environ is None else environ
    found, values = [], {}
    for setting in fields(Settings):
        try:
            values[setting.name] = _read(setting.metadata, environ)
        except BadSetting as error:
            found.append(error)
    if {"upstream_client_cert", "upstream_client_key"} <= set(values):
        wrong = _wrong_with_pair(values["upstream_client_cert"], values["upstream_client_key"])
        found += [wrong] if wrong else []
    return found


def variables() -> dict[str, str | None]:
    """Every variable and its default, as it would be written in the environment."""
    return {setting.metadata["variable"]: setting.metadata["default"] for setting in fields(Settings)}


def _read(about: Mapping[str, Any], environ: Mapping[str, str]) -> Any:
    variable, default = about["variable"], about["default"]
    raw = next(filter(None, map(environ.get, about["names"])), default)
    if raw is None:
        if variable in ("DATABASE_URL", "REDIS_URL"):
            raise BadSetting(variable, "", "must be set; `paceline up` sets it for itself")
        return None
    try:
        return about["parse"](raw) if raw else raw
    except (BadLimits, ValueError, OSError) as error:
        raise BadSetting(variable, _shown(variable, raw), str(error)) from error


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


def _shown(variable: str, raw: str) -> str:
    """The value as it may be shown: no secret, and no password inside a URL."""
    if any(word in variable for word in ("SECRET", "KEY", "TOKEN")):
        return "(not shown)"
    return re.sub(r"^(\w+://)?.*@", r"\1(not shown)@", raw, flags=re.DOTALL)
