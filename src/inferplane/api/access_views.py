"""Endpoint keys and usage → what callers see. Pure; a key's value passes once, when it is made."""

from __future__ import annotations

import csv
import io
from datetime import datetime

from inferplane.domain.endpoint_access import EndpointKey, Usage, Used
from inferplane.services.usage import UsageReport
from inferplane.wire.endpoint_keys import EndpointKeyItem
from inferplane.wire.usage import UsageItem, UsageList, UsageTotal

CSV = "text/csv; charset=utf-8"
CSV_COLUMNS = ("start", "endpoint", "keyId", "keyName", "requests", "errors", "rows", "tokens", "seconds")
# A spreadsheet takes a text that begins so for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def endpoint_key_item(key: EndpointKey, now: datetime) -> EndpointKeyItem:
    """A key as listed."""
    return EndpointKeyItem(
        key_id=key.id,
        name=key.name,
        workspace=key.workspace,
        endpoints=tuple(dict.fromkeys(name for _, name in key.endpoints)),
        requests_per_second=key.requests_per_second,
        validity=key.validity,
        created_at=key.created_at,
        created_by=key.created_by,
        expires_at=key.expires_at,
        expired=key.expires_at <= now,
    )


def usage_list(report: UsageReport) -> UsageList:
    """What was used, with its sum."""
    return UsageList(
        items=tuple(_usage_item(each, report.key_names) for each in report.items),
        total=_total(report.total),
        by=report.by,
        since=report.since,
        until=report.until,
    )


def usage_csv(report: UsageReport) -> bytes:
    """The same as a table for spreadsheets, with a line of headings and without the sum."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\r\n")
    table.writerow(CSV_COLUMNS)
    for each in report.items:
        item = _usage_item(each, report.key_names)
        table.writerow(
            [
                item.start.isoformat().replace("+00:00", "Z"),
                item.endpoint,
                item.key_id,
                _harmless(item.key_name),
                item.requests,
                item.errors,
                item.rows,
                item.tokens,
                item.seconds,
            ]
        )
    return text.getvalue().encode()


def _usage_item(usage: Usage, names: dict[str, str]) -> UsageItem:
    used = usage.used
    return UsageItem(
        start=usage.start,
        endpoint=usage.endpoint,
        key_id=usage.key_id,
        key_name=names.get(usage.key_id, ""),
        requests=used.requests,
        errors=used.errors,
        rows=used.rows,
        tokens=used.tokens,
        seconds=used.milliseconds / 1000,
        uid=usage.endpoint_uid,
    )


def _total(used: Used) -> UsageTotal:
    return UsageTotal(used.requests, used.errors, used.rows, used.tokens, used.milliseconds / 1000)


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text
