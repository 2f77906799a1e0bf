"""A bucket that speaks S3: AWS, MinIO and their kin.

Listing and signing are obstore's; the bytes come by plain GETs to addresses it has signed, so that
resuming works as for any web server. The process's own AWS variables must never reach a user's
request: obstore reads them for whatever it is not told, so it is told everything. Without keys in
the secret, requests are anonymous; the machine's own identity is nobody's to borrow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from inferplane.domain.reasons import ReasonCode
from inferplane.domain.storage_uri import StorageUri
from inferplane.modelstore.failure import FetchFailed, from_status
from inferplane.modelstore.origin import Address, Listing, RemoteObject, endpoint_of, safe_name

if TYPE_CHECKING:
    from obstore.store import S3Store

CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "awsAnonymousCredential",
)
REGION = "us-east-1"
SIGNED_FOR = timedelta(hours=12)
OBJECTS_MAX = 10_000

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,80})</Code>")
_REGION = re.compile(r"<Region>([a-z0-9\-]{1,40})</Region>")
_REGION_NAME = re.compile(r"[A-Za-z0-9_\-]{1,64}", re.ASCII)
_UNKNOWN_KEYS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "AuthorizationHeaderMalformed",
}


class S3Origin:
    """A key, or every key under a prefix, in an S3 bucket."""

    def __init__(self, uri: StorageUri, settings: Mapping[str, str]) -> None:
        """Raises FetchFailed for a region or an endpoint that cannot be one."""
        self._uri = uri
        self._settings = settings
        anonymous = settings.get("awsAnonymousCredential", "").lower() in {"true", "1", "yes"}
        self._keys = (settings.get("AWS_ACCESS_KEY_ID", ""), settings.get("AWS_SECRET_ACCESS_KEY", ""))
        self._anonymous = anonymous or not all(self._keys)
        self._region = settings.get("AWS_DEFAULT_REGION") or settings.get("AWS_REGION") or ""
        if self._region and not _REGION_NAME.fullmatch(self._region):
            raise FetchFailed(ReasonCode.MODEL_NOT_FOUND, "what is set in AWS_REGION is not a region's name")
        endpoint = settings.get("AWS_ENDPOINT_URL", "")
        self._endpoint = endpoint_of(endpoint, "AWS_ENDPOINT_URL") if endpoint else ""
        self._redirected = False

    @property
    def shown(self) -> str:
        """The URI."""
        return self._uri.shown

    @property
    def host(self) -> str:
        """The endpoint's host."""
        return urlsplit(self._base()[0]).hostname or ""

    async def look(self) -> Listing:
        """The object at the key, or the objects under it. When the storage says that the bucket lies in
        another region, there.
        """
        try:
            return await self._list()
        except _OtherRegion as other:
            self._region, self._redirected = other.region, True
            return await self._list()

    async def address(self, found: RemoteObject) -> Address:
        """A link to the object, signed for some hours."""
        if self._anonymous:
            return Address(f"{self._base()[1]}/{quote(found.key)}")
        import obstore

        try:
            return Address(await obstore.sign_async(self._store(), "GET", found.key, SIGNED_FOR))
        except Exception as error:  # obstore's errors have no family but this; `_failure` tells them apart
            raise self._failure(error) from error

    async def _list(self) -> Listing:
        key = self._uri.path
        refused: FetchFailed | None = None
        if key and not key.endswith("/"):
            try:
                head = await self._store().head_async(key)
            except FileNotFoundError:
                pass
            except Exception as error:  # as above: obstore's errors have no family of their own
                refused = self._failure(error)
                if refused.status not in {301, 400, 403}:
                    raise refused from error
            else:
                return Listing((_object(key.rpartition("/")[2], head),), single=True)
        return await self._under(key.rstrip("/"), refused)

    async def _under(self, prefix: str, refused: FetchFailed | None) -> Listing:
        start = len(prefix) + 1 if prefix else 0
        objects: list[RemoteObject] = []
        try:
            stream: Any = self._store().list(prefix or None)
            async for page in stream:
                objects += [
                    _object(meta["path"][start:], meta)
                    for meta in page
                    if not meta["path"].endswith("/") and meta["path"][start:]
                ]
                _check_count(len(objects), self.shown)
        except FetchFailed:
            raise
        except Exception as error:  # as above: obstore's errors have no family of their own
            raise self._failure(error) from error
        if not objects:
            raise refused or FetchFailed(
                ReasonCode.MODEL_NOT_FOUND, f"no object is stored at {self.shown} or under it"
            )
        return Listing(tuple(sorted(objects, key=lambda found: found.name)), single=False)

    def _base(self) -> tuple[str, str]:
        """(endpoint, address of the bucket) without a slash behind."""
        bucket = self._uri.bucket
        if self._endpoint:
            return self._endpoint, f"{self._endpoint}/{bucket}"
        region = self._region or REGION
        if "." in bucket:  # a dot would not match the certificate's wildcard
            return f"https://s3.{region}.amazonaws.com", f"https://s3.{region}.amazonaws.com/{bucket}"
        return f"https://{bucket}.s3.{region}.amazonaws.com", f"https://{bucket}.s3.{region}.amazonaws.com"

    def _store(self) -> S3Store:
        from obstore.store import S3Store

        endpoint, bucket_address = self._base()
        options: dict[str, Any] = {
            "region": self._region or REGION,
            "endpoint": endpoint,
            "virtual_hosted_style_request": endpoint == bucket_address,
            "client_options": {
                "allow_http": endpoint.startswith("http://"),
                "timeout": "30s",
                "connect_timeout": "10s",
            },
            "retry_config": {"max_retries": 1, "retry_timeout": timedelta(seconds=20)},
        }
        if self._anonymous:
            return S3Store(self._uri.bucket, skip_signature=True, **options)
        token = self._settings.get("AWS_SESSION_TOKEN") or None
        identity = {
            "access_key_id": self._keys[0],
            "secret_access_key": self._keys[1],
            "token": token,
            "expires_at": None,
        }
        return S3Store(self._uri.bucket, credential_provider=lambda: identity, **options)  # type: ignore[arg-type]

    def _failure(self, error: Exception) -> FetchFailed:
        """Read obstore's error, which carries the storage's answer only as text."""
        text = str(error)
        status = _STATUS.search(text)
        code_match, region = _CODE.search(text), _REGION.search(text)
        code = code_match.group(1) if code_match else ""
        if region and region.group(1) != (self._region or REGION) and not self._redirected:
            raise _OtherRegion(region.group(1)) from error
        if code in _UNKNOWN_KEYS:
            return FetchFailed(
                ReasonCode.STORAGE_UNAUTHORIZED,
                f"the storage does not accept the credentials for {self.shown} ({code})",
                status=int(status.group(1)) if status else 0,
            )
        if status is not None:
            number = int(status.group(1))
            if number == 403:
                return self._forbidden(code)
            return from_status(number, self.shown, code)
        if isinstance(error, (PermissionError, ValueError)):
            return FetchFailed(ReasonCode.MODEL_NOT_FOUND, f"{self.shown} cannot be asked for")
        return FetchFailed(
            ReasonCode.STORAGE_UNREACHABLE, f"{self.host} does not answer ({self.shown})", transient=True
        )

    def _forbidden(self, code: str) -> FetchFailed:
        who = "without credentials" if self._anonymous else "to these credentials"
        return FetchFailed(
            ReasonCode.STORAGE_FORBIDDEN,
            f"the storage refuses {self.shown} {who} (HTTP 403{f', {code}' if code else ''});"
            " S3 answers so for a key that does not exist as well, unless listing the bucket is allowed",
            status=403,
        )


class _OtherRegion(Exception):
    def __init__(self, region: str) -> None:
        self.region = region
        super().__init__(region)


def _object(name: str, meta: Any) -> RemoteObject:
    etag = (meta.get("e_tag") or "").strip('"')  # some servers leave the quotes out of listings
    return RemoteObject(
        name=safe_name(name),
        size=int(meta["size"]),
        etag=f'"{etag}"' if etag else "",
        version="" if etag else str(meta.get("last_modified") or ""),
        key=meta["path"],
    )


def _check_count(count: int, shown: str) -> None:
    if count > OBJECTS_MAX:
        raise FetchFailed(
            ReasonCode.NOT_A_MODEL,
            f"{shown} holds more than {OBJECTS_MAX} objects; point the URI at the model's own folder",
        )
