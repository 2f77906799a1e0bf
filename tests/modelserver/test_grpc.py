"""gRPC on the socket that HTTP/1.1 is spoken on, asked by gRPC's own client."""

from __future__ import annotations

import gzip
import socket
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
import numpy as np
import pytest

from inferplane.modelserver.grpc_messages import MESSAGES, SERVICE

Serving = Callable[[str], Any]

SETOSA = [5.1, 3.5, 1.4, 0.2]
VIRGINICA = [6.7, 3.0, 5.2, 2.3]
REQUEST = MESSAGES["ModelInferRequest"]
WAIT_SECONDS = 30


class Client:
    """Calls by method name, with messages of the table under test."""

    def __init__(self, server: Any) -> None:
        unlimited = [("grpc.max_receive_message_length", -1)]
        self.channel = grpc.insecure_channel(str(server.config["address"]), options=unlimited)

    def call(self, method: str, request: Any = None, **options: Any) -> Any:
        content = b"" if request is None else request.SerializeToString()
        return MESSAGES[f"{method}Response"].FromString(self.raw(method, content, **options))

    def raw(self, method: str, content: bytes, **options: Any) -> bytes:
        ask = self.channel.unary_unary(f"/{SERVICE}/{method}")
        answer: bytes = ask(content, timeout=options.pop("timeout", WAIT_SECONDS), **options)
        return answer

    def failure(self, method: str, content: bytes, **options: Any) -> grpc.RpcError:
        with pytest.raises(grpc.RpcError) as caught:
            self.raw(method, content, **options)
        return caught.value


@pytest.fixture
def client(serving: Serving) -> Iterator[Callable[[str], Client]]:
    made: list[Client] = []

    def make(name: str) -> Client:
        made.append(Client(serving(name)))
        return made[-1]

    yield make
    for one in made:
        one.channel.close()


def iris(rows: Any = (SETOSA, VIRGINICA), *, raw: bool = False, name: str = "iris", **more: Any) -> Any:
    array = np.array(rows, dtype="<f8")
    request = REQUEST(model_name=name, **more)
    tensor = request.inputs.add(name="x", datatype="FP64", shape=array.shape)
    if raw:
        request.raw_input_contents.append(array.tobytes())
    else:
        tensor.contents.fp64_contents.extend(array.ravel().tolist())
    return request


def test_what_the_server_says_of_itself_and_its_model(client: Callable[[str], Client]) -> None:
    ask = client("iris").call
    assert ask("ServerLive").live
    assert ask("ServerReady").ready
    assert ask("ModelReady", MESSAGES["ModelReadyRequest"](name="iris", version="3")).ready
    assert ask("ServerMetadata").name == "inferplane"
    about = ask("ModelMetadata", MESSAGES["ModelMetadataRequest"](name="iris-alias"))
    assert (about.name, list(about.versions), about.platform) == ("iris-alias", ["3"], "sklearn_pickle")
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in about.outputs] == [
        ("predict", "INT64", [-1]),
        ("predict_proba", "FP64", [-1, 3]),
    ]


def test_typed_contents_are_answered_typed(client: Callable[[str], Client]) -> None:
    answer = client("iris").call("ModelInfer", iris(id="7"))
    assert (answer.model_name, answer.model_version, answer.id) == ("iris", "3", "7")
    predict, proba = answer.outputs
    assert (predict.datatype, list(predict.shape)) == ("INT64", [2])
    assert list(predict.contents.int64_contents) == [0, 2]
    assert list(proba.shape) == [2, 3]
    assert np.argmax(np.reshape(proba.contents.fp64_contents, (2, 3)), axis=1).tolist() == [0, 2]
    assert not answer.raw_output_contents


def test_raw_contents_are_answered_raw(client: Callable[[str], Client]) -> None:
    request = iris(raw=True)
    request.outputs.add(name="predict_proba")
    answer = client("iris").call("ModelInfer", request)
    (proba,) = answer.outputs
    values = np.frombuffer(answer.raw_output_contents[0], "<f8").reshape(tuple(proba.shape))
    assert np.argmax(values, axis=1).tolist() == [0, 2]
    assert not proba.HasField("contents")


@pytest.mark.parametrize(
    ("datatype", "field"),
    [
        ("BOOL", "bool_contents"),
        ("INT8", "int_contents"),
        ("INT16", "int_contents"),
        ("INT32", "int_contents"),
        ("INT64", "int64_contents"),
        ("UINT8", "uint_contents"),
        ("UINT16", "uint_contents"),
        ("UINT32", "uint_contents"),
        ("UINT64", "uint64_contents"),
        ("FP32", "fp32_contents"),
    ],
)
def test_every_numeric_datatype(client: Callable[[str], Client], datatype: str, field: str) -> None:
    request = REQUEST(model_name="iris")
    tensor = request.inputs.add(name="x", datatype=datatype, shape=[1, 4])
    getattr(tensor.contents, field).extend([True, False, True, True] if datatype == "BOOL" else [5, 3, 1, 0])
    assert client("iris").call("ModelInfer", request).outputs[0].contents.int64_contents[0] in (0, 1, 2)


def test_text_and_half_floats(client: Callable[[str], Client]) -> None:
    request = REQUEST(model_name="text")
    tensor = request.inputs.add(name="x", datatype="BYTES", shape=[2])
    tensor.contents.bytes_contents.extend([b"good film", b"awful day"])
    answer = client("text").call("ModelInfer", request)
    assert list(answer.outputs[0].contents.bytes_contents) == [b"+", b"-"]
    half = REQUEST(model_name="iris", raw_input_contents=[np.array([SETOSA], "<f2").tobytes()])
    half.inputs.add(name="x", datatype="FP16", shape=[1, 4])
    answer = client("iris").call("ModelInfer", half)
    assert np.frombuffer(answer.raw_output_contents[0], "<i8").tolist() == [0]


def test_a_large_tensor_passes_through_every_window(client: Callable[[str], Client]) -> None:
    rows = np.tile([SETOSA, VIRGINICA], (100_000, 1))
    answer = client("iris").call("ModelInfer", iris(rows, raw=True))
    assert np.frombuffer(answer.raw_output_contents[0], "<i8").tolist() == [0, 2] * 100_000


def test_many_calls_at_once_each_get_their_own(client: Callable[[str], Client]) -> None:
    ask = client("sleeper").channel.unary_unary(f"/{SERVICE}/ModelInfer")
    calls = [
        ask.future(iris([[0.0, float(number)]], name="sleeper", raw=True).SerializeToString(), timeout=30)
        for number in range(200)
        if number != 13
    ]
    values = [
        np.frombuffer(MESSAGES["ModelInferResponse"].FromString(call.result()).raw_output_contents[0], "<f8")[
            0
        ]
        for call in calls
    ]
    assert values == [float(number) for number in range(200) if number != 13]


def test_a_compressed_message_is_read_and_rows_are_told(client: Callable[[str], Client]) -> None:
    ask = client("iris").channel.unary_unary(f"/{SERVICE}/ModelInfer")
    content = iris(np.tile(SETOSA, (500, 1)), raw=True).SerializeToString()
    _, call = ask.with_call(content, timeout=30, compression=grpc.Compression.Gzip)
    assert ("x-inferplane-rows", "500") in [(key, value) for key, value in call.initial_metadata()]
    with pytest.raises(grpc.RpcError) as caught:
        ask(content, timeout=30, compression=grpc.Compression.Deflate)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def broken(**changes: Any) -> bytes:
    """An infer request with something wrong."""
    request = iris()
    tensor = request.inputs[0]
    for key, value in changes.items():
        if key == "shape":
            del tensor.shape[:]
            tensor.shape.extend(value)
        elif key in ("name", "datatype"):
            setattr(tensor, key, value)
        elif key == "values":
            del tensor.contents.fp64_contents[:]
            tensor.contents.fp64_contents.extend(value)
        else:
            setattr(request, key, value)
    content: bytes = request.SerializeToString()
    return content


def stranger() -> bytes:
    request = iris()
    request.outputs.add(name="depth")
    content: bytes = request.SerializeToString()
    return content


def twice() -> bytes:
    request = iris()
    request.inputs.add().CopyFrom(request.inputs[0])
    content: bytes = request.SerializeToString()
    return content


def both() -> bytes:
    request = iris()
    request.raw_input_contents.append(b"1234")
    content: bytes = request.SerializeToString()
    return content


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"\xff\xff\xff", "INVALID_ARGUMENT", "no ModelInferRequest"),
        (b"", "NOT_FOUND", "does not exist"),
        (broken(model_name="other"), "NOT_FOUND", "other"),
        (broken(model_version="9"), "NOT_FOUND", "version 9"),
        (REQUEST(model_name="iris").SerializeToString(), "INVALID_ARGUMENT", "inputs is empty"),
        (broken(datatype="FP8"), "INVALID_ARGUMENT", "FP8"),
        (broken(datatype="FP16"), "INVALID_ARGUMENT", "raw_input_contents"),
        (broken(datatype="INT64"), "INVALID_ARGUMENT", "fp64_contents"),
        (broken(shape=[2, 5]), "INVALID_ARGUMENT", "needs 10"),
        (broken(shape=[-2, 4]), "INVALID_ARGUMENT", "negative"),
        (broken(shape=[2**40, 2**20]), "INVALID_ARGUMENT", "needs"),
        (broken(shape=[1] * 50), "INVALID_ARGUMENT", "dimensions"),
        (broken(shape=[8], values=[1.0] * 8), "INVALID_ARGUMENT", "shape"),
        (broken(values=[float("nan")] * 8), "INVALID_ARGUMENT", "missing values"),
        (broken(values=[1.0] * 7), "INVALID_ARGUMENT", "7 values"),
        (stranger(), "INVALID_ARGUMENT", "depth"),
        (twice(), "INVALID_ARGUMENT", "twice"),
        (both(), "INVALID_ARGUMENT", "send one of them"),
    ],
)
def test_a_callers_mistake_is_named(
    client: Callable[[str], Client], content: bytes, status: str, words: str
) -> None:
    ask = client("iris")
    error = ask.failure("ModelInfer", content)
    assert error.code().name == status
    assert words in error.details()
    assert list(ask.call("ModelInfer", iris()).outputs[0].contents.int64_contents) == [0, 2]


def test_other_failures_have_their_status(client: Callable[[str], Client]) -> None:
    ask = client("sleeper")
    assert ask.failure("ModelStreamInfer", b"").code() is grpc.StatusCode.UNIMPLEMENTED
    thirteen = iris([[0.0, 13.0]], name="sleeper").SerializeToString()
    assert ask.failure("ModelInfer", thirteen).code() is grpc.StatusCode.INTERNAL
    slow = iris([[3.0, 1.0]], name="sleeper").SerializeToString()
    assert ask.failure("ModelInfer", slow, timeout=0.2).code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_message_over_the_limit_and_a_server_that_is_not_ready(
    launch: Callable[..., Any], serving: Serving, model_files: Any
) -> None:
    server = launch("sklearn", serving("iris").config["path"], name="iris", max_request_bytes=1000)
    server.wait_for("ready")
    small = Client(server)
    error = small.failure("ModelInfer", iris(np.ones((1000, 4)), raw=True).SerializeToString())
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    bomb = iris(np.ones((1000, 4)), raw=True).SerializeToString()
    assert len(gzip.compress(bomb)) < 1000
    error = small.failure("ModelInfer", bomb, compression=grpc.Compression.Gzip)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert list(small.call("ModelInfer", iris()).outputs[0].contents.int64_contents) == [0, 2]
    small.channel.close()
    loading = launch("sklearn", model_files / "slowloader.pkl", name="iris")
    loading.wait_for("loading")
    early = Client(loading)
    assert not early.call("ServerReady").ready
    error = early.failure("ModelInfer", iris().SerializeToString())
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert ("x-inferplane-not-processed", "1") in [tuple(pair) for pair in error.trailing_metadata()]
    early.channel.close()
    (loading.folder / "go").touch()


def test_one_socket_speaks_both_and_nonsense_ends_only_its_own_connection(serving: Serving) -> None:
    server = serving("iris")
    path = server.config["address"].removeprefix("unix:")
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for content in (
        preface + b"\xff" * 100,
        preface[:10],
        preface + b"\0\0\0\4\0\0\0\0\0" * 50,
        b"P",
        b"PRI * X",
    ):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            client.sendall(content)
    assert server.predict([SETOSA]).json() == {"predictions": [0]}
    connection = h2.connection.H2Connection(h2.config.H2Configuration())
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(WAIT_SECONDS)
        client.connect(path)
        connection.initiate_connection()
        page = [(":method", "GET"), (":path", "/v2"), (":scheme", "http"), (":authority", "x")]
        connection.send_headers(1, page, end_stream=True)
        data = connection.data_to_send()
        # In pieces, so that the preface does not come whole.
        client.sendall(data[:7])
        client.sendall(data[7:])
        seen: list[Any] = []
        while not any(isinstance(event, h2.events.StreamEnded) for event in seen):
            seen += connection.receive_data(client.recv(65536))
    heads = [event for event in seen if isinstance(event, h2.events.ResponseReceived)]
    assert (b":status", b"415") in list(heads[0].headers or ())
