"""A provider's sign-in with all that is in front of the page and without the page, over real HTTP; and what a browser
does at it.
"""

import socket
import threading
import time

import httpx
from fastapi import FastAPI, Request

from playground.people.passwords import Cost, Hasher
from playground.people.provider import Provider
from playground.people.sign_ins import SignIns
from playground.people.visitor import CookieMiddleware
from playground.store import Store
from playground.web import http_server
from playground.web.allowlist import Allowlist
from playground.web.gate import Gate
from playground.web.limits import Limits
from playground.web.provider_sign_in import ProviderSignIn
from playground.web.proxies import Proxies
from playground.web.sign_in_forms import SignInForms

CHEAP = Hasher(Cost(2, 1, 1))


class Door:
    """What is in front of the page, without the page: served from the start. `now` moves the provider's clock."""

    def __init__(self, settings, root_path="", trusted="", store=None):
        self.store, self.now = store or Store(), 0.0
        sign_ins = SignIns(self.store, settings, CHEAP)
        way = ProviderSignIn(sign_ins, Provider(settings.oidc, lambda: time.monotonic() + self.now), settings)
        app = FastAPI()
        way.add_routes(app)
        SignInForms(sign_ins, way).add_routes(app)

        @app.get("/changes")
        def changes(request: Request):
            return {"name": request.scope["account"].user.name, "role": request.scope["account"].user.role}

        async def stop(name):
            raise AssertionError("nothing was asked for")

        app.add_middleware(CookieMiddleware)
        limits = Limits(settings)
        door = Allowlist(app, settings, {}, limits, stop, lambda name: False, gate=Gate(sign_ins))
        sock = socket.create_server(("127.0.0.1", 0))
        self.port = sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        served = Proxies(door, trusted, root_path)
        self._web = http_server.Web(served, lambda: None)
        self._thread = threading.Thread(target=self._web.run, args=([sock],))
        self._thread.start()

    def stop(self):
        self._web.should_exit = True
        self._thread.join(20)


def browser_of(site):
    return httpx.Client(base_url=site.url, timeout=30)


def begin(browser, path="/sign-in", **headers):
    """The address at the provider to which the button leads."""
    page = browser.get(path, headers=headers)
    assert "Sign in with" in page.text, page.text
    place = place_of_button(page)
    answer = browser.get(place, headers=headers)
    assert answer.status_code == 303, answer.text
    return answer.headers["location"]


def place_of_button(page):
    return page.text.split('class="button" href="')[1].split('"')[0].replace("&amp;", "&")


def at_provider(place, login):
    """The address to which the provider sends the browser back."""
    return httpx.get(place, headers={"X-Login": login}).headers["location"]


def sign_in(browser, login, **headers):
    """The answer to the browser that comes back from the provider."""
    return browser.get(at_provider(begin(browser, **headers), login), headers=headers)


def signed_in(site, login):
    browser = browser_of(site)
    answer = sign_in(browser, login)
    assert (answer.status_code, answer.headers.get("location")) == (303, "/"), answer.text
    return browser


def refused(answer, said, status=403):
    assert answer.status_code == status and said in answer.text, (answer.status_code, answer.text)
    assert "Sign in with" in answer.text, "there is a way on"
    assert answer.headers["cache-control"] == "no-store" and "set-cookie" not in answer.headers
    return True
