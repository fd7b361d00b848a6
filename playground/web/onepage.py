"""The page, written once for each place it is shown at: Gradio takes 30 ms to write the same half a megabyte anew for
every visitor.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers

Message = MutableMapping[str, Any]
MOST = 8  # places (scheme and path prefix) that are kept


class OnePage:
    """ASGI middleware inside the one that gives out cookies: nothing in the page may depend on who asks."""

    def __init__(self, app: Callable) -> None:
        self.app = app
        self._kept: dict[tuple[str, str], list[Message]] = {}

    async def __call__(
        self, scope: MutableMapping[str, Any], receive: Callable, send: Callable[[Message], Awaitable[None]]
    ) -> None:
        if (
            scope["type"] != "http"
            or scope["method"] != "GET"
            or (scope["path"].removeprefix(scope.get("root_path", "")) or "/") != "/"
        ):
            return await self.app(scope, receive, send)
        place = (scope["scheme"], scope.get("root_path", ""))
        if place not in self._kept:
            answer: list[Message] = []

            async def gather(message: Message) -> None:
                answer.append(message)

            await self.app(scope, receive, gather)
            if not is_page(answer[0]) or len(self._kept) >= MOST:
                for message in answer:
                    await send(message)
                return None
            body = b"".join(message.get("body", b"") for message in answer[1:])
            self._kept[place] = [answer[0], {"type": "http.response.body", "body": body}]
        start, body = self._kept[place]
        await send({**start, "headers": list(start["headers"])})  # others add to the headers
        await send(dict(body))


def is_page(start: Message) -> bool:
    """Whether an answer that starts like this is the page, and not an error."""
    return start["status"] == 200 and Headers(raw=start["headers"]).get("content-type", "").startswith("text/html")
