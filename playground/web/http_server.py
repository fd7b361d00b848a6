"""The HTTP server: uvicorn with our limits, on a bound socket from the first moment on. One app can answer while the
next one is made, on the same connections.

Which apps these are is `app.py`'s. Imports nothing that takes seconds.
"""

import asyncio
import logging
import socket
import threading
from collections.abc import Callable

import uvicorn
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.lifespan.on import LifespanOn

from playground.web.protocol import LimitedProtocol

BACKLOG = 128  # connections that wait to be taken
# Ports that browsers open no page of, since other protocols have them: https://fetch.spec.whatwg.org/#port-blocking
REFUSED_BY_BROWSERS = {
    1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109, 110,
    111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530, 531, 532,
    540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061,
    6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080,
}  # fmt: skip


class Switch:
    """An ASGI app that is another one, `app`, which may change between two requests."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


class Web(uvicorn.Server):
    """Serves `app` on a bound socket until a signal.

    `before_shutdown` is called while requests can still be answered. `request_seconds`: for the head of a request.
    `trusted_proxies`: as in the settings.

    `make`: makes another app meanwhile, in a thread of its own, which then answers instead of `app`; `ready` is called
    just before, in the thread that serves. What either raises ends the server and is kept in `error`.
    """

    def __init__(
        self,
        app: ASGIApp,
        before_shutdown: Callable[[], object],
        request_seconds: float = LimitedProtocol.seconds,
        make: Callable[[], ASGIApp] | None = None,
        ready: Callable[[], object] = lambda: None,
        trusted_proxies: str = "",
    ) -> None:
        self._switch = Switch(app)
        # `proxy_headers` is off because uvicorn would trust every proxy on this machine; `web/proxies.py` trusts those
        # in the settings. Only errors are logged: uvicorn warns of everything that is not HTTP, so strangers could fill
        # the log.
        super().__init__(
            uvicorn.Config(
                self._switch,
                log_config=None,
                log_level="error",
                access_log=False,
                timeout_graceful_shutdown=3,
                proxy_headers=False,
                server_header=False,
                http=LimitedProtocol.with_timeout(request_seconds, trusted_proxies),
                ws="none",
                backlog=BACKLOG,
                h11_max_incomplete_event_size=16 << 10,
                limit_concurrency=2000,
            )
        )
        self.before_shutdown = before_shutdown
        self.making = make is not None  # the next app
        self.error: BaseException | None = None
        self._make = make
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if not sockets:
            raise ValueError("Web serves on a bound socket; pass it to run().")
        await super().startup(sockets)
        if self._make:
            threading.Thread(
                target=self._make_app, args=(self._make, asyncio.get_running_loop()), name="start", daemon=True
            ).start()

    def _make_app(self, make: Callable[[], ASGIApp], loop: asyncio.AbstractEventLoop) -> None:
        """Make the next app. A thread that is not waited for: a signal ends the server in the middle of it."""
        try:
            app = make()
        except BaseException as error:
            self._fail(error)
            return
        if not loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._use(app), loop)

    async def _use(self, app: ASGIApp) -> None:
        """Let `app` answer from now on. Connections stay as they are."""
        try:
            # as uvicorn does for its first app; at the end it shuts this one down
            self.lifespan = LifespanOn(uvicorn.Config(app, log_config=None, log_level="error", lifespan="on"))
            await self.lifespan.startup()
            if self.lifespan.should_exit:
                raise RuntimeError("the page could not be started")
            self._ready()
            self._switch.app = app
            self.making = False
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self.error = error
        self.making = False
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await run_in_threadpool(self.before_shutdown)
        logging.getLogger("uvicorn.error").addFilter(_is_unexpected)
        await super().shutdown(sockets)


def _is_unexpected(record: logging.LogRecord) -> bool:
    """Whether a record of uvicorn's shutdown says more than that open pages were cut off, which always happens then."""
    cut_off = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cut_off and "graceful shutdown" not in record.getMessage()


def address(host: str, port: int) -> str:
    """The URL by which a browser on this machine reaches a server that listens on `host`."""
    if host == "0.0.0.0":
        host = "127.0.0.1"
    elif host == "::":
        host = "[::1]"
    elif ":" in host:
        host = f"[{host}]"
    return f"http://{host}:{port}"
