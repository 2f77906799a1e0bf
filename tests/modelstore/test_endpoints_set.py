"""Addresses that users set in a secret: what is none is told, and never raises anything else."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.reasons import ReasonCode
from inferplane.modelstore.failure import FetchFailed
from inferplane.modelstore.origin import endpoint_of
from inferplane.modelstore.store import ModelStore, Source

Fetched = Callable[[ModelStore, str, Source], Coroutine[Any, Any, ArtifactState]]

BAD = (
    "http://[bad",
    "http://host:99999",
    "http://user:sesame@[",
    "ftp://host",
    "http://a b",
    "http://h/?q",
    "\ud800",
)


def account(token_uri: str) -> str:
    return json.dumps({"client_email": "a@b", "private_key": "k", "token_uri": token_uri})


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("s3://models/m.joblib", "AWS_ENDPOINT_URL"),
        ("s3://models/m.joblib", "AWS_REGION"),
        ("gs://models/m.joblib", "STORAGE_EMULATOR_HOST"),
        ("gs://models/m.joblib", "GOOGLE_SERVICE_ACCOUNT"),
        ("hf://owner/iris", "HF_ENDPOINT"),
    ],
)
async def test_what_is_no_address_is_told_and_not_tried_again(
    store: ModelStore, fetched: Fetched, uri: str, name: str, bad: str
) -> None:
    source = Source(uri, secret={name: account(bad) if name == "GOOGLE_SERVICE_ACCOUNT" else bad})
    (check,) = await store.probe(source)
    assert (check.check, check.ok, check.reason) == ("storage", False, ReasonCode.MODEL_NOT_FOUND)
    state = await fetched(store, "u1", source)
    assert (state.phase, state.reason) == (ArtifactPhase.FAILED, ReasonCode.MODEL_NOT_FOUND)
    assert ("token_uri" if name == "GOOGLE_SERVICE_ACCOUNT" else name) in state.message
    assert "sesame" not in check.message + state.message


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("host", "https://host"),
        ("http://127.0.0.1:9000/", "http://127.0.0.1:9000"),
        ("https://[::1]:9000/below", "https://[::1]:9000/below"),
        ("http://user:word@host:1", "http://user:word@host:1"),
        (" host:80\n", "https://host:80"),
    ],
)
def test_addresses_are_read_as_they_are_meant(text: str, address: str) -> None:
    assert endpoint_of(text, "X") == address


def test_port_nought_is_none() -> None:
    with pytest.raises(FetchFailed):
        endpoint_of("http://host:0", "X")
