"""An API server of Kubernetes, emulated over real HTTP, and beside it what a KServe does to its objects.

For tests of whatever talks to a cluster. It keeps the promises that such a program leans on: resource versions and
409, generations that count changes of spec only, `/status` apart, server-side apply with owners of fields, list
and watch with resume, bookmarks and 410, finalizers, owner references and the collector behind them, namespaces that
take their content along, the structural schemas of KServe's real CRDs, RBAC by token. And it breaks them on demand.

    async with KubeApi() as api:                          # on this loop, on a port of its own
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")   # user "admin": may do everything
        async with Behaving(api) as kserve:
            kserve.fail("my-namespace", Failure.IMAGE_PULL)
            ...
        api.faults.away(); ...; await api.faults.back()
        assert api.requests.count(verb="create", resource="namespaces") == 1

`api.store` is the same cluster from the inside, without HTTP and without a line in `api.requests`: what tests and
controllers (`Player`, `Behaving`) use to look and to act as "somebody else". `ApiInThread` is the same for
programs that do not share the test's loop; `python -m kube_api --kubeconfig FILE` is it as a process.
Where `shared/data` is not beside the checkout `SHARED` is None: use `needs_recordings` (a pytest mark).
"""

from kube_api.controller import Behaving, Failure, Player
from kube_api.faults import Faults
from kube_api.rbac import ADMIN, Rule, User
from kube_api.recordings import SHARED, Line, Recording, needs_recordings, recording, recordings
from kube_api.server import ApiInThread, KubeApi, Logged, RequestLog
from kube_api.store import Refused, Store

__all__ = [
    "ADMIN",
    "SHARED",
    "ApiInThread",
    "Behaving",
    "Failure",
    "Faults",
    "KubeApi",
    "Line",
    "Logged",
    "Player",
    "Recording",
    "Refused",
    "RequestLog",
    "Rule",
    "Store",
    "User",
    "needs_recordings",
    "recording",
    "recordings",
]
