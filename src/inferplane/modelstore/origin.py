"""Where a model comes from: what an origin is asked, and what it answers.

An origin (a web server, a bucket, a hub) knows how to say what is stored at a URI, as a `Listing`,
and how to address each object with one plain GET. Everything that makes a download robust (ranges,
resuming, digests, the disk) is written once, in `transfer`, on top of that.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from urllib.parse import urlsplit

from inferplane.domain.reasons import ReasonCode
from inferplane.modelstore.failure import FetchFailed

Clock = Callable[[], datetime]

NAME_BYTES_MAX = 255
PATH_BYTES_MAX = 2048
ADDRESS_CHARACTERS_MAX = 2048

_ADDRESS = re.compile(
    r"https?://"
    r"(?:[A-Za-z0-9._~!$&'()*+,;=:%\-]*@)?"  # a user and a password
    r"(?:[A-Za-z0-9_][A-Za-z0-9_.\-]{0,252}|\[[0-9A-Fa-f:.]+\])"
    r"(?::[0-9]{1,5})?"
    rf"(?:/[!-\"$->@-~]{{0,{ADDRESS_CHARACTERS_MAX}}})?"  # a path, without ? and #
)


@dataclass(frozen=True, slots=True)
class RemoteObject:
    """One object to fetch.

    `name` is where it goes, relative, with forward slashes, safe to join. `size` is bytes, None when
    unknown. `etag` and `modified` are what the answer to a GET must repeat, "" when not known;
    `version` is another word for the version, for origins whose answers do not repeat it.
    `key` is for the origin itself to address the object. `pinned` says that the address can only ever
    give this version. `sha256` is hex, "" when the origin does not know it.
    """

    name: str
    size: int | None = None
    etag: str = ""
    modified: str = ""
    key: str = ""
    pinned: bool = False
    sha256: str = ""
    version: str = ""

    @property
    def validator(self) -> str:
        """The value for If-Range, which needs a strong validator; "" when there is none."""
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return "" if self.etag else self.modified


@dataclass(frozen=True, slots=True)
class Listing:
    """What is stored at a URI. `single` is True when the URI names one object, False for a folder.

    `ranges` is False when the origin has shown that it cannot send a part of an object.
    """

    objects: tuple[RemoteObject, ...]
    single: bool
    ranges: bool = True

    @property
    def total_bytes(self) -> int | None:
        """The sum of all sizes; None when one is unknown."""
        total = 0
        for found in self.objects:
            if found.size is None:
                return None
            total += found.size
        return total

    @property
    def version(self) -> str:
        """A word that changes when what is stored changes, as far as the origin tells."""
        facts = [[o.name, o.size, o.etag or o.modified, o.version, o.sha256] for o in self.objects]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Address:
    """One GET: the URL and the headers that authorise it. Holds secrets; never shown."""

    url: str
    headers: tuple[tuple[str, str], ...] = ()


class Origin(Protocol):
    """Adapter to one kind of storage for one URI and its credentials."""

    @property
    def shown(self) -> str:
        """The URI, redacted, for sentences."""

    @property
    def host(self) -> str:
        """The host that is asked, for sentences and for limits per host."""

    async def look(self) -> Listing:
        """Find out what is stored. Raises FetchFailed, transient where another try may help."""

    async def address(self, found: RemoteObject) -> Address:
        """How to GET an object that `look` has found. Raises FetchFailed."""


def endpoint_of(text: str, name: str, *, scheme: str = "https") -> str:
    """The address of a storage's service as somebody has set it in `name`, without a slash behind;
    `scheme` is the one meant when none is given. Raises FetchFailed (ModelNotFound) for what is no
    address; what was set is not repeated, because it may hold a password.
    """
    address = text.strip().rstrip("/")
    if "://" not in address:
        address = f"{scheme}://{address}"
    try:
        usable = bool(_ADDRESS.fullmatch(address)) and urlsplit(address).port != 0
    except ValueError:  # a port above 65535, or brackets without an IPv6 address in them
        usable = False
    if not usable:
        raise FetchFailed(
            ReasonCode.MODEL_NOT_FOUND, f"what is set in {name} is not an address such as https://host:9000"
        )
    return address


def safe_name(name: str) -> str:
    """`name` as a relative path that stays inside its folder, or FetchFailed (UnsafeArchive).

    Empty and `.` segments are dropped, as every file system does.
    """
    if name.startswith("/"):
        raise _unsafe(name, "is an absolute path")
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        raise _unsafe(name, "has a control character in its name")
    segments = [segment for segment in name.split("/") if segment not in {"", "."}]
    if ".." in segments:
        raise _unsafe(name, "leads out of its folder with ..")
    try:
        lengths = [len(segment.encode()) for segment in segments]
    except UnicodeEncodeError as error:
        raise _unsafe(ascii(name), "has a name that is not valid text") from error
    if not segments or max(lengths) > NAME_BYTES_MAX or sum(lengths) + len(lengths) > PATH_BYTES_MAX:
        raise _unsafe(name, "has an empty or overlong name")
    return "/".join(segments)


def _unsafe(name: str, why: str) -> FetchFailed:
    shown = name if len(name) <= 120 else name[:120] + "…"
    shown = "".join(c if c.isprintable() else "?" for c in shown)
    return FetchFailed(ReasonCode.UNSAFE_ARCHIVE, f"the entry “{shown}” {why}")
