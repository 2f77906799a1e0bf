"""Is this a model at all? A look at the first bytes, for mistakes that people make with addresses.

It refuses web pages, pointers of Git LFS and empty files. It does not try to recognise models:
LightGBM's are plain text and XGBoost's are JSON, so text as such is no ground for refusal.
"""

from __future__ import annotations

import re

from inferplane.domain.reasons import ReasonCode
from inferplane.modelstore.failure import FetchFailed

FIRST_BYTES = 512  # enough to know a page by

_PAGE = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)[\s>]", re.IGNORECASE | re.DOTALL
)
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_QUOTE_CHARACTERS = 60


def refuse_page(shown: str, content_type: str, beginning: bytes) -> None:
    """Raise FetchFailed (NotAModel) when `beginning`, the body's first bytes, is that of no model."""
    kind = content_type.partition(";")[0].strip().lower()
    says_page = kind in {"text/html", "application/xhtml+xml"} and b"\0" not in beginning
    if says_page or _PAGE.match(beginning):
        raise FetchFailed(
            ReasonCode.NOT_A_MODEL,
            f"{shown} answers with a web page, not a model"
            f" (content type {kind or 'not given'}; it begins with {_quote(beginning)})",
        )
    refuse_pointer(shown, beginning)


def refuse_pointer(shown: str, beginning: bytes) -> None:
    """Raise FetchFailed (NotAModel) for a Git LFS pointer, which stands for a file and is not it."""
    if beginning.startswith(_LFS_POINTER):
        raise FetchFailed(
            ReasonCode.NOT_A_MODEL,
            f"{shown} is a Git LFS pointer, not the model it points to; use the address of the file's media",
        )


def refuse_empty(shown: str, size: int) -> None:
    """Raise FetchFailed (NotAModel) for a file without a byte."""
    if size == 0:
        raise FetchFailed(ReasonCode.NOT_A_MODEL, f"{shown} is an empty file")


def _quote(beginning: bytes) -> str:
    text = " ".join(beginning.decode("utf-8", "replace").split())[:_QUOTE_CHARACTERS]
    return "“" + "".join(c if c.isprintable() else "?" for c in text) + "”"
