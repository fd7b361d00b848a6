"""The pages by which people sign in and out and take an invitation: plain HTML without scripts, in the reader's
language.

Who may sign in is `playground/people/sign_ins.py`'s. That a form comes from these pages, and how long it may be, has
been checked by the allowlist.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from html import escape
from urllib.parse import parse_qsl

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import Scope

from playground.people import visitor
from playground.people.passwords import NAME_CHARS, PASSWORD_CHARS, SHORTEST
from playground.people.refusals import TooMany, UsersUnreadable, WrongSignIn
from playground.people.sign_ins import Account, SignIns
from playground.store import StoreError
from playground.system.languages import Words, language
from playground.system.messages import Message, UserFacingError
from playground.web.gate import with_query

MOST_FIELDS = 8
PRIVATE = {"cache-control": "no-store"}
ROLE_WORDS = {
    "viewer": Message("viewer: looks at everything"),
    "annotator": Message("annotator: chats and votes"),
    "admin": Message("admin: chats, votes and trains"),
}
PAGE = """<!doctype html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>{title} · Nudge</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 24px; }}
main {{ width: 100%; max-width: 340px; }}
h1 {{ font-size: 20px; margin: 0 0 16px; }}
p {{ margin: 0 0 16px; overflow-wrap: anywhere; }}
label {{ display: block; margin: 0 0 16px; font-size: 14px; }}
input, button {{ display: block; width: 100%; min-height: 44px; margin-top: 4px; padding: 8px 12px; font: inherit;
  border: 1px solid #8888; border-radius: 8px; }}
button {{ border: 0; background: #4f46e5; color: #fff; font-weight: 600; cursor: pointer; margin-bottom: 12px; }}
button.second {{ background: none; border: 1px solid #8888; color: inherit; }}
:focus-visible {{ outline: 3px solid #818cf8; outline-offset: 2px; }}
[role=alert] {{ padding: 10px 12px; border-radius: 8px; background: #dc262622; border: 1px solid #dc2626; }}
</style>
</head>
<body><main><h1>{title}</h1>{alert}{body}</main></body>
</html>
"""
FIELD = (
    '<label>{label}<input name="{name}" type="{type}" maxlength="{most}" autocomplete="{autocomplete}" '
    'autocapitalize="none" spellcheck="false" value="{value}" required{more}></label>'
)


@dataclass(frozen=True)
class Field:
    """What a form asks for: its name, its type, the longest value, what browsers call it, more attributes."""

    name: str
    type: str
    most: int
    autocomplete: str
    more: str = ""


NAME = Field("name", "text", NAME_CHARS, "username")
PASSWORD = Field("password", "password", PASSWORD_CHARS, "current-password")
NEW_PASSWORD = Field("password", "password", PASSWORD_CHARS, "new-password", f' minlength="{SHORTEST}"')
AGAIN = replace(NEW_PASSWORD, name="again")


class SignInForms:
    """The routes of the forms; `add_routes` adds them to an app."""

    def __init__(self, sign_ins: SignIns) -> None:
        self.sign_ins = sign_ins

    def add_routes(self, app: FastAPI) -> None:
        for path, shown, sent in (
            ("/sign-in", self.show_sign_in, self.sign_in),
            ("/sign-out", self.show_sign_out, self.sign_out),
            ("/invitation/{token}", self.show_invitation, self.accept),
        ):
            app.add_api_route(path, shown, methods=["GET", "HEAD"], response_model=None)
            app.add_api_route(path, sent, methods=["POST"], response_model=None)

    # -- signing in

    def show_sign_in(self, request: Request) -> Response:
        if self._account(request):
            return RedirectResponse(with_query(f"{root_of(request.scope)}/", request.scope), 303, PRIVATE)
        name = request.scope.get("proxy_user")
        if name and opens_page(request):
            try:
                return self._entered(request, self.sign_ins.sign_in_by_proxy(name))
            except (WrongSignIn, UsersUnreadable, StoreError) as error:
                return page(words_of(request), Message("Sign in"), "", error)
        return sign_in_page(words_of(request))

    async def sign_in(self, request: Request) -> Response:
        fields = await fields_of(request)
        name, password = fields.get("name", "").strip(), fields.get("password", "")

        def sign_in() -> str:
            return self.sign_ins.sign_in(name, password, address_of(request))

        return await self._signed_in(request, sign_in, lambda words, error: sign_in_page(words, name, error))

    # -- an invitation

    def show_invitation(self, token: str, request: Request) -> Response:
        words = words_of(request)
        try:
            invitation = self.sign_ins.invitation(token, address_of(request))
        except UserFacingError as error:
            return page(words, Message("Invitation"), "", error)
        return invitation_page(words, role=invitation.role)

    async def accept(self, token: str, request: Request) -> Response:
        fields = await fields_of(request)
        name = fields.get("name", "").strip()

        def accept() -> str:
            again = fields.get("again", "")
            return self.sign_ins.accept(token, name, fields.get("password", ""), again, address_of(request))

        return await self._signed_in(request, accept, lambda words, error: invitation_page(words, name, error))

    async def _signed_in(
        self, request: Request, begin: Callable[[], str], again: Callable[[Words, UserFacingError], Response]
    ) -> Response:
        """The way to the page with the cookie that `begin` gives, or the form `again` with what was wrong."""
        try:
            token = await run_in_threadpool(begin)
            await run_in_threadpool(self.sign_ins.sign_out, visitor.find_token(request.cookies))  # the one before
        except (WrongSignIn, UsersUnreadable, StoreError) as error:
            return again(words_of(request), error)
        return self._entered(request, token)

    def _entered(self, request: Request, token: str) -> Response:
        """The way to the page, with the cookie `token`."""
        cookie = {"set-cookie": visitor.set_cookie_header(request.scope, token)}
        place = with_query(f"{root_of(request.scope)}/", request.scope)
        return RedirectResponse(place, 303, PRIVATE | cookie)

    # -- signing out

    def show_sign_out(self, request: Request) -> Response:
        account = self._account(request)
        if account is None:
            return to_sign_in(request)
        return sign_out_page(words_of(request), account, root_of(request.scope))

    async def sign_out(self, request: Request) -> Response:
        everywhere = "everywhere" in await fields_of(request)
        token = visitor.find_token(request.cookies)
        try:
            await run_in_threadpool(self.sign_ins.sign_out, token, everywhere)
        except (UsersUnreadable, StoreError) as error:
            return page(words_of(request), Message("Sign out"), "", error)
        gone = {"set-cookie": visitor.set_cookie_header(request.scope, ""), "clear-site-data": '"cache"'}
        return to_sign_in(request, gone)

    def _account(self, request: Request) -> Account | None:
        try:
            return self.sign_ins.find(visitor.find_token(request.cookies), request.scope.get("proxy_user"))
        except (UsersUnreadable, StoreError):
            return None


# -- pages


def page(words: Words, title: Message, body: str, error: UserFacingError | None = None) -> HTMLResponse:
    """A page with a form, or none, and above it what was wrong."""
    alert = f'<p role="alert">{escape(words.message(error.message))}</p>' if error else ""
    html = PAGE.format(language=words.language, title=escape(words.message(title)), alert=alert, body=body)
    return HTMLResponse(html, status_of(error), PRIVATE)


def sign_in_page(words: Words, name: str = "", error: UserFacingError | None = None) -> HTMLResponse:
    fields = field(words.message(Message("Name")), NAME, name) + field(words.message(Message("Password")), PASSWORD)
    return page(words, Message("Sign in"), form(fields + button(words.message(Message("Sign in")))), error)


def invitation_page(words: Words, name: str = "", error: UserFacingError | None = None, role: str = "") -> HTMLResponse:
    greeting = words.message(
        Message("You are invited. Choose a name and a password of at least {n} characters.", n=SHORTEST)
    )
    what = f" ({words.message(ROLE_WORDS[role])})" if role else ""
    fields = (
        field(words.message(Message("Name")), NAME, name)
        + field(words.message(Message("Password")), NEW_PASSWORD)
        + field(words.message(Message("The password once more")), AGAIN)
    )
    body = f"<p>{escape(greeting + what)}</p>{form(fields + button(words.message(Message('Begin'))))}"
    return page(words, Message("Invitation"), body, error)


def sign_out_page(words: Words, account: Account, root: str) -> HTMLResponse:
    user = account.user
    role = words.message(ROLE_WORDS[user.role])
    who = words.message(Message("You are signed in as {name} ({role}).", name=user.name, role=role))
    body = (
        f"<p>{escape(who)}</p>"
        + form(button(words.message(Message("Sign out"))))
        + form(
            button(words.message(Message("Sign out on all devices")), 'class="second" name="everywhere" value="yes"')
        )
        + f'<p><a href="{escape(root)}/">{escape(words.message(Message("Back to the chat")))}</a></p>'
    )
    return page(words, Message("Sign out"), body)


def form(content: str) -> str:
    """It is sent to the address of the page that shows it."""
    return f'<form method="post">{content}</form>'


def field(label: str, kind: Field, value: str = "") -> str:
    return FIELD.format(label=escape(label), value=escape(value[:NAME_CHARS]), **asdict(kind))


def button(label: str, attributes: str = "") -> str:
    return f"<button {attributes}>{escape(label)}</button>"


def status_of(error: UserFacingError | None) -> int:
    """The HTTP status of a page that says what was wrong."""
    if error is None:
        return 200
    if isinstance(error, TooMany):
        return 429
    return 403 if isinstance(error, WrongSignIn) else 503


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


def to_sign_in(request: Request, headers: dict[str, str] | None = None) -> RedirectResponse:
    return RedirectResponse(f"{root_of(request.scope)}/sign-in", 303, PRIVATE | (headers or {}))


def root_of(scope: Scope) -> str:
    """The path below which the app is, without a slash at its end."""
    return str(scope.get("root_path", ""))


def address_of(request: Request) -> str:
    return request.client.host if request.client else ""


def words_of(request: Request) -> Words:
    return Words(language(Headers(scope=request.scope).get("accept-language", "")))
