"""Tokens issued elsewhere: each kind of key takes its own signatures, and a public key is never a secret."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flask.testing import FlaskClient
from jwt.algorithms import get_default_algorithms

from api.app import create_app
from api.auth import Role, issue_token
from tests.conftest import SECRET
from workers.bootstrap import Adapters, build
from workers.environment import BadSetting
from workers.settings import Settings
from workers.telemetry.exposition import may_see

STATUS = "/api/onlyfans/messaging/status"
KEYS: dict[str, Any] = {
    "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
OTHERS: dict[str, Any] = {
    "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
Answer = Callable[..., int]


def pem(algorithm: str) -> str:
    return KEYS[algorithm].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def jwk(algorithm: str, **more: str) -> dict[str, Any]:
    found = get_default_algorithms()[algorithm].to_jwk(KEYS[algorithm].public_key(), as_dict=True)
    return dict(found) | {"kid": f"key-{algorithm}", "use": "sig"} | more


def token(key: Any, algorithm: str, claims: dict[str, Any] | None = None, **header: Any) -> str:
    """One that is right, but for these claims (None: left out) and this header."""
    right = {"sub": "alice", "role": "ops", "accounts": ["*"], "exp": time.time() + 60} | (claims or {})
    given = {name: value for name, value in right.items() if value is not None}
    return jwt.encode(given, key, algorithm=algorithm, headers=header)


def hs256(secret: bytes, **header: str) -> str:
    """PyJWT would refuse to sign with a public key; an attacker would not."""

    def part(value: bytes) -> bytes:
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    claims = token("x" * 32, "HS256").split(".")[1].encode()
    text = part(json.dumps({"alg": "HS256", "typ": "JWT"} | header).encode()) + b"." + claims
    return (text + b"." + part(hmac.new(secret, text, hashlib.sha256).digest())).decode()


@pytest.fixture
def app_with(settings: Settings, tmp_path: Path) -> Callable[..., Answer]:
    """An application that takes a PEM key or a JWKS document; gives the status that a token meets there."""

    def make(*, public_key: str | None = None, jwks: object = None) -> Answer:
        path = None
        if jwks is not None:
            path = tmp_path / "jwks.json"
            path.write_text(json.dumps(jwks))
        changed = replace(settings, jwt_secret_key=None, jwt_public_key=public_key, jwt_jwks_file=path)
        client = create_app(build(changed)).test_client()
        return lambda given: client.get(STATUS, headers={"Authorization": f"Bearer {given}"}).status_code

    return make


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_public_key_takes_its_own_signatures_and_no_others(app_with: Callable[..., Answer], algorithm: str) -> None:
    answer = app_with(public_key=pem(algorithm))
    assert answer(token(KEYS[algorithm], algorithm)) == 200
    assert answer(token(OTHERS[algorithm], algorithm)) == 401
    assert answer(token("", "none")) == 401
    for other in KEYS.keys() - {algorithm}:
        assert answer(token(KEYS[other], other)) == 401


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_public_key_is_not_a_secret(app_with: Callable[..., Answer], algorithm: str) -> None:
    public, text = KEYS[algorithm].public_key(), pem(algorithm)
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for secret in (text.encode(), text.strip().encode(), der):
        assert app_with(public_key=text)(hs256(secret)) == 401
        assert app_with(jwks={"keys": [jwk(algorithm)]})(hs256(secret, kid=f"key-{algorithm}")) == 401


def test_a_jwks_takes_each_key_under_its_id(app_with: Callable[..., Answer]) -> None:
    answer = app_with(jwks={"keys": [jwk(algorithm) for algorithm in KEYS]})
    for algorithm, key in KEYS.items():
        assert answer(token(key, algorithm, kid=f"key-{algorithm}")) == 200
        assert answer(token(OTHERS[algorithm], algorithm, kid=f"key-{algorithm}")) == 401
        assert answer(token(key, algorithm, kid="key-unknown")) == 401
    assert answer(token(KEYS["ES256"], "ES256", kid="key-EdDSA")) == 401
    assert answer(token(KEYS["RS256"], "RS512", kid="key-RS256")) == 401
    assert answer(token("", "none", kid="key-RS256")) == 401


def test_a_jwk_says_which_algorithm_is_its_own(app_with: Callable[..., Answer]) -> None:
    answer = app_with(jwks={"keys": [jwk("RS256", alg="PS256")]})
    assert answer(token(KEYS["RS256"], "PS256", kid="key-RS256")) == 200
    assert answer(token(KEYS["RS256"], "RS256", kid="key-RS256")) == 401


def test_a_token_that_names_no_key_is_taken_if_there_is_only_one(app_with: Callable[..., Answer]) -> None:
    assert app_with(jwks={"keys": [jwk("ES256")]})(token(KEYS["ES256"], "ES256")) == 200
    assert app_with(jwks={"keys": [jwk("ES256"), jwk("EdDSA")]})(token(KEYS["ES256"], "ES256")) == 401


def test_a_symmetric_key_in_a_jwks_is_none(app_with: Callable[..., Answer]) -> None:
    secret = b"x" * 32
    shared = {"kty": "oct", "kid": "shared", "alg": "HS256", "k": base64.urlsafe_b64encode(secret).decode().rstrip("=")}
    assert app_with(jwks={"keys": [jwk("ES256"), shared]})(hs256(secret, kid="shared")) == 401


@pytest.mark.parametrize("jwks", [{}, {"keys": []}, {"keys": [{"kty": "oct"}]}, [], "text"], ids=str)
def test_a_jwks_without_a_usable_key_stops_the_process(app_with: Callable[..., Answer], jwks: object) -> None:
    with pytest.raises(BadSetting, match="JWT_JWKS_FILE"):
        app_with(jwks=jwks)


@pytest.mark.parametrize("curve", [ec.SECP256K1(), ec.BrainpoolP256R1()], ids=lambda curve: curve.name)
def test_a_key_we_cannot_use_stops_the_process(app_with: Callable[..., Answer], curve: ec.EllipticCurve) -> None:
    public = ec.generate_private_key(curve).public_key()
    text = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    with pytest.raises(BadSetting, match="JWT_PUBLIC_KEY"):
        app_with(public_key=text)
    with pytest.raises(BadSetting, match="JWT_PUBLIC_KEY"):
        app_with(public_key="-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----")


def test_exactly_one_source_of_keys(settings: Settings) -> None:
    for changes in ({"jwt_secret_key": None}, {"jwt_public_key": pem("ES256")}):
        with pytest.raises(BadSetting, match="exactly one of"):
            create_app(build(replace(settings, **changes)))


# --- for whom, and from whom ----------------------------------------------------------------------------------------


@pytest.fixture
def answer_to(settings: Settings) -> Callable[..., int]:
    """The status that a token with these claims meets under these settings."""

    def ask(claims: dict[str, Any], **changes: Any) -> int:
        client = create_app(build(replace(settings, **changes))).test_client()
        given = token(settings.jwt_secret_key, "HS256", claims)
        return client.get(STATUS, headers={"Authorization": f"Bearer {given}"}).status_code

    return ask


@pytest.mark.parametrize("audience", ["paceline", ["paceline"], ["another", "paceline"]], ids=str)
def test_a_token_for_us_is_taken(answer_to: Callable[..., int], audience: object) -> None:
    assert answer_to({"aud": audience}, jwt_audience="paceline") == 200


@pytest.mark.parametrize("audience", [None, "", "another", "PACELINE", "paceline ", [], ["another"], 5, {}], ids=str)
def test_a_token_for_somebody_else_is_none(answer_to: Callable[..., int], audience: object) -> None:
    assert answer_to({"aud": audience}, jwt_audience="paceline") == 401


@pytest.mark.parametrize("audience", ["paceline", "", [], ["another"]], ids=str)
def test_without_a_name_of_our_own_no_audience_is_us(answer_to: Callable[..., int], audience: object) -> None:
    assert answer_to({"aud": audience}) == 401
    assert answer_to({}) == 200


def test_only_the_issuer_that_is_named_is_believed(answer_to: Callable[..., int]) -> None:
    ours = "https://login.example.com/"
    assert answer_to({"iss": ours}, jwt_issuer=ours) == 200
    assert [answer_to({"iss": other}, jwt_issuer=ours) for other in (None, "", "https://evil.example/")] == [401] * 3
    assert answer_to({"iss": "https://anybody.example/"}) == 200


def test_a_token_of_ours_says_whom_it_is_for(settings: Settings) -> None:
    assert settings.jwt_secret_key is not None
    made = issue_token(
        settings.jwt_secret_key, subject="alice", role=Role.OPS, accounts=["*"], ttl=timedelta(minutes=1),
        audience="paceline", issuer="us",
    )  # fmt: skip
    client = create_app(build(replace(settings, jwt_audience="paceline", jwt_issuer="us"))).test_client()
    assert client.get(STATUS, headers={"Authorization": f"Bearer {made}"}).status_code == 200


def test_a_token_that_never_expires_is_taken(answer_to: Callable[..., int]) -> None:
    """Whoever issues it decides; docs/security.md says what follows."""
    assert answer_to({"exp": None}) == 200


def test_a_key_is_looked_up_by_its_id_and_nowhere_else(app_with: Callable[..., Answer]) -> None:
    answer = app_with(jwks={"keys": [jwk("ES256"), jwk("EdDSA")]})
    theirs = get_default_algorithms()["ES256"].to_jwk(OTHERS["ES256"].public_key(), as_dict=True)
    for kid in ("../key-ES256", "/dev/null", "key-ES256\0", "", "KEY-ES256", {"kid": "key-ES256"}, ["key-ES256"]):
        assert answer(token(KEYS["ES256"], "ES256", kid=kid) if isinstance(kid, str) else unsafe(kid)) == 401
    for where in ({"jku": "http://127.0.0.1:1/"}, {"x5u": "http://127.0.0.1:1/"}, {"jwk": theirs}):
        assert answer(token(OTHERS["ES256"], "ES256", kid="key-ES256", **where)) == 401


def unsafe(kid: Any) -> str:
    """PyJWT would refuse to write an id that is no text."""
    header = json.dumps({"alg": "ES256", "typ": "JWT", "kid": kid}).encode()
    _, payload, signature = token(KEYS["ES256"], "ES256", kid="key-ES256").split(".")
    return f"{base64.urlsafe_b64encode(header).rstrip(b'=').decode()}.{payload}.{signature}"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR", "Bearer "])
def test_the_scheme_is_bearer_in_whatever_case(
    client: FlaskClient, with_settings: Callable[..., Adapters], bearer: Callable[..., dict[str, str]], scheme: str
) -> None:
    """RFC 9110 §11.1."""
    access_token = bearer()["Authorization"].removeprefix("Bearer ")
    assert client.get(STATUS, headers={"Authorization": f"{scheme} {access_token}"}).status_code == 200
    guarded = create_app(with_settings(metrics_token="the token")).test_client()
    assert guarded.get("/metrics", headers={"Authorization": f"{scheme} the token"}).status_code == 200
    assert guarded.get("/metrics", headers={"Authorization": f"{scheme} another"}).status_code == 401
    assert guarded.get("/metrics", headers={"Authorization": scheme}).status_code == 401
    assert may_see(f"{scheme} the token", "the token")


def test_an_expired_token_is_told_from_a_bad_one_in_the_log_alone(client: FlaskClient) -> None:
    def refused(given: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        with structlog.testing.capture_logs() as logged:
            answer = client.get(STATUS, headers={"Authorization": f"Bearer {given}"})
        assert answer.status_code == 401
        answered = {name: value for name, value in answer.json.items() if name != "requestId"}
        return answered, [line for line in logged if line["event"] == "access_token_refused"]

    expired, expired_log = refused(token(SECRET, "HS256", {"exp": time.time() - 1}))
    forged, forged_log = refused(token("another secret of at least 32 bytes", "HS256"))
    lacking, lacking_log = refused(token(SECRET, "HS256", {"role": None}))
    assert expired == forged == lacking
    assert [line["reason"] for line in (*expired_log, *forged_log, *lacking_log)] == ["expired", "invalid", "claims"]
    assert "eyJ" not in repr((expired_log, forged_log, lacking_log))
