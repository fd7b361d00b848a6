"""The bodies of requests: read whole, within a size and a time, and given on. Also how a request is refused."""

import asyncio

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from playground.system.messages import Message as Sentence
from playground.system.messages import UserFacingError, plain


class Refusal(UserFacingError):
    """A request that does not pass, with the HTTP status and a sentence that says why. A plain text is for senders of
    requests that the page does not make; what a person may read is a Message.
    """

    def __init__(self, status: int, message: str | Sentence) -> None:
        super().__init__(message if isinstance(message, Sentence) else plain(message))
        self.status = status


async def read_json(headers: Headers, receive: Receive, most: int, seconds: float) -> bytes:
    """As `read_body`; Refusal also where the body does not say that it is JSON, or is packed."""
    if headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "A gesture is sent as JSON.")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "A gesture is sent as it is, not packed.")
    return await read_body(headers, receive, most, seconds)


async def read_form(headers: Headers, receive: Receive, most: int, seconds: float) -> bytes:
    """As `read_body`; Refusal also where the body is not the fields of a form."""
    if headers.get("content-type", "").split(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        raise Refusal(415, "A form is sent as a browser sends it.")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "A form is sent as it is, not packed.")
    return await read_body(headers, receive, most, seconds)


async def read_body(headers: Headers, receive: Receive, most: int, seconds: float) -> bytes:
    """A request's whole body; Refusal where it is longer than `most` bytes or takes longer than `seconds`."""
    too_long = Refusal(413, f"The request is larger than {most >> 10} KB.")
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length[:20]) > most:
        raise too_long
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refusal(400, "The request ended early.")
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > most:
                    raise too_long
                if not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError:
        raise Refusal(408, "The request took too long to arrive.") from None


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives `body` once, and then what the connection gives."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed
