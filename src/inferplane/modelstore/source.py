"""What an endpoint asks for: a URI, perhaps a digest, and credentials; and what makes two asks the same.

Two endpoints share a download, and later its files, when URI, digest and everything that could
change what the storage answers (keys, tokens, endpoint URLs) are the same. So an endpoint without
the credentials never gets at a model that another one fetched with them. The key on disk is made
with a salt, because a short password could otherwise be guessed from it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import httpx

from inferplane.domain.errors import Invalid
from inferplane.domain.reasons import ReasonCode
from inferplane.domain.storage_uri import (
    LOCAL_SCHEMES,
    Scheme,
    StorageUri,
    parse_storage_uri,
    where_supported,
)
from inferplane.modelstore import gcs_origin, http_origin, hub_origin, mlflow_registry, s3_origin
from inferplane.modelstore.client import HttpClients
from inferplane.modelstore.failure import FetchFailed
from inferplane.modelstore.origin import Clock, Origin

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")

# What of the secret, and of the platform's own environment, a scheme looks at.
_FROM_SECRET: Mapping[Scheme, tuple[str, ...]] = {
    Scheme.FILE: (),
    Scheme.HTTP: http_origin.CREDENTIALS,
    Scheme.HTTPS: http_origin.CREDENTIALS,
    Scheme.S3: s3_origin.CREDENTIALS,
    Scheme.GS: gcs_origin.CREDENTIALS,
    Scheme.HF: hub_origin.CREDENTIALS,
    # Where the files are is known only once the registry was asked.
    Scheme.MODELS: (
        *mlflow_registry.CREDENTIALS,
        *http_origin.CREDENTIALS,
        *s3_origin.CREDENTIALS,
        *gcs_origin.CREDENTIALS,
        *hub_origin.CREDENTIALS,
    ),
}
_FROM_ENVIRONMENT: Mapping[Scheme, tuple[str, ...]] = {
    Scheme.S3: ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_REGION"),
    Scheme.GS: ("STORAGE_EMULATOR_HOST",),
    Scheme.HF: ("HF_ENDPOINT",),
    Scheme.MODELS: (
        *mlflow_registry.PLACES,
        "AWS_ENDPOINT_URL",
        "AWS_DEFAULT_REGION",
        "AWS_REGION",
        "STORAGE_EMULATOR_HOST",
        "HF_ENDPOINT",
    ),
}


@dataclass(frozen=True, slots=True)
class Source:
    """What to fetch. `digest` is `sha256:<hex>` or "". `secret` maps variable names to values.

    For one file or archive the digest is that of the file as it is stored; for a folder it is that
    of the listing `<hex>  <relative path>`, a line a file, sorted by path.
    """

    uri: str
    digest: str = ""
    secret: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A source that was understood. `settings` is the part of secret and environment that counts.

    `artifacts` is where a registry's server keeps the files itself, "" for anything else.
    """

    uri: StorageUri
    digest: str
    settings: Mapping[str, str] = field(repr=False)
    artifacts: str = ""

    def key(self, salt: bytes) -> str:
        """The name under which everything that is the same is kept: 32 hex characters."""
        facts = json.dumps([self.uri.text, self.digest, sorted(self.settings.items())])
        return hmac.new(salt, facts.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:32]

    def origin(self, client: httpx.AsyncClient, clock: Clock) -> Origin:
        """The adapter for this URI; not for files, nor for a registry's before `resolved`.

        Raises FetchFailed for unusable credentials.
        """
        if self.artifacts:
            return mlflow_registry.ArtifactsOrigin(self.uri, self.settings, client, self.artifacts)
        if self.uri.scheme is Scheme.S3:
            return s3_origin.S3Origin(self.uri, self.settings)
        if self.uri.scheme is Scheme.GS:
            return gcs_origin.GcsOrigin(self.uri, self.settings, client, clock)
        if self.uri.scheme is Scheme.HF:
            return hub_origin.HubOrigin(self.uri, self.settings, client)
        return http_origin.HttpOrigin(self.uri, self.settings, client)


async def resolved(wanted: Wanted, clients: HttpClients) -> Wanted:
    """Where the files are that a registry names; `wanted` itself for everything else. Raises FetchFailed."""
    if wanted.uri.scheme is not Scheme.MODELS:
        return wanted
    await asyncio.to_thread(clients.prepare)
    async with clients.new() as client:
        registry = mlflow_registry.Registry(wanted.settings, client, wanted.uri.shown)
        await clients.check_host(registry.host, wanted.uri.shown)
        uri = wanted.uri
        for _ in range(mlflow_registry.REFERENCES_MAX):
            place = await registry.place_of(uri.host, uri.revision, wanted.uri.shown)
            if place.startswith(f"{mlflow_registry.ARTIFACTS_SCHEME}:"):
                return replace(wanted, artifacts=place)
            try:
                uri = parse_storage_uri(place)
            except Invalid as error:
                raise FetchFailed(
                    ReasonCode.SCHEME_NOT_SUPPORTED,
                    f"the registry names a place for {wanted.uri.shown} that is not understood: {error.message}",
                ) from error
            if uri.scheme is not Scheme.MODELS:
                return replace(wanted, uri=uri)
    raise FetchFailed(ReasonCode.MODEL_NOT_FOUND, f"{wanted.uri.shown} leads from one reference to the next")


def understand(source: Source, environment: Mapping[str, str]) -> Wanted:
    """Read a source. Raises FetchFailed with the reason when it cannot be fetched here at all."""
    try:
        uri = parse_storage_uri(source.uri)
    except Invalid as error:
        known = error.reason == ReasonCode.SCHEME_NOT_SUPPORTED
        reason = ReasonCode.SCHEME_NOT_SUPPORTED if known else ReasonCode.MODEL_NOT_FOUND
        raise FetchFailed(reason, error.message) from error
    if uri.scheme not in LOCAL_SCHEMES:
        raise FetchFailed(
            ReasonCode.SCHEME_NOT_SUPPORTED,
            f"{uri.shown} cannot be fetched on a cluster with engine local; {where_supported(uri.scheme)}",
        )
    digest = source.digest.strip().lower()
    if digest and not _DIGEST.fullmatch(digest):
        raise FetchFailed(
            ReasonCode.CHECKSUM_MISMATCH, f"the digest “{digest[:80]}” is not sha256: and 64 hex digits"
        )
    settings = {
        name: environment[name] for name in _FROM_ENVIRONMENT.get(uri.scheme, ()) if environment.get(name)
    }
    settings |= {name: source.secret[name] for name in _FROM_SECRET[uri.scheme] if source.secret.get(name)}
    return Wanted(uri, digest, settings)
