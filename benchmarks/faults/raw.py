"""HTTP as bytes on a socket: what no client library would send. Only to 127.0.0.1."""

import contextlib
import gzip
import http.client
import socket
import time
import zlib
from dataclasses import dataclass, field

READ_LIMIT = 4 << 20  # bytes of an answer that are looked at
STREAM_SECONDS = 1.0  # how long an open stream is listened to


@dataclass
class Request:
    """One request as it goes over the wire. `headers` in order, repeated ones too; `note` says what is odd about it."""

    method: str = "GET"
    target: bytes = b"/"
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    chunked: bool = False
    note: str = ""
    unfinished: bool = False  # says that more will come than comes: no answer is an answer then

    def header(self, name: str, value: str | bytes) -> "Request":
        """Set a header, whatever there was of it before."""
        key = name.encode("latin-1", "replace")
        self.headers = [(k, v) for k, v in self.headers if k.lower() != key.lower()]
        self.headers.append((key, value if isinstance(value, bytes) else value.encode("utf-8", "replace")))
        return self

    def encode(self) -> bytes:
        """The whole message."""
        lines = [b"%s %s HTTP/1.1" % (self.method.encode("latin-1", "replace"), self.target)]
        lines += [b"%s: %s" % pair for pair in self.headers]
        names = {name.lower() for name, _ in self.headers}
        body = self.body
        if self.chunked:
            lines.append(b"Transfer-Encoding: chunked")
            body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in _parts(body)) + b"0\r\n\r\n"
        elif b"content-length" not in names and (body or self.method in ("POST", "PUT", "PATCH")):
            lines.append(b"Content-Length: %d" % len(body))
        if b"connection" not in names:
            lines.append(b"Connection: close")
        return b"\r\n".join(lines) + b"\r\n\r\n" + body

    def __str__(self) -> str:
        return f"{self.method} {self.target[:120]!r} {self.note} {self.body[:160]!r}"


def _parts(body: bytes, size: int = 1000) -> list[bytes]:
    return [body[i : i + size] for i in range(0, len(body), size)]


@dataclass
class Response:
    """What came back: `status` 0 where nothing that is HTTP came, and `outcome` says how it ended."""

    status: int
    head: bytes
    body: bytes
    outcome: str  # "answered", "stream" (still open), "timeout", "closed"
    seconds: float

    @property
    def everything(self) -> bytes:
        return self.head + self.body


def fetch(port: int, request: Request, timeout: float = 20, address: str = "127.0.0.1") -> Response:
    """Send a request on a connection of its own, from `address` (of 127.0.0.0/8), and read the answer; never raises
    for what the server does.
    """
    began, head, status = time.monotonic(), b"", 0
    body, outcome = bytearray(), "closed"
    try:
        with socket.create_connection(("127.0.0.1", port), timeout, (address, 0)) as sock:
            _send(sock, request)
            answer = http.client.HTTPResponse(
                sock, method=request.method if request.method in ("HEAD", "GET", "POST") else "GET"
            )
            answer.begin()
            status = answer.status
            head = repr(answer.getheaders()).encode()
            streams = "text/event-stream" in answer.getheader("content-type", "")
            if streams:
                sock.settimeout(STREAM_SECONDS)
            end = time.monotonic() + (STREAM_SECONDS if streams else timeout)
            outcome = "stream" if streams else "answered"
            while len(body) < READ_LIMIT and time.monotonic() < end and (part := answer.read1(65536)):
                body += part
            body = _decoded(bytes(body), answer.getheader("content-encoding", ""))
    except TimeoutError:
        outcome = outcome if outcome == "stream" else "timeout"
    except (OSError, http.client.HTTPException, ValueError):
        outcome = outcome if status else "closed"
    return Response(status, head, bytes(body), outcome, time.monotonic() - began)


def _send(sock: socket.socket, request: Request) -> None:
    # refused before it was all there; the answer may be waiting
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(request.encode())
    if request.unfinished:
        sock.settimeout(2)


def _decoded(body: bytes, coding: str) -> bytes:
    try:
        if coding == "gzip":
            return gzip.decompress(body)
        if coding == "deflate":
            return zlib.decompress(body)
    except (OSError, EOFError, zlib.error):
        pass
    return body
