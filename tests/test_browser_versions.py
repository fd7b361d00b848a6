"""The tab of versions in the browser: what everybody sees, on a phone too, and one click of an admin."""

import pytest

from playground.store import Store
from playground.system.messages import plain
from tests.browsing import MARKS, become_admin, shot, tab
from tests.rounds import REPORT, begun

pytestmark = MARKS


@pytest.fixture(scope="module")
def app(paced):
    """A version that the gate has refused, since a worker that makes others is not there."""
    store = Store(paced.database)
    row = begun(store)
    version = store.add_policy(row["id"], "w1", parent=0)
    reason = plain("replies became <b>much</b> too long for anybody to read on a small screen, so it was not published")
    store.refuse(row["id"], "w1", version, "nowhere", "abc", REPORT, reason)
    return paced


def test_the_table_fits_a_phone_and_visitors_have_no_buttons(visit):
    page = visit(390, 844)
    tab(page, "versions")
    page.wait_for_selector(".versions .refused:has-text('became <b>much</b> too long')")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for cell in page.locator(".versions td:visible").all():
        box = cell.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    assert not page.locator("#version-control").is_visible()
    shot(page, "versions-phone", full_page=True)


def test_an_admin_needs_a_reason_and_the_server_answers_in_words(app, visit):
    page = visit()
    become_admin(page, app)
    tab(page, "versions")
    page.wait_for_selector("#roll-back")
    page.click("#roll-back")
    page.wait_for_selector("#notice :text('Say why first')")
    page.fill("#version-reason input, #version-reason textarea", "it is rude")
    page.click("#roll-back")
    page.wait_for_selector("#notice :text('there is no version before it')")
    shot(page, "versions-admin", full_page=True)


def test_a_comparison_of_one_version_is_refused_in_words(visit):
    page = visit()
    tab(page, "versions")
    page.click("#compare button:has-text('Compare two versions')")
    page.fill("#compare-prompt textarea", "Hello")
    page.click("#compare-go")
    page.wait_for_selector("#notice :text('Only the base answers so far')")
    assert page.locator("#compare-go").is_visible()
    tab(page, "training")
    page.wait_for_selector(
        "#notice .notice", state="hidden", timeout=3000
    )  # it stayed for ten seconds over the other tabs
