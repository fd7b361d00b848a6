"""A Space whose people sign in with Hugging Face: a provider that answers as the hub is documented to, over real HTTP,
under the Space's own variables; who comes in by an organisation, and what is said to whom it keeps out.
"""

import copy
import json
import os
import sqlite3
import time
from urllib.parse import parse_qs, urlsplit

import gradio.oauth
import httpx
import pytest

from playground import settings as settings_module
from playground.people.admins import Admins
from playground.people.provider_people import account_of
from playground.people.provider_setup import LONGEST_ANSWER
from playground.people.sign_ins import SignIns
from playground.people.visitor import COOKIE
from playground.settings import Settings
from playground.store import Store
from playground.ui import control
from playground.ui.notice import Notice
from playground.ui.quick_gradio import gradio as gr
from playground.ui.status_bar import StatusBar
from playground.web import allowlist
from tests.doors import CHEAP, Door, browser_of, place_of_button, refused
from tests.hub_people import ACME, HOST, PEOPLE, hub_claims, variables
from tests.oidc_provider import FakeProvider

FROM_HUB = {"X-Forwarded-Proto": "https", "Host": HOST}  # as the hub's proxy passes a request on
IN_FRAME = {**FROM_HUB, "Sec-Fetch-Dest": "iframe", "Sec-Fetch-Site": "cross-site"}
IN_TAB = {**FROM_HUB, "Sec-Fetch-Dest": "document", "Sec-Fetch-Site": "same-origin"}


@pytest.fixture(scope="module")
def serving():
    provider = FakeProvider()
    provider.back.append(f"https://{HOST}/sign-in/callback")
    provider.scopes, provider.names_itself = {"openid", "profile", "read-memberships"}, False
    yield provider
    provider.stop()


@pytest.fixture
def hub(serving):
    serving.reset()
    serving.described = {"end_session_endpoint": None, "authorization_response_iss_parameter_supported": None}
    serving.people, serving.userinfo_of = {}, {}
    for login, organisations in copy.deepcopy(PEOPLE).items():
        claims = hub_claims(login, *organisations)
        serving.userinfo_of[login] = claims
        serving.people[login] = {name: value for name, value in claims.items() if name != "orgs"}
    return serving


@pytest.fixture
def space(hub, monkeypatch):
    """The variables of a Space with `hf_oauth: true`; further ones by calling it."""
    monkeypatch.setattr(settings_module, "ON_SPACE", True)
    for name, value in variables(hub.issuer).items():
        monkeypatch.setenv(name, value)

    def settings(**changes):
        for name, value in changes.items():
            monkeypatch.setenv(name, value)
        return Settings(_env_file=None)

    return settings


@pytest.fixture
def door(space):
    """A function that opens a Door of the Space, with further variables."""
    opened = []

    def open_door(store=None, **changes):
        opened.append(Door(space(**changes), trusted="127.0.0.1", store=store))
        return opened[-1]

    yield open_door
    for each in opened:
        each.stop()


class Browser:
    """A browser that knows the page by its name on the hub; `cookie` is that of one partition."""

    def __init__(self, site):
        self.http, self.cookie = browser_of(site), ""

    def get(self, place, headers=IN_TAB):
        parts = urlsplit(place)
        assert parts.netloc in ("", HOST), place
        cookie = {"Cookie": f"{COOKIE}={self.cookie}"} if self.cookie else {}
        answer = self.http.get(f"{parts.path}?{parts.query}", headers={**headers, **cookie})
        if set_cookie := answer.headers.get("set-cookie"):
            assert "SameSite=None; Secure; Partitioned" in set_cookie
            self.cookie = set_cookie.split(";")[0].partition("=")[2]
        return answer

    def sign_in(self, login):
        self.get("/sign-in")
        place = self.get("/sign-in/provider").headers["location"]
        return self.get(httpx.get(place, headers={"X-Login": login}).headers["location"])

    @property
    def who(self):
        return self.get("/changes").json()


def signed_in(site, login):
    browser = Browser(site)
    answer = browser.sign_in(login)
    assert (answer.status_code, answer.headers.get("location")) == (303, "/"), answer.text
    return browser


# -- who comes in


def test_a_member_comes_in_by_the_spaces_own_address(door, hub):
    site = door()
    browser = Browser(site)
    page = browser.get("/sign-in")
    assert "Sign in with Hugging Face" in page.text and "target" not in page.text
    place = browser.get(place_of_button(page)).headers["location"]
    asked = parse_qs(urlsplit(place).query)
    assert asked["redirect_uri"] == [f"https://{HOST}/sign-in/callback"]
    assert browser.get(httpx.get(place, headers={"X-Login": "bob"}).headers["location"]).headers["location"] == "/"
    assert browser.who == {"name": "bob", "role": "annotator"}
    assert site.store.account(site.store.annotator(browser.cookie)) == account_of(hub.issuer, "id of bob")


def test_roles_come_from_the_organisation_that_is_named_alone(door):
    site = door(NUDGE_OIDC_ROLE_CLAIM="orgs", NUDGE_OIDC_ROLE="viewer")
    roles = {login: signed_in(site, login).who["role"] for login in ("ann", "bob", "cyd")}
    assert roles == {"ann": "admin", "bob": "viewer", "cyd": "annotator"}, "bob made an organisation of his own"


def test_admins_are_a_role_in_the_organisation_or_a_user(door):
    site = door(NUDGE_OIDC_ADMINS="group:acme/admin, user:bob")
    roles = {login: signed_in(site, login).who["role"] for login in ("ann", "bob", "cyd")}
    assert roles == {"ann": "admin", "bob": "admin", "cyd": "annotator"}


def test_an_id_outlives_a_name_and_is_no_name(door, hub):
    site = door(NUDGE_OIDC_ALLOWED=f"group:id={ACME}")
    hub.userinfo_of["cyd"]["orgs"][0]["preferred_username"] = "acme-research"
    assert signed_in(site, "cyd").who["role"] == "annotator"
    assert refused(Browser(site).sign_in("eve"), "is in no organisation that may come in here")


def test_who_loses_the_organisation_is_out_at_the_next_sign_in_everywhere(door, hub):
    site = door()
    phone = signed_in(site, "cyd")
    hub.userinfo_of["cyd"]["orgs"] = []
    assert phone.who["role"] == "annotator"
    browser = Browser(site)
    answer = browser.sign_in("cyd")
    assert refused(answer, "cyd is in no organisation")
    asked = parse_qs(urlsplit(browser.get(place_of_button(answer)).headers["location"]).query)
    assert asked["prompt"] == ["consent"], "else the hub says the same again"
    assert phone.get("/changes").status_code == 401


def test_a_sign_in_ends_after_the_days_that_are_set(door, space):
    site = door(NUDGE_OIDC_SESSION_DAYS="1")
    token = signed_in(site, "cyd").cookie

    def found(hours):
        return SignIns(site.store, space(), CHEAP, lambda: time.time() + 3600 * hours).find(token) is not None

    assert found(23) and not found(25)


# -- userinfo


def test_a_userinfo_that_cannot_be_read_ends_nobodys_sign_in(door, hub):
    """Without the organisations nobody is a member, and whoever is refused is signed out on all devices."""
    site = door()
    phone = signed_in(site, "cyd")
    hub.broken = {"/userinfo"}
    answer = Browser(site).sign_in("cyd")
    assert answer.status_code == 503 and "Sign-in with Hugging Face is not available now" in answer.text
    assert phone.who["role"] == "annotator"


@pytest.mark.parametrize("what", ["somebody else's", "too long", "packed"])
def test_a_userinfo_that_is_not_right_lets_nobody_in(what, door, hub):
    site = door()
    if what == "too long":
        hub.userinfo_of["ann"]["picture"] = "x" * LONGEST_ANSWER
        answer = Browser(site).sign_in("ann")
        assert answer.status_code == 503 and "is not available now" in answer.text
    elif what == "packed":  # 1 GB would come as 1 MB
        hub.packs = {"/userinfo"}
        assert Browser(site).sign_in("ann").status_code == 503
    else:
        hub.userinfo_of["ann"]["sub"] = "id of cyd"
        assert refused(Browser(site).sign_in("ann"), "Hugging Face does not confirm this sign-in")


# -- the page in the hub's frame, and by other names


def test_from_the_hubs_frame_the_sign_in_opens_a_tab_and_goes_on_there(door):
    site = door()
    frame = Browser(site)
    page = frame.get("/sign-in?shared=abc", IN_FRAME)
    assert 'target="_blank"' in page.text and "It opens a tab of its own" in page.text
    tab = Browser(site)  # the cookie of the frame is not sent in a tab
    answer = tab.get(place_of_button(page))
    assert answer.status_code == 303 and tab.cookie not in ("", frame.cookie)
    back = httpx.get(answer.headers["location"], headers={"X-Login": "ann"}).headers["location"]
    assert tab.get(back).headers["location"] == "/?shared=abc" and tab.who["name"] == "ann"
    assert frame.get("/sign-in/provider", IN_FRAME).headers["location"] == "/sign-in", "it begins in no frame"
    foreign = {**IN_TAB, "Sec-Fetch-Site": "cross-site"}
    assert Browser(site).get("/sign-in/provider?tab=own", foreign).headers["location"] == "/sign-in"


def test_a_name_of_the_owners_own_leads_to_the_spaces(door, monkeypatch):
    monkeypatch.setenv("SPACE_HOST", f"{HOST},nudge.example")
    site = door()
    by_own_name = {**IN_TAB, "Host": "nudge.example"}
    answer = Browser(site).get("/sign-in/provider?shared=abc", by_own_name)
    assert answer.headers["location"] == f"https://{HOST}/sign-in?shared=abc"
    assert signed_in(site, "ann").who["name"] == "ann"


# -- one sign-in, and the same people after a restore


def test_the_page_has_no_second_sign_in(space, monkeypatch):
    """Gradio's button for admins made nobody an admin here, and signed nobody in."""
    for module in (control, allowlist):
        monkeypatch.setattr(module, "SPACE_SIGN_IN", True)
    settings, store = space(NUDGE_ADMINS="ann", SYSTEM="spaces"), Store()
    for name in ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL"):
        monkeypatch.setattr(gradio.oauth, name, os.environ[name])  # it read them when it was imported

    def has_button(settings):
        with gr.Blocks() as blocks:
            engine = type("Engine", (), {"live": None, "slowness": None})
            made = control.Control(
                settings, store, Admins(settings, store), StatusBar(settings, store, engine), Notice()
            )
            made.build_folds()
        return "hf-sign-in" in json.dumps(blocks.get_config_file(), default=str)

    assert not has_button(settings)
    assert has_button(settings.with_values(oidc={"issuer": ""})), "which it has where nobody else signs people in"


def test_gradios_sign_in_is_closed(door, monkeypatch):
    monkeypatch.setattr(allowlist, "SPACE_SIGN_IN", True)
    browser = signed_in(door(), "ann")
    assert browser.get("/login/huggingface").status_code == 404 == browser.get("/login/callback").status_code


def test_after_a_restore_people_are_who_they_were(door, tmp_path):
    store = Store(tmp_path / "before.db")
    before = signed_in(door(store), "cyd")
    annotator = store.annotator(before.cookie)
    with sqlite3.connect(tmp_path / "after.db") as after, sqlite3.connect(tmp_path / "before.db") as kept:
        kept.backup(after)
    restored = Store(tmp_path / "after.db")
    site = door(restored)
    again = Browser(site)
    again.sign_in("ann")
    assert restored.annotator(again.cookie) != annotator
    assert restored.annotator(signed_in(site, "cyd").cookie) == annotator
