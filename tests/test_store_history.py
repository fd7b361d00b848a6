"""The history of versions: what happened to each, what an admin does with them, and the votes on pairs of two."""

import pytest
import sqlite_utils

from playground.store import Store, StoreError
from playground.store.migrations import migrations
from playground.system.messages import Message, plain
from tests.stores import cast, published, store, take  # noqa: F401 (fixtures)


def released(store, trial=True):
    """A version through a round, on trial against the one before it."""
    store.request_round()
    row = take(store)
    version = store.add_policy(row["id"], "w1", parent=store.live_policy()["version"])
    store.publish(row["id"], "w1", version, f"v{version:04d}", "abc", {"kl": 3.5}, trial)
    return version


def events(store, version):
    rows = store.rows("select * from policy_event where version = ? order by id", version)
    return [(row["what"], row["annotator"]) for row in rows]


def history(store):
    return {row["version"]: row for row in store.version_history()}


@pytest.fixture
def admin(store):
    return store.annotator("admin")


def test_publishing_and_refusing_leave_events(store):
    first, second = released(store), released(store)
    assert events(store, 0) == [("live", None), ("retired", None)]
    assert events(store, first) == [("live", None), ("retired", None)] and events(store, second) == [("live", None)]
    asked = store.request_round()
    take(store)
    third = store.add_policy(asked, "w1", parent=second)
    assert third not in history(store), "a candidate is no version yet"
    store.refuse(asked, "w1", third, "p", "h", {}, plain("too {far}"))
    row = history(store)[third]
    assert (row["status"], row["rejected_by"], row["before"], row["live_since"]) == ("rejected", "gate", second, None)
    assert row["event"]["what"] == "refused" and str(row["event"]["reason"]) == "too {far}"
    assert list(history(store)) == [third, second, first, 0]
    assert history(store)[second]["report"] == {"kl": 3.5} and history(store)[0]["before"] is None
    assert history(store)[second]["live_since"] and not history(store)[second]["withdrawn"]


def test_a_version_knows_how_many_votes_its_round_learnt_from(store):
    for _ in range(3):
        cast(store)
    store.request_round()
    row = take(store)
    store.record_used_votes(row["id"], [(1, False), (2, False), (3, True)])
    version = store.add_policy(row["id"], "w1", parent=0)
    store.publish(row["id"], "w1", version, "p", "h", {})
    assert history(store)[version]["votes"] == 3 and history(store)[0]["votes"] == 0


def test_an_admin_makes_another_version_live(store, admin):
    first, second = released(store), released(store)
    store.promote(first, admin, "it was kinder")
    assert store.live_policy()["version"] == first and store.policy(second)["status"] == "retired"
    assert events(store, first)[-1] == ("live", admin) and events(store, second)[-1] == ("retired", admin)
    ended = store.trial(second)
    assert ended["state"] == "undecided" and str(ended["reason"]) == "an admin decided: it was kinder"
    assert store.trial(first)["state"] == "open", "its own trial rested and goes on"
    assert str(history(store)[first]["event"]["reason"]) == "it was kinder"
    before = events(store, first)
    store.promote(first, admin, "again")
    assert events(store, first) == before and store.trial(first)["state"] == "open"


def test_an_admin_rolls_back(store, admin):
    first, second = released(store), released(store)
    store.roll_back(store.last_good_before(second), admin, "rude", live=second)
    assert store.live_policy()["version"] == first and store.policy(second)["status"] == "rolled_back"
    assert events(store, second)[-1] == ("rolled_back", admin) and store.trial(second)["state"] == "undecided"
    third = released(store)
    with pytest.raises(StoreError, match=f"v{second} is not live any more"):
        store.roll_back(first, admin, "late", live=second)
    assert store.live_policy()["version"] == third


def test_an_admin_rolls_back_to_the_version_that_answered_before(store, admin):
    """After v3 was replaced by v2 by hand, it went back to v1, from which v2 had been trained."""
    assert store.answered_before() is None
    first, second, third = released(store), released(store), released(store)
    store.promote(second, admin, "it was kinder")
    assert store.answered_before() == third
    store.roll_back(third, admin, "it was not", live=second)
    assert store.answered_before() == first, "v2 was rolled back"
    store.withdraw(first, admin, "it leaks")
    assert store.answered_before() == 0
    store.promote(0, admin, "calm")
    assert store.answered_before() == third


def test_a_withdrawn_version_never_answers_again_by_itself(store, admin):
    first, second, third = released(store), released(store), released(store)
    store.withdraw(second, admin, "it leaks")
    assert history(store)[second]["withdrawn"] and store.live_policy()["version"] == third
    assert store.trial(third)["state"] == "undecided", "it was compared with the one that was withdrawn"
    assert store.last_good_before(third) == first
    store.reject_live(third, "bad file", fallback=second)
    assert store.live_policy()["version"] == first
    with pytest.raises(StoreError, match="withdrawn"):
        store.roll_back(second)
    with store.writing() as db:  # a trial that an older server has left open
        db.execute("update trial set state = 'open', against = ? where version = ?", [second, first])
    store.end_trial(first, "rolled_back", Message("worse"))
    assert store.live_policy()["version"] == first
    store.promote(second, admin, "mended")
    assert store.live_policy()["version"] == second and not history(store)[second]["withdrawn"]


def test_withdrawing_the_live_version_brings_its_ancestor_back(store, admin):
    first, second = released(store), released(store)
    store.withdraw(first, admin, "old")
    store.withdraw(second, admin, "bad")
    assert store.live_policy()["version"] == 0 and store.policy(second)["status"] == "rolled_back"
    assert [what for what, _ in events(store, second)] == ["live", "rolled_back", "withdrawn"]
    assert events(store, 0)[-1] == ("live", admin)
    count = len(events(store, second))
    store.withdraw(second, admin, "twice")
    assert len(events(store, second)) == count
    with pytest.raises(StoreError, match="base model"):
        store.withdraw(0, admin, "no")


def test_what_was_rejected_or_is_not_complete_cannot_be_chosen(store, admin):
    version = released(store)
    store.reject_live(version, "bad file", fallback=0)
    assert (history(store)[version]["rejected_by"], events(store, version)[-1]) == ("server", ("rejected", None))
    asked = store.request_round()
    take(store)
    candidate = store.add_policy(asked, "w1", parent=0)
    for number, why in ((version, "was rejected"), (candidate, "not complete"), (99, "no version v99")):
        for gesture in (store.promote, store.withdraw):
            with pytest.raises(StoreError, match=why):
                gesture(number, admin, "why not")
    assert store.live_policy()["version"] == 0


def test_votes_on_pairs_of_two_versions_by_pair_and_person(store):
    first, second = released(store), released(store)
    ann, bob = store.annotator("ann"), store.annotator("bob")
    cast(store, "a", ann, versions=(second, first))
    cast(store, "b", ann, versions=(first, second))
    cast(store, "a", ann, versions=(first, second))
    cast(store, "both_bad", ann, versions=(first, second))
    cast(store, "tie", bob, versions=(second, 0))
    cast(store, "skip", bob, versions=(second, 0))
    cast(store, "a", bob, versions=(second, second))
    assert store.version_duels() == [
        {"version": second, "against": 0, "annotator": bob, "wins": 0, "losses": 0, "ties": 1},
        {"version": second, "against": first, "annotator": ann, "wins": 2, "losses": 1, "ties": 1},
    ]
    store.allow_training(ann, False)
    assert [row["annotator"] for row in store.version_duels()] == [bob], "as everywhere, only votes that count"


def test_versions_from_before_have_what_their_rounds_and_trials_tell(tmp_path):
    old = sqlite_utils.Database(tmp_path / "nudge.db")
    migrations.apply(old, stop_before="0011_policy_event")
    refusal = Message("The new version was not published: {reason}.", reason="worse")
    for number, state, reason in ((1, "published", None), (2, "published", None), (3, "refused", refusal.dumps())):
        old["round"].insert(
            {"id": number, "state": state, "reason": reason, "created": "x", "ended": f"2026-0{number}"}
        )
        status = ["live", "rolled_back", "rejected"][number - 1]
        old["policy"].insert(
            {"version": number, "status": status, "round": number, "parent": 0, "created": "x"}
            if number > 1
            else {"version": 1, "status": "retired", "round": 1, "parent": 0, "created": "x"}
        )
    old["trial"].insert(
        {
            "version": 2,
            "against": 1,
            "state": "rolled_back",
            "after_vote": 0,
            "started": "2026-02",
            "reason": Message("people preferred it").dumps(),
            "ended": "2026-025",
        }
    )
    old.close()
    rows = {row["version"]: row for row in Store(tmp_path / "nudge.db").version_history()}
    assert {number: row["live_since"] for number, row in rows.items() if number} == {
        3: None,
        2: "2026-02",
        1: "2026-01",
    }
    assert str(rows[3]["event"]["reason"]) == "The new version was not published: worse."
    assert rows[2]["event"]["what"] == "rolled_back" and rows[2]["before"] == 1
