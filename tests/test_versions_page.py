"""The tab of versions: what it says of each, and what admins do there."""

import json
import re
import threading

import pytest

from playground.chat.comparing import Comparison
from playground.chat.refusals import Busy, Refused
from playground.chat.turns import BUSY
from playground.people.admins import Admins
from playground.settings import Settings
from playground.store import Store
from playground.system.messages import Message, plain
from playground.ui import version_ratings, versions
from playground.ui.control import Control
from playground.ui.notice import Notice
from playground.ui.quick_gradio import gradio as gr
from playground.ui.status_bar import StatusBar
from playground.ui.versions import Shown, VersionsTab
from playground.ui.words import Words
from tests.controls import OWNER, STRANGER, Request
from tests.rounds import REPORT
from tests.stores import cast, take


class FollowingEngine:
    """An engine that answers with the store's live version at once."""

    def __init__(self, store):
        self.store = store

    @property
    def live(self):
        return type("Policy", (), {"version": self.store.live_policy()["version"]})


class FakeChat:
    """A chat whose engine has the base and version 1 in memory, and that says what it is asked to compare."""

    class engine:
        class versions:
            @staticmethod
            def in_memory():
                return [1, 0]

    def __init__(self):
        self.asked = []
        self.answering = None  # the text whose comparison streams, of which there is one at a time

    def is_answering(self, annotator, text):
        return text == self.answering

    def compare(self, annotator, text, left, right, address, may_load):
        if self.answering:
            raise Busy(BUSY)
        self.asked.append((text, left, right, may_load))
        yield Comparison(progress=Message("Version v{n} is being loaded.", n=left))
        yield Comparison(f"<i>by {left}</i>", f"by {right}")


@pytest.fixture
def tab():
    """The tab of an app whose owner has opened the admin link."""
    settings, store = Settings(_env_file=None), Store()
    admins = Admins(settings, store)
    admins.sign_in_owner(store.annotator("any"), OWNER)
    with gr.Blocks():
        status_bar, notice = StatusBar(settings, store, FollowingEngine(store)), Notice()
        control = Control(settings, store, admins, status_bar, notice)
        return VersionsTab(settings, store, FakeChat(), status_bar, control, notice)


def released(store, trial=False):
    store.request_round()
    row = take(store)
    version = store.add_policy(row["id"], "w1", parent=store.live_policy()["version"])
    store.publish(row["id"], "w1", version, "nowhere", "abc", REPORT, trial)
    return version


def look(tab, token=OWNER, language="en", shown=None):
    """What a person sees who opens the tab."""
    tab.reader.ratings.invalidate()
    for _ in range(2):  # the first look has the ratings made, which the next one shows
        tab.status_bar.invalidate()
        tab.reader.invalidate()
        tab.reader.read()
        tab.reader.ratings.wait()
    return tab.on_tick(shown or Shown(), Request(token, language))


def body(html, version):
    """The part of the table that is about one version."""
    name = "v0 (base)" if version == 0 else f"v{version}"
    return next(part for part in html.split("<tbody")[1:] if f">{name}</b>" in part)


def press(tab, gesture, version, reason, token=OWNER):
    return gesture(version, reason, Shown(), Request(token))


def roll_back(tab, reason):
    """Press the button as it is labelled now."""
    label = versions.roll_back_label(versions.way_back(tab.store), Words())
    return press(tab, tab.on_roll_back, label, reason)


def said(tab, updates):
    return updates[tab.notice.html]


def test_without_versions_the_tab_says_what_will_be_there(tab):
    html = look(tab)[tab.html]
    assert "Only the base model so far" in html and "<table" not in html
    assert "目前只有基础模型" in look(tab, language="zh-CN")[tab.html]


def test_each_version_has_its_figures(tab):
    for _ in range(2):
        cast(tab.store)
    tab.store.request_round()
    row = take(tab.store)
    tab.store.record_used_votes(row["id"], [(1, False), (2, True)])
    first = tab.store.add_policy(row["id"], "w1", parent=0)
    tab.store.publish(row["id"], "w1", first, "nowhere", "abc", REPORT)
    second = released(tab.store)
    for n in range(12):
        cast(tab.store, "a" if n else "b", versions=(second, first))
    html = look(tab)[tab.html]
    assert html.index(">v2</b>") < html.index(">v1</b>") < html.index(">v0 (base)</b>")
    assert "v0 (base), round 1, votes: 2" in body(html, first) and "replaced by another one" in body(html, first)
    newest = body(html, second)
    assert "answers now" in newest and "60 · 5.6" in newest
    shares = [int(share) for share in re.findall(r"(\d+)% \[", newest)]
    assert len(shares) == 2 and shares == pytest.approx([86, 86], abs=3), "(11 + 1) of (12 + 2), by the model about"
    assert newest.count("<svg") == 1 and "–" in body(html, 0)


def test_a_refused_version_says_why_and_a_bad_reason_does_no_harm(tab):
    tab.store.request_round()
    row = take(tab.store)
    version = tab.store.add_policy(row["id"], "w1", parent=0)
    tab.store.refuse(row["id"], "w1", version, "p", "h", REPORT, plain("too <b>far</b> {from} the base"))
    html = body(look(tab)[tab.html], version)
    assert "refused" in html and "It did not pass the gate: too &lt;b&gt;far&lt;/b&gt; {from} the base" in html
    assert version not in [value for _, value in look(tab)[tab.version]["choices"]]


def test_the_version_on_trial_has_its_tally(tab):
    version = released(tab.store, trial=True)
    cast(tab.store, "a", versions=(version, 0))
    html = body(look(tab)[tab.html], version)
    assert "answers now, on trial" in html and "v1: preferred to v0 (base) in 1 of 1 pair (on trial)" in html


def test_only_what_has_changed_is_painted(tab):
    released(tab.store)
    shown = Shown()
    look(tab, shown=shown)
    assert tab.on_tick(shown, Request()) == gr.skip()
    released(tab.store)
    tab.reader.invalidate()
    tab.status_bar.invalidate()
    later = tab.on_tick(shown, Request())
    assert ">v2</b>" in later[tab.html] and tab.panel not in later


def test_an_admin_makes_a_version_live_with_a_reason(tab):
    first, second = released(tab.store), released(tab.store, trial=True)
    updates = press(tab, tab.on_promote, first, "  it was \n kinder ")
    assert tab.store.live_policy()["version"] == first and "v1 answers the next message." in said(tab, updates)
    assert updates[tab.reason] == "" and "owner made it live: it was kinder" in body(updates[tab.html], first)
    assert "owner put another version in its place" in body(updates[tab.html], second)
    event = tab.store.rows("select * from policy_event where version = ? order by id desc limit 1", first)[0]
    assert event["annotator"] == tab.store.annotator(OWNER) and tab.store.trial(second)["state"] == "undecided"


def test_admins_alone_read_which_admin_decided(tab):
    released(tab.store)
    boss = tab.store.annotator("boss")
    tab.store.sign_in(boss, "Bo & Co", 0)
    tab.store.withdraw(1, boss, "leaks")
    assert "Bo &amp; Co withdrew it: leaks" in body(look(tab)[tab.html], 1)
    seen = look(tab, STRANGER)[tab.html]
    assert "An admin withdrew it: leaks" in body(seen, 1) and "Bo" not in seen


def test_an_admin_rolls_back_and_withdraws(tab):
    first, second = released(tab.store), released(tab.store)
    updates = roll_back(tab, "rude")
    assert "owner rolled it back: rude" in body(updates[tab.html], second)
    assert tab.store.live_policy()["version"] == first
    assert "It answers again, since owner rolled v2 back: rude" in body(updates[tab.html], first), "as if it were rude"
    updates = press(tab, tab.on_withdraw, first, "leaks")
    assert "owner withdrew it: leaks" in body(updates[tab.html], first) and "v1 was withdrawn." in said(tab, updates)
    assert tab.store.live_policy()["version"] == 0
    assert "no version before it" in said(tab, roll_back(tab, "more"))


def test_the_button_names_the_version_that_will_answer_and_keeps_to_it(tab):
    assert tab.roll_back not in look(tab), "it has a name without versions"
    _, second = released(tab.store), released(tab.store)
    shown = Shown()
    seen = look(tab, shown=shown)
    assert seen[tab.roll_back]["value"] == "Roll v2 back to v1"
    third = released(tab.store)
    for late in (seen[tab.roll_back]["value"], "Roll the live version back", None):
        tab.on_tick(shown, Request())  # its answer may not have come
        updates = tab.on_roll_back(late, "rude", shown, Request())
        assert "Another version answers by now" in said(tab, updates) and tab.store.live_policy()["version"] == third
    tab.store.promote(second, tab.store.annotator(OWNER), "kinder")
    assert look(tab)[tab.roll_back]["value"] == "Roll v2 back to v3"
    assert "v3 answers" in said(tab, roll_back(tab, "it was not"))
    assert "把 v3 回滚到 v1" in look(tab, language="zh-CN")[tab.roll_back]["value"]


def test_the_base_that_an_admin_made_live_is_not_marked_as_bad_once_it_goes(tab):
    first = released(tab.store)
    tab.store.promote(0, tab.store.annotator(OWNER), "to compare")
    assert f"v{first} answers" in said(tab, roll_back(tab, "compared"))
    assert tab.store.policy(0)["status"] == "retired"


@pytest.mark.parametrize(
    "version, reason, why",
    [
        (1, " ", "Say why first"),
        (None, "because", "Pick a version first"),
        (True, "because", "Pick a version first"),
        ("1", "because", "Pick a version first"),
        (99, "because", "There is no version v99"),
        (2**63, "because", "There is no version v9223372036854775808"),
        (-1, "because", "There is no version v-1"),
    ],
)
def test_what_does_not_fit_changes_nothing(tab, version, reason, why):
    released(tab.store)
    released(tab.store)
    for gesture in (tab.on_promote, tab.on_withdraw):
        assert why in said(tab, press(tab, gesture, version, reason))
    assert tab.store.live_policy()["version"] == 2 and not tab.store.policy(1)["withdrawn"]


@pytest.mark.parametrize("token", [STRANGER, "forged"])
def test_nobody_else_decides_or_sees_the_buttons(tab, token):
    released(tab.store)
    for gesture in (tab.on_promote, tab.on_withdraw, tab.on_roll_back):
        with pytest.raises(gr.Error) as refused:
            press(tab, gesture, 0, "because", token)
        assert refused.value.title == "Not allowed"
    assert tab.store.live_policy()["version"] == 1
    assert not look(tab, token).get(tab.panel, {"visible": False})["visible"]
    assert ">v1</b>" in look(tab, token)[tab.html], "the table is for everybody"


def test_a_long_history_is_shown_when_asked_for(tab):
    for _ in range(4):
        released(tab.store)
    shown = Shown(limit=3)
    seen = look(tab, shown=shown)
    assert seen[tab.html].count("<tbody") == 3 and seen[tab.more]["visible"]
    more = tab.on_more(shown, Request())
    assert more[tab.html].count("<tbody") == 5 and shown.limit == 3 + versions.PAGE_SIZE


def test_the_version_that_answers_is_in_the_first_page(tab):
    """It was to be found below twenty newer ones."""
    first = released(tab.store)
    for _ in range(3):
        released(tab.store)
    tab.store.promote(first, tab.store.annotator(OWNER), "kinder")
    html = look(tab, shown=Shown(limit=2))[tab.html]
    assert re.findall(r">(v\d)</b>", html) == ["v1", "v4", "v3"] and "answers now" in body(html, first)


def test_votes_that_come_often_are_not_rated_each_time(tab, monkeypatch):
    version = released(tab.store)
    calls = []
    monkeypatch.setattr(version_ratings, "rate", lambda *arguments: calls.append(arguments) or {})
    look(tab)
    for _ in range(5):
        cast(tab.store, "a", versions=(version, 0))
        tab.reader.invalidate()
        tab.on_tick(Shown(), Request())
    assert len(calls) == 0, "the first look found no votes, and a quarter of a minute is not over"
    look(tab)
    look(tab)
    assert len(calls) == 1


def test_no_page_waits_while_the_versions_are_rated(tab, monkeypatch):
    """They were computed under the lock that every page takes."""
    version = released(tab.store)
    cast(tab.store, "a", versions=(version, 0))
    assert "% [" in body(look(tab)[tab.html], version)
    go_on, begun = threading.Event(), threading.Event()
    rate = version_ratings.rate

    def slow(*arguments):
        begun.set()
        assert go_on.wait(20)
        return rate(*arguments)

    monkeypatch.setattr(version_ratings, "rate", slow)
    for _ in range(8):
        cast(tab.store, "a", versions=(version, 0))
    tab.reader.ratings.invalidate()
    tab.reader.invalidate()
    seen = []
    pages = [threading.Thread(target=lambda: seen.append(tab.on_tick(Shown(), Request())[tab.html])) for _ in range(3)]
    for page in pages:
        page.start()
    for page in pages:
        page.join(5)
    try:
        assert begun.wait(5) and len(seen) == 3
        assert all("67% [" in html for html in seen), "what was known before: 2 of 3"
    finally:
        go_on.set()
    tab.reader.ratings.wait()
    tab.reader.invalidate()
    assert "91% [" in tab.on_tick(Shown(), Request())[tab.html], "10 of 11"


def test_ratings_that_fail_leave_those_that_are_known(tab, monkeypatch):
    version = released(tab.store)
    cast(tab.store, "a", versions=(version, 0))
    look(tab)
    monkeypatch.setattr(version_ratings, "rate", lambda *_: 1 / 0)
    cast(tab.store, "a", versions=(version, 0))
    assert "67% [" in look(tab)[tab.html]


# -- two versions side by side


def compared(tab, left, right, blind, token=STRANGER):
    """All updates of one comparison."""
    return list(tab.compare._stream("Hello", left, right, blind, Request(token)))


def test_everybody_compares_what_is_in_memory_and_admins_all_versions(tab):
    for _ in range(3):
        released(tab.store)
    assert look(tab, STRANGER)[tab.compare.left]["choices"] == [("v1", 1), ("v0 (base)", 0)]
    shown = Shown()
    mine = look(tab, shown=shown)
    assert [value for _, value in mine[tab.compare.right]["choices"]] == [3, 2, 1, 0]
    assert (mine[tab.compare.left]["value"], mine[tab.compare.right]["value"]) == (3, 0)
    released(tab.store)
    tab.reader.invalidate()
    later = tab.on_tick(shown, Request())
    assert len(later[tab.compare.left]["choices"]) == 5 and "value" not in later[tab.compare.left], "a pick stays"
    compared(tab, 1, 0, blind=False)
    compared(tab, 3, 0, blind=False, token=OWNER)
    assert tab.compare.chat.asked == [("Hello", 1, 0, False), ("Hello", 3, 0, True)]


def test_a_withdrawn_version_is_in_nobodys_list_and_an_admin_can_bring_it_back(tab):
    """It could be compared as long as it was in memory."""
    first, _second = released(tab.store), released(tab.store)
    tab.store.withdraw(first, tab.store.annotator(OWNER), "it leaks")
    mine, theirs = look(tab), look(tab, STRANGER)
    for seen in (mine, theirs):
        assert first not in [value for _, value in seen[tab.compare.left]["choices"]]
    assert first in [value for _, value in mine[tab.version]["choices"]], "an admin may make it live again"


def test_a_blind_pair_tells_its_versions_only_when_asked(tab):
    seen = set()
    for _ in range(40):
        first, second, last = compared(tab, 1, 0, blind=True)
        assert "is being loaded" in first[tab.compare.html]
        assert "v1" not in second[tab.compare.html] and "v0" not in second[tab.compare.html]
        assert "&lt;i&gt;by" in second[tab.compare.html], "a reply is text"
        pair = last[tab.compare.pair]
        seen.add((pair.left, pair.right))
        shown = tab.compare.on_reveal(pair, last[tab.compare.last], Request(STRANGER))
        assert f"A · {'v0 (base)' if pair.left == 0 else 'v1'}" in shown[tab.compare.html]
    assert seen == {(0, 1), (1, 0)}, "sides are drawn"


def test_an_open_pair_says_who_writes_and_keeps_its_sides(tab):
    *_, second, last = compared(tab, 1, 0, blind=False)
    assert "A · v1" in second[tab.compare.html] and last[tab.compare.reveal]["visible"] == "hidden"


@pytest.mark.parametrize("streams, said", [("Hello", ""), ("Another one", "still streaming")])
def test_a_comparison_that_streams_keeps_its_button_to_stop(tab, streams, said):
    """`Compare` pressed twice."""
    tab.compare.chat.answering = streams
    [update] = compared(tab, 1, 0, blind=False)
    assert tab.compare.stop not in update
    assert said in update.get(tab.notice.html, "") and (said or tab.notice.html not in update)


def test_a_comparison_that_fails_does_not_go_on_loading(tab, monkeypatch):
    """The panel said "Version v3 is being loaded." for good, beside the refusal."""

    def failing(*_):
        yield Comparison(progress=Message("Version v{n} is being loaded.", n=3))
        raise Refused("Version v{n} could not be loaded.", n=3)

    monkeypatch.setattr(tab.compare.chat, "compare", failing)
    loading, last = compared(tab, 3, 0, blind=False)
    assert "being loaded" in loading[tab.compare.html] and last[tab.compare.html] == ""
    assert "could not be loaded" in last[tab.notice.html] and last[tab.compare.stop]["visible"] == "hidden"


@pytest.mark.parametrize("left, right", [(None, 1), ("1", 0), (1, True)])
def test_a_comparison_needs_two_versions(tab, left, right):
    tab.compare.chat.store = tab.store
    [update] = compared(tab, left, right, blind=False)
    assert "Only the base answers so far" in update[tab.notice.html]
    released(tab.store)
    [update] = compared(tab, left, right, blind=False)
    assert "Pick two versions first." in update[tab.notice.html] and tab.compare.chat.asked == []


def test_two_versions_on_the_prompts_that_their_gates_have_in_common(tab, tmp_path):
    tab.compare.chat.store = tab.store
    tab.compare.chat.settings = Settings(data_dir=tmp_path, _env_file=None)
    first, second = released(tab.store), released(tab.store)
    for version, new in ((first, "short <b>"), (second, "shorter")):
        sample = {"prompt": "user\nName a river.\nassistant\n", "new": new, "live": "before", "shipped": True}
        secret = {**sample, "prompt": "user\nMy own secret\nassistant\n", "shipped": False}
        folder = tmp_path / "rounds" / f"{tab.store.policy(version)['round']:04d}"
        folder.mkdir(parents=True)
        (folder / "gate.json").write_text(json.dumps({"samples": [sample, secret]}))

    def html(left, right):
        return tab.compare.on_fixed(left, right, Request())[tab.compare.html]

    assert "Name a river." in html(second, 0) and "shorter" in html(second, 0) and "before" in html(second, 0)
    assert "short &lt;b&gt;" in html(first, second) and "secret" not in html(first, second)
    third = released(tab.store)
    assert "No gate has compared these two" in html(third, first)
    tab.store.withdraw(first, tab.store.annotator(OWNER), "it leaks")
    tab.store.request_round()
    candidate = tab.store.add_policy(take(tab.store)["id"], "w1", parent=second)
    for version in (first, candidate, 10**40):
        refused = tab.compare.on_fixed(second, version, Request())
        assert f"v{version} cannot be compared" in refused[tab.notice.html] and tab.compare.html not in refused
    assert "Pick two versions first." in tab.compare.on_fixed(None, 1, Request())[tab.notice.html]
