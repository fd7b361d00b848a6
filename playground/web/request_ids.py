"""The name of each request, by which a log line and an answer (`X-Request-ID`) find each other.

A trusted proxy may give it; anybody else gets a new one, so that nobody writes another's name into the log.
"""

import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Send

HEADER = "x-request-id"
FORM = re.compile(r"[A-Za-z0-9._-]{1,64}")
ID_BYTES = 8


def name_of(headers: Headers, trusted: bool) -> str:
    """A request's name: the one in its headers where it comes from a `trusted` proxy and has the form, else a new
    one.
    """
    given = headers.get(HEADER, "")
    if trusted and FORM.fullmatch(given):
        return given
    return secrets.token_hex(ID_BYTES)


def adding(send: Send, name: str) -> Send:
    """A `send` that puts the request's name into the head of the answer."""

    async def send_with_name(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": list(message.get("headers", []))}
            MutableHeaders(raw=message["headers"])[HEADER] = name
        await send(message)

    return send_with_name
