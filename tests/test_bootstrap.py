"""What the composition root says of itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from inferplane.bootstrap import RunningPlatform
from inferplane.settings import Settings, load_settings
from inferplane.store.dialect import Claim
from inferplane.store.sql import Store


@pytest.mark.parametrize(
    ("api_host", "advertised", "api", "gateway"),
    [
        ("127.0.0.1", "127.0.0.1", "http://127.0.0.1:7070", "http://127.0.0.1:7080"),
        ("127.0.0.1", "192.168.1.7", "http://127.0.0.1:7070", "http://192.168.1.7:7080"),
        ("0.0.0.0", "192.168.1.7", "http://192.168.1.7:7070", "http://192.168.1.7:7080"),
        ("::", "2001:db8::7", "http://[2001:db8::7]:7070", "http://[2001:db8::7]:7080"),
        ("::1", "2001:db8::7", "http://[::1]:7070", "http://[2001:db8::7]:7080"),
    ],
)
async def test_the_line_of_readiness_names_addresses_that_can_be_opened(
    store: Store, tmp_path: Path, api_host: str, advertised: str, api: str, gateway: str
) -> None:
    settings: Settings = replace(
        load_settings({}, {}, user_home=tmp_path).settings, api_host=api_host, advertised_host=advertised
    )
    running = RunningPlatform(settings, 7070, 7080, store, {}, Claim())
    assert running.ready_line == f"inferplane is ready: api {api} gateway {gateway} home {settings.home}"
