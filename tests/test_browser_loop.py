"""The loop as people see it, twice round: a vote, a round that is asked for, its way through the phases in two
browsers, the new version in the open chat.
"""

import re

import pytest

from playground.models import loading
from playground.settings import Settings, flag
from playground.store import Store
from tests.browsing import MARKS, App, become_admin, reload, shot, tab, turn
from tests.test_loop import liking, settings_for
from training import simulate
from training.annotators import Person

pytestmark = MARKS
OWN = {"model", "data_dir", "chat.reply_tokens"}  # what App sets


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """The app with its worker, a tiny model, and 40 votes in the store."""
    folder = tmp_path_factory.mktemp("loop")
    settings = settings_for(
        folder,
        round={"votes": 1000},
        gate={"better": 0.01, "not_worse": 0.01},
        reward={"evidence_confidence": 0, "features": "layers"},
        ppo={"iterations": 8, "episodes": 128, "minibatch": 64, "microbatch": 64, "lr": 2e-3, "kl_target": 9.0},
        seed=2,
    )  # PPO for long enough that a page sees it
    votes = simulate.SimulateSettings.like(settings, votes=40)
    simulate.make_duels(
        Store(settings.database),
        votes,
        loading.load_trunk(settings),
        loading.load_tokenizer(settings),
        {"liking": Person(lambda prompt, reply: liking(reply))},
        log=lambda text: None,
    )
    usual = Settings(_env_file=None).flat()
    flags = [
        part
        for name, value in settings.flat().items()
        if value != usual[name] and name not in OWN
        for part in (flag(name), value)
    ]
    app = App(folder, *flags, model=settings.model, tokens=16)
    yield app
    app.stop()


def strip(page):
    return page.inner_text("#strip")


def test_a_vote_becomes_a_version_in_the_open_chat_and_a_second_round_follows(app, visit):
    page, other = visit(), visit(locale="zh-CN")
    become_admin(page, app)
    turn(page, "Tell me about the thing", "a")
    page.wait_for_selector("#fate :text('waits for the next round')")
    first = page.inner_text("#chat-a")
    tab(page, "training")
    page.click("#train-now")

    # the same round in both browsers, paused, and after a reload in the middle of it
    page.wait_for_selector("#strip .running:has-text('PPO')", timeout=500_000)
    page.wait_for_selector("#strip .detail:text-matches('[0-9]+ (of|/) 8')")
    page.wait_for_selector("#timeline label:has-text('running')")
    shot(page, "round-running", full_page=True)
    page.click("#pause")
    for p in (page, other):
        p.wait_for_selector("#strip .paused:has-text('PPO')", timeout=120_000)
    assert re.search(r"PPO.*\d+ (of|/) 8", strip(page), re.S) and re.search(r"\d+ / 8", strip(other))
    reload(page)
    page.wait_for_selector("#strip .paused")
    tab(page, "training")
    page.wait_for_selector("#round-summary .steps .paused")
    page.wait_for_selector("#timeline label:has-text('paused')")
    page.click("#resume")
    tab(page, "chat")

    # live, quietly: the chat is as it was, and the next message is answered by v1
    for p in (page, other):
        p.wait_for_selector("#strip .version:text-is('v1')", timeout=300_000)
    page.wait_for_selector("#swap :text('now answering: v1')")
    assert page.inner_text("#chat-a") == first
    page.wait_for_selector("#fate :text-matches('in policy v1|round 1 is measured on it')")
    page.click("#new-chat")
    turn(page, "And now?", "b")
    page.wait_for_selector(".badge span:has-text('v1')")  # the other side may be v0, since v1 is on trial
    # not at once: while an event runs, Gradio writes its seconds into the component, where nobody sees them
    page.wait_for_function("document.querySelector('#swap').innerText.trim() == ''")

    # a second round, stopped and asked for again
    tab(page, "training")
    page.click("#train-now")
    page.wait_for_selector("#strip .running", timeout=120_000)
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#stop-round")
    page.wait_for_selector("#timeline label:has-text('stopped')", timeout=120_000)
    store = Store(app.database)
    store.override({"ppo.iterations": 2}, store.annotator("somebody"))  # nobody has to see this one's way
    page.click("#train-now")
    page.wait_for_selector(
        "#timeline label:has-text('Round 3'):is(:has-text('published'), :has-text('refused'))", timeout=300_000
    )
    assert [re.search(r"Round (\d)", text)[1] for text in page.locator("#timeline label").all_inner_texts()] == [
        "3",
        "2",
        "1",
    ]
    page.wait_for_selector("#gate .checks li")
    assert page.locator("#samples tbody tr").count() > 2 and page.locator("#curves svg").count() >= 7
    store.override({"ppo.iterations": None}, store.annotator("somebody"))

    # an earlier one is picked, and stays
    page.click("#timeline label:has-text('Round 1')")
    page.wait_for_selector("#round-summary h2:has-text('Round 1')")
    page.wait_for_timeout(2000)
    assert page.inner_text("#round-summary h2") == "Round 1"
    page.click("#log button")
    page.wait_for_function("document.querySelector('#log textarea')?.value.includes('ppo 1 of 8')")
    tab(page, "watch")
    page.wait_for_selector("#note-kl:has-text('nats a reply from the base')")


def test_settings_of_the_next_rounds_are_kept_for_admins(app, visit):
    page = visit()
    become_admin(page, app)
    tab(page, "training")
    page.click("#round-settings > button")
    page.locator("#round-settings .section button", has_text="PPO").click()
    page.wait_for_function("document.querySelector('#set-ppo-kl-target input')?.value == '9'")
    page.wait_for_timeout(1500)  # a fold that has just opened takes its values once more; nobody types as fast
    page.fill("#set-ppo-kl-target input", "2.5")
    page.press("#set-ppo-kl-target input", "Tab")
    page.click("#save-settings")
    page.wait_for_selector("#notice .kept")
    assert app.rows("select name, value from override") == [("ppo.kl_target", "2.5")]
    page.fill("#set-ppo-kl-target input", "-1")
    page.press("#set-ppo-kl-target input", "Tab")
    page.click("#save-settings")
    page.wait_for_selector("#notice .warning:has-text('ppo.kl_target cannot be -1')")
    page.wait_for_selector("#set-ppo-kl-target.refused input")
    page.wait_for_timeout(500)
    assert page.input_value("#set-ppo-kl-target input") == "-1", "it can be corrected in its place"
    assert page.locator("#round-settings .refused").count() == 1
    assert app.rows("select name, value from override") == [("ppo.kl_target", "2.5")]
    store = Store(app.database)
    store.override({"ppo.epochs": 3}, store.annotator("another admin"))
    page.fill("#set-ppo-kl-target input", "3.5")
    page.press("#set-ppo-kl-target input", "Tab")
    page.click("#save-settings")
    page.wait_for_function("document.querySelector('#set-ppo-epochs input')?.value == '3'")
    page.wait_for_selector("#set-ppo-kl-target:not(.refused) input")
    assert dict(app.rows("select name, value from override")) == {"ppo.epochs": "3", "ppo.kl_target": "3.5"}
    reload(page)
    tab(page, "training")
    page.click("#round-settings > button")
    page.locator("#round-settings .section button", has_text="PPO").click()
    page.wait_for_function("document.querySelector('#set-ppo-kl-target input')?.value == '3.5'")
    page.click("#reset-settings")
    page.wait_for_function("document.querySelector('#set-ppo-kl-target input')?.value == '9'")
    assert app.rows("select name from override") == []
