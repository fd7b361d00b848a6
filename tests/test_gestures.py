"""What a page may send, by type; and what a database row holds that was written before anybody checked."""

import json
import math

import pytest

from playground.chat.gestures import (
    KNOBS,
    ChatSampling,
    NotUsable,
    Rating,
    Reason,
    Row,
    brief,
    checked,
    usable_sampling,
)
from playground.chat.refusals import Refused
from tests.chats import chat, folder, person, turn  # noqa: F401 (fixtures)

LIMITS = {**KNOBS, "reply_tokens": (1, 24)}


def test_a_sampling_setting_that_cannot_be_is_refused_by_its_name_and_not_used_from_the_database(chat):
    """`top_k` 2.5, true or 1e-9, set by hand, failed every reply that was running."""
    ann = person(chat)
    for name, value in (
        ("top_k", 2.5),
        ("top_k", True),
        ("top_k", 1e-9),
        ("top_k", -1),
        ("top_k", 1001),
        ("top_k", "3"),
        ("top_k", 2**70),
        ("top_k", 3.0),
        ("temperature", True),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", 1e-9),
        ("temperature", "0.7"),
        ("temperature", [0.7]),
        ("top_p", {"x": 1}),
        ("top_p", 0),
        ("repetition_penalty", None),
        ("repetition_penalty", 10**400),
        ("reply_tokens", 1.5),
        ("reply_tokens", False),
        ("reply_tokens", 25),
        ("reply_tokens", 0),
    ):
        with pytest.raises(Refused, match=f"^{name} takes .*numbers from"):
            chat.configure(ann, "", {name: value})
        assert usable_sampling({name: value}, LIMITS) == {}, value
    assert chat.store.conversation(ann) is None


def test_a_sampling_setting_that_can_be_is_kept(chat):
    for name, value in (
        ("top_k", 0),
        ("top_k", 40),
        ("temperature", 1),
        ("temperature", 0.05),
        ("top_p", 1.0),
        ("repetition_penalty", 2),
    ):
        chat.configure(person(chat), "", {name: value})
        assert chat.sampling(person(chat))[1][name] == value


def test_a_setting_that_is_none_is_refused_whatever_its_name_is(chat):
    for name in ("port", "", "model_config", None, 3):
        with pytest.raises(Refused, match="no setting"):
            chat.configure(person(chat), "", {name: 1})


@pytest.mark.parametrize(
    "row",
    [
        '{"top_k": 2.5, "temperature": 1.5}',
        '{"top_k": true, "temperature": 1.5, "reply_tokens": 9999}',
        '{"port": 1, "temperature": 1.5, "top_p": null}',
        '{"temperature": 1.5, "model": "x"}',
    ],
)
def test_what_an_older_row_holds_falls_back_where_it_cannot_be_used(chat, row):
    ann = person(chat)
    conversation = chat.store.new_conversation(ann)
    with chat.store.writing() as db:
        db["conversation"].update(conversation, {"sampling": row})
    view = turn(chat, ann)
    assert view.phase == "voting"
    recorded = json.loads(chat.store.row("select sampling from generation limit 1")["sampling"])
    assert (recorded["temperature"], recorded["top_k"], recorded["top_p"], recorded["max_tokens"]) == (1.5, 0, 1.0, 24)
    assert chat.sampling(ann)[1]["temperature"] == 1.5 and chat.sampling(ann)[1]["top_k"] == 0


@pytest.mark.parametrize("row", ["[1, 2]", "3", '"hot"', "{not json", "null"])
def test_a_row_that_holds_no_settings_at_all_is_the_apps_own(chat, row):
    ann = person(chat)
    conversation = chat.store.new_conversation(ann)
    with chat.store.writing() as db:
        db["conversation"].update(conversation, {"sampling": row})
    assert turn(chat, ann).phase == "voting" and chat.sampling(ann)[1]["temperature"] == 0.7


BAD_IDS = [True, 1.0, "1", None, [1], {"a": 1}, 0, -1, 2**63, 2**70, math.nan]


@pytest.mark.parametrize("value", BAD_IDS, ids=repr)
def test_an_id_that_is_none_is_refused_in_words(chat, value):
    """true was the first pair of all, and 2**63 an error of SQLite's."""
    ann = person(chat)
    view = turn(chat, ann)
    with pytest.raises(Refused, match="not yours"):
        chat.vote(ann, value, "a")
    for gesture in (
        lambda: chat.rate(ann, value, 1),
        lambda: chat.edit(ann, value, "Better"),
        lambda: chat.show_pair(ann, value),
        lambda: chat.open(ann, value),
        lambda: chat.delete(ann, value),
        lambda: chat.explain(ann, value, ["clearer"]),
    ):
        with pytest.raises(Refused, match="cannot be used: (id|message|vote) is"):
            gesture()
    assert chat.view(ann) == view


@pytest.mark.parametrize(
    ("gesture", "named"),
    [
        (lambda chat, ann, view: chat.send(ann, 3), "text is 3"),
        (lambda chat, ann, view: chat.send(ann, ["Hello"]), "text is"),
        (lambda chat, ann, view: chat.edit(ann, view.left.message, {"path": "/etc/passwd"}), "text is"),
        (lambda chat, ann, view: chat.rate(ann, view.left.message, 2), "thumb is 2"),
        (lambda chat, ann, view: chat.rate(ann, view.left.message, True), "thumb is True"),
        (lambda chat, ann, view: chat.rate(ann, view.left.message, "1"), "thumb is '1'"),
        (lambda chat, ann, view: chat.explain(ann, 1, tags="clearer"), "tags is"),
        (lambda chat, ann, view: chat.explain(ann, 1, tags=[3]), "tags is"),
        (lambda chat, ann, view: chat.explain(ann, 1, comment=3), "comment is 3"),
        (lambda chat, ann, view: chat.explain(ann, 1, comment=["x" * 500]), "comment is"),
        (lambda chat, ann, view: chat.configure(ann, 3, {}), "system_prompt is 3"),
        (lambda chat, ann, view: chat.vote(ann, view.duel, "a", dwell_ms=math.nan), "dwell_ms is nan"),
        (lambda chat, ann, view: chat.vote(ann, view.duel, "a", dwell_ms=-1), "dwell_ms is -1"),
        (lambda chat, ann, view: chat.vote(ann, view.duel, "a", shown_at=5), "shown_at is 5"),
        (lambda chat, ann, view: chat.vote(ann, view.duel, True), "A vote is one of .*; got True"),
        (lambda chat, ann, view: chat.vote(ann, view.duel, ["a"]), "A vote is one of"),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_name(chat, gesture, named):
    ann = person(chat)
    view = turn(chat, ann)
    with pytest.raises(Refused, match=named):
        result = gesture(chat, ann, view)
        next(result) if hasattr(result, "__next__") else None
    assert chat.view(ann) == view, "nothing was recorded"


def test_values_are_strict_and_nothing_else_comes_in():
    assert checked(Rating, message=3, thumb=None).thumb is None and checked(Row, id=2**63 - 1).id == 2**63 - 1
    assert checked(Reason, vote=1).tags is None
    with pytest.raises(NotUsable, match="more is 1"):
        checked(Row, id=1, more=1)
    assert set(ChatSampling.model_fields) == set(LIMITS)
    assert len(brief("x" * 10_000)) <= 60
