"""The page's address as people call it, for those who are to send a browser back to it.

Never what a stranger has written into the Host header: that may name another site.
"""

import os

from starlette.requests import Request

from playground.people.refusals import WrongSignIn
from playground.settings import Settings, space
from playground.web.proxies import host_name, is_this_machine


def public_address(request: Request, settings: Settings) -> str:
    """The address without a slash at its end. WrongSignIn where the settings do not tell it."""
    if settings.oidc.address:
        return settings.oidc.address.rstrip("/")
    if of_space := space.address_of(os.environ):
        return of_space
    scope, host = request.scope, request.headers.get("host", "")
    allowed = {name.strip().lower() for name in settings.allowed_hosts.split(",") if name.strip()}
    name = host_name(host)
    if name and (is_this_machine(name) or name in allowed or scope.get("host_by_proxy")):
        return f"{scope['scheme']}://{host}{scope.get('root_path', '')}"
    raise WrongSignIn("The owner of this app has to say its public address first (--oidc.address).")


def own_name(request: Request, settings: Settings) -> str | None:
    """The address to go on from, where a Space was asked by a name that its owner has given it: Hugging Face sends
    people back to the Space's own, where a cookie of the other one is not known. None where this is it.
    """
    other_names = space.hosts_of(os.environ)[1:]
    if settings.oidc.address or host_name(request.headers.get("host", "")) not in other_names:
        return None
    return space.address_of(os.environ)
