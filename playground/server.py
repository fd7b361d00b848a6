"""The app that is served: its routes and middlewares around the Gradio page.

What the page does is in `playground/ui/`, what a gesture means in `playground/chat/session.py`, and what passes in
`playground/web/allowlist.py`.
"""

from playground.ui import quick_gradio as quick_gradio

# isort: split
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse, StreamingResponse

from playground.backup import Backup
from playground.chat.refusals import Refused
from playground.chat.session import Chat
from playground.data import http
from playground.models import export, model_card
from playground.models.adapter_reading import BadAdapter, Manifest
from playground.people import visitor
from playground.people.admins import AdminLink, Admins
from playground.people.refusals import UsersUnreadable, WrongSignIn
from playground.people.sign_ins import Account, SignIns
from playground.people.visitor import CookieMiddleware
from playground.serving.engine import Engine
from playground.serving.gpu_slices import GPUSlices
from playground.settings import Settings, space
from playground.store import Store, StoreError
from playground.ui import page, states, theme, words
from playground.ui.gradio_sessions import GradioSessions
from playground.web import sign_in_pages
from playground.web.allowlist import Allowlist
from playground.web.completions import Completions
from playground.web.gate import Gate, while_allowed
from playground.web.http_server import address
from playground.web.limits import Limits
from playground.web.metrics import CONTENT_TYPE, Metrics
from playground.web.page_cache import PageCache
from playground.web.proxies import Proxies, allowed_hosts
from playground.web.proxy_user import ProxyUser
from playground.web.sign_in_forms import SignInForms
from playground.web.stream_threads import MAX_STREAMS

if TYPE_CHECKING:
    from playground.web.provider_sign_in import ProviderSignIn

log = logging.getLogger(__name__)

CHUNK = 1 << 20  # bytes of a download that are read at once
# Seconds between two looks into Gradio's queue. Its own millisecond took 6 % of a core from a server without visitors.
QUEUE_PAUSE = 0.01
ASSETS = Path(__file__).resolve().parent.parent / "assets"


def create(
    settings: Settings,
    store: Store,
    engine: Engine,
    chat: Chat,
    backup: Backup | None = None,
    slices: GPUSlices | None = None,
) -> FastAPI:
    """The ASGI app of one engine and its store. `backup`: what the page says of it. `slices`: what trains the rounds
    that an admin starts, on a ZeroGPU Space.
    """
    app = FastAPI(title="Nudge", docs_url=None, redoc_url=None, openapi_url=None)

    @app.api_route("/healthz", methods=["GET", "HEAD"])
    async def healthz() -> dict[str, str]:  # runs in the server's own thread, so it never waits for a free one
        return {"status": "ok"}

    @app.api_route("/readyz", methods=["GET", "HEAD"])
    def readyz() -> JSONResponse:
        report = readiness(settings, store, engine, backup)
        return JSONResponse(report, 200 if report["ready"] else 503)

    metrics = Metrics(store, engine, backup)

    @app.get("/metrics")
    def figures() -> Response:  # who may read them is the allowlist's
        return Response(metrics.text(), media_type=CONTENT_TYPE, headers={"cache-control": "no-store"})

    app.state.root_path = settings.root_path
    app.state.sign_in = settings.oidc.issuer or "python -m playground.people.users"
    gate = add_sign_in(app, settings, store, chat) if settings.everybody_signs_in else None
    if gate is None:
        app.state.admin_link = AdminLink()
        add_admin_route(app, Admins(settings, store))
    add_forget_route(app, store, chat)
    add_adapter_route(app, settings, store, engine)
    Completions(chat).add_routes(app)
    add_export_route(app, store, Admins(settings, store))
    states.use()
    blocks, status_bar = page.build(settings, store, engine, chat, backup, slices)

    @app.api_route("/changes", methods=["GET", "HEAD"])
    def changes(request: Request) -> JSONResponse:
        account: Account | None = request.scope.get("account")
        who = {"role": account.user.role} if account else {}
        return JSONResponse({**status_bar.changes(), **who}, headers={"cache-control": "no-store"})

    blocks.queue(max_size=MAX_STREAMS, default_concurrency_limit=16)
    # As `launch(max_threads=…)` sets it. With Gradio's default of 40 threads, 40 streams kept everybody else waiting.
    blocks._queue.max_thread_count = MAX_STREAMS
    blocks._queue.sleep_when_free = QUEUE_PAUSE
    blocks.state_session_capacity = settings.limits.sessions
    gradio = GradioSessions(blocks)
    # the middleware that is added last is the outermost
    app.add_middleware(PageCache, first_script=page.FIRST_SCRIPT)
    app.add_middleware(CookieMiddleware)
    app.add_middleware(
        Allowlist,
        settings=settings,
        handlers=gradio.handlers(),
        limits=Limits(settings, gradio.forget),
        stop=gradio.stop,
        pending=gradio.pending,
        translate=lambda accepted, message: words.Words(words.language(accepted)).message(message),
        head=page.HEAD,
        gate=gate,
    )
    app.add_middleware(
        Proxies, trusted=settings.trusted_proxies, root_path=settings.root_path, hosts=allowed_hosts(settings)
    )
    if gate and settings.people.proxy_header:
        app.add_middleware(ProxyUser, name=settings.people.proxy_header, trusted=settings.people.trusted_proxies)
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
    # With this the page calls the address that it was loaded from. Otherwise it calls the one in the Host header, which
    # behind a proxy can be that of an inner machine.
    blocks.config["is_colab"] = True
    return app


def add_sign_in(app: FastAPI, settings: Settings, store: Store, chat: Chat) -> Gate:
    """Add the forms by which users sign in and out, and let viewers only look; returns the gate before everything
    else.
    """
    sign_ins = SignIns(store, settings)
    chat.may_write = sign_ins.may_write
    provider = add_provider(app, sign_ins, settings) if settings.oidc.issuer else None
    SignInForms(sign_ins, provider).add_routes(app)
    if settings.admins or settings.users_file:
        log.warning(
            "with people.users or oidc.issuer, admins and users_file do not count; of Hugging Face, write user:NAME "
            "into oidc.admins"
        )
    if sign_ins.users and not provider:
        with suppress(UsersUnreadable):  # the log has the reason, and the page says it
            if not sign_ins.users.content().users:
                log.warning("nobody can sign in yet: python -m playground.people.users add NAME --role admin")
    return Gate(sign_ins)


def add_provider(app: FastAPI, sign_ins: SignIns, settings: Settings) -> "ProviderSignIn":
    """Add the way in by a provider. SettingsError where its settings do not suffice."""
    from playground.people.provider import Provider  # takes a quarter of a second, for those alone who use it
    from playground.web.provider_sign_in import ProviderSignIn

    way = ProviderSignIn(sign_ins, Provider(settings.oidc), settings)
    way.add_routes(app)
    return way


def add_admin_route(app: FastAPI, admins: Admins) -> None:
    """Add the admin link's route: it makes the browser's visitor the owner and shows the page, or says why not."""

    @app.get("/admin/{token}")
    def admin_link(token: str, request: Request) -> Response:
        new_token = visitor.new_token()

        def sign_in() -> None:
            annotator = admins.store.annotator(visitor.find_token(request.cookies) or new_token)
            admins.sign_in_owner(annotator, new_token)

        private = {"cache-control": "no-store", "referrer-policy": "no-referrer"}
        try:
            app.state.admin_link.open(token, request.client.host if request.client else "", sign_in)
        except WrongSignIn as error:
            if (known := visitor.find_token(request.cookies)) and admins.allowed(
                request, admins.store.annotator(known)
            ):
                return RedirectResponse(f"{request.scope.get('root_path', '')}/", 303, private)
            refusal = sign_in_pages.no_admin_page(words.of(request), error, request.scope.get("root_path", ""))
            refusal.headers.update(private)
            return refusal
        cookie = {"set-cookie": visitor.set_cookie_header(request.scope, new_token)}
        return RedirectResponse(f"{request.scope.get('root_path', '')}/", 303, private | cookie)


def add_forget_route(app: FastAPI, store: Store, chat: Chat) -> None:
    """Add the route that deletes everything of the person who asks, and makes the browser a new visitor."""

    @app.post("/forget")
    def forget(request: Request) -> Response:
        try:
            chat.forget(store.annotator(visitor.token(request.cookies)))
        except visitor.NoCookie:
            pass  # without a cookie there is nothing of this person
        except (Refused, StoreError) as error:
            return JSONResponse({"error": words.of(request).message(error.message)}, 409)
        cookie = visitor.set_cookie_header(request.scope, visitor.new_token())
        return Response(status_code=204, headers={"set-cookie": cookie, "clear-site-data": '"cache"'})


def add_adapter_route(app: FastAPI, settings: Settings, store: Store, engine: Engine) -> None:
    """Add the route by which anybody gets the adapter of a version that is or was in use, as a zip that PEFT loads.

    The request names a number; the path of the files is the store's.
    """
    exports_dir = settings.data_dir / "exports"
    export.prune(exports_dir)

    def card_of(version: int) -> Callable[[Manifest], str]:
        def card(manifest: Manifest) -> str:
            facts = model_card.Facts.of(store, version, settings.preferences.annotator_weight)
            return model_card.card(facts, model_card.Base.of(manifest["base"]["model"], settings), "adapter")

        return card

    @app.get("/adapters/v{version}.zip")
    def adapter(version: int, request: Request) -> Response:
        translate = words.of(request)
        try:
            row = store.policy(version)
        except StoreError as error:
            return PlainTextResponse(translate.message(error.message), 503)
        if row is None or not export.is_public(row):
            return PlainTextResponse(translate("There is no such version to download."), 404)
        try:
            file = export.opened(settings.adapters_dir, exports_dir, row, engine.identity["hash"], card_of(version))
        except StoreError as error:
            return PlainTextResponse(translate.message(error.message), 503)
        except export.Packing:
            return PlainTextResponse(translate("Another version is being packed. Try again in a moment."), 429)
        except BadAdapter:
            return PlainTextResponse(translate("This version cannot be read any more."), 404)
        except export.CannotPack as error:
            if error.is_full:
                sentence = translate(
                    "The disk is full, so the version cannot be packed. Please tell the owner of this app."
                )
                return PlainTextResponse(sentence, 507)
            sentence = translate("The version cannot be packed on this disk. Please tell the owner of this app.")
            return PlainTextResponse(sentence, 503)
        headers = {
            "content-disposition": f'attachment; filename="nudge-v{version}.zip"',
            "content-length": str(os.fstat(file.fileno()).st_size),
        }
        return StreamingResponse(iter(partial(file.read, CHUNK), b""), media_type="application/zip", headers=headers)


def add_export_route(app: FastAPI, store: Store, admins: Admins) -> None:
    """Add the route by which admins download what people judged, made while it is sent."""

    @app.get("/export/{name}.jsonl")
    def export_file(name: str, request: Request) -> Response:
        translate = words.of(request)
        token = visitor.find_token(request.cookies)

        def is_allowed() -> bool:
            return token is not None and admins.allowed(request, store.annotator(token))

        def is_still_allowed() -> bool:
            with suppress(StoreError):
                return is_allowed()
            return False

        try:
            if not is_allowed():
                return PlainTextResponse(translate("Only admins can do this."), 403)
        except StoreError as error:
            return PlainTextResponse(translate.message(error.message), 503)
        if name not in http.DOWNLOADS:
            return PlainTextResponse(translate("There is no such file."), 404)
        headers = {
            "content-disposition": f'attachment; filename="nudge-{name}.jsonl"',
            "cache-control": "no-store",
        }
        pieces = while_allowed(http.lines(store, name), is_still_allowed)
        return StreamingResponse(pieces, media_type="application/jsonl", headers=headers)


def readiness(settings: Settings, store: Store, engine: Engine, backup: Backup | None = None) -> dict[str, Any]:
    """What answers and how, for people and probes; nothing in it is secret. The body of `/readyz`.

    `ready` is false where the engine has failed or nothing can be recorded; `database` then gives the reason. A backup
    that is late is reported and keeps nobody from chatting.
    """
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
        "backup": "off" if backup is None else str(backup.status().trouble or "ok"),
    }


def announce(app: FastAPI, host: str, port: int) -> None:
    """Print where the page of `app` is, and a link that makes one browser the owner's; with users there is none."""
    here = address(host, port) + app.state.root_path
    print(f"Nudge is at {here}", flush=True)
    if not hasattr(app.state, "admin_link"):
        print(f"Users sign in; {app.state.sign_in} says who they are.", flush=True)
        return
    # of a Space only its owner sees the log, where this is printed
    link = f"{space.address_of(os.environ) or here}/admin/{app.state.admin_link.issue()}"
    print(f"Admin link, for one browser: {link}", flush=True)
