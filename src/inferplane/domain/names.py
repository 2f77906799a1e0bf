"""Names of things: what a name may look like, and the namespace derived from two of them.

A name becomes part of a host name, so it is a DNS label. Nothing else about names lives here.
"""

from __future__ import annotations

import re

from inferplane.domain.errors import Invalid

NAME_CHARACTERS_MAX = 63
NAMESPACE_ENDPOINT_CHARACTERS = 12
NAMESPACE_SUFFIX_CHARACTERS = 6
NAMESPACE_WORKSPACE_CHARACTERS_MAX = (
    NAME_CHARACTERS_MAX - NAMESPACE_ENDPOINT_CHARACTERS - NAMESPACE_SUFFIX_CHARACTERS - len("--")
)

_LABEL = re.compile(r"[a-z0-9]([a-z0-9\-]*[a-z0-9])?", re.ASCII)


def check_name(text: str, field: str) -> str:
    """Return `text` if it is a DNS label in lower case of at most 63 characters.

    Raises Invalid (InvalidName) naming `field`, with a name that would do where one is near.
    """
    if not isinstance(text, str) or not text:
        raise Invalid(f"{field} is needed", reason="InvalidName", field=field, next_action=_RULE)
    if len(text) > NAME_CHARACTERS_MAX:
        raise Invalid(
            f"{field} is {len(text)} characters long; at most {NAME_CHARACTERS_MAX} are allowed",
            reason="InvalidName",
            field=field,
            next_action="Choose a shorter name.",
        )
    if not _LABEL.fullmatch(text):
        near = _near(text)
        raise Invalid(
            f"“{text}” cannot be a name",
            reason="InvalidName",
            field=field,
            next_action=f"{_RULE} For instance: {near}" if near else _RULE,
        )
    return text


def namespace_for(workspace: str, endpoint: str, suffix: str) -> str:
    """`<workspace>-<first 12 of the endpoint's name>-<suffix>`, the suffix being 6 random a-z0-9.

    A long workspace name is cut so that the whole stays a DNS label; the suffix keeps it unique.
    """
    place = workspace[:NAMESPACE_WORKSPACE_CHARACTERS_MAX]
    return f"{place}-{endpoint[:NAMESPACE_ENDPOINT_CHARACTERS]}-{suffix}"


_RULE = "A name has lower-case letters, digits and hyphens, and begins and ends with a letter or digit."


def _near(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
