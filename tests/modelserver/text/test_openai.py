"""OpenAI's protocol with OpenAI's own client, and what that client never sends."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

ServingText = Callable[..., Any]
Until = Callable[[Callable[[], Any], str], Any]
MESSAGES = [{"role": "user", "content": "the cat"}]


@pytest.fixture
def client_of(serving_text: ServingText) -> Iterator[Callable[..., Any]]:
    """`client_of("chat")`: OpenAI's own client, talking to that model."""
    openai = pytest.importorskip("openai")
    made: list[Any] = []

    def get(name: str, prefix: str = "/v1") -> Any:
        path = serving_text(name).config["address"].removeprefix("unix:")
        http = httpx.Client(transport=httpx.HTTPTransport(uds=path))
        made.append(
            openai.OpenAI(base_url=f"http://model{prefix}", api_key="none", http_client=http, max_retries=0)
        )
        return made[-1]

    yield get
    for client in made:
        client.close()


def test_a_completion_is_what_the_library_generates(
    client_of: Callable[..., Any], expected: dict[str, Any]
) -> None:
    client = client_of("continuer")
    answer = client.completions.create(model="continuer", prompt="the cat", temperature=0, max_tokens=24)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == (expected["continuer"], "length")
    assert answer.usage.completion_tokens == 24
    assert answer.usage.total_tokens == 24 + answer.usage.prompt_tokens
    assert len(client.completions.create(model="continuer", prompt="the", temperature=0).choices[0].text) > 0


def test_a_stream_comes_token_by_token_and_adds_up(
    client_of: Callable[..., Any], expected: dict[str, Any]
) -> None:
    stream = client_of("continuer").completions.create(
        model="continuer-alias",
        prompt="the cat",
        temperature=0,
        max_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    texts = [chunk.choices[0].text for chunk in chunks if chunk.choices]
    assert "".join(texts) == expected["continuer"]
    assert sum(1 for text in texts if text) > 8
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 24
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_chat_whole_and_streamed_says_the_same(client_of: Callable[..., Any]) -> None:
    client = client_of("chat", "/openai/v1")
    wanted: dict[str, Any] = {"model": "chat", "messages": MESSAGES, "temperature": 0, "max_tokens": 20}
    whole = client.chat.completions.create(**wanted)
    message = whole.choices[0].message
    assert message.role == "assistant"
    chunks = list(client.chat.completions.create(**wanted, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    newer = client.chat.completions.create(
        model="chat",
        messages=[{"role": "developer", "content": "be short"}, *MESSAGES],
        max_completion_tokens=3,
        temperature=0,
    )
    assert newer.usage.completion_tokens <= 3


def test_a_model_without_template_gets_a_plain_one(client_of: Callable[..., Any]) -> None:
    client = client_of("continuer")
    answer = client.chat.completions.create(model="continuer", messages=MESSAGES, max_tokens=5, temperature=0)
    prompt = "user: the cat\nassistant:"
    same = client.completions.create(model="continuer", prompt=prompt, max_tokens=5, temperature=0)
    assert answer.choices[0].message.content == same.choices[0].text


def test_a_seed_repeats_chance_and_another_changes_it(client_of: Callable[..., Any]) -> None:
    client = client_of("continuer")

    def text(seed: int, **more: Any) -> str:
        answer = client.completions.create(
            model="continuer", prompt="a", max_tokens=30, temperature=1.5, seed=seed, **more
        )
        found: str = answer.choices[0].text
        return found

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(5)}) > 1
    # So small a share leaves only the likeliest token.
    greedy = client.completions.create(model="continuer", prompt="a", max_tokens=30, temperature=0)
    assert text(7, top_p=1e-6) == greedy.choices[0].text


def test_a_stop_text_ends_the_answer_and_is_not_in_it(
    client_of: Callable[..., Any], expected: dict[str, Any]
) -> None:
    client, whole = client_of("continuer"), expected["continuer"]
    for stop in (whole[6:9], [whole[12:14], "never said", whole[5:9]]):
        wanted: dict[str, Any] = {"model": "continuer", "prompt": "the cat", "temperature": 0}
        answer = client.completions.create(**wanted, max_tokens=24, stop=stop)
        first = min(
            place for each in ([stop] if isinstance(stop, str) else stop) if (place := whole.find(each)) >= 0
        )
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == (whole[:first], "stop")
        stream = client.completions.create(**wanted, max_tokens=24, stop=stop, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == whole[:first]


def test_models_are_listed_for_both_protocols(
    client_of: Callable[..., Any], serving_text: ServingText
) -> None:
    for prefix in ("/v1", "/openai/v1"):
        client = client_of("chat", prefix)
        assert [model.id for model in client.models.list()] == ["chat", "chat-alias"]
        assert client.models.retrieve("chat").owned_by == "inferplane"
    plain = serving_text("chat").client
    assert plain.get("/v1/models").json()["models"] == ["chat"]
    assert plain.get("/v1/models/chat").json()["ready"] is True
    assert plain.get("/openai/v1/models/other").status_code == 404


def test_embeddings_as_numbers_and_as_base64(
    client_of: Callable[..., Any], serving_text: ServingText, expected: dict[str, Any]
) -> None:
    client = client_of("plain-embedder")
    answer = client.embeddings.create(model="plain-embedder", input=expected["texts"])  # base64 by itself
    assert np.allclose([each.embedding for each in answer.data], expected["plain-embedder"], atol=1e-5)
    assert [each.index for each in answer.data] == [0, 1, 2, 3]
    raw = serving_text("plain-embedder").client.post("/v1/embeddings", json={"input": "a cat"})
    packed = serving_text("plain-embedder").client.post(
        "/v1/embeddings", json={"input": ["a cat"], "encoding_format": "base64"}
    )
    numbers = np.frombuffer(base64.b64decode(packed.json()["data"][0]["embedding"]), "<f4")
    assert np.allclose(numbers, raw.json()["data"][0]["embedding"])
    assert raw.json()["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    assert raw.headers["x-inferplane-tokens"] == "4"


def test_the_answer_says_its_tokens_in_a_header_and_metrics_count_them(serving_text: ServingText) -> None:
    client = serving_text("chat").client
    answer = client.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 4})
    assert answer.headers["x-inferplane-tokens"] == str(answer.json()["usage"]["total_tokens"])
    text = client.get("/metrics").text
    assert 'inferplane_model_tokens_total{model="chat",kind="answer"}' in text
    assert 'inferplane_model_requests_total{model="chat",protocol="openai",code="200"}' in text


def test_a_stream_says_behind_it_what_it_took(serving_text: ServingText) -> None:
    server = serving_text("chat")
    body = {"messages": MESSAGES, "max_tokens": 4, "temperature": 0}
    whole = server.client.post("/v1/chat/completions", json=body)
    text = json.dumps(body | {"stream": True}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: model\r\nconnection: close\r\n"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(server.config["address"].removeprefix("unix:"))
        connection.sendall(f"{head}content-length: {len(text)}\r\n\r\n".encode() + text)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    _, _, trailers = answer.rpartition(b"data: [DONE]\n\n\r\n0\r\n")
    tokens = whole.headers["x-inferplane-tokens"]
    assert trailers.decode() == f"x-inferplane-tokens: {tokens}\r\n\r\n"


CHAT: dict[str, Any] = {"model": "chat", "messages": MESSAGES, "max_tokens": 4}


@pytest.mark.parametrize(
    ("change", "status", "param", "words"),
    [
        ({"model": "gpt-4"}, 404, "model", "serves chat or chat-alias"),
        ({"messages": []}, 400, "messages", "at least one message"),
        ({"messages": "hello"}, 400, "messages", "array"),
        ({"messages": [{"role": "user"}]}, 400, "messages", "has no content"),
        ({"messages": [{"role": "pirate", "content": "ho"}]}, 400, None, "strange role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            400,
            "messages",
            "text only",
        ),
        ({"max_tokens": 0}, 400, "max_tokens", ">= 1"),
        ({"max_tokens": 10_000}, 400, "messages", "takes 512 tokens"),
        ({"messages": [{"role": "user", "content": "xyz" * 3000}]}, 400, "messages", "takes 512 tokens"),
        ({"temperature": "hot"}, 400, "temperature", "float"),
        ({"temperature": 3}, 400, "temperature", "<= 2"),
        ({"top_p": 2}, 400, "top_p", "<= 1"),
        ({"n": 2}, 400, "n", "n must be 1"),
        ({"stop": ["a"] * 5}, 400, "stop", "at most 4"),
        ({"stop": ""}, 400, "stop", "characters"),
        ({"tools": [{"type": "function"}]}, 400, "tools", "not supported"),
        ({"logprobs": True}, 400, "logprobs", "not supported"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format", "not supported"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options", "stream"),
        ({"seed": 2**70}, 400, "seed", ""),
    ],
)
def test_what_is_not_understood_is_refused_in_openais_shape(
    serving_text: ServingText, change: dict[str, Any], status: int, param: str | None, words: str
) -> None:
    answer = serving_text("chat").client.post("/v1/chat/completions", json=CHAT | change)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert words in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/v1/chat/completions", b"{", 400, "not valid JSON"),
        ("POST", "/v1/chat/completions", b"", 400, "not valid JSON"),
        ("POST", "/v1/chat/completions", b'{"messages":' + b"[" * 100_000, 400, ""),
        ("POST", "/v1/chat/completions", b"\xff", 400, "not valid JSON"),
        ("POST", "/v1/completions", b'{"prompt": ["a", "b"]}', 400, "one text"),
        ("POST", "/v1/completions", b'{"prompt": [1, 999999]}', 400, "token id"),
        ("POST", "/v1/completions", b'{"prompt": "a", "echo": true}', 400, "echo"),
        ("POST", "/v1/completions", b'{"prompt": "a", "best_of": 3}', 400, "best_of"),
        ("POST", "/v1/embeddings", b'{"input": "a"}', 400, "makes no embeddings"),
        ("GET", "/v1/chat/completions", b"", 405, "use POST"),
        ("DELETE", "/openai/v1/models", b"", 405, "use GET"),
        ("POST", "/openai/v1/audio/speech", b"{}", 404, "nothing at"),
    ],
)
def test_wrong_bodies_and_paths_get_sentences(
    serving_text: ServingText, method: str, path: str, body: bytes, status: int, words: str
) -> None:
    answer = serving_text("chat").client.request(method, path, content=body)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"input": []}, "list of texts"),
        ({"input": [1, 2]}, "token ids"),
        ({"input": ""}, "empty text"),
        ({"input": "a", "dimensions": 8}, "32 dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "base64"),
        ({"input": ["a", "cat " * 50]}, "text 1 of input has 52 tokens, and this model takes 32"),
    ],
)
def test_embeddings_that_cannot_be_made_are_refused(
    serving_text: ServingText, body: dict[str, Any], words: str
) -> None:
    answer = serving_text("plain-embedder").client.post("/v1/embeddings", json=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_an_embedding_model_does_not_chat(serving_text: ServingText) -> None:
    answer = serving_text("plain-embedder").client.post("/v1/chat/completions", json={"messages": MESSAGES})
    assert answer.status_code == 400
    assert "use /v1/embeddings" in answer.json()["error"]["message"]


def test_a_model_of_numbers_points_to_its_own_protocols(serving: Callable[[str], Any]) -> None:
    client = serving("iris").client
    answer = client.post("/v1/chat/completions", json={"messages": MESSAGES})
    assert answer.status_code == 400
    assert ":predict" in answer.json()["error"]["message"]
    assert client.get("/v1/models").json() == {"models": ["iris"]}


def test_a_caller_who_goes_away_ends_the_generation(
    launch: Callable[..., Any], text_parent: Any, text_models: Path, until: Until
) -> None:
    """With one place and nobody allowed to wait, the next caller is served only if the first one's has ended."""
    server = launch(
        "huggingface",
        text_models / "continuer",
        parent=text_parent,
        generations_max=1,
        generations_waiting_max=0,
    )
    assert server.wait_for("ready", "failed")["state"] == "ready", server.log()
    long = {"prompt": "the", "max_tokens": 500, "temperature": 0, "stream": True}
    short = {"prompt": "the", "max_tokens": 1, "temperature": 0}
    with server.client.stream("POST", "/v1/completions", json=long) as stream:
        events = stream.iter_lines()
        assert json.loads(next(events).removeprefix("data: "))["choices"][0]["text"]
        refused = server.client.post("/v1/completions", json=short)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert refused.json()["error"]["code"] == "not_processed"
    until(lambda: server.client.post("/v1/completions", json=short).status_code == 200, "the place is free")
    assert 'code="499"' in server.client.get("/metrics").text


def test_the_time_limit_ends_a_stream_with_an_error_in_it(
    launch: Callable[..., Any], text_parent: Any, text_models: Path
) -> None:
    server = launch(
        "huggingface", text_models / "continuer", parent=text_parent, request_timeout_seconds=0.05
    )
    assert server.wait_for("ready", "failed")["state"] == "ready", server.log()
    body = {"prompt": "the", "max_tokens": 500, "temperature": 0}
    whole = server.client.post("/v1/completions", json=body)
    assert whole.status_code == 504
    assert whole.json()["error"]["code"] == "timeout"
    with server.client.stream("POST", "/v1/completions", json=body | {"stream": True}) as stream:
        lines = [line for line in stream.iter_lines() if line]
    last = (
        json.loads(lines[-1].removeprefix("data: "))
        if stream.status_code == 200
        else {"error": {"code": "timeout"}}
    )
    assert last["error"]["code"] == "timeout"
    assert "[DONE]" not in lines[-1]
