"""A bucket of Google Cloud Storage, by its JSON interface, which emulators speak too.

With a service account's key, requests carry a token made from it; without, they are anonymous,
which is right for public buckets and emulators. Each object is asked for by its generation, so a
download can be continued days later without mixing versions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import httpx

from inferplane.domain.reasons import ReasonCode
from inferplane.domain.storage_uri import StorageUri
from inferplane.modelstore.failure import FetchFailed, from_http_error, from_status
from inferplane.modelstore.json_answer import get_json, text_of
from inferplane.modelstore.origin import Address, Clock, Listing, RemoteObject, endpoint_of, safe_name

CREDENTIALS = (
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_APPLICATION_CREDENTIALS_JSON",
    "gcloud-application-credentials.json",
    "STORAGE_EMULATOR_HOST",
)
ENDPOINT = "https://storage.googleapis.com"
TOKEN_ENDPOINT = "https://oauth2.googleapis.com/token"  # noqa: S105 - an address, not a token
SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
TOKEN_SECONDS = 3600
TOKEN_SPARE_SECONDS = 300
OBJECTS_MAX = 10_000
PAGE_OBJECTS = 1000


class GcsOrigin:
    """An object, or every object under a prefix, in a bucket of Google Cloud Storage."""

    def __init__(
        self, uri: StorageUri, settings: Mapping[str, str], client: httpx.AsyncClient, clock: Clock
    ) -> None:
        self._uri = uri
        self._client = client
        self._clock = clock
        endpoint = settings.get("STORAGE_EMULATOR_HOST", "") or ENDPOINT
        self._endpoint = endpoint_of(endpoint, "STORAGE_EMULATOR_HOST", scheme="http")
        self._account = _account(settings)
        self._token_endpoint = endpoint_of(
            self._account.get("token_uri") or TOKEN_ENDPOINT, "token_uri of the service account"
        )
        self._token = ""
        self._token_until = 0.0

    @property
    def shown(self) -> str:
        """The URI."""
        return self._uri.shown

    @property
    def host(self) -> str:
        """The storage's host."""
        return urlsplit(self._endpoint).hostname or ""

    async def look(self) -> Listing:
        """The object of that name, or the objects under it."""
        key = self._uri.path
        refused: FetchFailed | None = None
        if key and not key.endswith("/"):
            try:
                meta = await self._get(self._object_url(key))
            except FetchFailed as failure:
                if failure.status not in {401, 403, 404}:
                    raise
                refused = failure
            else:
                return Listing((_object(key.rpartition("/")[2], meta),), single=True)
        objects = await self._under(f"{key.rstrip('/')}/" if key.rstrip("/") else "", refused)
        if not objects:
            raise FetchFailed(ReasonCode.MODEL_NOT_FOUND, f"no object is stored at {self.shown} or under it")
        return Listing(tuple(sorted(objects, key=lambda found: found.name)), single=False)

    async def address(self, found: RemoteObject) -> Address:
        """The object's media, of exactly the generation that was listed."""
        key, _, generation = found.key.rpartition("#")
        query = {"alt": "media"} | ({"generation": generation} if generation else {})
        return Address(f"{self._object_url(key)}?{urlencode(query)}", await self._headers())

    async def _under(self, prefix: str, refused: FetchFailed | None) -> list[RemoteObject]:
        objects: list[RemoteObject] = []
        page = ""
        while True:
            query = {"prefix": prefix, "maxResults": str(PAGE_OBJECTS)} | (
                {"pageToken": page} if page else {}
            )
            try:
                answer = await self._get(
                    f"{self._endpoint}/storage/v1/b/{self._uri.bucket}/o?{urlencode(query)}"
                )
            except FetchFailed as failure:
                raise self._either(failure, refused) from failure
            items = answer.get("items")
            for meta in items if isinstance(items, list) else []:
                name = text_of(meta, "name")
                if name.startswith(prefix) and not name.endswith("/"):
                    objects.append(_object(name[len(prefix) :], meta))
            if len(objects) > OBJECTS_MAX:
                raise FetchFailed(
                    ReasonCode.NOT_A_MODEL,
                    f"{self.shown} holds more than {OBJECTS_MAX} objects; point the URI at the model's own folder",
                )
            page = text_of(answer, "nextPageToken")
            if not page:
                return objects

    def _either(self, listing: FetchFailed, reading: FetchFailed | None) -> FetchFailed:
        """Neither the object nor a listing could be had: say what may be the matter."""
        if reading is None or listing.status not in {401, 403}:
            return listing
        who = "these credentials may" if self._account else "anonymous access may"
        if reading.status == 404:
            return FetchFailed(
                ReasonCode.MODEL_NOT_FOUND,
                f"no object is stored at {self.shown}, and {who} not list the bucket to look for a folder",
                status=404,
            )
        return FetchFailed(
            reading.reason,
            f"{self.shown} is refused (HTTP {reading.status}): {who} not read it, or it does not exist",
            status=reading.status,
        )

    async def _get(self, url: str) -> dict[str, Any]:
        return await get_json(self._client, url, await self._headers(), shown=self.shown, host=self.host)

    def _object_url(self, key: str) -> str:
        return f"{self._endpoint}/storage/v1/b/{self._uri.bucket}/o/{quote(key, safe='')}"

    async def _headers(self) -> tuple[tuple[str, str], ...]:
        if not self._account:
            return ()
        if time.monotonic() > self._token_until:
            await self._fetch_token()
        return (("authorization", f"Bearer {self._token}"),)

    async def _fetch_token(self) -> None:
        """Exchange a statement signed with the account's key for a token."""
        address = self._token_endpoint
        shown = f"the token service for {self.shown}"
        host = urlsplit(address).hostname or ""
        form = {
            "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
            "assertion": self._assertion(address),
        }
        try:
            response = await self._client.post(address, data=form)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise from_http_error(error, shown, host) from error
        if response.status_code in {400, 401, 403}:
            raise FetchFailed(
                ReasonCode.STORAGE_UNAUTHORIZED,
                f"Google does not accept the service account's key for {self.shown} (HTTP {response.status_code})",
                status=401,
            )
        if response.status_code != 200:
            raise from_status(response.status_code, shown)
        try:
            answer = response.json()
        except ValueError:
            answer = None
        self._token = text_of(answer, "access_token")
        if not self._token:
            raise FetchFailed(ReasonCode.STORAGE_UNREACHABLE, f"{shown} gave no token", transient=True)
        self._token_until = time.monotonic() + TOKEN_SECONDS - TOKEN_SPARE_SECONDS

    def _assertion(self, audience: str) -> str:
        import jwt

        now = int(self._clock().timestamp())
        claims = {
            "iss": self._account["client_email"],
            "scope": SCOPE,
            "aud": audience,
            "iat": now,
            "exp": now + TOKEN_SECONDS,
        }
        try:
            return jwt.encode(claims, self._account["private_key"], algorithm="RS256")
        except (jwt.PyJWTError, ValueError, TypeError, NotImplementedError) as error:
            raise FetchFailed(
                ReasonCode.STORAGE_UNAUTHORIZED,
                "the private key in the service account's JSON cannot be used",
            ) from error


def _object(name: str, meta: Any) -> RemoteObject:
    generation = text_of(meta, "generation")
    size = text_of(meta, "size")
    return RemoteObject(
        name=safe_name(name),
        size=int(size) if size.isdecimal() else None,
        modified="" if generation else text_of(meta, "updated"),
        key=f"{text_of(meta, 'name')}#{generation}",
        pinned=bool(generation),
        version=generation,
    )


def _account(settings: Mapping[str, str]) -> dict[str, str]:
    """The service account's JSON, checked; empty for anonymous access."""
    text = next((settings[name] for name in CREDENTIALS[:-1] if settings.get(name)), "")
    if not text:
        return {}
    try:
        account = json.loads(text)
    except ValueError:
        account = None
    if not isinstance(account, dict) or not all(
        isinstance(account.get(name), str) and account[name] for name in ("client_email", "private_key")
    ):
        raise FetchFailed(
            ReasonCode.STORAGE_UNAUTHORIZED,
            "the Google credentials in the secret are not a service account's JSON (client_email, private_key)",
        )
    return {name: value for name, value in account.items() if isinstance(value, str)}
