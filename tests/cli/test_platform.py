"""`up`, `config`, `version`, keys, workspaces, clusters, help, and the last resort."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fake_platform import AT, KEY, running, waiting
from inferplane import __version__
from inferplane.cli.exits import ExitCode, exit_code_of
from inferplane.client import errors
from inferplane.settings import PLAIN_SETTINGS, Settings
from inferplane.wire.access import ApiKeyItem
from inferplane.wire.endpoints import LogLineItem
from platform_stack import wait_for


def test_up_gets_what_is_in_force_and_gives_its_exit_code(shell: Any, tmp_path: Path) -> None:
    shell.up_code = 1
    ran = shell.run(
        "up",
        *("--home", str(tmp_path / "elsewhere"), "--api-port", "0", "--gateway-port", "7081"),
        *("--domain", "example.test", "--log-level", "debug", "--no-fork-servers"),
        INFERPLANE_GATEWAY_HOST="0.0.0.0",
    )
    assert ran.code == 1
    (loaded,) = shell.started
    assert loaded.settings == Settings(
        home=tmp_path / "elsewhere",
        api_port=0,
        gateway_port=7081,
        domain="example.test",
        log_level="debug",
        fork_servers=False,
        gateway_host="0.0.0.0",
    )


def test_every_setting_is_a_flag_of_up(shell: Any) -> None:
    text = shell.run("up", "--help").out
    for field in PLAIN_SETTINGS:
        assert f"--{field.name.replace('_', '-')}" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--api-port", "99999"), "api_port from flag --api-port is not valid"),
        (("--log-level", "loud"), "log_level from flag --log-level is not valid"),
        (("--config", "/no/such/file"), "cannot read the configuration file"),
    ],
)
def test_settings_that_cannot_be_meant_start_nothing(shell: Any, words: tuple[str, ...], said: str) -> None:
    ran = shell.run("up", *words)
    assert (ran.code, ran.out, shell.started) == (2, "", [])
    assert said in ran.err


def test_config_shows_values_and_where_they_came_from(shell: Any, tmp_path: Path) -> None:
    file = tmp_path / "inferplane.toml"
    file.write_text('domain = "example.test"\n')
    words = ("config", "--config", str(file), "--gateway-port", "7081")
    lines = {line.split()[0]: line.split()[1:] for line in shell.run(*words).out.splitlines()}
    assert lines["domain"] == ["example.test", "file", str(file)]
    assert lines["gateway_port"] == ["7081", "flag", "--gateway-port"]
    assert lines["home"][1:] == ["environment", "INFERPLANE_HOME"]
    assert lines["api_port"] == ["7070", "default"]
    found = {each["name"]: each for each in shell.run(*words, "-o", "json").json["settings"]}
    assert found["gateway_port"] == {"name": "gateway_port", "value": 7081, "source": "flag --gateway-port"}
    assert found["fork_servers"]["value"] is True


def test_config_shows_declared_clusters(shell: Any, tmp_path: Path) -> None:
    file = tmp_path / "inferplane.toml"
    file.write_text(
        '[[cluster]]\nname = "worker-1"\nengine = "simulated"\n'
        '[[cluster.node]]\nname = "gpu"\ncount = 4\ninstance_type = "a2"\ngpu_shape = "NVIDIA-A100"\n'
        "gpus = 1\nmemory_gb = 80\n"
    )
    assert (
        "worker-1 (simulated: 4 x a2 (1 x NVIDIA-A100, 80 GB))" in shell.run("config", "--config", file).out
    )
    settings = shell.run("config", "--config", str(file), "-o", "json").json["settings"]
    (found,) = [each["value"] for each in settings if each["name"] == "cluster"]
    assert (found["name"], found["engine"], found["node"][0]["gpu_shape"]) == (
        "worker-1",
        "simulated",
        "NVIDIA-A100",
    )


def test_config_does_not_show_a_password(shell: Any) -> None:
    ran = shell.run("config", INFERPLANE_DATABASE_URL="postgresql://me:hunter2@host/db")
    assert "postgresql://me:***@host/db" in ran.out
    assert "hunter2" not in ran.out


def test_version(shell: Any) -> None:
    assert shell.run("version").out == f"inferplane {__version__}\n"
    assert shell.run("--version").out == f"inferplane {__version__}\n"
    assert shell.run("version", "-o", "json").json == {"version": __version__}


def test_keys(shell: Any) -> None:
    ran = shell.run("key", "create", "ci", "--role", "Viewer", "-w", "default")
    assert (ran.code, ran.out) == (0, "ipk_new\n"), "nothing but the key, for KEY=$(…)"
    assert shell.platform.asked[-1].body == {
        "name": "ci",
        "role": "Viewer",
        "validity": "90d",
        "workspaceName": "default",
    }
    assert shell.run("key", "list").out == "no API keys\n"
    shell.platform.keys = [ApiKeyItem("id1", "ipk_abcd…id1", "ci", "Viewer", "default", expires_at=AT)]
    row = shell.run("key", "list").out.splitlines()[1]
    assert row.split() == [
        "id1",
        "ci",
        "Viewer",
        "default",
        "ipk_abcd…id1",
        "2026-01-31",
        "12:00:00",
        "UTC",
        "-",
    ]
    assert shell.run("key", "list", "-o", "json").json["items"][0]["id"] == "id1"
    assert shell.run("key", "delete", "id1").code == 0
    assert shell.run("key", "create", "ci", "--role", "Viewer", "-o", "json").json == {"apiKey": "ipk_new"}


def test_workspaces_and_clusters(shell: Any) -> None:
    assert shell.run("workspace", "create", "team", "--namespace", "a").code == 0
    assert shell.platform.asked[-1].body["clusters"] == ["local"]
    assert shell.run("workspace", "list").out.splitlines()[2].split() == ["team", "local", "-"]
    assert shell.run("workspace", "list", "-o", "json").json["workspaces"][0]["name"] == "default"
    assert shell.run("workspace", "delete", "team", "--force").code == 0
    assert shell.platform.asked[-1].body == {"workspaceName": "team", "force": True}
    assert shell.run("cluster", "list").out.splitlines()[1].split() == [
        "local",
        "local",
        "yes",
        "-",
        "0",
        "0",
        "of",
        "0",
        "-",
        "-",
        "-",
    ]
    assert shell.run("cluster", "list", "-o", "json").json["items"][0]["name"] == "local"


def test_deleting_the_workspace_that_comes_back_is_warned_of(shell: Any) -> None:
    ran = shell.run("workspace", "delete", "default", "--force")
    assert (ran.code, ran.out) == (0, "workspace default is deleted\n")
    assert "the next start of the platform makes default again, empty" in ran.err
    shell.platform.workspaces = ["default", "team"]
    assert "commands that name no workspace mean default" in shell.run("workspace", "delete", "default").err
    shell.platform.workspaces = ["default", "team"]
    assert shell.run("workspace", "delete", "team").err == ""


@pytest.mark.parametrize(
    "words", [("nonsense",), ("list", "--nonsense"), ("deploy",), ("list", "-o", "yaml")]
)
def test_a_command_line_that_cannot_be_meant(shell: Any, words: tuple[str, ...]) -> None:
    ran = shell.run(*words)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err


def test_help_lists_every_exit_code(shell: Any) -> None:
    text = " ".join(shell.run("--help").out.split())
    for code in ExitCode:
        assert f"{code.value} {code.meaning}" in text


def test_every_error_of_the_sdk_has_an_exit_code_that_says_more_than_failed() -> None:
    vague = {
        kind.__name__
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.ClientError)
        if exit_code_of(kind("no")) is ExitCode.FAILED
    }
    assert vague == {"ClientError", "ApiError", "ServerError", "ProtocolError"}


def test_a_mistake_of_the_program_is_a_sentence_unless_asked_for(shell: Any) -> None:
    shell.up_error = ZeroDivisionError("division by zero")
    ran = shell.run("up")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.splitlines() == [
        "Error: this is a mistake of the program itself: ZeroDivisionError: division by zero",
        "  next: Report it; `inferplane --debug …` shows the place.",
    ]
    with pytest.raises(ZeroDivisionError):
        shell.run("--debug", "up")


# --- as a process, as a user has it -----------------------------------------------------------------


def start(shell: Any, *words: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    environment = {**os.environ, **{name: text for name, text in shell.environment.items() if text}}
    return subprocess.Popen(
        [sys.executable, "-m", "inferplane", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def test_on_a_terminal_the_line_moves_and_the_result_is_still_alone_on_stdout(shell: Any) -> None:
    loading = waiting("iris", "Loading", "Loading", "loading [bold]the model")
    shell.platform.after_create = [loading, loading, running("iris")]
    terminal, end = pty.openpty()
    process = start(shell, "deploy", "iris", "-f", "sklearn", "-u", "/m", "--wait", stderr=end)
    os.close(end)
    with process:
        out, _ = process.communicate(timeout=60)
    shown = os.read(terminal, 65536).decode()
    os.close(terminal)
    assert (process.returncode, out) == (
        0,
        "iris is Running at http://iris.default.localhost:7080/v1/models/iris:predict\n",
    )
    assert "iris: Loading — loading [bold]the model" in shown
    assert "\x1b[3" not in shown, "NO_COLOR is honoured"


def test_control_c_ends_a_command_quietly(shell: Any) -> None:
    shell.platform.endpoints["iris"] = [running("iris")]
    process = start(shell, "events", "iris", "--follow")
    with process:
        wait_for(lambda: any("events" in each.path for each in shell.platform.asked), "the first question")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "")


def test_a_reader_that_goes_away_is_no_traceback(shell: Any) -> None:
    shell.platform.endpoints["iris"] = [running("iris")]
    shell.platform.lines = [LogLineItem("r1-0", "x" * 1000)] * 500
    process = start(shell, "logs", "iris", "--follow")
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
        process.wait(timeout=30)
    assert process.returncode != 0
    assert "Traceback" not in err


def test_the_key_is_nowhere_in_what_is_printed(shell: Any) -> None:
    shell.platform.endpoints["iris"] = [running("iris")]
    for words in (("describe", "iris"), ("list",), ("config",), ("--debug", "explain", "nope")):
        ran = shell.run(*words)
        assert KEY not in ran.out + ran.err


def test_a_workspace_is_changed(shell: Any) -> None:
    ran = shell.run("workspace", "update", "team", "--cluster", "a", "--cluster", "b")
    assert (ran.code, ran.out) == (0, "workspace team is changed\n")
    assert shell.platform.asked[-1].body == {"workspaceName": "team", "clusters": ["a", "b"]}
    assert shell.run("workspace", "update", "team").code == ExitCode.USAGE
