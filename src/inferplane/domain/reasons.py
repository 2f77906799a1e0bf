"""The closed list of reason codes: why something is not (yet) Running.

A code is a promise: it has a meaning, names the evidence shown with it, and says what to do next.
`docs/reasons.md` is compared with this list by a test; codes are added here or nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ReasonCode(StrEnum):
    """Machine-readable cause. The value is what the wire carries."""

    # On the way: nothing is wrong.
    ACCEPTED = "Accepted"
    DOWNLOADING = "Downloading"
    STARTING = "Starting"
    LOADING = "Loading"
    TERMINATING = "Terminating"
    ROUTE_NOT_READY = "RouteNotReady"
    DNS_NOT_READY = "DnsNotReady"
    # Waiting for something outside the endpoint.
    AWAITING_GPU = "AwaitingGpu"
    QUOTA_EXCEEDED = "QuotaExceeded"
    NO_SUCH_SHAPE = "NoSuchShape"
    CLUSTER_UNREACHABLE = "ClusterUnreachable"
    CLUSTER_UNAUTHORIZED = "ClusterUnauthorized"
    CLUSTER_FORBIDDEN = "ClusterForbidden"
    KSERVE_NOT_READY = "KServeNotReady"
    NODE_NOT_READY = "NodeNotReady"
    UNSCHEDULABLE = "Unschedulable"
    # The model cannot be fetched.
    MODEL_NOT_FOUND = "ModelNotFound"
    STORAGE_UNAUTHORIZED = "StorageUnauthorized"
    STORAGE_FORBIDDEN = "StorageForbidden"
    STORAGE_UNREACHABLE = "StorageUnreachable"
    HOST_NOT_FOUND = "HostNotFound"
    DOWNLOAD_INTERRUPTED = "DownloadInterrupted"
    CHECKSUM_MISMATCH = "ChecksumMismatch"
    NOT_A_MODEL = "NotAModel"
    UNSAFE_ARCHIVE = "UnsafeArchive"
    DISK_FULL = "DiskFull"
    SCHEME_NOT_SUPPORTED = "SchemeNotSupported"
    # The model cannot be served.
    UNSUPPORTED_FORMAT = "UnsupportedFormat"
    NO_RUNTIME = "NoRuntime"
    MISSING_EXTRA = "MissingExtra"
    MODEL_FILE_MISSING = "ModelFileMissing"
    MODEL_FILE_AMBIGUOUS = "ModelFileAmbiguous"
    MODEL_LOAD_FAILED = "ModelLoadFailed"
    OUT_OF_MEMORY = "OutOfMemory"
    OUT_OF_GPU_MEMORY = "OutOfGpuMemory"
    CRASH_LOOP = "CrashLoop"
    SERVER_EXITED = "ServerExited"
    UNRESPONSIVE = "Unresponsive"
    START_TIMEOUT = "StartTimeout"
    PORT_UNAVAILABLE = "PortUnavailable"
    IMAGE_PULL_BACK_OFF = "ImagePullBackOff"
    CONTAINER_CONFIG_ERROR = "ContainerConfigError"
    CONTAINER_START_FAILED = "ContainerStartFailed"
    VOLUME_NOT_READY = "VolumeNotReady"
    POD_REFUSED = "PodRefused"
    SPEC_REFUSED = "SpecRefused"
    ENGINE_ERROR = "EngineError"
    # Taken away or put to rest.
    GPU_RELEASED = "GpuReleased"
    EVICTED = "Evicted"
    IDLE_TIMEOUT = "IdleTimeout"
    EXIT_DURATION_REACHED = "ExitDurationReached"
    STOPPED_BY_USER = "StoppedByUser"
    SCALED_TO_ZERO = "ScaledToZero"
    POD_EVICTED = "PodEvicted"
    CHANGED_OUTSIDE = "ChangedOutside"
    ROLLED_BACK = "RolledBack"
    ROLLOUT_IN_PROGRESS = "RolloutInProgress"


@dataclass(frozen=True, slots=True)
class Reason:
    """What a code means, what is shown as proof, and what the reader can do.

    `retry_helps` is True where trying again without anyone acting may succeed: such failures are
    retried with growing pauses; the others are retried too, but slowly, because a person must act.
    `to_mend` is what a person does where nothing is tried again by itself, because the endpoint's GPUs were
    given back; "" where `next_action` is that already.
    """

    code: ReasonCode
    meaning: str
    evidence: str
    next_action: str
    retry_helps: bool = False
    to_mend: str = ""

    @property
    def mended_by(self) -> str:
        """What to do before asking for GPUs again."""
        return self.to_mend or self.next_action


def reason_of(code: ReasonCode) -> Reason:
    """Return the entry for `code`; total, because the table below is checked to be complete."""
    return REASONS[code]


def _table(*reasons: Reason) -> dict[ReasonCode, Reason]:
    table = {reason.code: reason for reason in reasons}
    missing = set(ReasonCode) - set(table)
    if missing or len(table) != len(reasons):
        raise AssertionError(f"reason table incomplete or doubled: {sorted(missing)}")
    return table


REASONS: dict[ReasonCode, Reason] = _table(
    Reason(ReasonCode.ACCEPTED, "The request is stored; a controller has not acted on it yet.", "When it was accepted.", "Nothing to do. If this lasts for more than a few seconds, check /readyz of the platform.", True),
    Reason(ReasonCode.DOWNLOADING, "The model is being fetched from its storage URI.", "Bytes received of total, rate, estimated time left, whether the download was resumed.", "Wait; `inferplane describe NAME` shows the progress.", True),
    Reason(ReasonCode.STARTING, "The model server has been started and has not reported yet.", "Since when, and the server's process.", "Wait; `inferplane logs NAME` shows what the server prints.", True),
    Reason(ReasonCode.LOADING, "The model server runs and is loading the model.", "Elapsed time of the start timeout.", "Wait; `inferplane logs NAME` shows what the server prints.", True),
    Reason(ReasonCode.TERMINATING, "The endpoint is being deleted.", "What is left to undo.", "Nothing to do; it disappears from the list when everything is undone.", True),
    Reason(ReasonCode.ROUTE_NOT_READY, "A replica answers, but the gateway does not route to it yet.", "The gateway's last accepted route version.", "Wait a moment; if it lasts, check that the gateway is ready with /readyz.", True),
    Reason(ReasonCode.DNS_NOT_READY, "The endpoint's host name does not resolve to the gateway.", "The name and what it resolves to.", "Create the DNS records shown by describe, or use the path address, which needs no DNS.", True),
    Reason(ReasonCode.AWAITING_GPU, "The endpoint waits in the queue for GPUs.", "Position, what holds the GPUs, estimated start.", "Wait, ask for another shape, or raise the priority.", True),
    Reason(ReasonCode.QUOTA_EXCEEDED, "A limit of the workspace's policy is reached.", "The limit and what uses it.", "Delete something in the workspace or ask an Owner to raise the limit.", True),
    Reason(ReasonCode.NO_SUCH_SHAPE, "No node of the cluster has the GPU shape that was asked for.", "The shapes the cluster has.", "Ask for one of the shapes in the inventory, or leave gpuSpec out to run on CPU."),
    Reason(ReasonCode.CLUSTER_UNREACHABLE, "The cluster's engine does not answer.", "The last error and when the cluster was last seen.", "Check the cluster, and that the configuration declares it; the endpoint goes on by itself when it is back.", True, to_mend="Check the cluster, and that the configuration declares it."),
    Reason(ReasonCode.CLUSTER_UNAUTHORIZED, "The cluster does not know the credentials that it was registered with.", "The cluster's answer.", "Register the cluster again with a kubeconfig that works with kubectl; the endpoint goes on by itself.", True, to_mend="Register the cluster again with a kubeconfig that works with kubectl."),
    Reason(ReasonCode.CLUSTER_FORBIDDEN, "The cluster knows the platform's credentials and refuses what is needed.", "The verb and the resource that are refused.", "Grant what `inferplane cluster check NAME` lists; it is tried again by itself.", True, to_mend="Grant what `inferplane cluster check NAME` lists."),
    Reason(ReasonCode.KSERVE_NOT_READY, "KServe is not installed in the cluster, or not set up so that it can serve.", "What is missing.", "Install KServe, or set it up as `inferplane cluster check NAME` says.", True),
    Reason(ReasonCode.NODE_NOT_READY, "The node of the model server does not answer, or was taken out of use before the model server ran.", "The node, what it says, since when.", "Nothing to do where the cluster moves it to another node, or GPUs are asked for again by themselves; else mend the node, or ask again for GPUs.", True, to_mend="Mend the node, or ask again for GPUs elsewhere."),
    Reason(ReasonCode.UNSCHEDULABLE, "The cluster has no place for the replica.", "The scheduler's message.", "Ask for fewer resources or add a node.", True),
    Reason(ReasonCode.MODEL_NOT_FOUND, "Nothing is stored at the storage URI.", "The URI and the storage's answer.", "Store the model there, or say where it is: `inferplane update NAME --uri URI`; the URI that was given is tried again by itself.", to_mend="Store the model at the storage URI, or correct the URI with `inferplane update NAME --uri URI`."),
    Reason(ReasonCode.STORAGE_UNAUTHORIZED, "The storage asks for credentials, or does not know those given.", "The URI and the storage's answer.", "Give credentials in the model's secret (see docs/user-guide.md, Storage)."),
    Reason(ReasonCode.STORAGE_FORBIDDEN, "The storage knows the credentials and refuses access.", "The URI and the storage's answer.", "Grant the credentials read access to the object, or use others."),
    Reason(ReasonCode.STORAGE_UNREACHABLE, "The storage does not answer.", "The URI and the connection's error.", "Check that the storage is up and reachable from this machine; the download is tried again by itself.", True, to_mend="Check that the storage is up and reachable from this machine."),
    Reason(ReasonCode.HOST_NOT_FOUND, "The host in the storage URI does not resolve.", "The host name.", "Check the spelling of the host, or this machine's DNS; the download is tried again by itself.", True, to_mend="Check the spelling of the host, or this machine's DNS."),
    Reason(ReasonCode.DOWNLOAD_INTERRUPTED, "The connection broke before the model had arrived whole.", "Bytes received of total.", "Nothing to do; the download resumes where it broke.", True, to_mend="Check the connection to the storage."),
    Reason(ReasonCode.CHECKSUM_MISMATCH, "The model's bytes do not have the digest that was asked for.", "The digest wanted and the digest found.", "Check the digest, and that the object at the URI is the one you mean."),
    Reason(ReasonCode.NOT_A_MODEL, "What lies at the storage URI is not a model: a web page, an empty file, a device, a folder of too much.", "What was found there: content type and first bytes, or kind and size.", "Point the storage URI at the model's own file or folder; on the web, at the file itself and not at a page about it."),
    Reason(ReasonCode.UNSAFE_ARCHIVE, "The archive holds entries that would be written outside its own folder, or is too large unpacked.", "The offending entry.", "Repack the archive with plain relative files only."),
    Reason(ReasonCode.DISK_FULL, "There is not enough free space for the model.", "Bytes needed and bytes free.", "Free space under the platform's home folder; the download is tried again by itself.", True, to_mend="Free space under the platform's home folder."),
    Reason(ReasonCode.SCHEME_NOT_SUPPORTED, "This engine cannot fetch from this kind of storage URI.", "The scheme and where it does work.", "Use a scheme that this cluster supports, or a cluster that supports this scheme."),
    Reason(ReasonCode.UNSUPPORTED_FORMAT, "No runtime knows this model format.", "The formats that are known.", "Use one of the known formats."),
    Reason(ReasonCode.NO_RUNTIME, "The format is known, but this cluster has no runtime that can serve it as asked.", "The runtimes that were considered and why each does not fit.", "Change the manifest, or use a cluster with a fitting runtime."),
    Reason(ReasonCode.MISSING_EXTRA, "The Python package for this model format is not installed.", "The package that is missing.", "Install the extra that is named (for instance `pip install 'inferplane[xgboost]'`); the endpoint starts by itself afterwards.", to_mend="Install the extra that is named (for instance `pip install 'inferplane[xgboost]'`)."),
    Reason(ReasonCode.MODEL_FILE_MISSING, "The storage URI holds no file with an ending of this format.", "The endings looked for and the files found.", "Store the model with one of the format's endings, or correct the format (modelName, --format)."),
    Reason(ReasonCode.MODEL_FILE_AMBIGUOUS, "The storage URI holds more than one model file.", "The files found.", "Point the storage URI at one file, or leave one in the folder."),
    Reason(ReasonCode.MODEL_LOAD_FAILED, "The model server could not load the model.", "The error and the server's last log lines.", "Check that the file is a model of this format, saved with a compatible library version."),
    Reason(ReasonCode.OUT_OF_MEMORY, "The model server used more memory than its limit.", "The limit and the use.", "Raise resources.memory or use a smaller model."),
    Reason(ReasonCode.OUT_OF_GPU_MEMORY, "The model does not fit into the GPU's memory.", "The GPU's memory and what was asked for.", "Use a larger GPU or a smaller model."),
    Reason(ReasonCode.CRASH_LOOP, "The model server keeps ending.", "Exit code and last log lines of the last end, how often, next try.", "Read `inferplane logs NAME --previous`, mend the cause; it is still retried slowly.", to_mend="Read `inferplane logs NAME --previous`, and mend the cause."),
    Reason(ReasonCode.SERVER_EXITED, "The model server ended and will be started again.", "Exit code and last log lines.", "Nothing to do; if it repeats, read `inferplane logs NAME --previous`.", True, to_mend="Read `inferplane logs NAME --previous`, and mend the cause."),
    Reason(ReasonCode.UNRESPONSIVE, "The model server runs but no longer answers its health check.", "How long it has not answered.", "Nothing to do; it is replaced. If it repeats, the model may need more time or memory.", True, to_mend="Find out from `inferplane logs NAME --previous` why it did not answer; the model may need more time or memory."),
    Reason(ReasonCode.START_TIMEOUT, "The model server did not become ready within the start timeout, or not for as long as its GPUs were held for it.", "The timeout and the server's last log lines.", "Raise the start timeout (or exitDuration, where that was shorter), or find out from the logs what takes so long.", True),
    Reason(ReasonCode.PORT_UNAVAILABLE, "The model server's address could not be opened.", "The address and the error.", "Free the address; the server is started again by itself.", True, to_mend="Free the address."),
    Reason(ReasonCode.IMAGE_PULL_BACK_OFF, "The cluster cannot pull the server's container image.", "The image and the registry's answer.", "Correct the image name or give the cluster access to the registry.", True),
    Reason(ReasonCode.CONTAINER_CONFIG_ERROR, "The cluster cannot put the server's container together: something that it refers to is not there.", "What is missing, in the cluster's words.", "Create the Secret or ConfigMap that is named (or the key in it), or take it out of the manifest; the pod goes on by itself.", True, to_mend="Create the Secret or ConfigMap that is named, or take it out of the manifest."),
    Reason(ReasonCode.CONTAINER_START_FAILED, "The server's container could not be started.", "The command and the container runtime's error.", "Correct the command in the manifest, or use an image that has it."),
    Reason(ReasonCode.VOLUME_NOT_READY, "A volume of the replica cannot be mounted.", "The volume and the error.", "Check that the volume's claim, Secret or ConfigMap exists in the endpoint's namespace and is bound; it is tried again by itself.", True, to_mend="Check that the volume's claim, Secret or ConfigMap exists in the endpoint's namespace and is bound."),
    Reason(ReasonCode.POD_REFUSED, "The cluster refuses to create the replica.", "The API server's words: which rule, which webhook, which account.", "Change the manifest so that the rule allows it, or ask the cluster's administrator to change the rule; it is tried again by itself.", True, to_mend="Change the manifest so that the rule allows it, or ask the cluster's administrator to change the rule."),
    Reason(ReasonCode.SPEC_REFUSED, "KServe cannot make servers out of the InferenceService.", "KServe's message.", "Correct what the message names, and update the endpoint."),
    Reason(ReasonCode.ENGINE_ERROR, "The engine failed to carry out a step.", "The error.", "Nothing to do; the step is tried again. If it repeats, report it with the platform's log.", True, to_mend="Read the platform's log for the error."),
    Reason(ReasonCode.GPU_RELEASED, "The GPUs under the endpoint were released.", "Which request ended, when and why.", "Start the endpoint again to ask for GPUs anew."),
    Reason(ReasonCode.EVICTED, "The endpoint's GPUs went to a request of higher priority.", "Who took them and when.", "Wait to be requeued, or raise the priority.", True),
    Reason(ReasonCode.IDLE_TIMEOUT, "The endpoint was idle for its idle timeout and its GPUs were released.", "The timeout and the last request.", "Start the endpoint again."),
    Reason(ReasonCode.EXIT_DURATION_REACHED, "The time asked for with exitDuration is over.", "When it began and ended.", "Start the endpoint again, or ask for a longer duration."),
    Reason(ReasonCode.STOPPED_BY_USER, "A person stopped the endpoint.", "Who and when.", "`inferplane start NAME` starts it again."),
    Reason(ReasonCode.SCALED_TO_ZERO, "No request came for a while, so no replica runs.", "The last request.", "Send a request; it wakes the endpoint.", True),
    Reason(ReasonCode.POD_EVICTED, "The cluster ended the replica to make room, or because its node had too little left.", "The cluster's message.", "Nothing to do; the cluster starts another. If it repeats, give the replica the memory and the disk that it uses (resources), or a node that has them.", True, to_mend="Give the replica the memory and the disk that it uses, or a node that has them."),
    Reason(ReasonCode.CHANGED_OUTSIDE, "Somebody changed in the cluster what the platform had set up there.", "What was changed.", "Undo the change in the cluster, or stop and start the endpoint; then it is set up anew."),
    Reason(ReasonCode.ROLLED_BACK, "A new revision was worse and the earlier one was put back.", "The measured difference.", "Mend the model and update the endpoint again, or roll back to accept the earlier revision."),
    Reason(ReasonCode.ROLLOUT_IN_PROGRESS, "Two revisions serve, each with its share of requests, until one of them is chosen.", "The shares.", "Promote the new revision, or roll back to the one before.", True),
)  # fmt: skip
