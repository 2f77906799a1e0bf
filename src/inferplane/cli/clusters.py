"""The verbs on clusters: `inferplane cluster …`.

A kubeconfig is read here, where its files are: the one context that is meant is taken out of it, with the files
that it names read into it, and only that is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from inferplane.cli import render
from inferplane.cli.exits import ExitCode
from inferplane.cli.options import Output, connected, read_bytes
from inferplane.cli.output import Format, note, print_json, print_result
from inferplane.client import InvalidError
from inferplane.domain.cluster import KUBECONFIG_BYTES_MAX
from inferplane.domain.errors import Invalid
from inferplane.domain.kubeconfig import alone

KSERVE = "kserve"

clusters = typer.Typer(no_args_is_help=True, help="Clusters.")

Name = Annotated[str, typer.Argument(help="Name of the cluster.", show_default=False)]
Kubeconfig = Annotated[
    str,
    typer.Option(
        "--kubeconfig",
        metavar="FILE",
        help="A kubeconfig; the one context of it is sent and kept.",
        show_default=False,
    ),
]
KubeconfigRef = Annotated[
    str,
    typer.Option(
        "--kubeconfig-ref",
        metavar="PATH",
        help="A kubeconfig on the platform's own machine, read there each time.",
        show_default=False,
    ),
]
InCluster = Annotated[
    bool,
    typer.Option(
        "--in-cluster", help="The cluster that the platform itself runs in, by its service account."
    ),
]
Context = Annotated[
    str, typer.Option("--context", help="The kubeconfig's context; else its current one.", show_default=False)
]
Drift = Annotated[
    str,
    typer.Option(
        "--drift", help="What others change of ours: restore (put right) or leave.", show_default=False
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Even if it does not answer.")]


@dataclass(frozen=True, slots=True)
class _Given:
    """What the options say of the credentials."""

    kubeconfig: str
    context: str


def register(app: typer.Typer) -> None:
    """Add the group to `app`."""
    app.add_typer(clusters, name="cluster")


@clusters.command("list")
def list_clusters(context: typer.Context, output: Output = Format.TABLE) -> None:
    """List the clusters: whether they answer, what they run, what they have of GPUs."""
    with connected(context) as client:
        found = client.list_clusters()
    if output is Format.JSON:
        print_json({"items": found})
    else:
        print_result(render.cluster_list(found))


@clusters.command("add")
def add_cluster(
    context: typer.Context,
    name: Name,
    kubeconfig: Kubeconfig = "",
    kubeconfig_ref: KubeconfigRef = "",
    in_cluster: InCluster = False,
    kube_context: Context = "",
    domain: Annotated[
        str, typer.Option("--domain", help="What its endpoints' names end in.", show_default=False)
    ] = "",
    ingress: Annotated[
        str,
        typer.Option(
            "--ingress", metavar="ADDRESS", help="Where requests to its endpoints go.", show_default=False
        ),
    ] = "",
    drift: Drift = "",
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            help="What runs its model servers: kserve, local or simulated; else kserve where a kubeconfig is given.",
            show_default=False,
        ),
    ] = "",
    force: Force = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only look at it; nothing is stored.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Register a cluster of Kubernetes, which works at once, or name one that `up` will be configured with."""
    given = _read(kubeconfig, kube_context)
    kind = engine or (KSERVE if kubeconfig or kubeconfig_ref or in_cluster else "local")
    if kind != KSERVE:
        only_there = {
            "--kubeconfig": kubeconfig,
            "--kubeconfig-ref": kubeconfig_ref,
            "--context": kube_context,
        }
        only_there |= {"--ingress": ingress, "--drift": drift}
        flags = {"--in-cluster": in_cluster, "--dry-run": dry_run, "--force": force}
        if stray := next((option for option, value in (only_there | flags).items() if value), ""):
            raise typer.BadParameter("this is only for clusters of Kubernetes", param_hint=stray)
        with connected(context) as client:
            made = client.register_cluster(name, engine=kind, domain=domain)
        if output is Format.JSON:
            print_json({"name": made})
        else:
            print_result(f"cluster {made} is known")
            note("It runs nothing until it is declared as [[cluster]] in the configuration file of `up`.")
        return
    with connected(context) as client:
        report = client.connect_cluster(
            name,
            kubeconfig=given.kubeconfig,
            kubeconfig_ref=kubeconfig_ref,
            context=given.context,
            in_cluster=in_cluster,
            domain=domain,
            ingress_address=ingress,
            drift=drift,
            force=force,
            dry_run=dry_run,
        )
    if output is Format.JSON:
        print_json({"name": name, "report": report})
        return
    print_result(render.cluster_report(report))
    if dry_run:
        note("Nothing was stored.")
        return
    print_result(f"cluster {name} is known")
    if all(each.ok for each in report.checks):
        note(f"Give it to a workspace: inferplane workspace create NAME --cluster {name}")
    else:
        note(f"It is not ready for endpoints yet; `inferplane cluster check {name}` looks again.")


@clusters.command("update")
def update_cluster(
    context: typer.Context,
    name: Name,
    kubeconfig: Kubeconfig = "",
    kubeconfig_ref: KubeconfigRef = "",
    in_cluster: InCluster = False,
    kube_context: Context = "",
    domain: Annotated[
        str | None, typer.Option("--domain", help="What its endpoints' names end in.", show_default=False)
    ] = None,
    ingress: Annotated[
        str | None,
        typer.Option(
            "--ingress", metavar="ADDRESS", help="Where requests to its endpoints go.", show_default=False
        ),
    ] = None,
    drift: Drift = "",
    force: Force = False,
    output: Output = Format.TABLE,
) -> None:
    """Give a cluster of Kubernetes other credentials or settings; what is not named stays."""
    if (
        not (kubeconfig or kubeconfig_ref or in_cluster or kube_context or drift)
        and domain is ingress is None
    ):
        raise typer.BadParameter("name what is to change", param_hint="--kubeconfig")
    given = _read(kubeconfig, kube_context)
    with connected(context) as client:
        report = client.change_cluster(
            name,
            domain=domain,
            ingress_address=ingress,
            kubeconfig=given.kubeconfig,
            kubeconfig_ref=kubeconfig_ref,
            context=given.context,
            in_cluster=in_cluster,
            drift=drift,
            force=force,
        )
    if output is Format.JSON:
        print_json({"name": name, "report": report})
    else:
        print_result(render.cluster_report(report))
        print_result(f"cluster {name} is changed")


@clusters.command("check")
def check_cluster(context: typer.Context, name: Name, output: Output = Format.TABLE) -> None:
    """Look at a cluster of Kubernetes now: does it answer, what may we do there, what runs there?"""
    with connected(context) as client:
        report = client.check_cluster(name)
    if output is Format.JSON:
        print_json({"name": name, "report": report})
    else:
        print_result(render.cluster_report(report))
    if not report.reachable or not all(each.ok for each in report.checks):
        raise typer.Exit(ExitCode.FAILED)


@clusters.command("remove")
def remove_cluster(context: typer.Context, name: Name, output: Output = Format.TABLE) -> None:
    """Forget a cluster that no workspace has and that the configuration file does not declare."""
    with connected(context) as client:
        client.delete_cluster(name)
    if output is Format.JSON:
        print_json({})
    else:
        print_result(f"cluster {name} is forgotten")


def _read(path: str, kube_context: str) -> _Given:
    """The one context of a kubeconfig, standing alone. Raises InvalidError, typer.BadParameter."""
    if not path:
        return _Given("", kube_context)
    import yaml  # here, because only kubeconfigs need it

    content = read_bytes(path, "the kubeconfig")
    if len(content) > KUBECONFIG_BYTES_MAX:
        raise InvalidError(f"{path} is larger than {KUBECONFIG_BYTES_MAX} bytes", reason="TooLarge")
    folder = Path() if path == "-" else Path(path).expanduser().absolute().parent
    try:
        config = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError):
        config = None  # an error of the parser would quote the text
    chosen = alone(config, kube_context, lambda name: _read_beside(folder, name))
    return _Given(yaml.safe_dump(chosen, sort_keys=False), str(chosen["current-context"]))


def _read_beside(folder: Path, name: str) -> bytes:
    """A file that the kubeconfig names. Raises Invalid."""
    try:
        with (folder / name).open("rb") as file:
            return file.read(KUBECONFIG_BYTES_MAX)
    except OSError as error:
        raise Invalid(
            f"the kubeconfig names the file {name}, which cannot be read: {error.strerror}",
            reason="KubeconfigNamesFile",
            field="kubeconfig",
        ) from error
