"""Nobody sees what admins do until one signs in with a password, or opens the admin link that the app prints."""

import pytest

from playground.people.admins import write_user
from tests.browsing import MARKS, App, become_admin, reload, shot, tab
from tests.tiny import tiny_folder

pytestmark = MARKS


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("admins")
    for name in ("ann", "bob"):
        write_user(folder / "users.txt", name, f"the password of {name}")
    plain = ("--no-worker", "--dtype", "float32", "--decode-format", "float32")
    admins = ("--host", "0.0.0.0", "--admins", "ann", "--users-file", folder / "users.txt")
    app = App(folder, *plain, *admins, model=tiny_folder(folder / "model"))
    yield app
    app.stop()


def sign_in(page, name, password):
    page.fill("#admin-name input, #admin-name textarea", name)
    page.fill("#admin-password input", password)
    page.press("#admin-password input", "Enter")


def test_an_admin_signs_in_starts_a_round_and_signs_out(app, visit):
    page = visit()
    tab(page, "training")
    page.wait_for_selector("#sign-in")
    page.wait_for_timeout(2000)
    assert (
        page.locator("#train-now").is_hidden()
        and page.locator("#auto-train").is_hidden()
        and page.locator("#round-settings").is_hidden()
    )
    page.click("#sign-in > button")
    sign_in(page, "ann", "not the password")
    page.wait_for_selector("#notice .warning:has-text('The name or the password is wrong.')")
    assert page.input_value("#admin-password input") == "" and page.locator("#train-now").is_hidden()
    shot(page, "sign-in")
    sign_in(page, "ann", "the password of ann")
    page.wait_for_selector("#train-now")
    assert page.locator("#sign-in").is_hidden()
    reload(page)
    tab(page, "training")
    page.click("#train-now")
    page.wait_for_selector("#strip .requested")
    page.click("#sign-out")
    page.wait_for_selector("#sign-in")
    assert page.locator("#stop-round").is_hidden()
    assert app.rows("select state from round") == [("requested",)]


def test_who_signs_in_and_is_no_admin_is_told_so(visit):
    page = visit()
    tab(page, "training")
    page.click("#sign-in > button")
    sign_in(page, "bob", "the password of bob")
    page.wait_for_selector("#notice .warning:has-text('no admin')")
    assert page.locator("#stop-round").is_hidden() and page.locator("#train-now").is_hidden()


def test_the_admin_link_makes_one_browser_the_owners_and_no_other(app, visit):
    page, other = visit(), visit()
    become_admin(page, app)
    tab(page, "training")
    page.wait_for_selector("#auto-train")
    assert page.locator("#sign-in").is_hidden() and page.locator("#sign-out").is_visible()
    assert other.request.get(app.admin_url).status == 403
    again = page.request.get(app.admin_url)
    assert (again.status, again.url) == (200, f"{app.url}/"), "who is admin already comes to the chat"
    tab(other, "training")
    other.wait_for_selector("#sign-in")
    assert other.locator("#auto-train").is_hidden()
