"""Accounts' keys, encrypted at rest: whoever reads the database, or a backup of it, has no key.

Fernet (AES-128-CBC with HMAC-SHA256) from `cryptography`, under keys from the environment. The newest seals, any opens;
so a key is rotated by putting a new one in front everywhere, running `paceline rekey`, and taking the old one away.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from workers.domain.errors import CannotSeal, Unreadable

_SEALED = "fernet:"
"""Stored in front of what is sealed. What stands there without it was stored in the clear, before there was this."""


class Vault:
    """Seals and opens keys. Without any key of its own it still hands out what is stored in the clear."""

    def __init__(self, keys: Sequence[str], *, otherwise_from: str | None = None) -> None:
        """keys: 32 bytes each in URL-safe base64, newest first. otherwise_from: a secret to derive one more key from,
        which is the newest only if there is no other."""
        all_keys = [key.encode() for key in keys]
        if otherwise_from is not None:
            all_keys.append(base64.urlsafe_b64encode(_derived(otherwise_from.encode(), b"paceline credentials")))
        self._fernet = MultiFernet([Fernet(key) for key in all_keys]) if all_keys else None
        self._fingerprinters = [_Fingerprinter(base64.urlsafe_b64decode(key)) for key in all_keys]

    def seal(self, key: str) -> str:
        """As it may be stored. Raises CannotSeal without a key to do so."""
        if self._fernet is None:
            raise CannotSeal("Credentials cannot be stored: CREDENTIALS_KEY is not set")
        return _SEALED + self._fernet.encrypt(key.encode()).decode()

    def open(self, stored: str) -> str:
        """The key itself. Raises Unreadable if it was sealed under none of ours, or meddled with."""
        if not stored.startswith(_SEALED):
            return stored
        try:
            if self._fernet is None:
                raise InvalidToken
            return self._fernet.decrypt(stored.removeprefix(_SEALED)).decode()
        except InvalidToken as error:
            raise Unreadable("sealed under a key that is not in CREDENTIALS_KEY") from error

    def credentials(self, stored: str | None) -> dict[str, Any]:
        """The credentials that an account has of its own; empty if it has none. Raises Unreadable."""
        return {} if stored is None else unpack(self.open(stored))

    def fingerprints(self, text: str) -> tuple[str, ...]:
        """Fingerprints of a text, one for each of our keys, that of the newest first. Two texts that have one in common
        are equal, and nobody without the key can tell what they are."""
        return tuple(fingerprinter.of(text) for fingerprinter in self._fingerprinters)

    def knows(self, fingerprint: str) -> bool:
        """Whether a fingerprint was taken under one of our keys, so that it can be compared with ours."""
        return fingerprint.partition(":")[0] in {fingerprinter.name for fingerprinter in self._fingerprinters}


class _Fingerprinter:
    """HMAC-SHA256 under a key of its own; `name` tells the fingerprints of one key from those of another."""

    def __init__(self, key: bytes) -> None:
        self._key = _derived(key, b"paceline credential fingerprint")
        self.name = hashlib.sha256(self._key).hexdigest()[:8]

    def of(self, text: str) -> str:
        return f"{self.name}:{hmac.digest(self._key, text.encode(), 'sha256').hex()}"


def pack(credentials: Mapping[str, Any]) -> str:
    """Credentials as one text, to be sealed. An API key by itself is its own text: so older versions, which know no
    other credentials, read what this one writes."""
    key = credentials.get("apiKey")
    is_plain = credentials.keys() == {"apiKey"} and isinstance(key, str) and not key.startswith("{")
    return str(key) if is_plain else json.dumps(credentials)


def unpack(text: str) -> dict[str, Any]:
    """The credentials in a text of `pack`, or of an older version."""
    try:
        found = json.loads(text) if text.startswith("{") else None
    except ValueError:  # a key of an older version that begins so
        found = None
    return found if isinstance(found, dict) else {"apiKey": text}


def is_sealed(stored: str) -> bool:
    return stored.startswith(_SEALED)


def as_fernet_key(raw: str) -> str:
    """A key of 32 bytes in base64, of either alphabet, as Fernet takes it. Raises ValueError."""
    plain = raw.strip().replace("+", "-").replace("/", "_")
    if len(base64.urlsafe_b64decode(plain)) != 32:
        raise ValueError
    return plain


def _derived(secret: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(secret)
