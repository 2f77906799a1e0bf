"""All configuration, read once into a frozen object, with where each value came from.

Precedence, strongest first: command-line flag, environment (`INFERPLANE_…`), configuration file
(TOML, `--config` or `INFERPLANE_CONFIG`), default. Nothing else in the platform reads the
environment for its own configuration.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from inferplane.domain.errors import Invalid

ENVIRONMENT_PREFIX = "INFERPLANE_"
DEFAULT_API_PORT = 7070


@dataclass(frozen=True, slots=True)
class Settings:
    """What is in force. Ports are TCP; 0 lets the system choose (tests do).

    `api_host` and `gateway_host` default to loopback: a stranger's laptop opens nothing to the
    network unless asked. `advertised_host` is the address put into URLs and DNS records.
    """

    home: Path
    api_port: int = DEFAULT_API_PORT
    gateway_port: int = 7080
    domain: str = "localhost"
    database_url: str = ""
    api_host: str = "127.0.0.1"
    gateway_host: str = "127.0.0.1"
    advertised_host: str = "127.0.0.1"
    log_level: str = "info"
    model_cache_bytes_max: int = 20 * 1024**3
    fork_servers: bool = True

    @property
    def effective_database_url(self) -> str:
        """The given URL, or SQLite under the home folder."""
        return self.database_url or f"sqlite:///{self.home / 'inferplane.db'}"

    @property
    def owner_key_path(self) -> Path:
        """Where the first start leaves the Owner key (mode 0600)."""
        return self.home / "owner.key"


@dataclass(frozen=True, slots=True)
class Sourced:
    """One setting's value in force and its origin (`flag --api-port`, `environment …`, a file, `default`)."""

    name: str
    value: Any
    source: str


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Settings together with their origins, for `inferplane config`."""

    settings: Settings
    sources: tuple[Sourced, ...]


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Where a client finds the platform. `api_key` is "" when none was found; `why_no_key` says why."""

    api_url: str
    api_key: str
    workspace: str = "default"
    why_no_key: str = ""


def load_client_settings(
    environment: Mapping[str, str],
    *,
    user_home: Path,
    api_url: str | None = None,
    api_key: str | None = None,
) -> ClientSettings:
    """What was given, else the environment, else the platform of this machine.

    Address: `INFERPLANE_API_URL`, else this machine's `INFERPLANE_API_PORT` (7070). Key:
    `INFERPLANE_API_KEY`, else the Owner key under the home folder; that one is only ever offered to
    an address on this machine. Workspace: `INFERPLANE_WORKSPACE`, else `default`.
    Raises Invalid for an address that is none, and whatever `load_settings` raises.
    """
    local = load_settings({}, environment, user_home=user_home).settings
    url = (api_url or environment.get(ENVIRONMENT_PREFIX + "API_URL") or _local_url(local)).rstrip("/")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise Invalid(
            f"{url!r} is not the address of a platform",
            reason="InvalidAddress",
            field="api_url",
            next_action="Give one like http://127.0.0.1:7070.",
        )
    key = api_key if api_key is not None else environment.get(ENVIRONMENT_PREFIX + "API_KEY", "").strip()
    why = "" if key else "no API key was given"
    if api_key is None and not key and is_loopback(url):
        key, why = _owner_key(local.owner_key_path)
    workspace = environment.get(ENVIRONMENT_PREFIX + "WORKSPACE") or "default"
    return ClientSettings(url, key, workspace, why)


def is_loopback(url: str) -> bool:
    """Whether `url` points at this very machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a name; where it leads is not for us to say
        return False


def _local_url(local: Settings) -> str:
    host = "127.0.0.1" if local.api_host in {"", "0.0.0.0", "::", "localhost"} else local.api_host  # noqa: S104 - a comparison
    return f"http://{f'[{host}]' if ':' in host else host}:{local.api_port or DEFAULT_API_PORT}"


def _owner_key(path: Path) -> tuple[str, str]:
    """The Owner key that the first start left at `path`, or "" and why not."""
    try:
        key = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return "", f"no API key was given, and there is no Owner key at {path}"
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        return "", f"no API key was given, and the Owner key at {path} cannot be read: {why}"
    return key, "" if key else f"the Owner key at {path} is empty"


def load_settings(
    flags: Mapping[str, Any], environment: Mapping[str, str], *, user_home: Path
) -> LoadedSettings:
    """Merge flags, environment and file over the defaults.

    `flags` maps setting names to values, None meaning not given; the key `config` names a file.
    Raises Invalid with the setting, its source and what is wrong.
    """
    config_path = flags.get("config") or environment.get(ENVIRONMENT_PREFIX + "CONFIG")
    from_file = _read_file(Path(config_path)) if config_path else {}
    values: dict[str, Any] = {}
    sources: list[Sourced] = []
    for field in fields(Settings):
        raw, source = _pick(field.name, flags, environment, from_file, config_path)
        if source == "default":
            value = user_home / ".inferplane" if field.name == "home" else field.default
        else:
            value = _parse(field.name, raw, source)
        values[field.name] = value
        sources.append(Sourced(field.name, value, source))
    return LoadedSettings(Settings(**values), tuple(sources))


def _pick(
    name: str,
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    from_file: Mapping[str, Any],
    path: Any,
) -> tuple[Any, str]:
    if flags.get(name) is not None:
        return flags[name], f"flag --{name.replace('_', '-')}"
    variable = ENVIRONMENT_PREFIX + name.upper()
    if environment.get(variable):
        return environment[variable], f"environment {variable}"
    if name in from_file:
        return from_file[name], f"file {path}"
    return None, "default"


def _read_file(path: Path) -> Mapping[str, Any]:
    try:
        content = tomllib.loads(path.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise Invalid(
            f"cannot read the configuration file {path}: {error.strerror}", field="config"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"{path} is not valid TOML: {error}", field="config") from error
    known = {field.name for field in fields(Settings)}
    unknown = sorted(set(content) - known)
    if unknown:
        raise Invalid(
            f"{path} has unknown settings: {', '.join(unknown)}",
            field=unknown[0],
            next_action=f"known settings are: {', '.join(sorted(known))}",
        )
    return content


def _port(raw: Any) -> int:
    port = int(raw)
    if not 0 <= port <= 65535:
        raise ValueError("a port is a whole number from 0 to 65535")
    return port


def _positive(raw: Any) -> int:
    number = int(raw)
    if number < 1:
        raise ValueError("must be a whole number of at least 1")
    return number


def _boolean(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    word = str(raw).lower()
    if word not in {"true", "false", "1", "0", "yes", "no"}:
        raise ValueError("must be true or false")
    return word in {"true", "1", "yes"}


def _log_level(raw: Any) -> str:
    level = str(raw).lower()
    if level not in {"debug", "info", "warning", "error"}:
        raise ValueError("must be one of debug, info, warning, error")
    return level


def _database_url(raw: Any) -> str:
    url = str(raw)
    if url and not url.startswith(("sqlite://", "postgresql://", "postgres://")):
        raise ValueError("must begin with sqlite:// or postgresql://")
    return url


_PARSERS: Mapping[str, Callable[[Any], Any]] = {
    "home": lambda raw: Path(raw).expanduser().absolute(),
    "api_port": _port,
    "gateway_port": _port,
    "database_url": _database_url,
    "log_level": _log_level,
    "model_cache_bytes_max": _positive,
    "fork_servers": _boolean,
}


def _parse(name: str, raw: Any, source: str) -> Any:
    try:
        return _PARSERS.get(name, str)(raw)
    except (TypeError, ValueError) as error:
        raise Invalid(f"{name} from {source} is not valid: {raw!r}; {error}", field=name) from error
