"""A collector of traces on loopback: OTLP over HTTP, in JSON and in protobuf, remembered span by span."""

from __future__ import annotations

import importlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from google.protobuf import json_format

PATH = "/v1/traces"


@dataclass(frozen=True)
class Span:
    """One span, in the words of OTLP's JSON."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    state: str
    started: int
    ended: int
    status: dict[str, Any]
    attributes: dict[str, Any] = field(hash=False)


class Collector:
    """A server; `status` is what it answers."""

    def __init__(self) -> None:
        self.status = 200
        self.posts = 0
        self.problems: list[str] = []
        self._spans: list[Span] = []
        self._lock = threading.Lock()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = self.headers["content-length"]
                body = self._chunked() if length is None else self.rfile.read(int(length))
                collector.take(self.path, self.headers["content-type"], body)
                self.send_response(collector.status)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def _chunked(self) -> bytes:
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        assert not self.problems

    def of(self, service: str, trace_id: str = "") -> list[Span]:
        """The spans of a service, of one trace or of all."""
        with self._lock:
            return [
                each for each in self._spans if each.service == service and trace_id in ("", each.trace_id)
            ]

    def take(self, path: str, content_type: str, body: bytes) -> None:
        """Remember what was posted."""
        with self._lock:
            self.posts += 1
            if path != PATH:
                self.problems.append(f"posted to {path}")
            elif self.status == 200:
                self._spans += _spans(json.loads(body) if "json" in content_type else _from_protobuf(body))


def _from_protobuf(body: bytes) -> Any:
    service = importlib.import_module("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    message = service.ExportTraceServiceRequest.FromString(body)
    content = json_format.MessageToDict(message)
    # Protobuf's own JSON has bytes in base64; OTLP's has ids in hexadecimal. The messages at hand are of a
    # time when scopes were called libraries; on the wire they are the same.
    for resource, given in zip(content["resourceSpans"], message.resource_spans, strict=True):
        resource["scopeSpans"] = resource.pop("instrumentationLibrarySpans")
        libraries = given.instrumentation_library_spans
        for scope, given_scope in zip(resource["scopeSpans"], libraries, strict=True):
            for span, given_span in zip(scope["spans"], given_scope.spans, strict=True):
                span["traceId"] = given_span.trace_id.hex()
                span["spanId"] = given_span.span_id.hex()
                span["parentSpanId"] = given_span.parent_span_id.hex()
    return content


def _spans(content: Any) -> list[Span]:
    return [
        Span(
            service=str(_attributes(resource["resource"])["service.name"]),
            name=span["name"],
            trace_id=span["traceId"],
            span_id=span["spanId"],
            parent_id=span.get("parentSpanId", ""),
            state=span.get("traceState", ""),
            started=int(span["startTimeUnixNano"]),
            ended=int(span["endTimeUnixNano"]),
            status=span.get("status", {}),
            attributes=_attributes(span),
        )
        for resource in content["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def _attributes(holder: Any) -> dict[str, Any]:
    found = {}
    for each in holder.get("attributes", ()):
        ((kind, value),) = each["value"].items()
        found[each["key"]] = int(value) if kind == "intValue" else value
    return found
