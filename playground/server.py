"""The web server: health routes, the visitor's cookie, and the Gradio page at `/`; and how it starts and ends.

What the page does is `ui/`'s; what a gesture means is `session.py`'s.
"""

from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from playground import visitor
from playground.session import Refused
from playground.ui import page, theme, words
from playground.visitor import Cookies

ASSETS = Path(__file__).resolve().parent.parent / "assets"


def create(settings, store, engine, chat):
    """The ASGI app of one engine and its store."""
    app = FastAPI(title="Nudge", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/healthz")
    def healthz():
        return {"status": "ok"}

    @app.get("/readyz")
    def readyz():
        return JSONResponse(readiness(settings, store, engine), 200 if engine.healthy else 503)

    @app.post("/forget")
    def forget(request: Request):
        """Delete everything of the person who asks, and let the browser be somebody new."""
        w = words.of(request)
        if not visitor.from_own_page(request):
            return JSONResponse({"error": w("Only the page itself can ask for this.")}, 403)
        try:
            chat.forget(store.annotator(visitor.token(request.cookies)))
        except visitor.NoCookie:
            pass  # nothing is kept of somebody who cannot be told from others
        except Refused as error:
            return JSONResponse({"error": w.said(str(error))}, 409)
        return Response(status_code=204, headers={"set-cookie": visitor.new_cookie(request.headers), "clear-site-data": '"cache"'})

    app.add_middleware(Cookies)
    blocks = page.build(settings, store, engine, chat)
    blocks.queue(max_size=64, default_concurrency_limit=16)
    return gr.mount_gradio_app(
        app, blocks, path="/", theme=theme.nudge(), css_paths=page.STYLES, head=page.HEAD, i18n=words.translations(), favicon_path=str(ASSETS / "favicon.svg"),
        footer_links=[], run_history=False, show_error=False, ssr_mode=False, mcp_server=False)


def readiness(settings, store, engine):
    """What answers and how: for people and probes. Nothing in it is secret."""
    return {
        "ready": engine.healthy, "version": engine.live.version, "model": engine.identity["model"], "dtype": str(engine.base.dtype).removeprefix("torch."),
        "decoding": {"format": engine.choice.number_format, "threads": engine.choice.threads, "step_ms": engine.choice.milliseconds},
        "threads": settings.threads, "sqlite": store.sqlite_version()}


class Web(uvicorn.Server):
    """Serves `app` on a bound socket until a signal; says where once it listens, and calls `before_shutdown` while pages can still be answered."""

    def __init__(self, app, before_shutdown):
        super().__init__(uvicorn.Config(app, log_config=None, log_level="warning", access_log=False, timeout_graceful_shutdown=3))
        self.before_shutdown = before_shutdown

    async def startup(self, sockets=None):
        await super().startup(sockets)
        host, port = sockets[0].getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        print(f"Nudge is at http://{host}:{port}", flush=True)

    async def shutdown(self, sockets=None):
        await run_in_threadpool(self.before_shutdown)
        await super().shutdown(sockets)
