"""What is not even HTTP gets the error of every other answer: uvicorn's parser, with our words."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_BODY = b'{"error":"the request is not HTTP that can be read, or its method is not known"}'
_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\n"
    b"content-type: application/json\r\n"
    b"content-length: %d\r\n"
    b"connection: close\r\n\r\n%b" % (len(_BODY), _BODY)
)


class ModelProtocol(HttpToolsProtocol):
    """uvicorn's own protocol, but for the answer to what it cannot parse."""

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the parser's words are for its log
        """Answer 400 with a sentence and close."""
        self.transport.write(_ANSWER)
        self.transport.close()
