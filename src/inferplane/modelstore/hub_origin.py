"""A repository on the Hugging Face hub, or on a mirror that speaks the same interface.

The revision is resolved to a commit once, and every file is then asked for by that commit: what is
fetched is one version, however long it takes. The hub knows the sha256 of large files; it is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from inferplane.domain.reasons import ReasonCode
from inferplane.domain.storage_uri import StorageUri
from inferplane.modelstore.failure import FetchFailed
from inferplane.modelstore.json_answer import get_json, text_of
from inferplane.modelstore.origin import Address, Listing, RemoteObject, endpoint_of, safe_name

CREDENTIALS = ("HF_TOKEN", "HF_ENDPOINT")
ENDPOINT = "https://huggingface.co"
DEFAULT_REVISION = "main"
OBJECTS_MAX = 10_000

_NO_MODEL_FILES = {".gitattributes", ".gitignore"}


class HubOrigin:
    """The files of a repository at one revision, or those under a path in it."""

    def __init__(self, uri: StorageUri, settings: Mapping[str, str], client: httpx.AsyncClient) -> None:
        self._uri = uri
        self._client = client
        self._endpoint = endpoint_of(settings.get("HF_ENDPOINT", "") or ENDPOINT, "HF_ENDPOINT")
        token = settings.get("HF_TOKEN", "").strip()
        if not token.isprintable() or not token.isascii():
            raise FetchFailed(ReasonCode.STORAGE_UNAUTHORIZED, "HF_TOKEN holds characters that no token has")
        self._headers = (("authorization", f"Bearer {token}"),) if token else ()

    @property
    def shown(self) -> str:
        """The URI."""
        return self._uri.shown

    @property
    def host(self) -> str:
        """The hub's host."""
        return urlsplit(self._endpoint).hostname or ""

    async def look(self) -> Listing:
        """The files at the revision."""
        revision = self._uri.revision or DEFAULT_REVISION
        url = f"{self._endpoint}/api/models/{self._uri.repo}/revision/{quote(revision, safe='')}?blobs=true"
        try:
            answer = await get_json(self._client, url, self._headers, shown=self.shown, host=self.host)
        except FetchFailed as failure:
            raise self._told_apart(failure) from failure
        commit = text_of(answer, "sha")
        siblings = answer.get("siblings")
        if not commit or not isinstance(siblings, list):
            raise FetchFailed(
                ReasonCode.STORAGE_UNREACHABLE, f"{self.host} answers for {self.shown} in an unknown shape"
            )
        return self._listing(commit, siblings)

    async def address(self, found: RemoteObject) -> Address:
        """The file at the commit. The token goes to the hub only, not to where it redirects."""
        commit, _, path = found.key.partition("/")
        return Address(
            f"{self._endpoint}/{self._uri.repo}/resolve/{quote(commit, safe='')}/{quote(path)}", self._headers
        )

    def _listing(self, commit: str, siblings: list[Any]) -> Listing:
        wanted = self._uri.path.rstrip("/")
        files = {path: item for item in siblings if (path := text_of(item, "rfilename"))}
        if wanted in files:
            return Listing((_object(wanted.rpartition("/")[2], wanted, commit, files[wanted]),), single=True)
        prefix = f"{wanted}/" if wanted else ""
        objects = [
            _object(path[len(prefix) :], path, commit, item)
            for path, item in sorted(files.items())
            if path.startswith(prefix) and path[len(prefix) :] and path not in _NO_MODEL_FILES
        ]
        if not objects:
            raise FetchFailed(ReasonCode.MODEL_NOT_FOUND, f"the repository holds no file at {self.shown}")
        if len(objects) > OBJECTS_MAX:
            raise FetchFailed(
                ReasonCode.NOT_A_MODEL,
                f"{self.shown} holds more than {OBJECTS_MAX} files; name a folder in it",
            )
        return Listing(tuple(objects), single=False)

    def _told_apart(self, failure: FetchFailed) -> FetchFailed:
        """The hub answers 401 for what does not exist and for what is private alike."""
        if failure.status == 401:
            given = "the token given may not see it" if self._headers else "no HF_TOKEN was given"
            return FetchFailed(
                ReasonCode.STORAGE_UNAUTHORIZED,
                f"{self.shown} does not exist, or it is private and {given} (HTTP 401)",
                status=401,
            )
        if failure.status == 403:
            return FetchFailed(
                ReasonCode.STORAGE_FORBIDDEN,
                f"{self.shown} is gated or private: its conditions have not been accepted with this token"
                " (HTTP 403)",
                status=403,
            )
        return failure


def _object(name: str, path: str, commit: str, item: object) -> RemoteObject:
    large = item.get("lfs") if isinstance(item, dict) else None
    size = text_of(large, "size") or text_of(item, "size")
    digest = text_of(large, "sha256") or text_of(large, "oid").removeprefix("sha256:")
    return RemoteObject(
        name=safe_name(name),
        size=int(size) if size.isdecimal() else None,
        key=f"{commit}/{path}",
        pinned=True,
        version=commit,
        sha256=digest if len(digest) == 64 else "",
    )
