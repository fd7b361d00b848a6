"""An app with users, as people see it: a sign-in, a role, a refusal, a sign-out, an invitation, a provider."""

import pytest

from playground.people.passwords import Cost, Hasher
from playground.people.users_file import UsersFile, new_invitation
from tests.browsing import MARKS, App, send, shot, wait_for_vote
from tests.oidc_provider import CLIENT, SECRET, FakeProvider
from tests.tiny import tiny_folder

pytestmark = MARKS
LONG_PROMPT = "Which of these words is the odd one out, and why do you think so? " * 6
CHEAP = Hasher(Cost(2, 1, 1))


class TeamApp(App):
    """It has no admin link."""

    def start(self):
        try:
            super().start()
        except AssertionError as error:
            assert "Users sign in" in str(error)


@pytest.fixture(scope="module")
def provider():
    provider = FakeProvider()
    provider.people = {"ann": {"name": "Ann Lee"}}
    yield provider
    provider.stop()


@pytest.fixture(scope="module")
def app(tmp_path_factory, provider):
    folder = tmp_path_factory.mktemp("team")
    for name, role in {"ann": "annotator", "lee": "annotator", "vic": "viewer"}.items():
        hashed = CHEAP.hash(f"the password of {name}")
        UsersFile(folder / "users").change(lambda content, n=name, r=role, h=hashed: content.with_user(n, r, h))
    plain = ("--no-worker", "--dtype", "float32", "--decode-format", "float32", "--people.users", folder / "users")
    by_provider = {"issuer": provider.issuer, "client-id": CLIENT, "client-secret": SECRET, "name": "Acme"}
    plain += tuple(word for name, value in by_provider.items() for word in (f"--oidc.{name}", value))
    (folder / "prompts.txt").write_text("\n".join(f"{LONG_PROMPT} {i}" for i in range(4)))
    plain += ("--queue.prompts", folder / "prompts.txt")
    app = TeamApp(folder, *plain, "--oidc.allowed", "*", model=tiny_folder(folder / "model"), tokens=40)
    yield app
    app.stop()


@pytest.fixture
def open_browser(browser):
    """A function that opens a browser of its own, as wide as it says."""
    contexts = []

    def opened(width=1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 740}, locale="en-US", **options)
        context.set_default_timeout(60_000)
        contexts.append(context)
        return context.new_page()

    yield opened
    for context in contexts:
        context.close()


def sign_in(page, name, password):
    page.fill("input[name=name]", name)
    page.fill("input[name=password]", password)
    page.click("button")


def test_an_annotator_signs_in_on_a_phone_without_scripts_first_and_out_again(app, open_browser):
    bare = open_browser(width=360, java_script_enabled=False)
    bare.goto(app.url)
    assert bare.url.endswith("/sign-in") and "gradio" not in bare.content().lower()
    sign_in(bare, "ann", "not the password")
    assert bare.inner_text("[role=alert]") == "The name or the password is wrong."
    assert bare.input_value("input[name=name]") == "ann" and bare.input_value("input[name=password]") == ""
    assert bare.evaluate("document.documentElement.scrollWidth") <= 360
    shot(bare, "team-sign-in")
    sign_in(bare, "ann", "the password of ann")
    assert bare.url.rstrip("/") == app.url

    page = open_browser()
    page.goto(app.url)
    sign_in(page, "ann", "the password of ann")
    page.wait_for_selector("#hint span")
    send(page, "Hello")
    wait_for_vote(page)
    other = page.context.new_page()
    other.goto(app.url)
    other.wait_for_selector("#hint span")
    page.click("#sidebar .toggle-button")
    page.click("#to-sign-out")
    page.wait_for_url("**/sign-out")
    assert "signed in as ann" in page.inner_text("main")
    page.get_by_role("button", name="Sign out", exact=True).click()
    page.wait_for_url("**/sign-in")
    other.bring_to_front()
    other.wait_for_selector("#account-note:has-text('You are signed out.')")
    other.click("#account-note a")
    other.wait_for_url("**/sign-in")


def test_a_prompt_of_the_queue_is_shown_from_its_beginning_once_it_is_answered(app, open_browser):
    """On a phone the panes had followed the replies, and nobody saw what had been asked."""
    page = open_browser(width=390)
    page.goto(app.url)
    sign_in(page, "lee", "the password of lee")
    page.click("#next-prompt:visible")
    wait_for_vote(page)
    starts = """[...document.querySelectorAll('.pane .bubble-wrap')].every((pane) => {
        const prompt = [...pane.querySelectorAll('.user-row')].at(-1);
        return prompt.getBoundingClientRect().top > pane.getBoundingClientRect().top - 2;
    })"""
    page.wait_for_timeout(600)  # Gradio has followed the last words
    page.wait_for_function(starts)


def test_a_viewer_has_nothing_to_send_with_and_is_refused_where_a_button_is_found(app, open_browser):
    page = open_browser()
    page.goto(app.url)
    sign_in(page, "vic", "the password of vic")
    page.wait_for_selector("#account-note:has-text('You may look at everything')")
    assert page.locator("#composer").is_hidden()
    shot(page, "team-viewer")
    page.evaluate(
        "delete document.documentElement.dataset.role; document.head.insertAdjacentHTML('beforeend', "
        "'<style>:root:root #composer { display: flex !important }</style>')"
    )
    send(page, "Hello")
    page.wait_for_selector("#notice .warning:has-text('not send, vote or edit')")
    assert app.rows(
        "select count(*) from message where text = 'Hello' and conversation in (select id from conversation "
        "where annotator = (select max(annotator) from sign_in))"
    ) == [(0,)]


def test_somebody_who_is_invited_chooses_a_name_and_is_in(app, open_browser):
    token, invitation = new_invitation("annotator", 1)
    UsersFile(app.folder / "users").change(lambda content: content.with_invitation(invitation))
    page = open_browser(width=360)
    page.goto(f"{app.url}/invitation/{token}")
    shot(page, "team-invitation")
    page.fill("input[name=again]", "a password of mine")
    sign_in(page, "nova", "a password of mine")
    page.wait_for_selector("#hint span")
    page.goto(f"{app.url}/sign-out")
    assert "signed in as nova (annotator" in page.inner_text("main")


def test_a_provider_signs_somebody_in_and_out(app, open_browser, provider):
    """In a browser the page's policy must let all of this pass, and the cookie come along from another site."""
    provider.back.append(f"{app.url}/sign-in/callback")
    page = open_browser(width=360)
    page.goto(app.url)
    shot(page, "team-provider")
    page.click("text=Sign in with Acme")
    page.wait_for_selector("#hint span")
    page.goto(f"{app.url}/sign-out")
    assert "signed in as Ann Lee (annotator" in page.inner_text("main")
    page.get_by_role("button", name="Sign out", exact=True).click()
    page.wait_for_selector("text=You are signed out here. Acme may still know you")
    assert page.get_attribute("a.button", "href").startswith(f"{provider.issuer}/end?")
