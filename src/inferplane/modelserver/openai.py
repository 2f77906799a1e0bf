"""OpenAI's protocol for models that generate or embed text: chat, completions, embeddings, models.

    POST /v1/chat/completions  /v1/completions  /v1/embeddings        the same below /openai
    GET  /v1/models  /v1/models/<model>      one answer for this protocol and for V1

An ASGI application, mounted under these paths, because answers may be streams: with `stream` each new
piece of text is an event of its own. A caller who goes away ends the generation at its next token.
Fields that would change an answer and are not supported are refused with a sentence; fields that do
not (`user`, `metadata`, …) are ignored. Errors have OpenAI's shape.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, TypeAlias

import msgspec
import numpy as np

from inferplane.modelserver.app import CALLER_GONE, NOT_PROCESSED, App, Receive, Route, Scope, Send, Serving
from inferplane.modelserver.errors import NotProcessed, RequestError, TooLate, short
from inferplane.modelserver.exchange import JSON_TYPE, Answer, Headers, caller_patience, json_answer
from inferplane.modelserver.frameworks.base import WHOLE, InputKind
from inferplane.modelserver.generation import (
    Finish,
    GenerationLimits,
    Piece,
    Prompt,
    Sampling,
    Scheduler,
    TextGenerator,
    generator_of,
)
from inferplane.modelserver.intake import Work
from inferplane.modelserver.status import Clock

log = logging.getLogger(__name__)

#: The paths that are answered here; `/v1/models` is V1's too, and answered for both in the application.
PREFIXES = ("/openai/", "/v1/chat/", "/v1/completions", "/v1/embeddings")
ALIAS = "/openai"
#: Tokens of a completion whose caller does not say; chats may go on to the end of the context.
COMPLETION_TOKENS_DEFAULT = 16
STOPS_MAX = 4
STOP_CHARACTERS_MAX = 256
MESSAGES_MAX = 4096
EMBEDDING_INPUTS_MAX = 2048
MODEL_PATH = re.compile(r"/v1/models/(?P<name>[^/]+)")
#: Outputs of embedding models; see frameworks.huggingface.
EMBEDDING = "embedding"
TOKENS = "tokens"

#: How many tokens a request took, prompt and answer together, for whoever counts usage. Behind a stream it
#: is a trailer: only then is it known.
TOKENS_HEADER = b"x-inferplane-tokens"
STREAM_HEADERS: Headers = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
)
DONE = b"data: [DONE]\n\n"
_PROTOCOL = "openai"

_Unit = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
_Seed = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class StreamOptions(msgspec.Struct, frozen=True):
    """`include_usage` asks for a last event with the counts of tokens."""

    include_usage: bool | None = None


class _Common(msgspec.Struct, frozen=True, kw_only=True):
    """What chats and completions share."""

    model: str = ""
    max_tokens: _Count | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: _Unit | None = None
    seed: _Seed | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    n: Any = None
    logprobs: Any = None
    logit_bias: Any = None


class ContentPart(msgspec.Struct, frozen=True):
    """One part of a message; only text is understood."""

    type: str
    text: str = ""


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None


class ChatRequest(_Common, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: _Count | None = None
    top_logprobs: Any = None
    tools: Any = None
    functions: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None


class CompletionRequest(_Common, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: Any = ""
    best_of: Any = None
    echo: Any = None
    suffix: Any = None


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/embeddings."""

    input: Any
    model: str = ""
    encoding_format: str | None = None
    dimensions: int | None = None


_CHAT = msgspec.json.Decoder(ChatRequest)
_COMPLETION = msgspec.json.Decoder(CompletionRequest)
_EMBEDDING = msgspec.json.Decoder(EmbeddingRequest)
_encode = msgspec.json.Encoder().encode


class Refused(RequestError):
    """A request that this protocol refuses: `param` names the field, `code` is for programs."""

    def __init__(
        self, message: str, param: str | None = None, code: str | None = None, status: int = 400
    ) -> None:
        super().__init__(message, status=status)
        self.param = param
        self.code = code


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of tokens."""

    prompt: int
    answer: int = 0

    def to_json(self) -> dict[str, int]:
        """In OpenAI's words."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.answer,
            "total_tokens": self.prompt + self.answer,
        }


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request to a generating model, understood. `prompt` gives the token ids; it takes a moment."""

    chat: bool
    param: str
    prompt: Callable[[TextGenerator], list[int]]
    tokens_max: int | None
    sampling: Sampling
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool


def read_chat(body: bytes, names: frozenset[str]) -> Wanted:
    """Read a chat request. Raises Refused."""
    request: ChatRequest = _decode(body, _CHAT)
    _check_model(request.model, names)
    _refuse_unsupported(request)
    for name in ("tools", "functions", "top_logprobs", "audio"):
        if getattr(request, name):
            raise _unsupported(name)
    shape = request.response_format
    if shape is not None and shape != {"type": "text"}:
        raise _unsupported("response_format")
    if request.modalities not in (None, ["text"]):
        raise _unsupported("modalities")
    if not request.messages:
        raise Refused("messages is empty; send at least one message", "messages")
    if len(request.messages) > MESSAGES_MAX:
        raise Refused(
            f"there are {len(request.messages)} messages; at most {MESSAGES_MAX} are taken", "messages"
        )
    messages = [_plain_message(message, index) for index, message in enumerate(request.messages)]
    most = request.max_completion_tokens or request.max_tokens
    return _wanted(request, "messages", lambda model: model.encode_chat(messages), most, chat=True)


def read_completion(body: bytes, names: frozenset[str]) -> Wanted:
    """Read a completion request. Raises Refused."""
    request: CompletionRequest = _decode(body, _COMPLETION)
    _check_model(request.model, names)
    _refuse_unsupported(request)
    for name in ("echo", "suffix"):
        if getattr(request, name):
            raise _unsupported(name)
    if request.best_of not in (None, 1):
        raise Refused("best_of must be 1; this server makes one answer a request", "best_of")
    prompt = request.prompt
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]
    most = request.max_tokens or COMPLETION_TOKENS_DEFAULT
    if isinstance(prompt, str):
        text = prompt
        return _wanted(request, "prompt", lambda model: model.encode(text), most, chat=False)
    if isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt):
        return _wanted(request, "prompt", partial(_known_tokens, prompt), most, chat=False)
    raise Refused("prompt must be one text, or one list of token ids; send one request a prompt", "prompt")


def read_embedding(body: bytes, names: frozenset[str], dimensions: int) -> tuple[list[str], bool]:
    """Read an embedding request: its texts, and whether vectors are wanted as base64. Raises Refused."""
    request: EmbeddingRequest = _decode(body, _EMBEDDING)
    _check_model(request.model, names)
    if request.encoding_format not in (None, "float", "base64"):
        raise Refused("encoding_format must be float or base64", "encoding_format")
    if request.dimensions not in (None, dimensions):
        raise Refused(
            f"this model's vectors have {dimensions} dimensions, and cannot be shortened", "dimensions"
        )
    inputs = [request.input] if isinstance(request.input, str) else request.input
    if not isinstance(inputs, list) or not inputs or not all(isinstance(text, str) for text in inputs):
        raise Refused(
            "input must be a text or a list of texts; token ids are of another tokenizer here", "input"
        )
    if len(inputs) > EMBEDDING_INPUTS_MAX:
        raise Refused(
            f"input has {len(inputs)} texts; at most {EMBEDDING_INPUTS_MAX} are taken at once", "input"
        )
    if not all(inputs):
        raise Refused("input has an empty text", "input")
    return inputs, request.encoding_format == "base64"


def error_body(error: Exception) -> tuple[int, Headers, dict[str, Any]]:
    """(status, headers, body) of whatever went wrong."""
    headers: Headers = (JSON_TYPE,)
    param = code = None
    if isinstance(error, RequestError):
        status, message = error.status, error.message
        kind = "invalid_request_error" if status < 500 else "server_error"
        if isinstance(error, Refused):
            param, code = error.param, error.code
        elif isinstance(error, NotProcessed):
            code, headers = "not_processed", (JSON_TYPE, *NOT_PROCESSED)
        elif isinstance(error, TooLate):
            code = "timeout"
    elif isinstance(error, TimeoutError):
        status, kind, code = 504, "server_error", "timeout"
        message = "the request took longer than its time limit"
    elif isinstance(error, MemoryError):
        status, kind, code = 503, "server_error", "out_of_memory"
        message = "the model ran out of memory on this request"
    else:
        status, kind = 500, "server_error"
        message = f"the model failed: {type(error).__name__}: {short(error)}"
    return status, headers, {"error": {"message": message, "type": kind, "param": param, "code": code}}


class OpenAI:
    """The ASGI application. `app` knows the model once there is one; `clock` gives unix seconds."""

    def __init__(self, app: App, clock: Clock) -> None:
        self._app = app
        self._clock = clock
        self._created = int(clock())
        self._scheduler: Scheduler | None = None
        self._posts: Mapping[str, _Handler] = {
            "/v1/chat/completions": partial(self._generate, read_chat),
            "/v1/completions": partial(self._generate, read_completion),
            "/v1/embeddings": self._embed,
        }
        for prefix in PREFIXES:
            app.mount(prefix, self)

    def model_ready(self) -> None:
        """The model has been loaded: list it for this protocol too, if it speaks it."""
        serving = self._app.serving
        if serving is None or not (_embeds(serving) or generator_of(serving.model)):
            return
        names = self._app.config.names
        listed = {"models": [self._app.config.name], **self._list()}
        self._app.replace("/v1/models", Route(get=lambda: json_answer(200, listed)))
        for name in names:
            whole = {"name": name, "ready": True, **self._object(name)}
            for prefix in ("/v1/models/", "/v1/model/"):
                ready = self._app.route(f"{prefix}{name}")
                assert ready is not None
                assert ready.get is not None
                self._app.replace(f"{prefix}{name}", Route(get=partial(_merged, ready.get, whole)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        call = _Call(scope, receive, send, asyncio.get_running_loop().time())
        path = "/" + "/".join(part for part in str(scope["path"]).removeprefix(ALIAS).split("/") if part)
        handler, method = self._posts.get(path), scope["method"]
        try:
            if handler is not None:
                await self._watched(handler, call)
            else:
                await call.answer(self._from_memory(method, path))
        except Exception as error:  # noqa: BLE001 - every failure becomes an answer in this protocol's shape
            await self._fail(call, error)
        finally:
            if handler is not None:
                seconds = asyncio.get_running_loop().time() - call.started
                self._app.metrics.on_request(_PROTOCOL, call.status, seconds)
                if self._app.tracer is not None:
                    name = f"{_PROTOCOL} {path.removeprefix('/v1/')}"
                    self._app.tracer.on_call(name, scope["headers"], call.started, call.status, call.tokens)

    async def _watched(self, handler: _Handler, call: _Call) -> None:
        """Answer, within the caller's patience and only as long as the caller is there."""
        if call.scope["method"] != "POST":
            raise Refused(f"{call.scope['method']} is not possible here; use POST", status=405)
        call.body = (await call.receive()).get("body", b"")
        loop = asyncio.get_running_loop()
        answering = loop.create_task(handler(call))
        leaving = loop.create_task(_until_gone(call.receive))
        patience = caller_patience(call.scope["headers"], self._app.config.request_timeout_seconds)
        try:
            done, _ = await asyncio.wait(
                (answering, leaving), timeout=patience, return_when=asyncio.FIRST_COMPLETED
            )
            if answering in done:
                answering.result()
            elif leaving in done:
                call.status = CALLER_GONE
            else:
                answering.cancel()
                await asyncio.gather(answering, return_exceptions=True)
                raise TimeoutError
        finally:
            answering.cancel()
            leaving.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _fail(self, call: _Call, error: Exception) -> None:
        status, headers, body = error_body(error)
        if status >= 500 and not isinstance(error, (RequestError, TimeoutError)):
            log.error("the model failed on a request", exc_info=error)
        if call.begun:  # too late for a status: clients of this protocol look for an error in the stream
            await call.event(body)
            await call.end()
        else:
            await call.answer(Answer(status, _encode(body), headers))

    def _admit(self) -> Serving:
        if self._app.draining:
            raise NotProcessed("this server is shutting down; send the request again")
        if self._app.serving is None:
            raise NotProcessed(f"Model with name {self._app.config.name} is not ready.")
        return self._app.serving

    # Generation.

    async def _generate(self, read: Callable[[bytes, frozenset[str]], Wanted], call: _Call) -> None:
        serving = self._admit()
        generator = generator_of(serving.model)
        if generator is None:
            raise _wrong_model("generates no text", serving)
        wanted = read(call.body, self._app.config.names)
        prompt = await asyncio.to_thread(_prompt, wanted, generator)
        pieces = self._scheduler_of(generator).generate(prompt)
        async with contextlib.aclosing(self._counted(pieces, call, len(prompt.tokens))) as counted:
            answer = _ChatAnswer if wanted.chat else _CompletionAnswer
            shape = answer(self._app.config.name, int(self._clock()))
            if wanted.stream:
                await _stream(call, shape, counted, len(prompt.tokens), wanted)
            else:
                await _whole(call, shape, counted, len(prompt.tokens))

    def _scheduler_of(self, generator: TextGenerator) -> Scheduler:
        if self._scheduler is None:
            config = self._app.config
            limits = GenerationLimits(config.generations_max, config.generations_waiting_max)
            self._scheduler = Scheduler(generator, limits)
        return self._scheduler

    async def _counted(
        self, pieces: AsyncGenerator[Piece, None], call: _Call, prompt_tokens: int
    ) -> AsyncGenerator[Piece, None]:
        """The same pieces; metrics learn of tokens, also of those of a caller who went away."""
        tokens = 0
        loop = asyncio.get_running_loop()
        try:
            async with contextlib.aclosing(pieces) as source:
                async for piece in source:
                    if not tokens:
                        self._app.metrics.on_first_token(loop.time() - call.started)
                    tokens = piece.tokens
                    yield piece
        finally:
            if tokens:
                self._app.metrics.on_tokens(prompt_tokens, tokens)
                call.tokens = (call.tokens[0] + prompt_tokens, call.tokens[1] + tokens)

    # Embeddings.

    async def _embed(self, call: _Call) -> None:
        serving = self._admit()
        if not _embeds(serving):
            raise _wrong_model("makes no embeddings", serving)
        dimensions = serving.signature.outputs[0].shape[-1]
        inputs, packed = read_embedding(call.body, self._app.config.names, dimensions)
        rows = np.empty(len(inputs), dtype=object)
        rows[:] = inputs
        outputs = await serving.batcher.submit(Work({WHOLE: rows}, len(inputs), (EMBEDDING, TOKENS)))
        counts, length = outputs[TOKENS].tolist(), getattr(serving.model, "length", 0)
        for index, count in enumerate(counts):
            if count > length:
                raise Refused(
                    f"text {index} of input has {count} tokens, and this model takes {length}; shorten or split it",
                    "input",
                    "context_length_exceeded",
                )
        total = sum(counts)
        self._app.metrics.on_tokens(total, 0)
        call.tokens = (total, 0)
        vectors = outputs[EMBEDDING].astype("<f4", copy=False)
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(vector.tobytes()).decode() if packed else vector.tolist(),
            }
            for index, vector in enumerate(vectors)
        ]
        body = {
            "object": "list",
            "data": data,
            "model": self._app.config.name,
            "usage": {"prompt_tokens": total, "total_tokens": total},
        }
        await call.answer(Answer(200, _encode(body), _json_headers(total)))

    # From memory.

    def _from_memory(self, method: str, path: str) -> Answer:
        match = MODEL_PATH.fullmatch(path)
        if path != "/v1/models" and match is None:
            raise Refused(f"there is nothing at {path[:200]}", status=404)
        if method not in ("GET", "HEAD"):
            raise Refused(f"{method} is not possible here; use GET", status=405)
        if match is None:
            return json_answer(200, self._list())
        _check_model(match["name"], self._app.config.names)
        return json_answer(200, self._object(match["name"]))

    def _list(self) -> dict[str, Any]:
        return {"object": "list", "data": [self._object(name) for name in sorted(self._app.config.names)]}

    def _object(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "inferplane"}


@dataclass(slots=True)
class _Call:
    """One request on its way, and what has been sent of its answer."""

    scope: Scope
    receive: Receive
    send: Send
    started: float
    body: bytes = b""
    status: int = 0
    begun: bool = False
    tokens: tuple[int, int] = (0, 0)  # the prompt's and the answer's

    async def answer(self, answer: Answer) -> None:
        """Send a whole answer."""
        self.status = answer.status
        headers = [*answer.headers, (b"content-length", b"%d" % len(answer.body))]
        body = b"" if self.scope["method"] == "HEAD" else bytes(answer.body)
        await self.send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    async def event(self, value: object) -> None:
        """Send one event; the first one begins the stream."""
        if not self.begun:
            self.begun, self.status = True, 200
            start = {"type": "http.response.start", "status": 200, "headers": list(STREAM_HEADERS)}
            await self.send({**start, "trailers": True})
        await self._more(b"data: %b\n\n" % _encode(value))

    async def end(self, last: bytes = b"") -> None:
        """End the stream, and say behind it what it took."""
        await self.send({"type": "http.response.body", "body": last, "more_body": False})
        took = [(TOKENS_HEADER, b"%d" % sum(self.tokens))] if any(self.tokens) else []
        await self.send({"type": "http.response.trailers", "headers": took})

    async def _more(self, data: bytes) -> None:
        await self.send({"type": "http.response.body", "body": data, "more_body": True})


class _ChatAnswer:
    """The shapes of a chat's answer: whole, and in chunks."""

    def __init__(self, model: str, created: int) -> None:
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": created, "model": model}

    def whole(self, text: str, finish: Finish, usage: Usage) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": usage.to_json()}

    def opening(self) -> dict[str, Any] | None:
        return self._chunk({"role": "assistant", "content": ""}, None)

    def chunk(self, text: str) -> dict[str, Any]:
        return self._chunk({"content": text}, None)

    def closing(self, finish: Finish) -> dict[str, Any]:
        return self._chunk({}, finish)

    def counts(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "choices": []}

    def _chunk(self, delta: Mapping[str, str], finish: Finish | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}


class _CompletionAnswer:
    """The shapes of a completion's answer."""

    def __init__(self, model: str, created: int) -> None:
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": created,
            "model": model,
        }

    def whole(self, text: str, finish: Finish, usage: Usage) -> dict[str, Any]:
        return {**self._chunk(text, finish), "usage": usage.to_json()}

    def opening(self) -> dict[str, Any] | None:
        return None

    def chunk(self, text: str) -> dict[str, Any]:
        return self._chunk(text, None)

    def closing(self, finish: Finish) -> dict[str, Any]:
        return self._chunk("", finish)

    def counts(self) -> dict[str, Any]:
        return {**self._head, "choices": []}

    def _chunk(self, text: str, finish: Finish | None) -> dict[str, Any]:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
        return {**self._head, "choices": [choice]}


_Shape: TypeAlias = _ChatAnswer | _CompletionAnswer
_Handler: TypeAlias = Callable[[_Call], Coroutine[Any, Any, None]]


async def _whole(call: _Call, shape: _Shape, pieces: AsyncIterator[Piece], prompt_tokens: int) -> None:
    texts: list[str] = []
    tokens, finish = 0, Finish.STOP
    async for piece in pieces:
        texts.append(piece.text)
        tokens, finish = piece.tokens, piece.finish or finish
    usage = Usage(prompt_tokens, tokens)
    body = _encode(shape.whole("".join(texts), finish, usage))
    await call.answer(Answer(200, body, _json_headers(prompt_tokens + tokens)))


async def _stream(
    call: _Call, shape: _Shape, pieces: AsyncIterator[Piece], prompt_tokens: int, wanted: Wanted
) -> None:
    # Every chunk says `usage: null` when the last one will carry it, as OpenAI's do.
    more: dict[str, Any] = {"usage": None} if wanted.include_usage else {}
    tokens = 0
    async for piece in pieces:
        # Only now: until there is a first token, whatever goes wrong still gets a status of its own.
        if not call.begun and (opening := shape.opening()) is not None:
            await call.event(opening | more)
        tokens = piece.tokens
        if piece.text:
            await call.event(shape.chunk(piece.text) | more)
        if piece.finish is not None:
            await call.event(shape.closing(piece.finish) | more)
    if wanted.include_usage:
        await call.event(shape.counts() | {"usage": Usage(prompt_tokens, tokens).to_json()})
    await call.end(DONE)


def _prompt(wanted: Wanted, generator: TextGenerator) -> Prompt:
    """Tokenize, and see that it fits. Raises Refused."""
    tokens = wanted.prompt(generator)
    context = generator.context_tokens
    room = context - len(tokens)
    most = wanted.tokens_max
    if room < 1 or (most is not None and most > room):
        asked = f" and {most} new ones are asked for" if most is not None else ""
        raise Refused(
            f"this model takes {context} tokens, prompt and answer together; {wanted.param} has {len(tokens)}{asked}",
            wanted.param,
            "context_length_exceeded",
        )
    return Prompt(tuple(tokens), room if most is None else most, wanted.sampling, wanted.stop)


def _wanted(
    request: _Common,
    param: str,
    prompt: Callable[[TextGenerator], list[int]],
    most: int | None,
    *,
    chat: bool,
) -> Wanted:
    options = request.stream_options
    if options is not None and not request.stream:
        raise Refused("stream_options is for streams; set stream to true, or leave it out", "stream_options")
    return Wanted(
        chat=chat,
        param=param,
        prompt=prompt,
        tokens_max=most,
        sampling=Sampling(
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=request.seed,
            presence_penalty=request.presence_penalty or 0.0,
            frequency_penalty=request.frequency_penalty or 0.0,
        ),
        stop=_stops(request.stop),
        stream=bool(request.stream),
        include_usage=bool(options and options.include_usage),
    )


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > STOPS_MAX:
        raise Refused(f"stop has {len(stops)} texts; at most {STOPS_MAX} are taken", "stop")
    if not all(0 < len(each) <= STOP_CHARACTERS_MAX for each in stops):
        raise Refused(f"each text of stop must have from 1 to {STOP_CHARACTERS_MAX} characters", "stop")
    return stops


def _plain_message(message: Message, index: int) -> dict[str, str]:
    where = f"messages[{index}]"
    content = message.content
    if isinstance(content, list):
        strange = next((part.type for part in content if part.type != "text"), None)
        if strange is not None:
            raise Refused(
                f"{where} has a part of type {strange[:40]!r}; this server takes text only", "messages"
            )
        content = "".join(part.text for part in content)
    if content is None:
        raise Refused(f"{where} has no content", "messages")
    # What OpenAI calls developer since its reasoning models is system to everybody else's templates.
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": content}


def _known_tokens(tokens: Sequence[int], generator: TextGenerator) -> list[int]:
    if not all(0 <= token < generator.vocabulary_size for token in tokens):
        raise Refused(
            f"prompt has a token id that is not from 0 to {generator.vocabulary_size - 1}", "prompt"
        )
    return list(tokens)


def _refuse_unsupported(request: _Common) -> None:
    if request.n not in (None, 1) or isinstance(request.n, bool):
        raise Refused("n must be 1; this server makes one answer a request", "n")
    if request.logprobs not in (None, False):
        raise _unsupported("logprobs")
    if request.logit_bias:
        raise _unsupported("logit_bias")


def _unsupported(param: str) -> Refused:
    return Refused(f"{param} is not supported by this server; leave it out", param, "unsupported_parameter")


def _check_model(name: str, names: frozenset[str]) -> None:
    if name and name not in names:
        known = " or ".join(sorted(names))
        raise Refused(
            f"the model {name[:80]!r} does not exist; this endpoint serves {known}",
            "model",
            "model_not_found",
            404,
        )


def _wrong_model(what: str, serving: Serving) -> Refused:
    if generator_of(serving.model):
        hint = "use /v1/chat/completions or /v1/completions"
    elif _embeds(serving):
        hint = "use /v1/embeddings"
    else:
        hint = "use /v1/models/<name>:predict or /v2/models/<name>/infer"
    return Refused(f"this endpoint's model {what}; {hint}", "model", "model_not_supported")


def _embeds(serving: Serving) -> bool:
    signature = serving.signature
    return signature.kind is InputKind.TEXT and EMBEDDING in signature.output_names


def _decode(body: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    """Decode a body into its struct. Raises Refused naming the field."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        where = re.search(r"`\$\.([A-Za-z_]+)", str(error)) or re.search(
            r"required field `(\w+)`", str(error)
        )
        raise Refused(f"the body is not a request of this protocol: {error}", where and where[1]) from None
    except RecursionError:
        raise Refused("the body is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(f"the body is not valid JSON: {error}") from None


def _json_headers(tokens: int) -> Headers:
    return (JSON_TYPE, (TOKENS_HEADER, b"%d" % tokens))


def _merged(ready: Callable[[], Answer], whole: Mapping[str, Any]) -> Answer:
    """V1's answer while the model is not ready, else both protocols' in one."""
    answer = ready()
    return answer if answer.status != 200 else json_answer(200, whole)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
