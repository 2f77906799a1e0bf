"""Keys for endpoints: tokens that the platform signs and Envoy verifies by itself.

An endpoint key is a JWT (ES256): who it is (`sub`, the key's id), for which endpoints it is good
(`endpoints`), until when (`exp`, absent: until revoked). The gateway holds only the public half of the
signing key, so nothing on a request's path asks the control plane, and nothing secret is in Envoy's
configuration. A key is revoked by its id, in the routes of the endpoints that it was for.

The private half lies in one file of the home folder that only the platform's user can read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferplane.domain.errors import Unavailable

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

ISSUER = "inferplane"
AUDIENCE = "inferplane-endpoints"
ALGORITHM = "ES256"
ALL_ENDPOINTS = "*"
SIGNING_KEY_FILE = "endpoint-signing-key.pem"
PRIVATE_FILE_MODE = 0o600


@dataclass(frozen=True, slots=True)
class KeyClaims:
    """What an endpoint key says.

    `endpoints` are endpoint uids, `<workspace>/*` for all of a workspace, or `*` for all.
    Without `expires_at` the key is good until it is revoked.
    """

    key_id: str
    endpoints: tuple[str, ...]
    issued_at: datetime
    expires_at: datetime | None = None


def whole_workspace(workspace: str) -> str:
    """The scope of a key for every endpoint of a workspace."""
    return f"{workspace}/*"


def mint(claims: KeyClaims, private_key: str) -> str:
    """The endpoint key itself: show it once, keep only its id. `private_key` is PEM."""
    import jwt

    payload: dict[str, Any] = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": claims.key_id,
        "endpoints": list(claims.endpoints),
        "iat": int(claims.issued_at.timestamp()),
    }
    if claims.expires_at is not None:
        payload["exp"] = int(claims.expires_at.timestamp())
    return jwt.encode(payload, private_key, algorithm=ALGORITHM, headers={"kid": _key_id(_load(private_key))})


def key_set(private_key: str) -> str:
    """The public half as a JWK set, for `GatewayConfig.key_set`."""
    from jwt.algorithms import ECAlgorithm

    key = _load(private_key)
    public: dict[str, Any] = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return json.dumps({"keys": [{**public, "alg": ALGORITHM, "use": "sig", "kid": _key_id(key)}]})


def new_signing_key() -> str:
    """A fresh private key, as PEM."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    return (
        ec.generate_private_key(ec.SECP256R1())
        .private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        .decode()
    )


def signing_key(folder: Path) -> str:
    """The folder's private key, made the first time. Raises Unavailable when it can be neither."""
    path = folder / SIGNING_KEY_FILE
    try:
        with contextlib.suppress(FileNotFoundError):
            text = path.read_text(encoding="utf-8")
            _load(text)
            return text
        text = new_signing_key()
        draft = folder / f".{SIGNING_KEY_FILE}.new"
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE_MODE), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except (OSError, ValueError, TypeError) as error:
        raise Unavailable(
            f"the key that signs endpoint keys cannot be used ({path}): {error}",
            reason="HomeUnusable",
            next_action="Restore the file, or remove it; without it, all endpoint keys made so far are void.",
        ) from error
    return text


def shared_signing_key(seed: bytes) -> str:
    """A private key that everybody makes who has the same secret `seed` (32 random bytes)."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    # The curve's order is so near 2**256 that the remainder says nothing of the seed's lot.
    number = int.from_bytes(seed, "big") % (_P256_ORDER - 1) + 1
    key = ec.derive_private_key(number, ec.SECP256R1())
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def _load(private_key: str) -> EllipticCurvePrivateKey:
    """Raises ValueError or TypeError for what is no such key."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = serialization.load_pem_private_key(private_key.encode(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("it is no elliptic curve key")
    return key


def _key_id(key: EllipticCurvePrivateKey) -> str:
    from cryptography.hazmat.primitives import serialization

    public = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(public).hexdigest()[:16]
