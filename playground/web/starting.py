"""What answers while the app starts: health probes, and a page that says what the start is doing and opens the chat by
itself. It needs neither the model nor Gradio, and imports nothing that takes seconds.
"""

import logging
from html import escape

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from playground.settings import ON_SPACE, Settings
from playground.system.languages import Words, language
from playground.system.messages import Message
from playground.web import headers as answer_headers
from playground.web.proxies import Proxies, allowed_hosts

log = logging.getLogger(__name__)

RELOAD_SECONDS = 2  # until the page asks again
HEADERS = {"retry-after": str(RELOAD_SECONDS), "cache-control": "no-store"}
STARTING = Message("Nudge is starting. Try again in a moment.")
PAGE = """<!doctype html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="{seconds}">
<title>Nudge</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.6 system-ui, sans-serif; }}
body {{ margin: 0; min-height: 100vh; display: grid; place-content: center; padding: 0 24px; text-align: center; }}
p {{ margin: 0; }}
h1 {{ font-size: 20px; margin: 0 0 8px; }}
.next {{ opacity: .75; font-size: 14px; }}
</style>
</head>
<body><main role="status"><h1>{title}</h1><p>{doing}…</p><p class="next">{next}</p></main></body>
</html>
"""


class Starting:
    """Knows what the start is doing (`say`) and answers requests meanwhile (`answer`, an ASGI app)."""

    def __init__(self, settings: Settings) -> None:
        self._doing = Message("loading the program")
        self.answer: ASGIApp = Proxies(
            self._respond, settings.trusted_proxies, settings.root_path, hosts=allowed_hosts(settings)
        )

    def say(self, doing: Message) -> None:
        """What the start does from now on."""
        self._doing = doing
        log.info("%s", doing)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # as an app without a lifespan and without WebSockets
            raise NotImplementedError(scope["type"])
        response = self._response(scope)
        answer_headers.harden(response.headers, (), ON_SPACE)
        await response(scope, receive, send)

    def _response(self, scope: Scope) -> Response:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        words = Words(language(Headers(scope=scope).get("accept-language", "")))
        if scope["method"] not in ("GET", "HEAD"):  # of a page that was open before a restart
            sentence = words.message(STARTING)
            return JSONResponse({"error": sentence, "detail": sentence}, 503, HEADERS)
        if path == "/healthz":
            return JSONResponse({"status": "ok"})
        if path == "/readyz":
            return JSONResponse({"ready": False, "starting": str(self._doing)}, 503, HEADERS)
        return HTMLResponse(self._page(words), 503, HEADERS)

    def _page(self, words: Words) -> str:
        return PAGE.format(
            language=words.language,
            seconds=RELOAD_SECONDS,
            title=escape(words.message(Message("Nudge is starting"))),
            doing=escape(words.message(self._doing)),
            next=escape(words.message(Message("The chat opens here by itself."))),
        )
