"""Sign-in by an OpenID Connect provider, over real HTTP, through the whole flow; and all that must not get in."""

import base64
import hmac
import json
import socket
import threading
import time
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from playground.people import signed_in as signed_in_command
from playground.people.attempts import MOST_OF_BROWSER, SECONDS, Attempt, Attempts
from playground.people.names import names_of, person_called
from playground.people.provider_people import account_of, role_of, unnamed, why_not
from playground.people.provider_setup import checked_secret
from playground.people.sign_ins import SignIns
from playground.people.signed_in import CannotEnd
from playground.people.users_file import UsersFile
from playground.people.visitor import COOKIE, new_token
from playground.settings import Settings, SettingsError
from tests.doors import CHEAP, Door, at_provider, begin, browser_of, refused, sign_in, signed_in
from tests.oidc_provider import CLIENT, SECRET, FakeProvider, signed_by
from tests.sites import Site
from tests.test_server import Page, notices
from tests.tiny import tiny_folder

PEOPLE = {
    "ann": {"name": "Ann Lee", "email": "ann@nudge.example", "email_verified": True},
    "bob": {"name": "Bob", "email": "bob@elsewhere.example", "email_verified": True, "groups": ["testers"]},
    "vic": {"name": "Vic", "groups": ["testers"], "roles": ["nudge-viewer"]},
    "ada": {"name": "Ada", "groups": ["testers", "bosses"]},
    "eve": {"name": "Eve <b>", "email": "eve@nudge.example", "email_verified": False},
}


def oidc(provider, **changes):
    usual = {
        "issuer": provider.issuer,
        "client_id": CLIENT,
        "client_secret": SECRET,
        "name": "Acme",
        "allowed": "@nudge.example, group:testers",
        "admins": "group:bosses",
        "role_claim": "roles",
    }
    return {**usual, **changes}


@pytest.fixture(scope="module")
def serving():
    provider = FakeProvider()
    yield provider
    provider.stop()


@pytest.fixture
def provider(serving):
    serving.reset()
    serving.people = {name: dict(claims) for name, claims in PEOPLE.items()}
    serving.calls.clear()
    return serving


@pytest.fixture(scope="module")
def site(serving, tmp_path_factory):
    """The whole app, with a tiny model."""
    site = Site(tiny_folder(tmp_path_factory.mktemp("model")), oidc=oidc(serving), limits={"sign_in_tries": 50})
    serving.back.append(f"{site.url}/sign-in/callback")
    yield site
    site.stop()


@pytest.fixture
def door(provider):
    """A function that opens a Door with other settings of the provider."""
    opened = []

    def open_door(people=None, root_path="", trusted="", limits=None, allowed_hosts="", **changes):
        settings = Settings(_env_file=None).with_values(
            oidc=oidc(provider, **changes), people=people or {}, limits=limits or {}, allowed_hosts=allowed_hosts
        )
        opened.append(Door(settings, root_path, trusted))
        provider.back.append(f"{opened[-1].url}{root_path}/sign-in/callback")
        return opened[-1]

    yield open_door
    for each in opened:
        each.stop()


# -- the right way, in the whole app


def test_who_signs_in_is_the_same_person_on_each_device_and_sees_the_page(site, provider):
    phone, laptop = signed_in(site, "ann"), signed_in(site, "ann")
    assert phone.cookies[COOKIE] != laptop.cookies[COOKIE]
    assert site.store.annotator(phone.cookies[COOKIE]) == site.store.annotator(laptop.cookies[COOKIE])
    assert phone.get("/changes").json()["role"] == "annotator" and "gradio_config" in phone.get("/").text
    assert phone.get("/sign-in").headers["location"] == "/" == phone.get("/sign-in/provider").headers["location"]
    assert "signed in as Ann Lee" in phone.get("/sign-out").text


def test_without_a_sign_in_nothing_is_open_and_the_form_asks_for_no_password(site, provider):
    browser = browser_of(site)
    assert browser.get("/").headers["location"] == "/sign-in" and browser.get("/changes").status_code == 401
    page = browser.get("/sign-in")
    assert "password" not in page.text.lower() and page.status_code == 200
    answer = browser.post("/sign-in", data={"name": "ann", "password": "whatever it is"})
    assert refused(answer, "Nobody can sign in with a password here.")
    chinese = browser.get("/sign-in", headers={"accept-language": "zh-CN"}).text
    assert "用 Acme 登录" in chinese and "<script" not in chinese


def test_roles_come_from_claims_and_change_at_the_next_sign_in(site, provider):
    viewer, admin = signed_in(site, "vic"), signed_in(site, "ada")
    assert (viewer.get("/changes").json()["role"], admin.get("/changes").json()["role"]) == ("viewer", "admin")
    assert admin.get("/export/pairs.jsonl").status_code == 200 and viewer.get("/export/pairs.jsonl").status_code == 403
    page = Page(site.url, "vic", cookies={COOKIE: viewer.cookies[COOKIE]})
    assert "You may look at everything here, but not send, vote or edit" in notices(page.send("Hello"))
    provider.people["vic"]["roles"] = ["admin"]
    assert viewer.get("/changes").json()["role"] == "viewer"
    again = signed_in(site, "vic")
    assert again.get("/changes").json()["role"] == viewer.get("/changes").json()["role"] == "admin"


def test_who_is_taken_off_the_list_is_refused_and_out_everywhere(site, provider, caplog):
    browser = signed_in(site, "bob")
    provider.people["bob"]["groups"] = []
    caplog.set_level("INFO", "playground.people.sign_ins")
    assert refused(sign_in(browser_of(site), "bob"), "Bob may not come in here")
    assert "somebody may not come in here" in caplog.text and "Bob" not in caplog.text
    assert browser.get("/changes").status_code == 401


def test_who_deletes_everything_comes_back_as_somebody_new(site, provider):
    browser = signed_in(site, "bob")
    annotator = site.store.annotator(browser.cookies[COOKIE])
    assert browser.post("/forget").status_code == 204 and browser.get("/changes").status_code == 401
    left = site.store.person(annotator)
    assert [left[name] for name in ("account", "name", "provider_role", "token_hash")] == [None] * 4
    assert site.store.annotator(signed_in(site, "bob").cookies[COOKIE]) != annotator


def test_a_sign_out_offers_that_of_the_provider(site, provider):
    browser = signed_in(site, "ann")
    answer = browser.post("/sign-out", data={"go": "on"})
    place = answer.text.split('class="button" href="')[1].split('"')[0].replace("&amp;", "&")
    asked = parse_qs(urlsplit(place).query)
    assert place.startswith(f"{provider.issuer}/end?") and asked["client_id"] == [CLIENT]
    assert asked["post_logout_redirect_uri"] == [f"{site.url}/sign-in/callback"]
    assert browser.get("/changes").status_code == 401 and "Max-Age=0" in answer.headers["set-cookie"]
    assert browser.get("/sign-in/callback?state=x").headers["location"] == "/sign-in", "back from there"


def test_two_people_at_once_are_two(site, provider):
    browsers = {login: browser_of(site) for login in ("ann", "bob")}
    places = {login: begin(browser) for login, browser in browsers.items()}
    backs = {login: at_provider(places[login], login) for login in ("bob", "ann")}
    answers = []
    threads = [
        threading.Thread(target=lambda who=login: answers.append(browsers[who].get(backs[who]))) for login in browsers
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert [answer.status_code for answer in answers] == [303, 303], [answer.text for answer in answers]
    names = [site.store.person(site.store.annotator(b.cookies[COOKIE]))["name"] for b in browsers.values()]
    assert names == ["Ann Lee", "Bob"]


def test_a_share_link_leads_on_and_no_other_place_does(site, provider):
    browser = browser_of(site)
    place = begin(browser, "/sign-in?shared=abc&next=https://evil.example")
    answer = browser.get(at_provider(place, "ann") + "&shared=other&next=//evil.example")
    assert answer.headers["location"] == "/?shared=abc"


def test_the_cookie_of_before_the_sign_in_is_worth_nothing(site, provider):
    browser = browser_of(site)
    browser.get("/sign-in")
    planted = browser.cookies[COOKIE]
    sign_in(browser, "ann")
    assert browser.cookies[COOKIE] != planted
    assert httpx.get(f"{site.url}/changes", cookies={COOKIE: planted}).status_code == 401


# -- ID tokens that must not count


def encoded(part):
    return base64.urlsafe_b64encode(part).rstrip(b"=")


def unsigned(header, claims):
    return b".".join([*(encoded(json.dumps(part).encode()) for part in ({"alg": "none"}, claims)), b""]).decode()


def forged(header, claims):
    """With the public key as the secret of an HMAC."""
    key = SERVING[0].key
    said = b".".join(encoded(json.dumps(part).encode()) for part in ({"alg": "HS256", "kid": key.kid}, claims))
    return (said + b"." + encoded(hmac.digest(key.as_pem(private=False), said, "sha256"))).decode()


SERVING = []
BENT = {
    "another nonce": lambda claims, header: claims.update(nonce="another one"),
    "no nonce": lambda claims, header: claims.pop("nonce"),
    "another app": lambda claims, header: claims.update(aud="another app"),
    "another app, and this one as the party": lambda claims, header: claims.update(aud="another app", azp=CLIENT),
    "two apps, and another one as the party": lambda claims, header: claims.update(aud=[CLIENT, "x"], azp="x"),
    "no app": lambda claims, header: claims.pop("aud"),
    "over": lambda claims, header: claims.update(exp=int(time.time()) - 70),
    "never over": lambda claims, header: claims.pop("exp"),
    "not yet": lambda claims, header: claims.update(iat=int(time.time()) + 900, nbf=int(time.time()) + 900),
    "another issuer": lambda claims, header: claims.update(iss="https://evil.example"),
    "no issuer": lambda claims, header: claims.pop("iss"),
    "nobody": lambda claims, header: claims.pop("sub"),
    "an empty subject": lambda claims, header: claims.update(sub=""),
    "a subject that is no text": lambda claims, header: claims.update(sub=["id of ann"]),
    "an unknown key": lambda claims, header: header.update(kid="unknown"),
}
SIGNED = {
    "no signature": unsigned,
    "the public key as secret": forged,
    "another signature": lambda header, claims: signed_by(SERVING[0].key, header, claims)[:-20] + "A" * 20,
    "no token": lambda header, claims: "what is this",
    "a number": lambda header, claims: 5,
}


@pytest.mark.parametrize("what", [*BENT, *SIGNED])
def test_an_id_token_that_is_not_right_lets_nobody_in(what, site, provider):
    SERVING[:] = [provider]
    provider.bend = BENT.get(what, provider.bend)
    provider.signed = SIGNED.get(what)
    browser = browser_of(site)
    before = site.store.rows("select count(*) as n from sign_in")
    assert refused(sign_in(browser, "ann"), "Acme does not confirm this sign-in")
    assert browser.get("/changes").status_code == 401
    assert site.store.rows("select count(*) as n from sign_in") == before


def test_a_clock_that_is_a_little_off_keeps_nobody_out(site, provider):
    provider.bend = lambda claims, header: claims.update(iat=int(time.time()) + 30, exp=int(time.time()) - 20)
    assert sign_in(browser_of(site), "ann").status_code == 303


def test_a_new_key_counts_from_its_first_token_on(site, provider):
    signed_in(site, "ann")
    provider.new_key("second")
    signed_in(site, "ann")
    provider.new_key("second")  # another one with the same name
    signed_in(site, "ann")


# -- what strangers bring


def test_a_code_and_its_state_work_once(site, provider):
    browser = browser_of(site)
    back = at_provider(begin(browser), "ann")
    cookies = dict(browser.cookies)
    assert browser.get(back).status_code == 303
    assert browser.get(back).headers["location"] == "/", "who is in stays in"
    replayed = httpx.get(back, cookies=cookies)
    assert refused(replayed, "This sign-in is over, or it was begun in another browser")
    # the code alone, in an attempt that is open
    other = browser_of(site)
    state = parse_qs(urlsplit(begin(other)).query)["state"][0]
    code = parse_qs(urlsplit(back).query)["code"][0]
    answer = other.get("/sign-in/callback", params={"code": code, "state": state, "iss": provider.issuer})
    assert refused(answer, "Acme does not confirm this sign-in")


def test_a_code_of_another_attempt_is_refused_by_its_verifier(site, provider):
    mine, theirs = browser_of(site), browser_of(site)
    state = parse_qs(urlsplit(begin(mine)).query)["state"][0]
    code = parse_qs(urlsplit(at_provider(begin(theirs), "ann")).query)["code"][0]
    answer = mine.get("/sign-in/callback", params={"code": code, "state": state, "iss": provider.issuer})
    assert refused(answer, "Acme does not confirm this sign-in")


def test_the_end_of_a_sign_in_works_in_its_own_browser_alone(site, provider):
    """A link to it, sent to somebody else, would sign them in as its sender."""
    mine, victim = browser_of(site), browser_of(site)
    back = at_provider(begin(mine), "bob")
    victim.get("/sign-in")
    stranger = browser_of(site)
    stranger.get("/sign-in")
    for browser in (victim, stranger):
        assert refused(browser.get(back), "This sign-in is over, or it was begun in another browser")
    assert mine.get(back).status_code == 303, "and it is still open there"


@pytest.mark.parametrize("state", ["", "x", "x" * 5000, "é", None])
def test_a_state_that_nobody_has_is_refused(state, site, provider):
    params = {"code": "x"} if state is None else {"code": "x", "state": state}
    answer = browser_of(site).get("/sign-in/callback", params=params)
    assert answer.status_code == 403 and "This sign-in is over" in answer.text and "/token" not in provider.calls


@pytest.mark.parametrize("issuer", ["https://evil.example", None])
def test_an_answer_of_another_provider_is_refused(issuer, site, provider):
    browser = browser_of(site)
    asked = {name: values[0] for name, values in parse_qs(urlsplit(at_provider(begin(browser), "ann")).query).items()}
    asked = {name: value for name, value in {**asked, "iss": issuer}.items() if value}
    assert refused(browser.get("/sign-in/callback", params=asked), "Acme does not confirm this sign-in")
    assert "/token" not in provider.calls


@pytest.mark.parametrize(
    "headers",
    [{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"}, {"Sec-Fetch-Dest": "image"}],
)
def test_a_page_elsewhere_begins_no_sign_in(headers, site, provider):
    browser = browser_of(site)
    browser.get("/sign-in")
    assert browser.get("/sign-in/provider?shared=a", headers=headers).headers["location"] == "/sign-in?shared=a"


def test_a_browser_without_cookies_is_told_so(site, provider):
    answer = httpx.get(f"{site.url}/sign-in/provider")
    assert answer.status_code == 503 and "Your browser keeps no cookie" in answer.text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("access_denied", "was cancelled, or Acme refuses it"),
        ("server_error", "Acme could not sign you in"),
        ("<script>alert(1)</script>", "Acme could not sign you in"),
    ],
)
def test_what_went_wrong_at_the_provider_is_said_with_a_way_on(error, said, site, provider):
    provider.denies = error
    answer = sign_in(browser_of(site), "ann")
    assert refused(answer, said) and "<script" not in answer.text


@pytest.mark.parametrize("login", ["eve", "nobody"])
def test_who_is_not_allowed_is_told_so(login, site, provider):
    """Eve has an email of the right domain, which the provider has not verified."""
    browser = browser_of(site)
    answer = sign_in(browser, login)
    assert refused(answer, "may not come in here") and "<b>" not in answer.text
    assert 'href="/sign-in/provider?account=other"' in answer.text
    place = browser.get("/sign-in/provider?account=other").headers["location"]
    assert parse_qs(urlsplit(place).query)["prompt"] == ["select_account"], "else the same account comes back"


def test_forged_codes_of_one_address_must_wait(door, provider):
    site = door(limits={"sign_in_tries": 1})
    browser = browser_of(site)
    statuses = []
    for _ in range(5):
        state = parse_qs(urlsplit(begin(browser)).query)["state"][0]
        params = {"code": "guess", "state": state, "iss": provider.issuer}
        statuses.append(browser.get("/sign-in/callback", params=params).status_code)
    assert statuses == [403] * 4 + [429] and provider.calls.count("/token") == 4


# -- claims and sign-ins


def test_what_only_userinfo_says_counts_where_it_is_of_the_same_person(door, provider):
    site = door(name_claim="nickname")
    provider.people["zoe"] = {}
    provider.userinfo = {"nickname": "Zoë", "groups": ["testers"]}
    assert signed_in(site, "zoe").get("/changes").json() == {"name": "Zoë", "role": "annotator"}
    provider.userinfo["sub"] = "id of ann"
    assert sign_in(browser_of(site), "zoe").status_code == 403


def test_a_sign_in_ends_after_some_days_and_with_the_settings_that_let_it_in(door, provider):
    site = door()
    browser = signed_in(site, "ann")
    token = browser.cookies[COOKIE]
    settings = Settings(_env_file=None).with_values(oidc=oidc(provider))

    def found(later=0.0, **changes):
        changed = settings.with_values(oidc=changes) if changes else settings
        return SignIns(site.store, changed, CHEAP, lambda: time.time() + later).find(token) is not None

    assert found() and found(6.9 * 86400) and not found(7.1 * 86400)
    assert found(name="Other", session_days=1)
    assert not found(allowed="group:testers") and not found(issuer="https://other.example") and not found(issuer="")


def test_beside_a_users_file_both_ways_lead_in_and_nobody_is_taken_for_another(door, provider, tmp_path):
    path = tmp_path / "users"
    UsersFile(path).change(lambda content: content.with_user("Ann Lee", "viewer", CHEAP.hash("the password of ann")))
    site = door(people={"users": str(path)})
    page = browser_of(site).get("/sign-in").text
    assert "Sign in with Acme" in page and 'name="password"' in page
    by_password = browser_of(site)
    answer = by_password.post("/sign-in", data={"name": "ann lee", "password": "the password of ann"})
    assert answer.status_code == 303 and by_password.get("/changes").json()["role"] == "viewer"
    by_provider = signed_in(site, "ann")
    assert by_provider.get("/changes").json() == {"name": "Ann Lee", "role": "annotator"}
    assert site.store.annotator(by_password.cookies[COOKIE]) != site.store.annotator(by_provider.cookies[COOKIE])
    assert by_password.post("/sign-out", data={"go": "on"}).headers["location"] == "/sign-in", "no provider knows them"


def test_the_owner_sees_who_is_signed_in_and_ends_it(door, provider):
    site = door()
    provider.people["bob"]["name"] = "Ann Lee"
    phone, laptop, other = (signed_in(site, login) for login in ("ann", "ann", "bob"))
    settings = Settings(_env_file=None).with_values(oidc=oidc(provider))
    sign_ins = SignIns(site.store, settings, CHEAP)
    lines = signed_in_command.listed(sign_ins).splitlines()
    assert sorted(line.split(": ")[1].split(", used")[0] for line in lines) == [
        "annotator, on 1 device",
        "annotator, on 2 devices",
    ]
    with pytest.raises(CannotEnd, match="2 people are called 'Ann Lee'"):
        signed_in_command.ended(sign_ins, "Ann Lee")
    ann = next(user.id for user, devices, _ in sign_ins.signed_in() if devices == 2)
    assert signed_in_command.ended(sign_ins, ann) == "Ann Lee is signed out on all devices."
    assert [browser.get("/changes").status_code for browser in (phone, laptop, other)] == [401, 401, 200]
    with pytest.raises(CannotEnd, match="Nobody of the name"):
        signed_in_command.ended(sign_ins, ann)


def test_a_name_at_a_provider_is_what_admins_call_the_person(door, provider):
    site = door()
    annotator = site.store.annotator(signed_in(site, "ann").cookies[COOKIE])
    assert names_of(site.store, None, [annotator]) == {annotator: "Ann Lee"}
    assert person_called(site.store, None, "Ann Lee") == annotator
    assert site.store.signed_in(annotator) is None, "it is no sign-in of an admin's by the page"


# -- settings


def test_what_claims_say_of_a_role():
    settings = Settings(_env_file=None).with_values(
        oidc={
            "issuer": "https://id.example",
            "client_id": "x",
            "role": "none",
            "allowed": "ann@nudge.example",
            "role_claim": "realm_access.roles",
        }
    )
    ann = {"sub": "1", "email": "Ann@Nudge.example", "email_verified": True}

    def role(claims, **changes):
        return role_of(claims, settings.with_values(oidc=changes).oidc)

    assert role(ann) is None and role(ann, role="viewer") == "viewer"
    assert role({**ann, "realm_access": {"roles": ["viewer", "NUDGE-annotator", "other"]}}) == "annotator"
    assert role({**ann, "https://x.example/roles": "admin"}, role_claim="https://x.example/roles") == "admin"
    assert role({**ann, "email_verified": "false"}, role="viewer") is None
    assert role({**ann, "email": "ann@nudge.example.evil"}, role="viewer") is None
    assert role({"sub": "ann@nudge.example", "preferred_username": "ann@nudge.example"}, role="viewer") is None
    assert role({"sub": "1"}, allowed="*", role="viewer") == "viewer"
    assert role({"sub": "1", "groups": 5}, allowed="group:5,, group:", role="viewer") is None
    assert role({"sub": "1", "email": "a@b@c", "email_verified": True}, allowed="@c", role="viewer") is None
    assert account_of("https://a", "b") != account_of("https://ab", "") and account_of("https://a", "b") != "b"


def test_who_is_on_the_list_without_a_role_is_told_that_it_is_the_role():
    values = {"issuer": "https://id.example", "client_id": "x", "role": "none", "role_claim": "roles"}
    oidc = Settings(_env_file=None).with_values(oidc={**values, "allowed": "@nudge.example"}).oidc
    ann = {"sub": "1", "name": "Ann", "email": "ann@nudge.example", "email_verified": True}
    assert str(why_not(ann, oidc)).startswith("Ann has been given no role here. Ask an admin for one")
    assert str(why_not({**ann, "email_verified": False}, oidc)).startswith("Ann may not come in here")
    assert "Ann" not in unnamed(why_not(ann, oidc))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"client_id": ""}, "--oidc.client-id"),
        ({"allowed": " , ", "admins": ""}, "--oidc.allowed"),
        ({"scopes": "profile"}, "--oidc.scopes"),
        ({"client_secret_file": "/nowhere/secret"}, "give one of them"),
        ({"client_secret_file": "/nowhere/secret", "client_secret": ""}, "cannot be read"),
    ],
)
def test_settings_that_do_not_suffice_are_told_at_the_start(changes, said, provider):
    settings = Settings(_env_file=None).with_values(oidc=oidc(provider, **changes))
    with pytest.raises(SettingsError, match=said):
        checked_secret(settings.oidc)


@pytest.mark.parametrize("issuer", ["http://id.example", "https://id.example?x", "id.example", "https://a@b"])
def test_an_issuer_without_https_is_refused(issuer):
    with pytest.raises(SettingsError, match="--oidc.issuer"):
        Settings(_env_file=None).with_values(oidc={"issuer": issuer})


def test_the_secret_comes_from_a_file_and_is_not_kept_with_a_round(tmp_path, provider):
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    settings = Settings(_env_file=None).with_values(oidc=oidc(provider, client_secret="", client_secret_file=str(file)))
    assert checked_secret(settings.oidc) == SECRET
    people = {"client_secret": SECRET, "allowed": "ann@nudge.example", "admins": "bob@nudge.example"}
    recorded = json.dumps(settings.with_values(oidc=people, admins="cyd@nudge.example").recorded())
    assert SECRET not in recorded and "nudge.example" not in recorded, "every copy for a round holds it"


# -- the address to which people come back


def redirect_uri(site, **headers):
    return parse_qs(urlsplit(begin(browser_of(site), **headers)).query)["redirect_uri"]


def test_the_address_to_come_back_to_is_never_a_strangers_word(door):
    site = door(allowed_hosts="nudge.example")
    assert redirect_uri(site, Host="nudge.example") == ["http://nudge.example/sign-in/callback"]
    browser = browser_of(door())
    browser.get("/sign-in")
    for headers in ({"Host": "evil.example"}, {"Host": "evil.example", "X-Forwarded-Host": "localhost"}):
        answer = browser.get("/sign-in/provider", headers=headers)
        assert answer.status_code == 403 and "has to say its public address" in answer.text


def test_the_settings_or_a_trusted_proxy_say_it(door):
    fixed = door(address="https://nudge.example/nudge/", root_path="/nudge")
    browser = browser_of(fixed)
    place = begin(browser, "/nudge/sign-in", Host="evil.example")
    assert parse_qs(urlsplit(place).query)["redirect_uri"] == ["https://nudge.example/nudge/sign-in/callback"]
    by_proxy = door(trusted="127.0.0.1")
    headers = {"Host": "evil.example", "X-Forwarded-Host": "nudge.example", "X-Forwarded-Proto": "https"}
    browser = browser_of(by_proxy)
    cookie = browser.get("/sign-in", headers=headers).headers["set-cookie"].split(";")[0]  # it is one for https
    answer = browser.get("/sign-in/provider", headers={**headers, "Cookie": cookie})
    place = answer.headers["location"]
    assert parse_qs(urlsplit(place).query)["redirect_uri"] == ["https://nudge.example/sign-in/callback"]


def test_below_a_path_the_whole_way_stays_there(door):
    site = door(root_path="/nudge")
    browser = browser_of(site)
    answer = browser.get(at_provider(begin(browser, "/nudge/sign-in?shared=abc"), "ann"))
    assert answer.headers["location"] == "/nudge/?shared=abc" and "Path=/nudge;" in answer.headers["set-cookie"]


# -- a provider that is down


def test_a_provider_that_is_down_is_told_and_asked_again_with_pauses(door, provider):
    site = door()
    inside = signed_in(site, "ann")
    provider.calls.clear()
    provider.broken = {"/.well-known/openid-configuration"}
    site.now += 400  # what is known of it is old
    for _ in range(3):
        page = browser_of(site).get("/sign-in")
        assert page.status_code == 503 and "Sign-in with Acme is not available now" in page.text
        assert "Try again" in page.text and "/sign-in/provider" not in page.text
    assert len(provider.calls) == 1, "it has a pause"
    assert inside.get("/changes").status_code == 200, "who is signed in stays so"
    for pause in (1.1, 2.1):
        site.now += pause
        browser_of(site).get("/sign-in")
    site.now += 2.1
    browser_of(site).get("/sign-in")
    assert len(provider.calls) == 3, "the pauses grow"
    provider.broken = set()
    site.now += 60
    assert signed_in(site, "ann")


def test_an_email_that_userinfo_alone_confirms_needs_it(door, provider):
    """Else a userinfo that is down would sign everybody out."""
    provider.people["zoe"] = {"name": "Zoe", "email": "zoe@nudge.example"}
    provider.userinfo_of["zoe"] = {"email": "zoe@nudge.example", "email_verified": True}
    site = door(allowed="@nudge.example", admins="", role_claim="")
    phone = signed_in(site, "zoe")
    provider.broken = {"/userinfo"}
    answer = sign_in(browser_of(site), "zoe")
    assert answer.status_code == 503 and phone.get("/changes").status_code == 200


def test_a_provider_that_hangs_holds_up_nobody_else(door, provider, monkeypatch):
    monkeypatch.setattr("playground.web.provider_sign_in.PATIENCE", 0.2)
    provider.answers.clear()
    site = door()
    pages, browser = [], browser_of(site)
    assert browser.get("/sign-in").status_code == 503, "who waits for too long is told"
    monkeypatch.setattr("playground.web.provider_sign_in.PATIENCE", 60)
    threads = [threading.Thread(target=lambda: pages.append(browser_of(site).get("/sign-in"))) for _ in range(3)]
    [thread.start() for thread in threads]
    assert browser.get("/changes").status_code == 401 and pages == [], "answered while they wait for the provider"
    provider.answers.set()
    [thread.join() for thread in threads]
    assert [page.status_code for page in pages] == [200] * 3
    assert provider.calls.count("/.well-known/openid-configuration") == 1, "one request for all who wait"
    assert signed_in(site, "ann")


def test_a_provider_that_fails_in_the_middle_is_told(door, provider):
    browser = browser_of(door())
    back = at_provider(begin(browser), "ann")
    provider.broken = {"/token"}
    answer = browser.get(back)
    assert answer.status_code == 503 and answer.text.count("is not available now") == 1


@pytest.mark.parametrize(
    "described",
    [
        {"issuer": "https://evil.example"},
        {"issuer": None},
        {"token_endpoint": None},
        {"jwks_uri": "file:///etc/passwd"},
        {"authorization_endpoint": 5},
        {"id_token_signing_alg_values_supported": ["none", "HS256"]},
    ],
    ids=lambda described: next(iter(described)),
)
def test_a_description_that_is_not_right_is_not_used(described, door, provider):
    provider.described = described
    assert browser_of(door()).get("/sign-in").status_code == 503


def test_one_who_answers_at_the_address_of_nothing_is_down(door, provider):
    with socket.socket() as taken:  # and nobody listens
        taken.bind(("127.0.0.1", 0))
        issuer = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert browser_of(door(issuer=issuer)).get("/sign-in").status_code == 503


# -- attempts


def test_attempts_are_over_after_some_minutes_and_are_bounded():
    now = [0.0]
    attempts = Attempts(lambda: now[0])
    mine, other = new_token(), new_token()
    for number in range(MOST_OF_BROWSER + 1):
        attempts.add(Attempt(f"state {number}", "n", "v", "b"), mine)
    attempts.add(Attempt("theirs", "n", "v", "b"), other)
    assert attempts.take("state 0", mine) is None and attempts.take("state 1", mine) is not None
    assert attempts.take("state 2", other) is None and attempts.take("state 2", None) is None
    now[0] = SECONDS + 1
    assert attempts.take("state 2", mine) is None and attempts.take("theirs", other) is None
