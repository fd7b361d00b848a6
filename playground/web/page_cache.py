"""Keeps the page once it is rendered: Gradio takes 30 ms to render the same half a megabyte for every visitor.

And puts a script before all others into it, which Gradio's `head` cannot: Gradio adds that when its own code runs.
"""

from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SCRIPTS = b'<script type="module"'  # where Gradio's code begins
MOST_PLACES = 8  # places (scheme and path prefix) whose page is kept


@dataclass(frozen=True)
class CachedPage:
    """The answer to a request for the page: its first message, and its whole body."""

    start: Message
    body: bytes


class PageCache:
    """ASGI middleware. Nothing in the page may depend on who asks, so it belongs inside the one that sets cookies.

    `first_script`: JavaScript that runs before Gradio's.
    """

    def __init__(self, app: ASGIApp, first_script: str = "") -> None:
        self.app = app
        self._first = f"<script>{first_script}</script>".encode() if first_script else b""
        self._pages: dict[tuple[str, str], CachedPage] = {}  # by scheme and path prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not asks_for_page(scope):
            await self.app(scope, receive, send)
            return
        place = (scope["scheme"], scope.get("root_path", ""))
        page = self._pages.get(place)
        if page is None:
            messages: list[Message] = []

            async def gather(message: Message) -> None:
                messages.append(message)

            await self.app(scope, receive, gather)
            if not is_page(messages[0]) or len(self._pages) >= MOST_PLACES:
                for message in messages:
                    await send(message)
                return
            body = b"".join(message.get("body", b"") for message in messages[1:])
            body = body.replace(SCRIPTS, self._first + SCRIPTS, 1)
            start = {**messages[0], "headers": list(messages[0]["headers"])}
            MutableHeaders(raw=start["headers"])["content-length"] = str(len(body))
            page = self._pages[place] = CachedPage(start, body)
        await send({**page.start, "headers": list(page.start["headers"])})  # a copy: other middlewares add headers
        await send({"type": "http.response.body", "body": page.body})


def asks_for_page(scope: Scope) -> bool:
    """Whether a request is a GET of the page."""
    if scope["type"] != "http" or scope["method"] != "GET":
        return False
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    return (path or "/") == "/"


def is_page(start: Message) -> bool:
    """Whether an answer that starts like this is the page, and not an error."""
    return start["status"] == 200 and Headers(raw=start["headers"]).get("content-type", "").startswith("text/html")
