"""The forms by which people sign in and out and take an invitation. What they look like is in `sign_in_pages.py`, the
way by a provider in `provider_sign_in.py`.

Who may sign in is `playground/people/sign_ins.py`'s. That a form comes from these pages, and how long it may be, has
been checked by the allowlist.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol
from urllib.parse import parse_qsl

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.types import Scope

from playground import settings
from playground.people import visitor
from playground.people.provider_people import is_by_provider
from playground.people.refusals import UsersUnreadable, WrongSignIn
from playground.people.sign_ins import Account, SignIns
from playground.store import StoreError
from playground.system.languages import Words, language
from playground.system.messages import Message, UserFacingError
from playground.web.gate import kept_query, with_query
from playground.web.sign_in_pages import (
    PRIVATE,
    ProviderOffer,
    invitation_page,
    no_invitation_page,
    page,
    sign_in_page,
    sign_out_page,
    signed_out_page,
)

MOST_FIELDS = 8


class ProviderWay(Protocol):
    """The way in by a provider, as the forms offer it (`provider_sign_in.py`)."""

    @property
    def name(self) -> str: ...
    async def offer(self, root: str, query: str, *, own_tab: bool) -> ProviderOffer: ...
    async def sign_out_url(self, request: Request) -> str | None: ...


class SignInForms:
    """The routes of the forms; `add_routes` adds them to an app. `provider`: where one signs people in, too."""

    def __init__(self, sign_ins: SignIns, provider: ProviderWay | None = None) -> None:
        self.sign_ins = sign_ins
        self.provider = provider

    def add_routes(self, app: FastAPI) -> None:
        for path, shown, sent in (
            ("/sign-in", self.show_sign_in, self.sign_in),
            ("/sign-out", self.show_sign_out, self.sign_out),
            ("/invitation/{token}", self.show_invitation, self.accept),
        ):
            app.add_api_route(path, shown, methods=["GET", "HEAD"], response_model=None)
            app.add_api_route(path, sent, methods=["POST"], response_model=None)

    # -- signing in

    async def show_sign_in(self, request: Request) -> Response:
        return await run_in_threadpool(self._shown_sign_in, request, await self._offer(request))

    def _shown_sign_in(self, request: Request, offer: ProviderOffer | None) -> Response:
        if account_of(request, self.sign_ins):
            return RedirectResponse(with_query(f"{root_of(request.scope)}/", request.scope), 303, PRIVATE)
        name = request.scope.get("proxy_user")
        if name and opens_page(request):
            try:
                return entered(request, self.sign_ins.sign_in_by_proxy(name), kept_query(request.scope))
            except (WrongSignIn, UsersUnreadable, StoreError) as error:
                return page(words_of(request), Message("Sign in"), "", error)
        return self._form(request, offer)

    async def sign_in(self, request: Request) -> Response:
        fields = await fields_of(request)
        name, password = fields.get("name", "").strip(), fields.get("password", "")

        def sign_in() -> str:
            return self.sign_ins.sign_in(name, password, address_of(request))

        async def again(error: UserFacingError) -> Response:
            return self._form(request, await self._offer(request), name, error)

        return await self._signed_in(request, sign_in, again)

    async def _offer(self, request: Request) -> ProviderOffer | None:
        if self.provider is None:
            return None
        return await self.provider.offer(
            root_of(request.scope), kept_query(request.scope), own_tab=may_be_framed(request)
        )

    def _form(
        self, request: Request, offer: ProviderOffer | None, name: str = "", error: UserFacingError | None = None
    ) -> Response:
        return sign_in_page(words_of(request), offer, self.sign_ins.users is not None, name, error)

    # -- an invitation

    def show_invitation(self, token: str, request: Request) -> Response:
        words = words_of(request)
        try:
            invitation = self.sign_ins.invitation(token, address_of(request))
        except UserFacingError as error:
            return no_invitation_page(words, error, root_of(request.scope))
        return invitation_page(words, invitation.role)

    async def accept(self, token: str, request: Request) -> Response:
        fields = await fields_of(request)
        name = fields.get("name", "").strip()

        def accept() -> str:
            again = fields.get("again", "")
            return self.sign_ins.accept(token, name, fields.get("password", ""), again, address_of(request))

        async def again(error: UserFacingError) -> Response:
            invitation = await run_in_threadpool(self.sign_ins.open_invitation, token)
            if invitation is None:
                return no_invitation_page(words_of(request), error, root_of(request.scope))
            return invitation_page(words_of(request), invitation.role, name, error)

        return await self._signed_in(request, accept, again)

    async def _signed_in(
        self, request: Request, begin: Callable[[], str], again: Callable[[UserFacingError], Awaitable[Response]]
    ) -> Response:
        """The way to the page with the cookie that `begin` gives, or the form `again` with what was wrong."""
        try:
            token = await run_in_threadpool(begin)
            await run_in_threadpool(self.sign_ins.sign_out, visitor.find_token(request.cookies))  # the one before
        except (WrongSignIn, UsersUnreadable, StoreError) as error:
            return await again(error)
        return entered(request, token, kept_query(request.scope))

    # -- signing out

    def show_sign_out(self, request: Request) -> Response:
        account = account_of(request, self.sign_ins)
        if account is None:
            return to_sign_in(request)
        return sign_out_page(words_of(request), account, root_of(request.scope))

    async def sign_out(self, request: Request) -> Response:
        everywhere = "everywhere" in await fields_of(request)
        account = await run_in_threadpool(account_of, request, self.sign_ins)
        token = visitor.find_token(request.cookies)
        try:
            await run_in_threadpool(self.sign_ins.sign_out, token, everywhere)
        except (UsersUnreadable, StoreError) as error:
            return page(words_of(request), Message("Sign out"), "", error)
        gone = {"set-cookie": visitor.set_cookie_header(request.scope, ""), "clear-site-data": '"cache"'}
        answer: Response = to_sign_in(request, gone)
        if self.provider and account and is_by_provider(account.user.id):
            place = await self.provider.sign_out_url(request)
            if place:
                answer = signed_out_page(words_of(request), self.provider.name, place, root_of(request.scope))
                answer.headers.update(gone)
        return answer


# -- requests


async def fields_of(request: Request) -> dict[str, str]:
    """The fields of a form; none where the body is no form."""
    try:
        body = (await request.body()).decode()
        return dict(parse_qsl(body, keep_blank_values=True, max_num_fields=MOST_FIELDS))
    except ValueError:
        return {}


def opens_page(request: Request) -> bool:
    """Whether this opens a page. A picture or a frame in a page elsewhere begins no sign-in: many would end others."""
    return request.method == "GET" and request.headers.get("sec-fetch-dest", "document") == "document"


def may_be_framed(request: Request) -> bool:
    """Whether the page may be in a frame of the hub's: no provider shows its own there, and the frame's cookie is
    another one than a tab's.
    """
    return settings.ON_SPACE and request.headers.get("sec-fetch-dest") != "document"


def account_of(request: Request, sign_ins: SignIns) -> Account | None:
    """Who sends a request; None where nobody has signed in, or where that cannot be told now."""
    try:
        return sign_ins.find(visitor.find_token(request.cookies), request.scope.get("proxy_user"))
    except (UsersUnreadable, StoreError):
        return None


def entered(request: Request, token: str, query: str) -> RedirectResponse:
    """The way to the page, with the cookie `token`. `query`: what the page was asked for, as `kept_query` gives it."""
    place = f"{root_of(request.scope)}/{f'?{query}' if query else ''}"
    cookie = {"set-cookie": visitor.set_cookie_header(request.scope, token)}
    return RedirectResponse(place, 303, PRIVATE | cookie)


def to_sign_in(request: Request, headers: dict[str, str] | None = None) -> RedirectResponse:
    return RedirectResponse(f"{root_of(request.scope)}/sign-in", 303, PRIVATE | (headers or {}))


def root_of(scope: Scope) -> str:
    """The path below which the app is, without a slash at its end."""
    return str(scope.get("root_path", ""))


def address_of(request: Request) -> str:
    return request.client.host if request.client else ""


def words_of(request: Request) -> Words:
    return Words(language(Headers(scope=request.scope).get("accept-language", "")))
