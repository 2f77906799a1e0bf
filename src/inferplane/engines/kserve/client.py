"""What running endpoints needs of an API server beyond single calls: lists by page, watches, notes, logs.

A thin layer over `HttpApi`: objects stay the plain dicts that they are in JSON. What a watch yields is what
the API server sent, except that its end, however it comes about, is an `ApiError` or simply the end, so that the
caller has one place in which to begin again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import msgspec

from inferplane.engines.kserve.http_api import (
    ANSWER_SECONDS,
    CONNECT_SECONDS,
    MESSAGE_CHARACTERS_MAX,
    ApiError,
    HttpApi,
)
from inferplane.engines.kserve.records import MANAGER

PAGE_OBJECTS = 500
WATCH_SECONDS = 290
"""After so long the API server is asked to end a watch by itself, and the next begins where it ended."""
SILENCE_SECONDS_MAX = 100.0
"""The API server sends a bookmark each minute or so; a watch that is silent for longer has been cut unnoticed."""
LINE_BYTES_MAX = 8 * 1024 * 1024

TRIES = 4
TRY_AGAIN_SECONDS = 0.1
WAIT_FOR_BUSY_SECONDS_MAX = 1.0

Raw = dict[str, Any]
T = TypeVar("T")


class TooOld(ApiError):
    """What a watch or a page was to go on from is forgotten: list anew."""


class Busy(ApiError):
    """The API server asks to come back later (429)."""

    def __init__(self, message: str, status: int, retry_after_seconds: float) -> None:
        super().__init__(message, status)
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object, as its URLs name it. `group` is "" for the core."""

    group: str
    version: str
    plural: str
    name: str

    def path(self, namespace: str = "", name: str = "", sub: str = "") -> str:
        """The URL of a collection, an object, or a part of one."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root]
        if namespace:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, sub) if part]
        return "/".join(parts)


NAMESPACE = Kind("", "v1", "namespaces", "Namespace")
SERVICE_ACCOUNT = Kind("", "v1", "serviceaccounts", "ServiceAccount")
SECRET = Kind("", "v1", "secrets", "Secret")
QUOTA = Kind("", "v1", "resourcequotas", "ResourceQuota")
POD = Kind("", "v1", "pods", "Pod")
EVENT = Kind("", "v1", "events", "Event")
DEPLOYMENT = Kind("apps", "v1", "deployments", "Deployment")
REPLICA_SET = Kind("apps", "v1", "replicasets", "ReplicaSet")
INGRESS = Kind("networking.k8s.io", "v1", "ingresses", "Ingress")
INFERENCE_SERVICE = Kind("serving.kserve.io", "v1beta1", "inferenceservices", "InferenceService")


class KubeClient(HttpApi):
    """An API server as the engine uses it.

    Everything here may be asked twice: an object is read, or said as a whole, or patched as of one version. So what the
    API server could not do in this moment (5xx, 429) is asked a few times. Where nobody answers it is not: that
    takes longer than a step may.
    """

    async def find(self, path: str) -> Raw | None:
        """One object; None where there is none. Raises ApiError."""
        try:
            return await _insistently(lambda: self.call("GET", path))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def apply(self, path: str, manifest: Mapping[str, Any]) -> Raw:
        """Server-side apply: what `manifest` says is ours from here on, whoever said something else. Raises ApiError."""
        return await _insistently(
            lambda: self.call("PATCH", path, manifest, fieldManager=MANAGER, force="true")
        )

    async def merge(self, path: str, patch: Mapping[str, Any]) -> Raw:
        """A merge patch: None takes a field away. With metadata.resourceVersion only of that version (else 409)."""
        content = json.dumps(patch).encode()

        async def once() -> Raw:
            async with self._opened(
                "PATCH",
                path,
                {"fieldManager": MANAGER},
                content=content,
                content_type="application/merge-patch+json",
            ) as response:
                return _object(await response.aread())

        return await _insistently(once)

    async def delete(self, path: str, *, uid: str = "") -> bool:
        """Delete an object with what belongs to it, in the background; whether there was one. With `uid` only that
        very one. Raises ApiError.
        """
        body: Raw = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid:
            body["preconditions"] = {"uid": uid}
        try:
            await _insistently(lambda: self.call("DELETE", path, body))
        except ApiError as error:
            if error.status == 404 or (error.status == 409 and uid):
                return False
            raise
        return True

    async def pages(self, path: str, selector: str = "") -> AsyncIterator[tuple[list[Raw], str]]:
        """Every object there is, page by page, each time with the version of the whole list.

        Raises TooOld where the list changed too much to be gone on with, else ApiError.
        """
        query = {"limit": str(PAGE_OBJECTS)} | ({"labelSelector": selector} if selector else {})
        following = ""
        while True:
            asked = query | ({"continue": following} if following else {})
            page = await _insistently(lambda asked=asked: self._page(path, asked))  # type: ignore[misc]
            metadata = page.get("metadata")
            metadata = metadata if isinstance(metadata, Mapping) else {}
            found = page.get("items")
            yield (
                [each for each in found if isinstance(each, dict)] if isinstance(found, list) else [],
                str(metadata.get("resourceVersion") or ""),
            )
            following = str(metadata.get("continue") or "")
            if not following:
                return

    async def _page(self, path: str, query: Mapping[str, str]) -> Raw:
        async with self._opened("GET", path, query) as response:
            return _object(await response.aread())

    async def watch(self, path: str, version: str, selector: str = "") -> AsyncIterator[tuple[str, Raw]]:
        """Changes after `version` as (type, object), bookmarks too, until the API server ends it.

        The first is ("OPEN", {}): it answers. Raises TooOld, Busy or ApiError.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_SECONDS),
        } | ({"labelSelector": selector} if selector else {})
        async with self._opened("GET", path, query, silence=SILENCE_SECONDS_MAX) as response:
            yield "OPEN", {}
            async for line in _lines(response):
                try:
                    event = msgspec.json.decode(line)
                except msgspec.DecodeError as error:
                    raise ApiError("a watch was cut in the middle of a line") from error
                kind = event.get("type") if isinstance(event, dict) else None
                found = event.get("object") if isinstance(event, dict) else None
                if not isinstance(kind, str) or not isinstance(found, dict):
                    raise ApiError("a watch sent what is no event")
                if kind == "ERROR":
                    raise _refused(int(found.get("code") or 0), str(found.get("message") or "a watch failed"))
                yield kind, found

    async def log(
        self,
        namespace: str,
        pod: str,
        container: str,
        *,
        tail_lines: int,
        previous: bool = False,
        follow: bool = False,
    ) -> AsyncIterator[str]:
        """The last lines of a container, and with `follow` each new one. Raises ApiError."""
        query = {"container": container, "tailLines": str(tail_lines)}
        if previous:
            query["previous"] = "true"
        if follow:
            query["follow"] = "true"
        path = POD.path(namespace, pod, "log")
        async with self._opened("GET", path, query, silence=None if follow else ANSWER_SECONDS) as response:
            async for line in _lines(response):
                yield line.decode("utf-8", "replace")

    @asynccontextmanager
    async def _opened(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        *,
        content: bytes | None = None,
        content_type: str = "",
        silence: float | None = ANSWER_SECONDS,
    ) -> AsyncIterator[httpx.Response]:
        """A response that is being received, if it is a good one. Raises ApiError for whatever happens to it."""
        headers = self._headers() | ({"Content-Type": content_type} if content_type else {})
        timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS, read=silence)
        try:
            async with self._client.stream(
                method,
                path,
                params=query,
                content=content,
                headers=headers,
                timeout=timeout,
                extensions=self._extensions(),
            ) as response:
                if not response.is_success:
                    raise _refusal(response, await response.aread())
                yield response
        except httpx.HTTPError as error:
            what = str(error) or type(error).__name__
            raise ApiError(f"it does not answer: {what[:MESSAGE_CHARACTERS_MAX]}") from error

    def _headers(self) -> dict[str, str]:
        token = self._current_token()
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _extensions(self) -> dict[str, Any]:
        name = self._credentials.server_name
        return {"sni_hostname": name} if name else {}


async def _insistently(ask: Callable[[], Awaitable[T]]) -> T:
    """The answer, asked for again where the API server could not give it in this moment. Raises ApiError."""
    for attempt in range(1, TRIES):
        try:
            return await ask()
        except ApiError as error:
            wait = TRY_AGAIN_SECONDS * attempt
            if isinstance(error, Busy):
                wait = max(wait, error.retry_after_seconds)
            is_passing = error.status == 429 or error.status >= 500
            if not is_passing or is_refused_by_webhook(error) or wait > WAIT_FOR_BUSY_SECONDS_MAX:
                raise
            await asyncio.sleep(wait)
    return await ask()


def is_refused_by_webhook(error: ApiError) -> bool:
    """Whether a webhook did not want it; KServe's says so with a 500 where the object makes it stumble."""
    return "denied the request" in error.message


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """The lines of a body as they come; bytes, because a line of JSON is decoded once. Raises ApiError."""
    rest = b""
    async for chunk in response.aiter_bytes():
        parts = (rest + chunk).split(b"\n")
        rest = parts.pop()
        for part in parts:
            if part:
                yield part
        if len(rest) > LINE_BYTES_MAX:
            raise ApiError(f"a line is longer than {LINE_BYTES_MAX} bytes")
    if rest:
        yield rest


def _object(body: bytes) -> Raw:
    try:
        answer = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise ApiError("its answer is no JSON: is this the API server of Kubernetes?") from error
    if not isinstance(answer, dict):
        raise ApiError("its answer is no JSON object: is this the API server of Kubernetes?")
    return answer


def _refusal(response: httpx.Response, body: bytes) -> ApiError:
    try:
        said = _object(body).get("message")
    except ApiError:
        said = None
    words = said if isinstance(said, str) and said else response.reason_phrase or "no reason given"
    if response.status_code == 429:
        after = response.headers.get("Retry-After", "")
        seconds = float(after) if after.isascii() and after.isdigit() and len(after) < 5 else 1.0
        return Busy(_sentence(words, 429), 429, seconds)
    return _refused(response.status_code, words)


def _refused(status: int, words: str) -> ApiError:
    return (TooOld if status == 410 else ApiError)(_sentence(words, status), status)


def _sentence(words: str, status: int) -> str:
    return f"{words[:MESSAGE_CHARACTERS_MAX]} (HTTP {status})"
