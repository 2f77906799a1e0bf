"""Kubeconfigs: one context taken out of many, with everything in it and nothing beside it.

A kubeconfig is a dict here, as YAML has it. One that is handed over to the platform must stand alone: it
names no file of another machine and starts no program (`exec`, `auth-provider`), because the platform would
have to run that program with its own rights. `alone` makes such a one, `check_alone` refuses any other.

Nothing here repeats a value of a kubeconfig in an error: any of them may be a secret.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import Any

from inferplane.domain.errors import Invalid

Raw = Mapping[str, Any]
ReadFile = Callable[[str], bytes]

FIELD = "kubeconfig"
_FILES = {
    "certificate-authority": "certificate-authority-data",
    "client-certificate": "client-certificate-data",
    "client-key": "client-key-data",
}
_PROGRAMS = ("exec", "auth-provider")
_TOKEN_FILE = "tokenFile"  # noqa: S105 - a key's name


def alone(config: object, context: str, read_file: ReadFile) -> dict[str, Any]:
    """The one context (`""` for the current one) as a kubeconfig of its own, with files read into it.

    `read_file` gets a path as the kubeconfig writes it and may raise Invalid.
    Raises Invalid when there is no such context, or when its user is a program.
    """
    name, cluster_name, user_name, namespace = _chosen(config, context)
    cluster = dict(_entry(config, "clusters", "cluster", cluster_name))
    user = dict(_entry(config, "users", "user", user_name))
    for part in (cluster, user):
        for key, data_key in _FILES.items():
            path = part.pop(key, None)
            if path and data_key not in part:
                part[data_key] = b64encode(read_file(str(path))).decode()
    path = user.pop(_TOKEN_FILE, None)
    if path and "token" not in user:
        user["token"] = read_file(str(path)).decode("utf-8", "replace").strip()
    chosen = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster_name, "cluster": cluster}],
        "users": [{"name": user_name, "user": user}],
        "contexts": [
            {
                "name": name,
                "context": {
                    "cluster": cluster_name,
                    "user": user_name,
                    **({"namespace": namespace} if namespace else {}),
                },
            }
        ],
        "current-context": name,
    }
    check_alone(chosen, "")
    return chosen


def check_alone(config: object, context: str) -> str:
    """The name of the context if the kubeconfig stands alone. Raises Invalid naming what it leans on."""
    name, cluster_name, user_name, _ = _chosen(config, context)
    cluster = _entry(config, "clusters", "cluster", cluster_name)
    user = _entry(config, "users", "user", user_name)
    server = cluster.get("server")
    if not isinstance(server, str) or not server.startswith(("https://", "http://")):
        raise _invalid(f"cluster {_shown(cluster_name)} of the kubeconfig has no server address")
    for key in _PROGRAMS:
        if user.get(key):
            raise Invalid(
                f"user {_shown(user_name)} of the kubeconfig gets its credentials from a program ({key}),"
                " which the platform does not run",
                reason="KubeconfigRunsProgram",
                field=FIELD,
                next_action="Give one with a token or a client certificate, for instance of a service account.",
            )
    for part in (cluster, user):
        for key in (*_FILES, _TOKEN_FILE):
            if part.get(key):
                raise Invalid(
                    f"the kubeconfig names a file ({key}), which is not on the platform's machine",
                    reason="KubeconfigNamesFile",
                    field=FIELD,
                    next_action="Put the file's content into the kubeconfig, as `inferplane cluster add` does.",
                )
    return name


def _chosen(config: object, context: str) -> tuple[str, str, str, str]:
    """(context, cluster, user, namespace)."""
    if not isinstance(config, Mapping) or not isinstance(config.get("contexts"), list):
        raise _invalid("this is no kubeconfig: it has no contexts")
    name = context or config.get("current-context") or ""
    if not isinstance(name, str) or not name:
        raise _invalid("the kubeconfig has no current context", "Name one of its contexts.", "context")
    known = [each.get("name") for each in config["contexts"] if isinstance(each, Mapping)]
    if name not in known:
        listed = ", ".join(_shown(each) for each in known if isinstance(each, str)) or "none"
        raise _invalid(
            f"the kubeconfig has no context {_shown(name)}", f"Its contexts are: {listed}.", "context"
        )
    chosen = _entry(config, "contexts", "context", name)
    cluster, user = chosen.get("cluster"), chosen.get("user")
    if not isinstance(cluster, str) or not isinstance(user, str):
        raise _invalid(f"context {_shown(name)} of the kubeconfig names no cluster or no user")
    namespace = chosen.get("namespace")
    return name, cluster, user, namespace if isinstance(namespace, str) else ""


def _entry(config: object, kinds: str, kind: str, name: str) -> Raw:
    listed = config.get(kinds) if isinstance(config, Mapping) else None
    for each in listed if isinstance(listed, list) else []:
        if isinstance(each, Mapping) and each.get("name") == name and isinstance(each.get(kind), Mapping):
            found: Raw = each[kind]
            return found
    raise _invalid(f"the kubeconfig has no {kind} named {_shown(name)}")


def _invalid(message: str, next_action: str = "", field: str = FIELD) -> Invalid:
    return Invalid(
        message,
        reason="InvalidKubeconfig",
        field=field,
        next_action=next_action or "Check that it works with kubectl.",
    )


def _shown(name: str) -> str:
    return "".join(character for character in name if character.isprintable())[:80]
