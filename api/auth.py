"""Identifies the caller, their role, and the accounts in their claim.

Access tokens are JWTs with `sub`, `role` and `accounts`. Only the settings decide which keys and algorithms are valid,
never the token: with a secret, only HS256; with a public key, only the algorithm of that type of key.
"""

import json
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from flask import Flask, current_app, g, request
from flask_jwt_extended import JWTManager, create_access_token, get_jwt, verify_jwt_in_request
from flask_jwt_extended.exceptions import JWTExtendedException
from jwt.exceptions import PyJWTError

from api.errors import ApiError, not_authenticated
from workers.domain.actor import Actor
from workers.domain.errors import NotFound
from workers.environment import BadSetting
from workers.settings import Settings
from workers.telemetry import traces
from workers.telemetry.exposition import bearer_token
from workers.telemetry.logs import logger

log = logger(__name__)

DEFAULT_ACCOUNT = "default"
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_PUBLIC_KEY_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", *_CURVES.values(), "EdDSA"]


class Role(StrEnum):
    OPERATOR = "operator"
    ADMIN = "admin"
    OPS = "ops"


EVERYONE = (Role.OPERATOR, Role.ADMIN, Role.OPS)
SENDERS = (Role.OPERATOR, Role.ADMIN)
ADMINS = (Role.ADMIN,)


@dataclass(frozen=True, slots=True)
class Caller:
    """accounts: the ids of the accounts in the claim; None for all."""

    subject: str
    role: Role
    accounts: tuple[str, ...] | None

    def sees(self, account_id: str) -> bool:
        return self.accounts is None or account_id in self.accounts

    def account(self, account_id: str | None) -> str:
        """Return the account of a request. Raises the same NotFound for a forbidden account as for a missing one."""
        if account_id is None:
            only = self.accounts if self.accounts and len(self.accounts) == 1 else None
            account_id = only[0] if only else DEFAULT_ACCOUNT
        if not self.sees(account_id):
            raise NotFound(f"No account {account_id}")
        return account_id

    def scope(self, account_id: str | None = None) -> tuple[str, ...] | None:
        """Return the accounts of a query: the named one, or all accounts of the claim."""
        return self.accounts if account_id is None else (self.account(account_id),)


def install(app: Flask, settings: Settings) -> None:
    app.config.update(
        JWT_TOKEN_LOCATION=["headers"],
        JWT_HEADER_TYPE="Bearer",
        JWT_ACCESS_TOKEN_EXPIRES=timedelta(hours=12),
        JWT_DECODE_LEEWAY=0,
        JWT_DECODE_AUDIENCE=settings.jwt_audience,
        JWT_DECODE_ISSUER=settings.jwt_issuer,
        **_keys(settings),
    )
    manager = JWTManager(app)
    if settings.jwt_jwks_file:
        keys = _key_set(settings.jwt_jwks_file)

        @manager.decode_key_loader
        def by_key_id(header: dict[str, Any], _claims: dict[str, Any]) -> Any:
            key = keys.get(header.get("kid")) if "kid" in header or len(keys) > 1 else next(iter(keys.values()))
            if key is None or key.algorithm_name != header.get("alg"):
                raise jwt.InvalidKeyError("no such key")
            return key.key


def identify() -> Caller:
    """Return the caller. Raises 401 for a missing or invalid token, or missing claims. Only the log has the reason."""
    token = bearer_token(request.headers.get("Authorization", ""))
    if not token:
        raise not_authenticated()
    request.environ["HTTP_AUTHORIZATION"] = f"Bearer {token}"  # the library accepts only this spelling
    try:
        verify_jwt_in_request()
    except jwt.ExpiredSignatureError:
        raise _refused("expired") from None
    except (JWTExtendedException, PyJWTError) as error:
        raise _refused("invalid", error=type(error).__name__) from None
    claims = get_jwt()
    # RFC 7519 §4.1.3: a service that is not in the audience must refuse the token. With JWT_AUDIENCE the library
    # has checked it. Without JWT_AUDIENCE, no audience can name this service.
    if "aud" in claims and current_app.config["JWT_DECODE_AUDIENCE"] is None:
        raise _refused("audience")
    match claims:
        case {"sub": sub, "role": str(role), "accounts": [*accounts]}:
            if role in EVERYONE and all(map(_is_name, (sub, *accounts))):
                return Caller(sub, Role(role), None if "*" in accounts else tuple(accounts))
    raise _refused("claims")


def _refused(reason: str, **about: str) -> ApiError:
    """Return the 401 for a refused token, and log the reason: `expired` or invalid."""
    log.info("access_token_refused", reason=reason, **about)
    return not_authenticated()


def authorize(roles: tuple[Role, ...]) -> Caller:
    """Identify the caller and check the roles of the route. Raises 401 and 403."""
    caller = identify()
    g.caller = caller
    if caller.role not in roles:
        allowed = " or ".join(roles)
        raise ApiError(403, f"This needs the role {allowed}; the token has {caller.role}")
    return caller


def actor() -> Actor:
    """Return the caller of this request as the actor for the audit, logs and traces."""
    caller: Caller = g.caller
    return Actor(
        subject=caller.subject, role=str(caller.role), request_id=g.request_id, traceparent=traces.traceparent()
    )


def issue_token(
    secret: str,
    *,
    subject: str,
    role: Role,
    accounts: list[str],
    ttl: timedelta,
    audience: str | None = None,
    issuer: str | None = None,
) -> str:
    """Return an access token that `identify` accepts, signed with the shared secret. `audience` and `issuer` are the
    values of JWT_AUDIENCE and JWT_ISSUER."""
    app = Flask("token")
    app.config.update(
        JWT_SECRET_KEY=secret, JWT_ALGORITHM="HS256", JWT_ENCODE_AUDIENCE=audience, JWT_ENCODE_ISSUER=issuer
    )
    JWTManager(app)
    with app.app_context():
        claims = {"role": str(role), "accounts": accounts}
        return create_access_token(subject, expires_delta=ttl, additional_claims=claims)


def _is_name(claim: object) -> bool:
    """Return whether the claim fits into a column and a log. OpenID Connect limits `sub` to the same 255 characters."""
    return isinstance(claim, str) and 1 <= len(claim) <= 255 and claim.isprintable()


def _keys(settings: Settings) -> dict[str, Any]:
    """Return the configuration of the one source of keys and its algorithms."""
    given = [
        name
        for name, value in (
            ("JWT_SECRET_KEY", settings.jwt_secret_key),
            ("JWT_PUBLIC_KEY", settings.jwt_public_key),
            ("JWT_JWKS_FILE", settings.jwt_jwks_file),
        )
        if value
    ]
    if len(given) != 1:
        found = f"{' and '.join(given)} are set" if given else "no key for tokens is set"
        raise BadSetting.of(f"{found}: set exactly one of JWT_SECRET_KEY, JWT_PUBLIC_KEY, JWT_JWKS_FILE")
    if settings.jwt_secret_key:
        return {
            "JWT_SECRET_KEY": settings.jwt_secret_key,
            "JWT_ALGORITHM": "HS256",
            "JWT_DECODE_ALGORITHMS": ["HS256"],
        }
    if settings.jwt_public_key:
        algorithm = _algorithm(settings.jwt_public_key)
        return {
            "JWT_PUBLIC_KEY": settings.jwt_public_key,
            "JWT_ALGORITHM": algorithm,
            "JWT_DECODE_ALGORITHMS": [algorithm],
        }
    return {"JWT_ALGORITHM": "RS256", "JWT_DECODE_ALGORITHMS": _PUBLIC_KEY_ALGORITHMS}


def _key_set(path: Path) -> dict[str | None, jwt.PyJWK]:
    """Return the public keys of a JWKS document by id. Each key names its own algorithm."""
    try:
        keys = jwt.PyJWKSet.from_dict(json.loads(path.read_text())).keys
    except (PyJWTError, ValueError, LookupError, TypeError, AttributeError):
        keys = []
    public = {key.key_id: key for key in keys if key.algorithm_name in _PUBLIC_KEY_ALGORITHMS}
    if not public:
        raise BadSetting("JWT_JWKS_FILE", str(path), "must hold a JWKS document with an RSA, EC or Ed25519 public key")
    return public


def _algorithm(pem: str) -> str:
    try:
        key = load_pem_public_key(pem.encode())
    except ValueError as error:
        raise BadSetting("JWT_PUBLIC_KEY", "(not shown)", f"is not a PEM public key: {error}") from error
    match key:
        case rsa.RSAPublicKey():
            return "RS256"
        case ec.EllipticCurvePublicKey(curve=curve) if curve.name in _CURVES:
            return _CURVES[curve.name]
        case ed25519.Ed25519PublicKey() | ed448.Ed448PublicKey():
            return "EdDSA"
    raise BadSetting("JWT_PUBLIC_KEY", "(not shown)", "must be an RSA, EC (P-256, P-384, P-521) or Ed25519 key")
