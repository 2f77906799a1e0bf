"""The verbs on the platform itself: `up`, `config`, `version`. Flags of `up` are the settings' names."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from inferplane.cli import render
from inferplane.cli.options import Output
from inferplane.cli.output import Format, print_json, print_result
from inferplane.settings import LoadedSettings, load_settings
from inferplane.version import VERSION


def _option(flag: str, text: str, **more: Any) -> Any:
    return typer.Option(flag, help=text, show_default=False, rich_help_panel="Settings", **more)


Config = Annotated[str | None, _option("--config", "A TOML file with settings.", metavar="FILE")]
Home = Annotated[
    str | None, _option("--home", "The folder under which everything is kept.", metavar="FOLDER")
]
ApiPort = Annotated[int | None, _option("--api-port", "Port of the API and console; 0 chooses one.")]
GatewayPort = Annotated[int | None, _option("--gateway-port", "Port of the predictions; 0 chooses one.")]
Domain = Annotated[str | None, _option("--domain", "What endpoint host names end in.")]
DatabaseUrl = Annotated[str | None, _option("--database-url", "sqlite:///FILE or postgresql://….")]
ApiHost = Annotated[str | None, _option("--api-host", "Address on which the API listens.")]
GatewayHost = Annotated[str | None, _option("--gateway-host", "Address on which the gateway listens.")]
AdvertisedHost = Annotated[
    str | None, _option("--advertised-host", "This machine's address in URLs and DNS records.")
]
LogLevel = Annotated[str | None, _option("--log-level", "debug, info, warning or error.")]
CacheBytes = Annotated[
    int | None, _option("--model-cache-bytes-max", "Bytes of unused downloaded models to keep.")
]
ForkServers = Annotated[
    bool | None,
    _option("--fork-servers/--no-fork-servers", "Fork model servers, or start a fresh interpreter for each."),
]

CustomServers = Annotated[
    str | None, _option("--custom-servers", "auto, yes or no: may manifests bring commands to run here?")
]

DefaultAccess = Annotated[
    str | None,
    _option("--default-access", "auto, open or key: who may send requests to endpoints where nobody says."),
]

OtlpEndpoint = Annotated[
    str | None, _option("--otlp-endpoint", "Collector of traces, such as http://127.0.0.1:4318.")
]
TraceSamplePercent = Annotated[
    float | None,
    _option("--trace-sample-percent", "How many of 100 requests are traced whose callers do not say."),
]
Local = Annotated[
    bool | None,
    _option("--local/--no-local", "Run model servers and a gateway here, or only the API and controllers."),
]
OwnerKeyFile = Annotated[
    str | None, _option("--owner-key-file", "A file with the Owner key to use; else one is made.")
]


def register(app: typer.Typer, run: Callable[[LoadedSettings], int]) -> None:
    """Add the commands to `app`; `run` is what `up` starts."""

    @app.command()
    def up(
        config: Config = None,
        home: Home = None,
        api_port: ApiPort = None,
        gateway_port: GatewayPort = None,
        domain: Domain = None,
        database_url: DatabaseUrl = None,
        api_host: ApiHost = None,
        gateway_host: GatewayHost = None,
        advertised_host: AdvertisedHost = None,
        log_level: LogLevel = None,
        model_cache_bytes_max: CacheBytes = None,
        fork_servers: ForkServers = None,
        custom_servers: CustomServers = None,
        default_access: DefaultAccess = None,
        otlp_endpoint: OtlpEndpoint = None,
        trace_sample_percent: TraceSamplePercent = None,
        local: Local = None,
        owner_key_file: OwnerKeyFile = None,
    ) -> None:
        """Run the platform in the foreground, until Ctrl-C."""
        raise typer.Exit(run(_loaded(locals())))

    @app.command("quickstart")
    def start_quickly(
        once: Annotated[
            bool, typer.Option("--once", help="Afterwards delete the endpoint and stop everything.")
        ] = False,
        config: Config = None,
        home: Home = None,
        api_port: ApiPort = None,
        gateway_port: GatewayPort = None,
        domain: Domain = None,
        log_level: LogLevel = None,
    ) -> None:
        """Start the platform, deploy a model trained on the spot, and ask it for a prediction."""
        from inferplane.cli import quickstart

        flags = {
            "config": config,
            "home": home,
            "api_port": api_port,
            "gateway_port": gateway_port,
            "domain": domain,
            "log_level": log_level,
        }
        given = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items() if value is not None]
        quickstart.run(_loaded(flags).settings, given, once=once)

    @app.command("config")
    def show_config(
        config: Config = None,
        home: Home = None,
        api_port: ApiPort = None,
        gateway_port: GatewayPort = None,
        domain: Domain = None,
        database_url: DatabaseUrl = None,
        api_host: ApiHost = None,
        gateway_host: GatewayHost = None,
        advertised_host: AdvertisedHost = None,
        log_level: LogLevel = None,
        model_cache_bytes_max: CacheBytes = None,
        fork_servers: ForkServers = None,
        custom_servers: CustomServers = None,
        default_access: DefaultAccess = None,
        otlp_endpoint: OtlpEndpoint = None,
        trace_sample_percent: TraceSamplePercent = None,
        local: Local = None,
        owner_key_file: OwnerKeyFile = None,
        output: Output = Format.TABLE,
    ) -> None:
        """Print what is in force for `up`, and where each value came from."""
        flags = locals()
        flags.pop("output")
        loaded = _loaded(flags)
        if output is Format.JSON:
            print_json({"settings": [_setting(each) for each in loaded.sources]})
        else:
            print_result(render.settings_table(loaded.sources))

    @app.command()
    def version(output: Output = Format.TABLE) -> None:
        """Print the version of this program."""
        if output is Format.JSON:
            print_json({"version": VERSION})
        else:
            print_result(f"inferplane {VERSION}")


def _loaded(flags: dict[str, Any]) -> LoadedSettings:
    return load_settings({k: v for k, v in flags.items() if k != "run"}, os.environ, user_home=Path.home())


def _setting(each: Any) -> dict[str, Any]:
    value = each.value
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    elif not isinstance(value, int):
        value = render.setting_text(each)
    return {"name": each.name, "value": value, "source": each.source}
