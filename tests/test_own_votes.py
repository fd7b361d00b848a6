"""One's own votes, changed and deleted in the tab of judged pairs, whatever the chats show by now."""

import pytest

from playground.chat.refusals import Refused
from playground.chat.turns import Turn
from playground.store import StoreError
from playground.system.messages import Message
from playground.ui.quick_gradio import gradio as gr
from tests import rounds
from tests.controls import OWNER, STRANGER
from tests.stores import candidate, outcome, store  # noqa: F401 (a fixture)
from tests.test_data_export import say
from tests.test_data_page import decide, drawn, search, shown, tab  # noqa: F401 (fixtures)


@pytest.fixture
def me(tab):  # noqa: F811
    return tab.store.annotator(STRANGER)


def mine(tab, decision):  # noqa: F811
    return decide(tab, decision, token=STRANGER)


def current(tab):  # noqa: F811
    """(vote, choice) of the votes that a round would learn from."""
    return [(row["vote"], row["choice"]) for row in tab.store.votes_for_training("base hash")]


def test_a_mistaken_vote_on_an_older_pair_is_corrected_and_the_chat_goes_on_as_it_was(tab, me):  # noqa: F811
    """Only deleting the whole chat helped, once the next message was sent."""
    row, vote = say(tab.store, me, "Hello")
    say(tab.store, me, "Go on", conversation=row["conversation"])
    tab.store.explain(vote, me, ["clearer"], "my words")
    before = tab.store.row("select tail, shown_duel from conversation")
    buttons = search(tab, STRANGER)[tab.html]
    assert [f'"vote {vote} {choice}"' in buttons for choice in ("a", "b", "tie", "both_bad", "skip")] == [
        *(False, True, True, True, False)
    ]
    seen = mine(tab, f"vote {vote} b")
    assert "Your vote is changed: B better" in seen[tab.notice.html] and shown(tab, seen) == [3, 2]
    assert current(tab) == [(2, "a"), (3, "b")]
    kept = tab.store.current_vote(row["id"], me)
    assert (kept["comment"], kept["tags"], kept["dwell_ms"], kept["shown_at"]) == ("my words", [], None, None)
    assert kept["continued_with"] == row["left"]["message"], "what the chat went on with stays true"
    assert tab.store.row("select tail, shown_duel from conversation") == before
    again = mine(tab, "vote 3 b")[tab.notice.html]
    assert "nothing was changed" in again and "is changed" not in again, "the same choice"
    assert current(tab) == [(2, "a"), (3, "b")]


def test_a_vote_that_is_deleted_counts_nowhere_and_the_chat_stays(tab, me, tmp_path):  # noqa: F811
    row, vote = say(tab.store, me, "Hello")
    say(tab.store, me, "Go on", conversation=row["conversation"])
    tab.store.explain(vote, me, ["clearer"], "my words")
    changed = tab.store.correct_vote(vote, me, "tie", row["left"]["message"])
    seen = mine(tab, f"delete {changed}")
    assert "Your vote is deleted." in seen[tab.notice.html] and shown(tab, seen) == [2]
    assert current(tab) == [(2, "a")] and tab.store.new_votes() == 1
    assert [vote["vote"] for vote in tab.store.my_votes(me)] == [2]
    assert not tab.store.rows("select 1 from vote where comment > '' or tags > ''"), "its words are gone"
    assert [turn["text"] for turn in tab.store.history(row["conversation"])] == ["Hello", "left", "Go on", "left"]
    # no export from before brings it back
    record = {"vote": vote, "created": tab.store.row("select created from vote where id = ?", vote)["created"]}
    assert tab.store.recorded_here(record)


def test_a_pair_that_its_chat_still_shows_is_voted_on_again(tab, me):  # noqa: F811
    row, vote = say(tab.store, me, "Hello")
    mine(tab, f"vote {vote} b")
    assert tab.chat.view(me).choice == "b" and tab.store.conversation(me)["tail"] == row["right"]["message"]
    mine(tab, "delete 2")
    assert tab.chat.view(me).phase == "voting" and tab.store.conversation(me)["tail"] is None
    tab.chat.vote(me, row["id"], "tie", dwell_ms=5000)
    assert current(tab) == [(3, "tie")]
    told = [(vote["dwell_ms"], vote["choice"]) for vote in tab.store.votes_for_quality()]
    assert told == [(None, "tie")], "it is no first look at the pair"


def test_a_vote_that_was_left_out_stays_so(tab, me):  # noqa: F811
    """By changing it, or deleting it and voting again, somebody could undo what an admin decided."""
    row, vote = say(tab.store, me, "Hello")
    tab.store.exclude_vote(vote, True)
    mine(tab, f"vote {vote} b")
    mine(tab, "delete 2")
    tab.chat.vote(me, row["id"], "a")
    assert current(tab) == [] and tab.store.new_votes() == 0


@pytest.mark.parametrize("token", [OWNER, "z" * 43])
@pytest.mark.parametrize("decision", ["vote 1 b", "delete 1", "vote 99 a", "delete 0", "delete 999999999999999"])
def test_nobody_changes_anothers_vote_by_a_forged_gesture(tab, me, token, decision):  # noqa: F811
    """Not even an admin, who leaves votes out and no more."""
    say(tab.store, me, "Hello")
    before = tab.store.rows("select * from vote")
    seen = decide(tab, decision, token=token)
    assert set(seen) == {tab.notice.html} and "notice warning" in seen[tab.notice.html]
    assert tab.store.rows("select * from vote") == before
    assert 'data-decision="vote' not in search(tab)[tab.html], "an admin has no buttons for it"


@pytest.mark.parametrize(
    "decision", ["vote 1 skip", "vote 1", "vote 1 B", "delete", "delete all", "delete ١", "vote 1 b "]
)
def test_a_gesture_that_is_none_is_not_one_of_ones_own_either(tab, me, decision):  # noqa: F811
    say(tab.store, me, "Hello")
    with pytest.raises(gr.Error, match="Only admins"):
        mine(tab, decision)
    assert current(tab) == [(1, "a")]


def test_a_vote_of_a_deleted_chat_a_replaced_one_and_a_viewers_stay_as_they_are(tab, me, monkeypatch):  # noqa: F811
    row, vote = say(tab.store, me, "Hello")
    changed = tab.store.vote(row["id"], me, "b", row["right"]["message"])
    assert "notice warning" in mine(tab, f"delete {vote}")[tab.notice.html], "it was replaced"
    monkeypatch.setattr(tab.chat, "may_write", lambda annotator: False)
    assert f"vote {changed} a" not in search(tab, STRANGER)[tab.html]
    assert "annotator" in mine(tab, f"vote {changed} a")[tab.notice.html] and current(tab) == [(changed, "b")]
    monkeypatch.undo()
    tab.store.read_only = StoreError("Another server records.").message
    with pytest.raises(Refused, match="Another server"):
        tab.chat.withdraw(me, changed)
    tab.store.read_only = None
    tab.store.delete_conversation(row["conversation"], me)
    assert "notice warning" in mine(tab, f"vote {changed} a")[tab.notice.html]


def test_an_early_vote_waits_for_its_replies_and_stays_on_what_was_there(tab, me):  # noqa: F811
    conversation = tab.store.new_conversation(me)
    number = tab.store.start_duel(conversation, "Hello", [1, 2, 3], [candidate(1), candidate(2)])
    early = [{**outcome("Hi", [4]), "finish_reason": None}, {**outcome("Good", [5, 6]), "finish_reason": None}]
    vote = tab.store.vote(number, me, "a", tab.store.duel(number)["left"]["message"], early=early)
    tab.chat._turns[me] = Turn(me, "", "Hello")
    tab.chat._turns[me].duel = number
    try:
        for decision in (f"vote {vote} b", f"delete {vote}"):
            assert "still streaming" in mine(tab, decision)[tab.notice.html]
    finally:
        tab.chat._turns.clear()
    tab.store.finish_duel(number, [outcome("Hi there.", [4, 7, 8]), outcome("Good", [5, 6], "stopped")])
    mine(tab, f"vote {vote} b")
    (row,) = tab.store.votes_for_training("base hash")
    assert (row["choice"], row["left_ids"], row["right_ids"]) == ("b", [4], [5, 6])
    assert [row["early"] for row in tab.store.judged_pairs()] == [True]


def test_what_has_learnt_from_a_vote_is_named_when_it_is_changed_or_deleted(tab, me):  # noqa: F811
    row, vote = say(tab.store, me, "Hello")
    tab.store.request_round()
    held = rounds.take(tab.store)
    tab.store.record_read_conversations(held["id"])
    tab.store.record_used_votes(held["id"], [(vote, False)])
    tab.store.publish(held["id"], "w1", tab.store.add_policy(held["id"], "w1", parent=0), "nowhere", "abc", {})
    mine(tab, f"vote {vote} b")
    assert tab.store.versions_of_votes([2]) == {2: [1]} and "v1" in search(tab)[tab.html]
    assert tab.store.new_votes() == 1, "the next round learns the other choice"
    assert "had learnt from it: v1" in mine(tab, "delete 2")[tab.notice.html]
    assert tab.store.versions_of_people() == {me: [1]} and tab.store.new_votes() == 0
    assert tab.store.rows("select vote from vote_use") == [{"vote": vote}]


# -- trials and forecasts


@pytest.fixture
def trial(tab):  # noqa: F811
    """A version on trial against the base, in a store without votes."""
    tab.store.request_round()
    held = rounds.take(tab.store)
    version = tab.store.add_policy(held["id"], "w1", parent=0)
    tab.store.publish(held["id"], "w1", version, "nowhere", "abc", {}, trial=True)
    return lambda: tab.store.trial(version)


def test_who_changes_a_vote_after_a_trial_still_took_part_in_it(tab, me, trial):  # noqa: F811
    """Else the votes of another one would count without a cap from then on."""
    _, vote = say(tab.store, me, "Hello", versions=(1, 0))
    tab.store.end_trial(1, "undecided", Message("over"))
    mine(tab, f"vote {vote} b")
    assert tab.store.people_of_trial(trial(), 1) == 1
    tab.store.vote(say(tab.store, tab.store.annotator("late"), "Bye")[0]["id"], me, "a", None)
    assert tab.store.people_of_trial(trial(), 1) == 1, "pairs from after a trial are not its"


def test_who_changes_an_old_vote_during_a_trial_takes_no_part_in_it(tab, me):  # noqa: F811
    old = tab.store.annotator("old")
    earlier = [say(tab.store, old, "Hello") for _ in range(3)]
    for parent in (0, 1):
        tab.store.request_round()
        held = rounds.take(tab.store)
        version = tab.store.add_policy(held["id"], "w1", parent=parent)
        tab.store.publish(held["id"], "w1", version, "nowhere", "abc", {}, trial=True)
    for _ in range(3):
        say(tab.store, me, "Hello", versions=(2, 1))
    for row, vote in earlier:
        tab.store.correct_vote(vote, old, "b", row["right"]["message"])
    assert tab.store.people_of_trial(tab.store.trial(2), 3) == 1


def in_the_list(tab, me, row, vote):  # noqa: F811
    mine(tab, f"vote {vote} b")


def in_the_chat(tab, me, row, vote):  # noqa: F811
    tab.store.vote(row["id"], me, "b", row["right"]["message"])


def in_the_chat_after_an_undo(tab, me, row, vote):  # noqa: F811
    tab.chat.withdraw(me, vote)
    in_the_chat(tab, me, row, vote)


@pytest.mark.parametrize(
    ("change", "wins"), [(in_the_list, [1, 2]), (in_the_chat, [1, 2]), (in_the_chat_after_an_undo, [1])]
)
def test_versions_are_compared_by_the_vote_that_was_blind(tab, me, trial, change, wins):  # noqa: F811
    """Somebody who took a vote back once it had named the versions could choose which of them count."""
    say(tab.store, me, "Bye", versions=(1, 0))
    row, vote = say(tab.store, me, "Hello", versions=(1, 0))
    assert tab.store.votes_on_trial(trial())["wins"] == len(tab.store.decided_on_trial(trial())) == 2
    change(tab, me, row, vote)
    assert tab.store.votes_on_trial(trial()) == {"wins": len(wins), "losses": 0, "ties": 0}
    assert [row["id"] for row in tab.store.decided_on_trial(trial())] == wins
    assert [(row["wins"], row["losses"]) for row in tab.store.version_duels()] == [(len(wins), 0)]
    assert current(tab) == [(1, "a"), (3, "b")], "a round learns from it"


def test_forecasts_of_replaced_and_deleted_votes_are_no_agreement(tab, me):  # noqa: F811
    row, vote = say(tab.store, me, "Hello")
    for choice in "babababab":
        tab.store.add_forecasts([(vote, 0.9, True)])
        vote = tab.store.correct_vote(vote, me, choice, row["left"]["message"])
    tab.store.add_forecasts([(vote, 0.2, False)])
    assert tab.store.forecasts(20) == (0, 1)
    assert [row["vote"] for row in tab.store.forecast_history()] == [vote]
    mine(tab, f"delete {vote}")
    assert tab.store.forecasts(20) == (0, 0) and tab.store.forecast_history() == []


# -- the chat of the pair


def voted_early(tab, me):  # noqa: F811
    """A pair on which somebody chose A before the end, so that B is a fragment; and the vote."""
    conversation = tab.store.new_conversation(me)
    number = tab.store.start_duel(conversation, "Hello", [1, 2, 3], [candidate(1), candidate(2)])
    early = [{**outcome("Hi", [4]), "finish_reason": None}, {**outcome("Good", [5, 6]), "finish_reason": None}]
    vote = tab.store.vote(number, me, "a", tab.store.duel(number)["left"]["message"], early=early)
    tab.store.finish_duel(number, [outcome("Hi there.", [4, 7, 8]), outcome("Good", [5, 6], "stopped")])
    return tab.store.duel(number), vote


def test_after_an_early_vote_is_deleted_the_next_one_is_on_what_the_replies_became(tab, me):  # noqa: F811
    row, vote = voted_early(tab, me)
    mine(tab, f"delete {vote}")
    tab.chat.vote(me, row["id"], "b")
    (trained,) = tab.store.votes_for_training("base hash")
    assert (trained["left_ids"], trained["right_ids"]) == ([4, 7, 8], [5, 6])
    assert [row["early"] for row in tab.store.judged_pairs()] == [False]
    assert [row["early"] for row in tab.store.my_votes(me)] == [0]


@pytest.mark.parametrize("first", [[], ["vote 1 b"]])
def test_a_tie_in_its_place_does_not_go_on_with_the_fragment(tab, me, monkeypatch, first):  # noqa: F811
    row, vote = voted_early(tab, me)
    monkeypatch.setattr(tab.chat, "_rng", type("Last", (), {"choice": lambda self, sides: sides[-1]})())
    for gesture in first:
        mine(tab, gesture)
        vote += 1
    if first:
        mine(tab, f"vote {vote} tie")
    else:
        mine(tab, f"delete {vote}")
        tab.chat.vote(me, row["id"], "tie")
    assert tab.store.conversation(me)["tail"] == row["left"]["message"]


def test_a_chat_that_comes_back_to_a_changed_pair_goes_on_with_the_new_choice(tab, me):  # noqa: F811
    """By an undo, and by paging from another answer to the message."""
    row, vote = say(tab.store, me, "Hello")
    say(tab.store, me, "Go on", conversation=row["conversation"])
    mine(tab, f"vote {vote} b")
    tab.store.undo(row["conversation"])
    view = tab.chat.view(me)
    assert (view.choice, view.left.chosen, view.right.chosen) == ("b", False, True)
    assert [turn["text"] for turn in tab.store.history(row["conversation"])] == ["Hello", "right"]
    sides = [candidate(1), candidate(2)]
    other = tab.store.start_duel(row["conversation"], "Hello", [1], sides, user_message=row["user_message"])
    tab.store.finish_duel(other, [outcome("one", [1]), outcome("two", [2])])
    tab.store.show_duel(row["id"], me)
    assert tab.store.conversation(me)["tail"] == row["right"]["message"]


def test_a_message_that_gets_no_reply_leaves_the_chat_with_the_new_choice(tab, me):  # noqa: F811
    row, vote = say(tab.store, me, "Hello")
    failed = tab.store.start_duel(row["conversation"], "Go on", [1], [candidate(1), candidate(2)])
    mine(tab, f"vote {vote} b")
    tab.store.finish_duel(failed, [outcome("", [], "error")] * 2)
    conversation = tab.store.conversation(me)
    assert (conversation["shown_duel"], conversation["tail"]) == (row["id"], row["right"]["message"])


def test_a_vote_waits_while_a_message_begins(tab, me):  # noqa: F811
    """Between the message's prompt, which has the pick in it, and its row."""
    row, vote = say(tab.store, me, "Hello")
    before = tab.store.rows("select * from vote")
    tab.chat._turns[me] = Turn(me, "", "Go on")
    try:
        for decision in (f"vote {vote} b", f"delete {vote}"):
            assert "still streaming" in mine(tab, decision)[tab.notice.html]
        with pytest.raises(Refused, match="still streaming"):
            tab.chat.vote(me, row["id"], "b")
    finally:
        tab.chat._turns.clear()
    assert tab.store.rows("select * from vote") == before
