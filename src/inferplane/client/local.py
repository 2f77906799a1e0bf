"""The platform of this machine, as a client finds it."""

from __future__ import annotations

from inferplane.locks import is_locked
from inferplane.settings import Settings


def running_at(settings: Settings) -> str:
    """The address of the API of the platform that runs with this home right now; "" when none does.

    What a platform that was killed has left does not count: its lock is gone, and at its address may be
    anybody by now.
    """
    try:
        if not is_locked(settings.lock_path):
            return ""
        return settings.api_url_path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
