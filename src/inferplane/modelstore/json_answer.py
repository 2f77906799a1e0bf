"""Small JSON answers of storage services, read with a limit on their size and no trust in their shape."""

from __future__ import annotations

import json
from typing import Any

import httpx

from inferplane.domain.reasons import ReasonCode
from inferplane.modelstore.failure import FetchFailed, from_http_error, from_status

ANSWER_BYTES_MAX = 64 * 1024 * 1024


async def get_json(
    client: httpx.AsyncClient, url: str, headers: tuple[tuple[str, str], ...], *, shown: str, host: str
) -> dict[str, Any]:
    """The JSON object at `url`. Raises FetchFailed, with `status` for any HTTP answer but 200."""
    try:
        async with client.stream("GET", url, headers=dict(headers)) as response:
            if response.status_code != 200:
                raise from_status(
                    response.status_code, shown, _detail(response.headers.get("x-error-message", ""))
                )
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > ANSWER_BYTES_MAX:
                    raise FetchFailed(
                        ReasonCode.NOT_A_MODEL, f"the listing of {shown} is too long to be a model's"
                    )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise from_http_error(error, shown, host) from error
    try:
        answer = json.loads(body)
    except ValueError as error:
        raise FetchFailed(
            ReasonCode.STORAGE_UNREACHABLE, f"{host} answers for {shown} with something that is not JSON"
        ) from error
    if not isinstance(answer, dict):
        raise FetchFailed(ReasonCode.STORAGE_UNREACHABLE, f"{host} answers for {shown} in an unknown shape")
    return answer


def text_of(value: object, name: str) -> str:
    """A field of a JSON object as text; "" when it is not there or is neither text nor a number."""
    found = value.get(name) if isinstance(value, dict) else None
    return str(found) if isinstance(found, str | int) and not isinstance(found, bool) else ""


def _detail(header: str) -> str:
    return "".join(c for c in header if c.isprintable())[:200]
