"""The web server: health routes, the visitor's cookie, the allowlist, and the Gradio page behind it at `/`; and how it starts and ends.

What the page does is `ui/`'s; what a gesture means is `session.py`'s; what passes is `allowlist.py`'s.
"""

from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from playground.allowlist import Allowlist
from playground.limits import Limits
from playground.payload import Handler
from playground.ui import page, theme, words
from playground.visitor import Cookies

ASSETS = Path(__file__).resolve().parent.parent / "assets"


def create(settings, store, engine, chat):
    """The ASGI app of one engine and its store."""
    app = FastAPI(title="Nudge", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/healthz")
    async def healthz():  # in the server's own thread: it answers however many others wait
        return {"status": "ok"}

    @app.get("/readyz")
    def readyz():
        found = readiness(settings, store, engine)
        return JSONResponse(found, 200 if found["ready"] else 503)

    blocks = page.build(settings, store, engine, chat)
    blocks.queue(max_size=64, default_concurrency_limit=16)
    blocks.state_session_capacity = settings.sessions
    gradio = Gradio(blocks)
    app.add_middleware(Cookies)
    app.add_middleware(Allowlist, settings=settings, handlers=gradio.handlers(), limits=Limits(settings, gradio.forget), stop=gradio.stop,
                       translate=lambda accepted, text: words.Words(words.language(accepted)).said(text),
                       head=page.HEAD)
    return gr.mount_gradio_app(
        app, blocks, path="/", theme=theme.nudge(), css_paths=page.STYLES, head=page.HEAD, i18n=words.translations(), favicon_path=str(ASSETS / "favicon.svg"),
        footer_links=[], run_history=False, show_error=False, ssr_mode=False, mcp_server=False)


class Gradio:
    """What the allowlist needs of a Gradio app: which handlers it has, and how a session of it ends."""

    def __init__(self, blocks: gr.Blocks) -> None:
        self.blocks = blocks

    def handlers(self) -> dict[int, Handler]:
        """The handlers that run on the server, by their number; those that run in the browser alone cannot be called."""
        return {
            number: Handler.of(fn.queue, [target for target, _ in fn.targets], [type(component).__name__ for component in fn.inputs])
            for number, fn in self.blocks.fns.items() if fn.fn is not None}

    def forget(self, session: str) -> None:
        """Drop all that is kept for a session."""
        self.blocks.state_holder.session_data.pop(session, None)
        self.blocks.state_holder.time_last_used.pop(session, None)
        queue = self.blocks._queue
        queue.pending_messages_per_session.pop(session, None)
        queue.pending_event_ids_session.pop(session, None)

    async def stop(self, session: str) -> None:
        """End what a session has asked for, and drop what nobody has read of it."""
        queue = self.blocks._queue
        await queue.clean_events(session_hash=session)
        queue.pending_messages_per_session.pop(session, None)
        queue.pending_event_ids_session.pop(session, None)


class PatientProtocol(H11Protocol):
    """HTTP over one connection, which is closed where the head of a request takes longer than `seconds` to arrive."""

    seconds = 20.0

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._deadline = self.loop.call_later(self.seconds, self._close_late)

    def data_received(self, data: bytes) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.seconds, self._close_late)
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._deadline.cancel()
            self._deadline = None

    def connection_lost(self, exc) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _close_late(self) -> None:
        self._deadline = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()


def readiness(settings, store, engine):
    """What answers and how: for people and probes. Nothing in it is secret. `ready` is false, with the reason, where
    nothing can be recorded."""
    trouble = store.trouble()
    return {
        "ready": engine.healthy and not trouble, "database": trouble or "ok", "version": engine.live.version, "model": engine.identity["model"], "dtype": str(engine.base.dtype).removeprefix("torch."),
        "decoding": {"format": engine.choice.number_format, "threads": engine.choice.threads, "step_ms": engine.choice.milliseconds},
        "threads": settings.threads, "sqlite": store.sqlite_version()}


class Web(uvicorn.Server):
    """Serves `app` on a bound socket until a signal; says where once it listens, and calls `before_shutdown` while pages can still be answered."""

    def __init__(self, app, before_shutdown, request_seconds=PatientProtocol.seconds):
        protocol = type("Protocol", (PatientProtocol,), {"seconds": request_seconds})
        super().__init__(uvicorn.Config(
            app, log_config=None, log_level="warning", access_log=False, timeout_graceful_shutdown=3, http=protocol, ws="none",
            proxy_headers=False, server_header=False, h11_max_incomplete_event_size=16 << 10, limit_concurrency=2000))
        self.before_shutdown = before_shutdown

    async def startup(self, sockets=None):
        await super().startup(sockets)
        host, port = sockets[0].getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        print(f"Nudge is at http://{host}:{port}", flush=True)

    async def shutdown(self, sockets=None):
        await run_in_threadpool(self.before_shutdown)
        await super().shutdown(sockets)
