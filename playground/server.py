"""The web server: health routes, the admin link, the visitor's cookie, the allowlist, and the Gradio page behind it;
how it starts and ends.

What the page does is `ui/`'s; what a gesture means is `session.py`'s; what passes is `allowlist.py`'s.
"""

import inspect
import os
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse

from playground import settings as settings_module
from playground.chat.refusals import Refused
from playground.people import visitor
from playground.people.admins import AdminLink, Admins, TooMany, WrongSignIn
from playground.people.visitor import Cookies
from playground.store import StoreError
from playground.ui import page, states, theme, words
from playground.ui.lane import EVENTS
from playground.web.allowlist import Allowlist
from playground.web.limits import Limits
from playground.web.onepage import OnePage
from playground.web.payload import Handler
from playground.web.protocol import PatientProtocol
from playground.web.proxies import Proxies, allowed_hosts

EVENT_KEYS = {
    gr.LikeData: {"index", "value", "liked"},
    gr.EditData: {"index", "value", "previous_value"},
    gr.SelectData: {"index", "value"},
}
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

    app.state.admin_link = AdminLink()
    app.state.root_path = settings.root_path
    open_to_admins(app, Admins(settings, store))
    open_to_leavers(app, store, chat)
    states.use()
    blocks = page.build(settings, store, engine, chat)
    blocks.queue(max_size=EVENTS, default_concurrency_limit=16)
    blocks._queue.max_thread_count = (
        EVENTS  # as `launch(max_threads=…)` sets it; 40 streams were a full house, and the next saw nothing
    )
    blocks.state_session_capacity = settings.sessions
    gradio = Gradio(blocks)
    app.add_middleware(OnePage)
    app.add_middleware(Cookies)
    app.add_middleware(
        Allowlist,
        settings=settings,
        handlers=gradio.handlers(),
        limits=Limits(settings, gradio.forget),
        stop=gradio.stop,
        pending=gradio.pending,
        translate=lambda accepted, message: words.Words(words.language(accepted)).message(message),
        head=page.HEAD,
    )
    # the middleware that is added last is the outermost
    app.add_middleware(
        Proxies, trusted=settings.trusted_proxies, root_path=settings.root_path, hosts=allowed_hosts(settings)
    )
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        theme=theme.nudge(),
        css_paths=page.STYLES,
        head=page.HEAD,
        i18n=words.translations(),
        favicon_path=str(ASSETS / "favicon.svg"),
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
    )
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
            said = words.of(request).message(error.message)
            return PlainTextResponse(said, 429 if isinstance(error, TooMany) else 403, private)
        cookie = {"set-cookie": visitor.cookie(request.scope, fresh)}
        return RedirectResponse(f"{request.scope.get('root_path', '')}/", 303, private | cookie)


def open_to_leavers(app, store, chat):
    """Add the route that deletes everything of the person who asks, and lets the browser be somebody new."""

    @app.post("/forget")
    def forget(request: Request):
        w = words.of(request)
        try:
            chat.forget(store.annotator(visitor.token(request.cookies)))
        except visitor.NoCookie:
            pass  # nothing is kept of somebody who cannot be told from others
        except (Refused, StoreError) as error:
            return JSONResponse({"error": w.message(error.message)}, 409)
        cookie = visitor.cookie(request.scope, visitor.new_token())
        return Response(status_code=204, headers={"set-cookie": cookie, "clear-site-data": '"cache"'})


class Gradio:
    """What the allowlist needs of a Gradio app: which handlers it has, and how a session of it ends."""

    def __init__(self, blocks: gr.Blocks) -> None:
        self.blocks = blocks

    def handlers(self) -> dict[int, Handler]:
        """The handlers that run on the server, by their number; those that run in the browser alone cannot be
        called.
        """
        found = {}
        for number, fn in self.blocks.fns.items():
            if fn.fn is not None:
                kinds = [type(component).__name__ for component in fn.inputs]
                read = [
                    EVENT_KEYS.get(parameter.annotation) for parameter in inspect.signature(fn.fn).parameters.values()
                ]
                needs = frozenset().union(*filter(None, read))
                found[number] = Handler.of(fn.queue, [target for target, _ in fn.targets], kinds, needs)
        return found

    def pending(self, session: str) -> bool:
        """Whether a session has asked for something that streams."""
        return session in self.blocks._queue.pending_messages_per_session

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


def readiness(settings, store, engine):
    """What answers and how: for people and probes. Nothing in it is secret. `ready` is false, with the reason, where
    nothing can be recorded."""
    trouble = store.trouble()
    return {
        "ready": engine.healthy and not trouble,
        "database": trouble or "ok",
        "version": engine.live.version,
        "model": engine.identity["model"],
        "dtype": str(engine.base.dtype).removeprefix("torch."),
        "decoding": {
            "format": engine.choice.number_format,
            "threads": engine.choice.threads,
            "step_ms": engine.choice.milliseconds,
        },
        "threads": settings.threads,
        "sqlite": store.sqlite_version(),
    }


class Web(uvicorn.Server):
    """Serves `app` on a bound socket until a signal; says where, and the admin link, once it listens.

    Calls `before_shutdown` while pages can still be answered.
    """

    def __init__(self, app, before_shutdown, request_seconds=PatientProtocol.seconds):
        # uvicorn believes proxies on this machine without being asked to; `proxies.py` believes those in the settings.
        # Its warnings are of what strangers send that is no HTTP: they could fill the log, so errors alone are logged
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="error",
                access_log=False,
                timeout_graceful_shutdown=3,
                proxy_headers=False,
                server_header=False,
                http=PatientProtocol.waiting(request_seconds),
                ws="none",
                backlog=128,
                h11_max_incomplete_event_size=16 << 10,
                limit_concurrency=2000,
            )
        )
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
