"""MLflow's model registry: what a `models:/` URI stands for, asked over its REST interface.

The registry names a version, and the version names where its files are: in a bucket, on this machine, or
with the tracking server itself, which then hands them out (`mlflow-artifacts:/`). `resolved` asks for that
place; what is fetched is then fetched as from anywhere else, with the credentials of the same secret. It is
asked anew for each fetch, so an alias that was moved names another model from then on.

The package mlflow is not needed. Where the registry is, is set, because a `models:/` URI does not say it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import httpx

from inferplane.domain.reasons import ReasonCode
from inferplane.domain.storage_uri import StorageUri, redacted
from inferplane.modelstore.failure import FetchFailed
from inferplane.modelstore.json_answer import get_json, text_of
from inferplane.modelstore.origin import Address, Listing, RemoteObject, endpoint_of, safe_name

TRACKING = "MLFLOW_TRACKING_URI"
REGISTRY = "MLFLOW_REGISTRY_URI"
TOKEN = "MLFLOW_TRACKING_TOKEN"  # noqa: S105 - the name of a variable
CREDENTIALS = (TRACKING, REGISTRY, TOKEN, "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
PLACES = (TRACKING, REGISTRY)
"""What may be set for the whole platform."""

LATEST = "latest"
ARTIFACTS_SCHEME = "mlflow-artifacts"
REFERENCES_MAX = 3
"""A version's files may be named by another `models:/` URI, and so on; no further than this."""
OBJECTS_MAX = 10_000
FOLDERS_MAX = 1_000

_API = "/api/2.0/mlflow"
_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"

Headers = tuple[tuple[str, str], ...]


class Registry:
    """One registry, with the credentials of one secret. Raises FetchFailed for settings that mean nothing."""

    def __init__(self, settings: Mapping[str, str], client: httpx.AsyncClient, shown: str) -> None:
        told = settings.get(REGISTRY) or settings.get(TRACKING)
        if not told:
            raise FetchFailed(
                ReasonCode.MODEL_NOT_FOUND,
                f"where the registry of {shown} is, is not set: {TRACKING} is missing in the model's secret"
                " and in the platform's environment",
            )
        self._base = endpoint_of(told, REGISTRY if settings.get(REGISTRY) else TRACKING, scheme="http")
        self._client = client
        self._headers = _authorization(settings)

    @property
    def host(self) -> str:
        """The registry's host."""
        return urlsplit(self._base).hostname or ""

    async def place_of(self, name: str, wanted: str, shown: str) -> str:
        """The URI of the files of a version: `wanted` is a number, `latest`, a stage, `@alias`, or "" for a
        model that is named by its id. Raises FetchFailed.
        """
        if not wanted:
            answer = await self._ask(f"logged-models/{quote(name, safe='')}", {}, shown)
            return _found(text_of(_within(answer, "model", "info"), "artifact_uri"), shown)
        version = wanted if wanted.isdecimal() else await self._version(name, wanted, shown)
        answer = await self._ask("model-versions/get-download-uri", {"name": name, "version": version}, shown)
        return _found(text_of(answer, "artifact_uri"), shown)

    async def _version(self, name: str, wanted: str, shown: str) -> str:
        if wanted.startswith("@"):
            asked = {"name": name, "alias": wanted[1:]}
            answer = await self._ask("registered-models/alias", asked, shown)
            return _found(text_of(_within(answer, "model_version"), "version"), shown)
        answer = await self._ask("registered-models/get", {"name": name}, shown)
        newest = _within(answer, "registered_model").get("latest_versions")
        versions = [
            int(text_of(each, "version"))
            for each in (newest if isinstance(newest, list) else ())
            if text_of(each, "version").isdecimal()
            and (wanted.lower() == LATEST or text_of(each, "current_stage").lower() == wanted.lower())
        ]
        if not versions:
            raise FetchFailed(ReasonCode.MODEL_NOT_FOUND, f"the registry has no version for {shown}")
        return str(max(versions))

    async def _ask(self, what: str, asked: Mapping[str, str], shown: str) -> dict[str, Any]:
        url = f"{self._base}{_API}/{what}" + (f"?{urlencode(asked)}" if asked else "")
        return await get_json(self._client, url, self._headers, shown=shown, host=self.host)


class ArtifactsOrigin:
    """Files that the tracking server hands out: everything below a path of its artifacts."""

    def __init__(
        self, uri: StorageUri, settings: Mapping[str, str], client: httpx.AsyncClient, place: str
    ) -> None:
        """`place` is `mlflow-artifacts:/path`, or with another server's host and port in it."""
        parts = urlsplit(place)
        self._uri = uri
        self._client = client
        own = f"{parts.hostname}:{parts.port or 5000}" if parts.hostname else ""
        self._base = endpoint_of(own or settings.get(TRACKING, ""), TRACKING, scheme="http")
        self._path = safe_name(parts.path.strip("/"))
        # Another server than the one that they are for is not told the credentials.
        self._headers = () if own else _authorization(settings)

    @property
    def shown(self) -> str:
        """The `models:/` URI."""
        return self._uri.shown

    @property
    def host(self) -> str:
        """The tracking server's host."""
        return urlsplit(self._base).hostname or ""

    async def look(self) -> Listing:
        """All files below the path."""
        objects: list[RemoteObject] = []
        folders = [""]
        seen = 0
        while folders:
            folder = folders.pop()
            seen += 1
            for each in await self._in(folder):
                name = safe_name("/".join(part for part in (folder, text_of(each, "path")) if part))
                if isinstance(each, dict) and each.get("is_dir") is True:
                    folders.append(name)
                    continue
                size = text_of(each, "file_size")
                objects.append(
                    RemoteObject(name=name, size=int(size) if size.isdecimal() else None, key=name)
                )
            if len(objects) > OBJECTS_MAX or seen + len(folders) > FOLDERS_MAX:
                raise FetchFailed(ReasonCode.NOT_A_MODEL, f"{self.shown} holds too many files to be a model")
        if not objects:
            raise FetchFailed(ReasonCode.MODEL_NOT_FOUND, f"the tracking server has no files of {self.shown}")
        return Listing(tuple(sorted(objects, key=lambda found: found.name)), single=False)

    async def address(self, found: RemoteObject) -> Address:
        """The file, at the tracking server."""
        return Address(f"{self._base}{_ARTIFACTS}/{quote(f'{self._path}/{found.key}')}", self._headers)

    async def _in(self, folder: str) -> list[Any]:
        path = f"{self._path}/{folder}".rstrip("/")
        url = f"{self._base}{_ARTIFACTS}?{urlencode({'path': path})}"
        answer = await get_json(self._client, url, self._headers, shown=self.shown, host=self.host)
        files = answer.get("files", [])
        return files if isinstance(files, list) else []


def _authorization(settings: Mapping[str, str]) -> Headers:
    token, user = settings.get(TOKEN, "").strip(), settings.get("MLFLOW_TRACKING_USERNAME", "")
    if not token.isprintable() or not token.isascii():
        raise FetchFailed(ReasonCode.STORAGE_UNAUTHORIZED, f"{TOKEN} holds characters that no token has")
    if token:
        return (("authorization", f"Bearer {token}"),)
    if user:
        pair = f"{user}:{settings.get('MLFLOW_TRACKING_PASSWORD', '')}".encode()
        return (("authorization", f"Basic {base64.b64encode(pair).decode()}"),)
    return ()


def _within(answer: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """An object inside an object; an empty one where there is none."""
    found: Any = answer
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _found(text: str, shown: str) -> str:
    if not text:
        raise FetchFailed(
            ReasonCode.STORAGE_UNREACHABLE, f"the registry answers for {redacted(shown)} in an unknown shape"
        )
    return text
