"""The pages by which people sign in and out and take an invitation, as plain HTML without scripts. What is sent from
them is `sign_in_forms.py`'s and `provider_sign_in.py`'s.
"""

from dataclasses import asdict, dataclass, replace
from html import escape

from starlette.responses import HTMLResponse

from playground.people.passwords import NAME_CHARS, PASSWORD_CHARS, SHORTEST
from playground.people.refusals import TooMany, WrongSignIn
from playground.people.sign_ins import Account
from playground.system.languages import Words
from playground.system.messages import Message, UserFacingError

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
.app {{ font-weight: 700; font-size: 24px; letter-spacing: -.02em; color: #4f46e5; }}
@media (prefers-color-scheme: dark) {{ .app {{ color: #a5b4fc; }} }}
label {{ display: block; margin: 0 0 16px; font-size: 14px; }}
input, button {{ display: block; width: 100%; min-height: 44px; margin-top: 4px; padding: 8px 12px; font: inherit;
  border: 1px solid #8888; border-radius: 8px; }}
button, .button {{ border: 0; background: #4f46e5; color: #fff; font-weight: 600; cursor: pointer;
  margin-bottom: 12px; }}
.button {{ display: block; min-height: 44px; padding: 10px 12px; border-radius: 8px; text-align: center;
  text-decoration: none; overflow-wrap: anywhere; }}
.second {{ background: none; border: 1px solid #8888; color: inherit; }}
.or {{ display: flex; align-items: center; gap: 12px; font-size: 14px; opacity: .75; }}
.or::before, .or::after {{ content: ""; flex: 1; border-top: 1px solid #8888; }}
:focus-visible {{ outline: 3px solid #818cf8; outline-offset: 2px; }}
[role=alert], [role=status] {{ padding: 10px 12px; border-radius: 8px; border: 1px solid #8888; }}
[role=alert] {{ background: #dc262622; border-color: #dc2626; }}
</style>
</head>
<body><main><p class="app">nudge</p><h1>{title}</h1>{alert}{body}</main></body>
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


@dataclass(frozen=True)
class ProviderOffer:
    """The way by a provider, as a page offers it: what it is called, where it begins, where the form is that offers it;
    why it is not to be had now; whether it takes a tab of its own.
    """

    name: str
    place: str
    again: str
    down: UserFacingError | None = None
    own_tab: bool = False


def page(words: Words, title: Message, body: str, error: UserFacingError | None = None) -> HTMLResponse:
    """A page with a form, or none, and above it what was wrong."""
    alert = f'<p role="alert">{escape(words.message(error.message))}</p>' if error else ""
    html = PAGE.format(language=words.language, title=escape(words.message(title)), alert=alert, body=body)
    return HTMLResponse(html, status_of(error), PRIVATE)


def sign_in_page(
    words: Words,
    offer: ProviderOffer | None,
    passwords: bool,
    name: str = "",
    error: UserFacingError | None = None,
    place: str = "",
) -> HTMLResponse:
    """The way by a provider, where there is one, and the form for a name and a password, where there are `passwords`.
    `place`: where the form is sent; "" where the page that shows it is.
    """
    body = provider_part(words, offer) if offer else ""
    if offer and passwords:
        body += f'<p class="or">{escape(words.message(Message("or")))}</p>'
    if passwords:
        fields = field(words.message(Message("Name")), NAME, name) + field(words.message(Message("Password")), PASSWORD)
        body += form(fields + button(words.message(Message("Sign in"))), place)
    answer = page(words, Message("Sign in"), body, error)
    if offer and offer.down and not passwords and not error:
        answer.status_code = status_of(offer.down)
    return answer


def provider_part(words: Words, offer: ProviderOffer) -> str:
    """A link that begins a sign-in by the provider; where it is down, why, and a link that looks again."""
    if offer.down:
        said = escape(words.message(offer.down.message))
        return f'<p role="status">{said}</p>{link(offer.again, words.message(Message("Try again")), "button second")}'
    label = words.message(Message("Sign in with {name}", name=offer.name))
    if not offer.own_tab:
        return link(offer.place, label)
    said = words.message(Message("It opens a tab of its own, where you use the page. This frame stays signed out."))
    return link(offer.place, label, more='target="_blank"') + f"<p>{escape(said)}</p>"


def invitation_page(words: Words, role: str, name: str = "", error: UserFacingError | None = None) -> HTMLResponse:
    greeting = words.message(
        Message("You are invited. Choose a name and a password of at least {n} characters.", n=SHORTEST)
    )
    what = f" ({words.message(ROLE_WORDS[role])})"
    fields = (
        field(words.message(Message("Name")), NAME, name)
        + field(words.message(Message("Password")), NEW_PASSWORD)
        + field(words.message(Message("The password once more")), AGAIN)
    )
    body = f"<p>{escape(greeting + what)}</p>{form(fields + button(words.message(Message('Begin'))))}"
    return page(words, Message("Invitation"), body, error)


def no_invitation_page(words: Words, error: UserFacingError, root: str) -> HTMLResponse:
    """Why a link is no invitation any more, and the way in for whoever has taken it before."""
    said = escape(words.message(Message("Sign in")))
    return page(words, Message("Invitation"), f'<p><a href="{escape(root)}/sign-in">{said}</a></p>', error)


def no_admin_page(words: Words, error: UserFacingError, root: str) -> HTMLResponse:
    """Why an admin link makes nobody an admin, and the way to the chat for whoever it has made one before."""
    return page(words, Message("Admin link"), link(f"{root}/", words.message(Message("Back to the chat"))), error)


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


def signed_out_page(words: Words, name: str, provider_place: str, root: str) -> HTMLResponse:
    """After a sign-out of whom a provider signs in: it knows the person still. `provider_place`: where that ends."""
    said = words.message(Message("You are signed out here. {name} may still know you in this browser.", name=name))
    body = (
        f'<p role="status">{escape(said)}</p>'
        + link(provider_place, words.message(Message("Sign out of {name} too", name=name)))
        + f'<p><a href="{escape(root)}/sign-in">{escape(words.message(Message("Sign in again")))}</a></p>'
    )
    return page(words, Message("Sign out"), body)


def form(content: str, place: str = "") -> str:
    """It is sent to `place`, or to the address of the page that shows it."""
    action = f' action="{escape(place)}"' if place else ""
    return f'<form method="post"{action}>{content}</form>'


def field(label: str, kind: Field, value: str = "") -> str:
    return FIELD.format(label=escape(label), value=escape(value[:NAME_CHARS]), **asdict(kind))


def button(label: str, attributes: str = "") -> str:
    return f"<button {attributes}>{escape(label)}</button>"


def link(place: str, label: str, classes: str = "button", more: str = "") -> str:
    """A link that looks like a button; `more`: attributes."""
    return f'<a class="{classes}" href="{escape(place)}"{f" {more}" if more else ""}>{escape(label)}</a>'


def status_of(error: UserFacingError | None) -> int:
    """The HTTP status of a page that says what was wrong."""
    if error is None:
        return 200
    if isinstance(error, TooMany):
        return 429
    return 403 if isinstance(error, WrongSignIn) else 503
