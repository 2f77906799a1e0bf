"""One context of a kubeconfig, standing alone."""

from __future__ import annotations

from base64 import b64encode
from copy import deepcopy
from typing import Any

import pytest

from inferplane.domain.errors import Invalid
from inferplane.domain.kubeconfig import alone, check_alone

SECRET = "hunter2hunter2"
FILES = {"ca.pem": b"authority", "me.pem": b"certificate", "me.key": b"key", "token": b"from-a-file\n"}
TWO: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Config",
    "current-context": "east",
    "clusters": [
        {"name": "e", "cluster": {"server": "https://east:6443", "certificate-authority": "ca.pem"}},
        {"name": "w", "cluster": {"server": "https://west:6443", "insecure-skip-tls-verify": True}},
    ],
    "users": [
        {"name": "me", "user": {"client-certificate": "me.pem", "client-key": "me.key"}},
        {"name": "robot", "user": {"tokenFile": "token"}},
    ],
    "contexts": [
        {"name": "east", "context": {"cluster": "e", "user": "me", "namespace": "n"}},
        {"name": "west", "context": {"cluster": "w", "user": "robot"}},
    ],
}


def read(name: str) -> bytes:
    return FILES[name]


def data(name: str) -> str:
    return b64encode(FILES[name]).decode()


def test_the_current_context_with_its_files_in_it() -> None:
    chosen = alone(TWO, "", read)
    assert chosen == {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "e",
                "cluster": {"server": "https://east:6443", "certificate-authority-data": data("ca.pem")},
            }
        ],
        "users": [
            {
                "name": "me",
                "user": {"client-certificate-data": data("me.pem"), "client-key-data": data("me.key")},
            }
        ],
        "contexts": [{"name": "east", "context": {"cluster": "e", "user": "me", "namespace": "n"}}],
        "current-context": "east",
    }
    assert check_alone(chosen, "") == check_alone(chosen, "east") == "east"


def test_another_context_with_a_token() -> None:
    chosen = alone(TWO, "west", read)
    assert [each["name"] for each in chosen["users"]] == ["robot"]
    assert chosen["users"][0]["user"] == {"token": "from-a-file"}
    assert chosen["clusters"][0]["cluster"]["insecure-skip-tls-verify"] is True


def test_what_is_there_twice_is_taken_from_the_data() -> None:
    both = deepcopy(TWO)
    both["clusters"][0]["cluster"]["certificate-authority-data"] = "inline"
    assert alone(both, "east", read)["clusters"][0]["cluster"]["certificate-authority-data"] == "inline"


@pytest.mark.parametrize("program", ["exec", "auth-provider"])
def test_a_program_is_refused(program: str) -> None:
    config = deepcopy(TWO)
    config["users"][0]["user"] = {program: {"command": SECRET}}
    for function in (lambda: alone(config, "east", read), lambda: check_alone(config, "east")):
        with pytest.raises(Invalid) as caught:
            function()
        assert caught.value.reason == "KubeconfigRunsProgram"
        assert SECRET not in caught.value.message


@pytest.mark.parametrize(
    ("config", "context", "said"),
    [
        (None, "", "no kubeconfig"),
        ("text", "", "no kubeconfig"),
        ({"contexts": {}}, "", "no kubeconfig"),
        ({"contexts": []}, "", "no current context"),
        ({"contexts": [], "current-context": 7}, "", "no current context"),
        ({"contexts": [None, {"name": 3}]}, "x", "no context x"),
        (TWO, "north", "no context north"),
        ({"contexts": [{"name": "x", "context": {}}]}, "x", "names no cluster"),
        ({"contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}]}, "x", "no cluster named c"),
        ({**TWO, "clusters": [{"name": "e", "cluster": {}}]}, "east", "no server address"),
        (
            {**TWO, "clusters": [{"name": "e", "cluster": {"server": "file:///x"}}]},
            "east",
            "no server address",
        ),
        ({**TWO, "users": None}, "east", "no user named me"),
    ],
)
def test_what_is_no_kubeconfig(config: object, context: str, said: str) -> None:
    with pytest.raises(Invalid) as caught:
        check_alone(config, context)
    assert said in caught.value.message
    assert caught.value.reason == "InvalidKubeconfig"


def test_files_are_refused_where_they_cannot_be_read() -> None:
    with pytest.raises(Invalid) as caught:
        check_alone(TWO, "east")
    assert caught.value.reason == "KubeconfigNamesFile"
    known = caught.value.message
    assert "certificate-authority" in known
