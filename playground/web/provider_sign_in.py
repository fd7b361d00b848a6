"""The way in by a provider: `/sign-in/provider` leads there, and it sends the browser back to `/sign-in/callback`.

What is said to the provider and what it answers is `playground/people/provider.py`'s, who may come in
`provider_people.py`'s. Here are the routes, and what keeps them from being used by others: a sign-in begins on the page
alone and ends in the browser in which it began, and it leads to no other place than the page.
"""

import logging
import re

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from playground.people import visitor
from playground.people.attempts import Attempt, Attempts
from playground.people.provider import Provider, ProviderDown
from playground.people.provider_people import person_of
from playground.people.refusals import NotAllowed, UsersUnreadable, WrongSignIn
from playground.people.sign_ins import SignIns
from playground.settings import Settings
from playground.store import StoreError
from playground.system.messages import UserFacingError
from playground.web.gate import kept_query, with_query
from playground.web.headers import is_foreign
from playground.web.public_address import own_name, public_address
from playground.web.sign_in_forms import (
    account_of,
    address_of,
    entered,
    may_be_framed,
    opens_page,
    root_of,
    to_sign_in,
    words_of,
)
from playground.web.sign_in_pages import PRIVATE, ProviderOffer, sign_in_page

log = logging.getLogger(__name__)

CALLBACK = "/sign-in/callback"
PATIENCE = 3.0  # seconds that the form waits to hear whether the provider is there
OTHER_ACCOUNT = "account=other"  # in the query of a sign-in that is to ask which account it is
OWN_TAB = "tab=own"  # in the query of a sign-in that has left a frame for a tab, which has no cookie yet
LONGEST_CODE = 4096  # characters


class ProviderSignIn:
    """The routes; `add_routes` adds them to an app."""

    def __init__(self, sign_ins: SignIns, provider: Provider, settings: Settings) -> None:
        self.sign_ins = sign_ins
        self.provider = provider
        self.settings = settings
        self.attempts = Attempts()

    def add_routes(self, app: FastAPI) -> None:
        app.add_api_route("/sign-in/provider", self.begin, methods=["GET"], response_model=None)
        app.add_api_route(CALLBACK, self.finish, methods=["GET"], response_model=None)

    # -- what the forms show of it

    @property
    def name(self) -> str:
        return self.provider.name

    async def offer(self, root: str, query: str, asks_who: bool = False, *, own_tab: bool = False) -> ProviderOffer:
        """`root`: the path below which the app is; `query`: of the page that was asked for; `asks_who`: as for
        `Provider.begin`; `own_tab`: whether it leaves a frame.
        """
        form = f"{root}/sign-in" + (f"?{query}" if query else "")
        marks = [OTHER_ACCOUNT] * asks_who + [OWN_TAB] * own_tab
        wanted = "&".join(part for part in (query, *marks) if part)
        begins = f"{root}/sign-in/provider" + (f"?{wanted}" if wanted else "")
        try:
            await self.provider.check(PATIENCE)
        except ProviderDown as error:
            return ProviderOffer(self.name, begins, form, error)
        return ProviderOffer(self.name, begins, form, own_tab=own_tab)

    async def sign_out_url(self, request: Request) -> str | None:
        """Where somebody signs out of the provider too, which then sends the browser to the callback, an address that
        it knows already; None where it has no such place, or is down.
        """
        try:
            back = public_address(request, self.settings) + CALLBACK
            await self.provider.check(PATIENCE)
        except (WrongSignIn, ProviderDown):
            return None
        return await self.provider.sign_out_url(back)

    # -- there

    async def begin(self, request: Request) -> Response:
        if not opens_page(request) or is_foreign(request.headers):
            return RedirectResponse(with_query(f"{root_of(request.scope)}/sign-in", request.scope), 303, PRIVATE)
        if await run_in_threadpool(account_of, request, self.sign_ins):
            return to_page(request)
        if elsewhere := own_name(request, self.settings):
            return RedirectResponse(with_query(f"{elsewhere}/sign-in", request.scope), 303, PRIVATE)
        said = request.url.query.split("&")
        known = visitor.find_token(request.cookies)
        new = visitor.new_token() if known is None and OWN_TAB in said else None
        try:
            browser = new or visitor.token(request.cookies)
            back = public_address(request, self.settings) + CALLBACK
            asks_who = OTHER_ACCOUNT in said
            place, attempt = await self.provider.begin(back, kept_query(request.scope), asks_who)
        except (visitor.NoCookie, WrongSignIn, ProviderDown) as error:
            return await self._refused(request, error, kept_query(request.scope))
        self.attempts.add(attempt, browser)
        cookie = {"set-cookie": visitor.set_cookie_header(request.scope, new)} if new else {}
        return RedirectResponse(place, 303, PRIVATE | cookie)

    # -- and back

    async def finish(self, request: Request) -> Response:
        said = request.query_params
        if "code" not in said and "error" not in said:  # after a sign-out at the provider
            return to_sign_in(request)
        browser = visitor.find_token(request.cookies)
        attempt = self.attempts.take(said.get("state", ""), browser)
        if attempt is None:
            if await run_in_threadpool(account_of, request, self.sign_ins):
                return to_page(request)
            error = WrongSignIn("This sign-in is over, or it was begun in another browser. Sign in again.")
            return await self._refused(request, error)
        try:
            token = await self._signed_in(request, attempt)
            await run_in_threadpool(self.sign_ins.sign_out, browser)  # the one before
        except (WrongSignIn, ProviderDown, UsersUnreadable, StoreError) as error:
            return await self._refused(request, error, attempt.query)
        return entered(request, token, attempt.query)

    async def _signed_in(self, request: Request, attempt: Attempt) -> str:
        """The cookie of whom the provider has signed in."""
        said, address, name = request.query_params, address_of(request), self.name
        if not self.provider.is_from(said.get("iss")):
            raise WrongSignIn("{name} does not confirm this sign-in. Sign in again.", name=name)
        if "error" in said:
            log.info("the provider signs somebody not in: %s", re.sub(r"[^a-z_]", "", said["error"])[:60])
            if said["error"] == "access_denied":
                raise WrongSignIn("The sign-in with {name} was cancelled, or {name} refuses it.", name=name)
            raise WrongSignIn("{name} could not sign you in. Try again, or tell the owner of this app.", name=name)
        self.sign_ins.check_codes(address)
        try:
            claims = await self.provider.finish(said["code"][:LONGEST_CODE], attempt)
        except WrongSignIn:
            self.sign_ins.count_wrong_code(address)
            raise
        person = person_of(claims, self.settings.oidc)
        return await run_in_threadpool(self.sign_ins.sign_in_by_provider, person)

    async def _refused(self, request: Request, error: UserFacingError, query: str = "") -> Response:
        """The form again, with what was wrong. `query`: of the page that was asked for."""
        own_tab = may_be_framed(request)
        offer = await self.offer(root_of(request.scope), query, isinstance(error, NotAllowed), own_tab=own_tab)
        shown = None if offer.down and isinstance(error, ProviderDown) else error  # it says so itself
        has_passwords = self.sign_ins.users is not None
        return sign_in_page(words_of(request), offer, has_passwords, "", shown, place=offer.again)


def to_page(request: Request) -> RedirectResponse:
    return RedirectResponse(with_query(f"{root_of(request.scope)}/", request.scope), 303, PRIVATE)
