"""What is not even HTTP still gets the envelope: uvicorn's parser, with our words for what it refuses."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from inferplane.wire import paths
from inferplane.wire.envelope import ErrorKey, failure


class ApiProtocol(HttpToolsProtocol):
    """uvicorn's own protocol, but for the answer to what it cannot parse."""

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the parser's words are for its log
        """Answer 400 in the envelope and close. No request was read, so there is no request id either."""
        body = failure(
            400,
            ErrorKey.INVALID,
            "the request is not HTTP that can be read, or its method is not known",
            reason="MalformedRequest",
            next_action=f"See {paths.DOCS} for what there is.",
        )
        head = (
            "HTTP/1.1 400 Bad Request\r\n"
            "content-type: application/json\r\n"
            f"content-length: {len(body)}\r\n"
            "cache-control: no-store\r\n"
            "x-content-type-options: nosniff\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()
