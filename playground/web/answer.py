"""The answers that the allowlist lets out: with our headers, and with a time limit for the browser to take each part.

Which requests pass is decided in `allowlist.py`; what the headers say is in `headers.py`.
"""

import asyncio
import json
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Send

from playground.settings import ON_SPACE
from playground.web import headers as answer_headers


@dataclass(frozen=True)
class GatheredAnswer:
    """An answer that is kept until it is complete."""

    start: Message
    parts: list[bytes]


class Answer:
    """What goes back to the browser: adds our headers, and the hashes of a page's scripts to its policy.

    A page, and a gesture that failed, are gathered and sent whole. `scripts`: CSP sources of the scripts that Gradio
    adds to the page.
    """

    def __init__(self, send: Send, scripts: tuple[str, ...]) -> None:
        self._send = send
        self._scripts = scripts
        self._may_gather = False
        self._packs = False
        self._gathered: GatheredAnswer | None = None

    def expect(self, request: Headers, may_gather: bool) -> None:
        """Prepare for the answer to a request; `may_gather`: whether it asks for a page or calls a gesture."""
        self._may_gather = may_gather
        self._packs = "gzip" in request.get("accept-encoding", "")

    async def send(self, message: Message) -> None:
        """Take the next message from the app."""
        if message["type"] == "http.response.start":
            start = {**message, "headers": list(message.get("headers", []))}
            if self._may_gather and must_be_gathered(start):
                self._gathered = GatheredAnswer(start, [])
                return
            self._gathered = None
            answer_headers.harden(MutableHeaders(raw=start["headers"]), (), ON_SPACE)
            await self._send(start)
        elif self._gathered is not None:
            self._gathered.parts.append(message.get("body", b""))
        else:
            await self._send(message)

    async def end(self) -> None:
        """Send what was gathered."""
        if self._gathered is None:
            return
        start = self._gathered.start
        body = b"".join(self._gathered.parts)
        headers = MutableHeaders(raw=start["headers"])
        scripts: tuple[str, ...] = ()
        if start["status"] == 500:
            start["status"] = 403 if is_sentence(headers, body) else 500
        elif body:
            page = answer_headers.page(body)
            body = page.packed if self._packs else page.plain
            scripts = page.scripts + self._scripts
            headers["vary"] = "accept-encoding"
            headers["cache-control"] = "no-cache"
            if self._packs:
                headers["content-encoding"] = "gzip"
            headers["content-length"] = str(len(body))
        answer_headers.harden(headers, scripts, ON_SPACE)
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})


def within(seconds: float, send: Send) -> Send:
    """`send` that raises TimeoutError where the browser takes longer than `seconds` for one part."""

    async def send_within(message: Message) -> None:
        async with asyncio.timeout(seconds):
            await send(message)

    return send_within


def must_be_gathered(start: Message) -> bool:
    """Whether an answer is a page, whose scripts are hashed, or a failure, whose status depends on its body."""
    content_type = Headers(raw=start["headers"]).get("content-type", "")
    return content_type.startswith("text/html") or start["status"] == 500


def is_sentence(headers: Headers, body: bytes) -> bool:
    """Whether a failed gesture was refused by its handler with a sentence (`gr.Error`).

    Gradio has no other status for that than 500.
    """
    if headers.get("content-encoding"):
        return False
    try:
        return bool(json.loads(body).get("error"))
    except (ValueError, AttributeError):
        return False
