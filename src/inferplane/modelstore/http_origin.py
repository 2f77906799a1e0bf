"""One file on a web server.

The first question is a GET for the first few hundred bytes. Unlike HEAD it works with links signed
for GET, and one answer tells the size, the version, whether ranges work, and whether this is a
model at all or a page about one.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from email.message import Message

import httpx

from inferplane.domain.reasons import ReasonCode
from inferplane.domain.storage_uri import StorageUri
from inferplane.modelstore.content import FIRST_BYTES, refuse_page
from inferplane.modelstore.failure import FetchFailed, from_http_error, from_status
from inferplane.modelstore.origin import Address, Listing, RemoteObject, safe_name

CREDENTIALS = ("HTTP_USERNAME", "HTTP_PASSWORD", "HTTP_BEARER_TOKEN")

_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


class HttpOrigin:
    """A file or archive at an http or https address; see the module's story."""

    def __init__(self, uri: StorageUri, secret: Mapping[str, str], client: httpx.AsyncClient) -> None:
        self._uri = uri
        self._client = client
        self._headers = _authorization(secret)

    @property
    def shown(self) -> str:
        """The address without its signature."""
        return self._uri.shown

    @property
    def host(self) -> str:
        """Host name of the address."""
        return self._uri.host

    async def look(self) -> Listing:
        """Ask for the beginning of the file."""
        answer = await self._first_bytes(ranged=True)
        if answer is None:
            answer = await self._first_bytes(ranged=False)
        assert answer is not None
        return answer

    async def address(self, found: RemoteObject) -> Address:  # noqa: ARG002 - there is but one object
        """The address itself."""
        return Address(self._uri.text, self._headers)

    async def _first_bytes(self, *, ranged: bool) -> Listing | None:
        """What the server says of the file; None when it cannot answer a question with a range."""
        headers = dict(self._headers) | {"accept-encoding": "identity"}
        if ranged:
            headers["range"] = f"bytes=0-{FIRST_BYTES - 1}"
        try:
            async with self._client.stream("GET", self._uri.text, headers=headers) as response:
                if response.status_code == 416 and ranged:
                    return None
                if response.status_code not in {200, 206}:
                    raise from_status(response.status_code, self.shown)
                beginning = await _beginning(response)
                return self._listing(response, beginning)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise from_http_error(error, self.shown, self.host) from error

    def _listing(self, response: httpx.Response, beginning: bytes) -> Listing:
        refuse_page(self.shown, response.headers.get("content-type", ""), beginning)
        encoded = response.headers.get("content-encoding", "identity") != "identity"
        size: int | None = None
        part, total = content_range(response.headers.get("content-range", ""))
        partial = response.status_code == 206 or part is not None
        ranges = partial and not encoded
        if partial:
            size = total
        elif not encoded and response.headers.get("content-length", "").isdigit():
            size = int(response.headers["content-length"])
        found = RemoteObject(
            name=_file_name(self._uri, response),
            size=size,
            etag=response.headers.get("etag", ""),
            modified=response.headers.get("last-modified", ""),
        )
        return Listing((found,), single=True, ranges=ranges)


def content_range(header: str) -> tuple[int | None, int | None]:
    """(first byte, total) of a Content-Range header; None for what it does not say."""
    match = _CONTENT_RANGE.fullmatch(header.strip())
    if match is None:
        return None, None
    first, _, total = match.groups()
    return (int(first) if first else None), (int(total) if total != "*" else None)


async def _beginning(response: httpx.Response) -> bytes:
    """Up to FIRST_BYTES of the body; the rest is left unread."""
    read = b""
    async for chunk in response.aiter_bytes():
        read += chunk
        if len(read) >= FIRST_BYTES:
            break
    return read[:FIRST_BYTES]


def _file_name(uri: StorageUri, response: httpx.Response) -> str:
    """What to call the file: by its address, or by what the server calls it when the address is bare."""
    name = uri.file_name
    if "." not in name:
        message = Message()
        message["content-disposition"] = response.headers.get("content-disposition", "")
        name = (message.get_filename() or "").rpartition("/")[2] or name
    try:
        return safe_name(name.replace("/", "_"))
    except FetchFailed:
        return "model"


def _authorization(secret: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    token, user = secret.get("HTTP_BEARER_TOKEN", ""), secret.get("HTTP_USERNAME", "")
    if token:
        value = f"Bearer {token}"
    elif user:
        pair = f"{user}:{secret.get('HTTP_PASSWORD', '')}"
        value = "Basic " + base64.b64encode(pair.encode()).decode()
    else:
        return ()
    if not value.isprintable() or not value.isascii():
        raise FetchFailed(
            ReasonCode.STORAGE_UNAUTHORIZED, "the credentials hold characters that no HTTP header can carry"
        )
    return (("authorization", value),)
