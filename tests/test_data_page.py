"""The tab of judged pairs: an admin sees everybody's, leaves votes out and downloads; others see their own."""

import json
import re

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from playground import server
from playground.chat.session import Chat
from playground.people import visitor
from playground.people.admins import Admins
from playground.settings import Settings
from playground.store import Filters, ImportedRow, Store
from playground.store import judged as judged_module
from playground.ui import data, data_fields, data_table
from playground.ui.control import Control
from playground.ui.data import DataTab, Shown
from playground.ui.left_out import left_out_html
from playground.ui.notice import Notice
from playground.ui.quick_gradio import gradio as gr
from playground.ui.status_bar import StatusBar
from playground.ui.words import Words
from playground.web import gate
from tests import rounds
from tests.controls import OWNER, STRANGER, Engine, Request
from tests.test_data_export import say


@pytest.fixture(scope="module")
def drawn():
    """The tab, drawn once: that takes most of a second."""
    settings, store = Settings(_env_file=None), Store()
    with gr.Blocks():
        status_bar, notice = StatusBar(settings, store, Engine), Notice()
        control = Control(settings, store, Admins(settings, store), status_bar, notice)
        return DataTab(store, Chat(store, Engine, settings), status_bar, control, notice)


@pytest.fixture
def tab(drawn):
    """The tab of an app whose owner has opened the admin link, on a store of its own."""
    store = Store()
    for part in (drawn, drawn.chat, drawn.status_bar, drawn.control, drawn.control.admins, drawn.quality):
        part.store = store
    drawn.control.admins.sign_in_owner(store.annotator("any"), OWNER)
    return drawn


def search(tab, token=OWNER, language="en", **asked):
    names = ("version", "choice", "tag", "training", "person", "since", "until", "text")
    return tab.on_search(*(asked.get(name) for name in names), Request(token, language))


def shown(tab, updates):
    """The numbers of the votes in the table."""
    return [int(number) for number in re.findall(r"<summary><span>(\d+)<", updates[tab.html])]


@pytest.mark.parametrize("field", ["choice", "tag"])
def test_what_the_page_does_not_offer_fits_nothing_and_is_not_kept(tab, field):
    """Whatever came stayed in the page's state, up to a request's 256 KB for each open page."""
    say(tab.store, tab.store.annotator(STRANGER), "My own")
    for value in ("x" * 100_000, 7):
        found = search(tab, STRANGER, **{field: value})
        assert shown(tab, found) == [] and getattr(found[tab.shown].filters, field) == "?"


def test_an_admin_sees_everybodys_pairs_and_others_their_own(tab):
    stranger = tab.store.annotator(STRANGER)
    say(tab.store, tab.store.annotator("ann"), "Ann's secret")
    say(tab.store, stranger, "My own")
    seen = search(tab)
    assert shown(tab, seen) == [2, 1] and "person 2" in seen[tab.html]
    assert seen[tab.training]["visible"] and "export/preference.jsonl" in seen[tab.downloads]
    assert seen[tab.html].count("data-decision") == 2
    own = search(tab, STRANGER)
    assert shown(tab, own) == [2] and "secret" not in str(own)
    assert not own[tab.training]["visible"] and own[tab.downloads] == "" and 'data-decision="out' not in str(own)
    assert shown(tab, search(tab, STRANGER, person="2")) == [2], "nobody else's, whoever is asked for"
    assert "No judged pairs" in search(tab, "z" * 43, text="x")[tab.html]
    assert "没有符合条件" in search(tab, "z" * 43, language="zh-CN", text="x")[tab.html]


def test_an_admin_reads_names_and_finds_a_person_by_name(tab):
    """A team of users with names was "person 2" to "person 9"."""
    ann = tab.store.annotator("ann")
    say(tab.store, ann, "Ann's")
    tab.store.sign_in(ann, "<Ann>", 0)
    say(tab.store, tab.store.add_key("bot", "k"), "By a program")
    say(tab.store, tab.store.annotator(STRANGER), "Nobody's name")
    seen = search(tab)[tab.html]
    assert "<i>&lt;Ann&gt;</i>" in seen and "<i>bot</i>" in seen and "<i>person 4</i>" in seen
    found = search(tab, person=" <Ann> ")
    assert shown(tab, found) == [1] and "Person: &lt;Ann&gt;" in found[tab.asked]
    assert shown(tab, search(tab, person="3")) == [2] == shown(tab, search(tab, person="bot"))
    assert shown(tab, search(tab, person="nobody")) == []
    own = search(tab, STRANGER, person="bot")
    assert shown(tab, own) == [3] and "bot" not in str(own[tab.asked]), "nobody else asks by name"


def test_whoever_has_no_vote_yet_is_invited_to_vote(tab):
    """A brand-new visitor read that no pairs fit, though nothing was searched for."""
    say(tab.store, tab.store.annotator("ann"), "Hello")
    new = "z" * 43
    assert "Vote on a pair, and it is listed here." in search(tab, new)[tab.html]
    assert "它就会列在这里" in search(tab, new, language="zh-CN")[tab.html]
    assert "Vote on a pair" not in search(tab, new, choice="a")[tab.html], "something is searched for"
    assert "Vote on a pair" not in search(tab)[tab.html], "there is something to see"
    tab.store.allow_training(tab.store.annotator(new), False)
    refused = search(tab, new)[tab.html]
    assert "No judged pairs" in refused and "Vote on a pair" not in refused, "a vote would not be listed"


def test_an_admin_reads_what_the_files_leave_out(tab):
    for choice in ("a", "tie", "both_bad"):
        say(tab.store, tab.store.annotator("ann"), "Hello", choice=choice)
    assert search(tab)[tab.left_out.fold]["visible"] and not search(tab, STRANGER)[tab.left_out.fold]["visible"]
    said = left_out_html(tab.store.forms_of_votes(), Words("en"))
    assert "in undecided.jsonl: 2." in said and "good or bad: 1; ties: 1; replies" in said and "better: 2." in said


def test_the_downloads_say_that_they_ignore_the_search(tab):
    say(tab.store, tab.store.annotator("ann"), "Hello")
    seen = search(tab, text="nothing like it")
    assert "everybody&#x27;s, whatever the search above shows" in seen[tab.downloads]
    assert "与上面的搜索条件无关" in search(tab, language="zh-CN")[tab.downloads]


def test_the_fields_narrow_the_pairs(tab):
    ann = tab.store.annotator("ann")
    say(tab.store, ann, "one")
    _, vote = say(tab.store, ann, "two", choice="b")
    tab.store.explain(vote, ann, ["clearer"])
    assert shown(tab, search(tab, choice="b")) == [2] == shown(tab, search(tab, tag="clearer"))
    assert shown(tab, search(tab, text="  ONE ")) == [1] and shown(tab, search(tab, choice="", text="")) == [2, 1]
    assert shown(tab, search(tab, version="0")) == [2, 1] == shown(tab, search(tab, version=" v0 "))
    assert shown(tab, search(tab, person="2")) == [2, 1] and shown(tab, search(tab, version="")) == [2, 1]
    for unknown in ("1", "9" * 12):
        assert shown(tab, search(tab, version=unknown)) == []
    assert shown(tab, search(tab, choice="nothing")) == []


def test_a_row_opens_both_replies_as_text(tab):
    _, vote = say(tab.store, tab.store.annotator("ann"), "<b>Hello</b>", ("<script>left</script>", "right & so on"))
    tab.store.explain(vote, tab.store.annotator("ann"), ["clearer"], "it <i>is</i>")
    html = search(tab)[tab.html]
    assert "&lt;script&gt;left&lt;/script&gt;" in html and "right &amp; so on" in html and "v0 (base)" in html
    assert "clearer · it &lt;i&gt;is&lt;/i&gt;" in html and "<script" not in html and "<b>Hello" not in html


def test_an_open_row_has_the_whole_message_and_the_chat_before_it(tab):
    """The message was cut at 90 characters, and the rest was nowhere."""
    ann = tab.store.annotator("ann")
    conversation = tab.store.new_conversation(ann, "Be <b>brief</b>.")
    say(tab.store, ann, "First?", ("Not seen in the second row.", "First reply."), conversation, "b")
    say(tab.store, ann, f"{'long ' * 100}<i>end</i>", ("Yes.", "No."), conversation)
    row = search(tab)[tab.html].split("<details")[1]
    inside = row.split("</summary>")[1]
    heard = ["Be &lt;b&gt;brief&lt;/b&gt;.", "First?", "First reply.", f"{'long ' * 100}&lt;i&gt;end&lt;/i&gt;", "Yes."]
    assert re.findall(r'dir="auto">(.*?)</div>', inside) == [*heard, "No."]
    assert "Not seen" not in row and "not shown" not in row and "<i>end" not in row and "<b>brief" not in row


def test_the_chat_of_an_open_row_is_bounded(tab, monkeypatch):
    ann = tab.store.annotator("ann")
    conversation = tab.store.new_conversation(ann)
    for number in range(12):
        say(tab.store, ann, f"message {number:02}.", (f"reply {number:02}.", "x"), conversation)
    row = search(tab)[tab.html].split("<details")[1]
    assert "message 01." in row and "reply 00." not in row and "messages of this chat are not shown" in row
    monkeypatch.setattr(data_table, "CHAT_CHARS", 15)
    row = search(tab)[tab.html].split("<details")[1]
    assert ">reply 10.<" in row and ">messa…<" in row and "reply 09." not in row
    assert "messages of this chat are not shown" in row
    assert "not shown" not in search(tab, text="message 00.")[tab.html]


@pytest.mark.parametrize(("choice", "picked"), [("a", ["A"]), ("b", ["B"]), ("tie", []), ("both_bad", [])])
def test_the_picked_reply_is_marked(tab, choice, picked):
    say(tab.store, tab.store.annotator("ann"), "Hello", choice=choice)
    html = search(tab)[tab.html]
    assert re.findall(r'<h3>([AB]) [^<]*<b class="side-[ab]">✓ picked', html) == picked
    assert re.findall(r'<section class="picked side-([ab])">', html) == [letter.lower() for letter in picked]


def test_earlier_pairs_come_page_by_page(tab, monkeypatch):
    monkeypatch.setattr(data, "PAGE_SIZE", 3)
    for number in range(7):
        say(tab.store, tab.store.annotator("ann"), f"message {number}")
    seen = search(tab)
    assert shown(tab, seen) == [7, 6, 5] and seen[tab.older]["visible"] and not seen[tab.newer]["visible"]
    seen = tab.on_older(seen[tab.shown], Request())
    assert shown(tab, seen) == [4, 3, 2] and seen[tab.older]["visible"] and seen[tab.newer]["visible"]
    seen = tab.on_older(seen[tab.shown], Request())
    assert shown(tab, seen) == [1] and not seen[tab.older]["visible"]
    seen = tab.on_newer(seen[tab.shown], Request())
    assert shown(tab, seen) == [4, 3, 2]
    seen = tab.on_newer(seen[tab.shown], Request())
    assert shown(tab, seen) == [7, 6, 5] and seen[tab.older]["visible"] and not seen[tab.newer]["visible"]


def test_a_search_looks_at_so_many_votes_and_goes_on_from_there(monkeypatch):
    monkeypatch.setattr(judged_module, "LOOKED_AT", 4)
    store = Store()
    for number in range(10):
        say(store, store.annotator("ann"), f"message {number}")
    filters = Filters(text="message 0")
    pages, before = [], None
    while not pages or before is not None:
        rows, before = store.judged_page(filters, before, 20)
        pages.append([row["vote"] for row in rows])
    assert pages == [[], [], [1]]
    person = store.annotator("ann")
    assert [row["vote"] for row in store.judged_page(Filters(person=person, text="message 0"), None, 20)[0]] == [1]


def test_times_narrow_the_pairs_and_a_last_day_is_in_it(tab):
    """The command line had them, the page did not."""
    ann = tab.store.annotator("ann")
    for day in ("2026-11-25T10:00:00.000Z", "2026-11-27T23:59:59.999Z", "2026-11-28T00:00:00.000Z"):
        _, vote = say(tab.store, ann, day)
        with tab.store.writing() as db:
            db.table("vote").update(vote, {"created": day})
    assert shown(tab, search(tab, until="2026-11-27")) == [2, 1] == shown(tab, search(tab, until="27.11.2026"))
    assert shown(tab, search(tab, since="2026-11-27", until="2026-11-27")) == [2]
    found = search(tab, since="2026/11/27", until="2026-11-27 23:00")
    assert shown(tab, found) == [] and "From (UTC): 2026-11-27 · To (UTC): 2026-11-27 23:00" in found[tab.asked]
    assert shown(tab, search(tab, since="2026-11-28 00:00")) == [3]
    assert shown(tab, search(tab, "z" * 43, since="2026-11-01")) == [], "nobody else's"


@pytest.mark.parametrize(("since", "until", "expected"), [("11-27", "11-27", [3, 2]), ("11-25", "11-25", [1])])
def test_what_is_outside_of_the_time_is_passed_over_at_once(monkeypatch, since, until, expected):
    """A page that looks at so many votes only would have ended before the time that is asked for."""
    monkeypatch.setattr(judged_module, "LOOKED_AT", 2)
    store = Store()
    for day in ("11-25", "11-27", "11-27", "11-28", "11-28", "11-28"):
        _, vote = say(store, store.annotator("ann"), day)
        with store.writing() as db:
            db.table("vote").update(vote, {"created": f"2026-{day}T10:00:00.000Z"})
    asked = Filters(since=f"2026-{since}", until=f"2026-{until}T23:00:00.000Z")
    rows, following = store.judged_page(asked, None, 20)
    assert ([row["vote"] for row in rows], following) == (expected, None)
    assert store.judged_page(Filters(since="2027"), None, 20) == ([], None)
    assert store.judged_page(Filters(until="2026"), None, 20) == ([], None)


@pytest.mark.parametrize("field", ["since", "until"])
@pytest.mark.parametrize("text", ["yesterday", "11/27/2026", "2026-13-01", "x" * 100_000])
def test_what_is_no_date_is_said_and_the_list_stays(tab, field, text):
    say(tab.store, tab.store.annotator("ann"), "Hello")
    found = search(tab, **{field: text})
    assert set(found) == {tab.notice.html} and "is no date. Write it like 2026-11-27" in found[tab.notice.html]
    assert len(found[tab.notice.html]) < 400
    assert "不是日期" in search(tab, language="zh-CN", **{field: text})[tab.notice.html]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("3", 3),
        ("v3", 3),
        ("V 3", 3),
        (" 3 ", 3),
        ("base", 0),
        ("v0 (base)", 0),
        ("v0（基础模型）", 0),
        ("Base", 0),
        ("0", 0),
        ("", None),
    ],
)
def test_a_version_is_understood_as_people_write_it(text, version):
    assert data_fields.version_in(text) == version


@pytest.mark.parametrize(
    "text",
    ["abc", "-1", "1.5", "v", "²", "٣", "9" * 13, "<b>" * 500, "base 3", "1 2", "3\n5", "ba se", "v3 (" + "x" * 10**6],
)
def test_what_is_no_version_is_said_and_the_list_stays(tab, text):
    """It found nothing, and did not say why."""
    found = search(tab, version=text)
    assert set(found) == {tab.notice.html} and "is no version. Write it like 3, v3 or base." in found[tab.notice.html]
    assert len(found[tab.notice.html]) < 400
    assert "不是版本" in search(tab, version=text, language="zh-CN")[tab.notice.html]


def decide(tab, decision, shown=Shown(), token=OWNER):  # noqa: B008 (it is frozen)
    return tab.on_decide(decision, shown, Request(token))


def test_an_admin_leaves_a_vote_out_where_it_is_open_and_takes_it_in_again(tab):
    for text in ("Hello", "Bye"):
        say(tab.store, tab.store.annotator("ann"), text)
    assert search(tab)[tab.html].count('data-decision="out ') == 2 and tab.store.new_votes() == 2
    seen = decide(tab, "out 1")
    rows = seen[tab.html].split("<details")[1:]
    assert ["open>" in row for row in rows] == [False, True], "the row of the button stays open"
    assert 'data-decision="in 1" data-again' in rows[1] and ">left out of training<" in rows[1]
    assert "Vote 1 is left out" in seen[tab.notice.html] and tab.store.new_votes() == 1
    assert [row["vote"] for row in tab.store.votes_for_training("base hash")] == [2]
    assert shown(tab, search(tab, training="out")) == [1] and shown(tab, search(tab, training="in")) == [2]
    seen = decide(tab, "in 1")
    assert ">left out of training<" not in seen[tab.html] and tab.store.new_votes() == 2


def button(html, where):
    """The decision of a button for all that fits."""
    return re.search(f'data-decision="({where} all [0-9a-f]+)"', html)[1]


def test_who_is_no_admin_any_more_sees_all_of_their_own(tab):
    """It said "Person: 3" above one's own pairs, and there was no field to empty."""
    ann = tab.store.annotator("ann")
    say(tab.store, ann, "Hello")
    say(tab.store, tab.store.annotator(STRANGER), "Hi")
    seen = search(tab, person=str(ann))
    assert f"Person: {ann}" in seen[tab.asked] and shown(tab, seen) == [1]
    later = tab.on_open(seen[tab.shown], Request(STRANGER))
    assert "everything" in later[tab.asked] and shown(tab, later) == [2] and later[tab.all] == ""


def test_an_opened_tab_shows_what_was_asked_last(tab):
    for choice in "ab":
        say(tab.store, tab.store.annotator("ann"), "Hello", choice=choice)
    seen = search(tab, choice="b")
    later = tab.on_open(seen[tab.shown], Request(OWNER))
    assert shown(tab, later) == shown(tab, seen) == [2] and "B better" in later[tab.asked]


def test_all_votes_of_a_search_are_left_out_at_once(tab, monkeypatch):
    """Votes had to be picked one by one, by number."""
    monkeypatch.setattr(judged_module, "LOOKED_AT", 2)
    ann, bob = tab.store.annotator("ann"), tab.store.annotator("bob")
    for number in range(7):
        say(tab.store, bob if number == 3 else ann, f"message {number}", choice="b" if number % 2 else "a")
    assert search(tab)[tab.all] == "", "nothing is searched for"
    seen = search(tab, person=str(ann), choice="b")
    assert f"Vote: B better · Person: {ann}" in seen[tab.asked]
    other = search(tab, choice="a")
    late = decide(tab, button(seen[tab.all], "out"), other[tab.shown])
    assert "Another search was made meanwhile" in late[tab.notice.html] and tab.store.new_votes() == 7
    assert "Vote: A better" in late[tab.asked], "the list of the other search left the votes out that nobody saw"
    seen = decide(tab, button(seen[tab.all], "out"), seen[tab.shown])
    assert "Votes left out of training: 2." in seen[tab.notice.html] and shown(tab, seen) == [6, 2]
    assert [row["vote"] for row in tab.store.votes_for_training("base hash")] == [1, 3, 4, 5, 7]
    monkeypatch.setattr(judged_module, "LOOKED_AT", 100)
    out = search(tab, training="out")
    assert shown(tab, out) == [6, 2] and 'data-decision="out all' not in out[tab.all]
    assert "Votes taken in again: 2." in decide(tab, button(out[tab.all], "in"), out[tab.shown])[tab.notice.html]
    assert tab.store.new_votes() == 7


@pytest.mark.parametrize("decision", ["out 999", "out 0", "in 999999999999999"])
def test_a_vote_that_is_not_there_changes_nothing(tab, decision):
    say(tab.store, tab.store.annotator("ann"), "Hello")
    assert "notice warning" in decide(tab, decision)[tab.notice.html]
    assert tab.store.new_votes() == 1


@pytest.mark.parametrize("decision", [None, "", "out", "all", "out -1", "out ٣", "out 1 ", "out " + "9" * 300])
def test_a_decision_that_is_none_changes_nothing(tab, decision):
    say(tab.store, tab.store.annotator("ann"), "Hello")
    assert tab.html not in decide(tab, decision) and tab.store.new_votes() == 1


@pytest.mark.parametrize("decision", ["out 1", f"out all {16 * '0'}", "in 1", ""])
def test_nobody_else_can_leave_a_vote_out(tab, decision):
    say(tab.store, tab.store.annotator(STRANGER), "Hello")
    with pytest.raises(gr.Error, match="Only admins"):
        decide(tab, decision, token=STRANGER)
    assert tab.store.new_votes() == 1


def test_what_is_searched_for_is_said_in_one_line(tab):
    asked = search(tab, tag="{x}", text="<b>x\n", version="v7", language="zh-CN")[tab.asked]
    assert "版本: 7 · 理由: ? · 文字: &lt;b&gt;x" in asked
    assert "Search: <span>everything<" in search(tab)[tab.asked]


def test_an_admin_reads_what_was_imported_and_how_much_of_it_the_last_round_learned_from(tab):
    record = {"messages": [{"role": "user", "content": "Hi"}], "left": "x", "right": "y", "choice": "a"}
    tab.store.add_imported("file", [ImportedRow(str(n), "pair", 1.0, record) for n in range(3)])
    assert "pairs 3, demonstrations 0, prompts 0." in search(tab)[tab.downloads]
    assert "Round" not in search(tab)[tab.downloads]
    row = rounds.begun(tab.store)
    tab.store.update_round(row["id"], "w1", metrics={"votes": 9, "imported": 2})
    tab.store.end_round(row["id"], "w1", "failed")
    tab.store.request_round()
    assert "Round 1 read 2 of the imported pairs" in search(tab)[tab.downloads]


# -- the download


@pytest.fixture
def get(tab):
    app = FastAPI()
    server.add_export_route(app, tab.store, tab.control.admins)

    def get(path, token=OWNER):
        return TestClient(app, cookies={visitor.COOKIE: token} if token else {}).get(path)

    return get


def test_an_admin_downloads_what_people_judged(tab, get):
    ann = tab.store.annotator("ann")
    row, _ = say(tab.store, ann, "Hello 👋")
    say(tab.store, ann, "Again", choice="both_bad")
    tab.store.rate(row["left"]["message"], ann, 1)
    counts = {"pairs": 2, "preference": 1, "undecided": 1, "kto": 3, "sft": 1, "prompts": 2}
    for name, count in counts.items():
        answer = get(f"/export/{name}.jsonl")
        assert answer.status_code == 200 and f"nudge-{name}.jsonl" in answer.headers["content-disposition"]
        assert len([json.loads(line) for line in answer.content.splitlines()]) == count
    assert json.loads(get("/export/pairs.jsonl").content.splitlines()[0])["messages"][0]["content"] == "Hello 👋"


@pytest.mark.parametrize("token", [STRANGER, "", "nonsense"])
def test_nobody_else_downloads(tab, get, token):
    say(tab.store, tab.store.annotator(STRANGER), "Hello")
    answer = get("/export/pairs.jsonl", token)
    assert answer.status_code == 403 and "Hello" not in answer.text


def test_a_download_ends_with_the_role_of_its_admin(tab, get, monkeypatch):
    """It went on to its end, also where the admin had lost the role meanwhile."""
    monkeypatch.setattr(gate, "CHECKED_EVERY", -1)
    sent = []

    def pieces(store, name):
        for piece in (b"1", b"2", b"3"):
            yield piece
            sent.append(piece)
            if piece == b"2":
                tab.control.admins.sign_out(store.annotator(OWNER))

    monkeypatch.setattr(server.http, "lines", pieces)
    with pytest.raises(gate.StreamEnded):
        get("/export/pairs.jsonl")
    assert sent == [b"1", b"2"]


@pytest.mark.parametrize("name", ["everything", "nothing", "..%2fnudge"])
def test_there_are_no_other_files(get, name):
    assert get(f"/export/{name}.jsonl").status_code == 404


# -- vote quality


def test_an_admin_leaves_a_person_out_and_takes_them_in_again(tab):
    ann = tab.store.annotator("ann")
    tab.store.sign_in(ann, "Ann", 1e12)
    say(tab.store, ann, "Hello")
    seen = search(tab)
    assert seen[tab.quality.fold]["visible"] and "<i>Ann</i>" in seen[tab.html]
    left = tab.on_decide(f"out person {ann}", Shown(), Request())
    assert tab.store.new_votes() == 0 and "Ann is left out of training" in left[tab.notice.html]
    assert f"in person {ann}" in left[tab.quality.html] and "the person is left out" in left[tab.html]
    back = tab.on_decide(f"in person {ann}", Shown(), Request())
    assert tab.store.new_votes() == 1 and "Ann is in training again" in back[tab.notice.html]
    assert "There is no such person" in tab.on_decide("out person 99", Shown(), Request())[tab.notice.html]


def test_nobody_else_sees_how_people_vote_or_leaves_them_out(tab):
    say(tab.store, tab.store.annotator("ann"), "Hello")
    own = search(tab, STRANGER)
    assert not own[tab.quality.fold]["visible"] and tab.quality.html not in own
    with pytest.raises(gr.Error, match="Only admins"):
        tab.on_decide("out person 1", Shown(), Request(STRANGER))
    assert tab.store.new_votes() == 1


def test_an_open_row_says_which_versions_have_learnt_from_the_vote(tab):
    _, vote = say(tab.store, tab.store.annotator("ann"), "Hello")
    assert "learnt by" not in search(tab)[tab.html]
    tab.store.request_round()
    row = tab.store.take_round("w1", lease_seconds=30)
    tab.store.record_used_votes(row["id"], [(vote, False)])
    version = tab.store.add_policy(row["id"], "w1", parent=0)
    tab.store.publish(row["id"], "w1", version, "nowhere", "abc", {})
    assert "learnt by v1" in search(tab)[tab.html]
