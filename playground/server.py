"""The web server: health routes, the admin link, the visitor's cookie, and the Gradio page at `/`; and how it starts and ends.

What the page does is `ui/`'s; what a gesture means is `session.py`'s.
"""

import os
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse

from playground import settings as settings_module
from playground import visitor
from playground.admins import AdminLink, Admins, TooMany, WrongSignIn
from playground.proxies import Proxies
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

    app.state.admin_link = AdminLink()
    app.state.root_path = settings.root_path
    open_to_admins(app, Admins(settings, store))
    app.add_middleware(Cookies)
    # the middleware that is added last is the outermost
    app.add_middleware(Proxies, trusted=settings.trusted_proxies, root_path=settings.root_path)
    blocks = page.build(settings, store, engine, chat)
    blocks.queue(max_size=64, default_concurrency_limit=16)
    gr.mount_gradio_app(
        app, blocks, path="/", theme=theme.nudge(), css_paths=page.STYLES, head=page.HEAD, i18n=words.translations(), favicon_path=str(ASSETS / "favicon.svg"),
        footer_links=[], run_history=False, show_error=False, ssr_mode=False, mcp_server=False)
    # so that the page calls the address it was loaded from: else it calls the one in the Host header, which behind a
    # proxy can be that of an inner machine
    blocks.config["is_colab"] = True
    return app


def open_to_admins(app, admins):
    """Add the admin link's route: it makes the browser's visitor the owner and shows the page, or says why not."""
    @app.get("/admin/{token}")
    def admin_link(token: str, request: Request):
        fresh = visitor.new_token()

        def sign_in():
            admins.sign_in_owner(admins.store.annotator(visitor.given(request.cookies) or fresh), fresh)

        private = {"cache-control": "no-store", "referrer-policy": "no-referrer"}
        try:
            app.state.admin_link.open(token, request.client.host if request.client else "", sign_in)
        except WrongSignIn as error:
            said = words.of(request).said(str(error))
            return PlainTextResponse(said, 429 if isinstance(error, TooMany) else 403, private)
        cookie = {"set-cookie": visitor.cookie(request.scope, fresh)}
        return RedirectResponse(f"{request.scope.get('root_path', '')}/", 303, private | cookie)


def readiness(settings, store, engine):
    """What answers and how: for people and probes. Nothing in it is secret."""
    return {
        "ready": engine.healthy, "version": engine.live.version, "model": engine.identity["model"], "dtype": str(engine.base.dtype).removeprefix("torch."),
        "decoding": {"format": engine.choice.number_format, "threads": engine.choice.threads, "step_ms": engine.choice.milliseconds},
        "threads": settings.threads, "sqlite": store.sqlite_version()}


class Web(uvicorn.Server):
    """Serves `app` on a bound socket until a signal; says where, and the admin link, once it listens.

    Calls `before_shutdown` while pages can still be answered.
    """

    def __init__(self, app, before_shutdown):
        # uvicorn believes proxies on this machine without being asked to; `proxies.py` believes those in the settings
        super().__init__(uvicorn.Config(
            app, log_config=None, log_level="warning", access_log=False, timeout_graceful_shutdown=3, proxy_headers=False))
        self.app, self.before_shutdown = app, before_shutdown

    async def startup(self, sockets=None):
        await super().startup(sockets)
        here = address(*sockets[0].getsockname()[:2]) + self.app.state.root_path
        print(f"Nudge is at {here}", flush=True)
        link = f"{space_address() or here}/admin/{self.app.state.admin_link.issue()}"
        print(f"Admin link, for one browser: {link}", flush=True)

    async def shutdown(self, sockets=None):
        await run_in_threadpool(self.before_shutdown)
        await super().shutdown(sockets)


def address(host, port):
    """Where a browser on this machine finds what listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{port}"


def space_address():
    """The address of the Space that this runs on, or "". Its log, where the link is printed, is for its owner alone."""
    name = os.environ.get("SPACE_HOST", "").split(",")[0].strip()
    return f"https://{name}" if settings_module.ON_SPACE and name else ""
