"""Policy versions: exactly one is live, and none is lost."""

import sqlite3

import pytest
import sqlite_utils

from playground.store import Store, StoreError
from playground.store.migrations import migrations
from playground.system.messages import plain
from tests.stores import candidate, published, store, take  # noqa: F401 (fixtures)


def test_a_second_live_policy_is_refused_by_the_file(store):
    with pytest.raises(sqlite3.IntegrityError), store.writing() as db:
        db["policy"].insert({"version": 1, "status": "live", "created": "now"})
    assert [p["version"] for p in store.rows("select * from policy where status = 'live'")] == [0]


def test_publishing_makes_one_live_retires_the_one_before_and_ends_the_round(store):
    assert published(store, report={"gain": 1.5}) == 1
    assert (store.policy(0)["status"], store.policy(1)["status"]) == ("retired", "live")
    assert store.live_policy()["sha256"] == "abc" and '"gain": 1.5' in store.live_policy()["gate_report"]
    assert store.last_round()["state"] == "published" and store.last_round()["ended"]


def test_publishing_is_one_transaction(store):
    """A crash in the middle must not leave two live versions, none, or a round that publishes again."""
    asked = store.request_round()
    take(store)
    version = store.add_policy(asked, "w1", parent=0)
    with store.writing() as db:
        db.execute(
            "create trigger fail before update of state on round when new.state = 'published' begin select "
            "raise(abort, 'crash'); end"
        )
    with pytest.raises(sqlite3.IntegrityError, match="crash"):
        store.publish(asked, "w1", version, "path", "abc", {})
    assert store.live_policy()["version"] == 0
    assert (store.policy(version)["status"], store.policy(version)["path"]) == ("candidate", None)


def test_reserving_a_version_twice_for_a_round_gives_the_same_number(store):
    asked = store.request_round()
    take(store)
    assert store.add_policy(asked, "w1", parent=0) == store.add_policy(asked, "w1", parent=0) == 1


def test_a_version_number_is_never_used_again(store):
    asked = store.request_round()
    take(store)
    version = store.add_policy(asked, "w1", parent=0)
    store.refuse(asked, "w1", version, "path", "abc", {}, plain("worse"))
    assert published(store) == version + 1


def test_a_refused_version_is_kept_with_the_reason_and_the_live_one_stays(store):
    asked = store.request_round()
    take(store)
    version = store.add_policy(asked, "w1", parent=0)
    store.refuse(asked, "w1", version, "path", "abc", {"gain": -1}, plain("worse"))
    assert (store.policy(version)["status"], store.policy(version)["reason"], store.policy(version)["path"]) == (
        "rejected",
        "worse",
        "path",
    )
    assert store.live_policy()["version"] == 0
    assert (store.last_round()["state"], str(store.last_round()["reason"])) == ("refused", "worse")


def test_a_live_version_that_cannot_be_loaded_is_rejected_and_the_fallback_goes_on(store):
    version = published(store)
    store.reject_live(version, "bad file", fallback=0)
    assert (store.policy(version)["status"], store.policy(version)["reason"], store.live_policy()["version"]) == (
        "rejected",
        "bad file",
        0,
    )


def test_rejecting_a_version_that_is_no_longer_live_changes_nothing(store):
    first, second = published(store), published(store)
    store.reject_live(first, "bad file", fallback=0)
    assert store.live_policy()["version"] == second and store.policy(first)["status"] == "retired"


def test_rolling_back_makes_an_older_version_live(store):
    first, second = published(store), published(store)
    store.roll_back(first)
    assert (store.live_policy()["version"], store.policy(second)["status"]) == (first, "rolled_back")


def test_rolling_back_to_the_live_version_changes_nothing(store):
    version = published(store)
    store.roll_back(version)
    assert store.live_policy()["version"] == version and store.policy(0)["status"] == "retired"


def test_rolling_back_to_a_rejected_version_is_refused(store):
    version = published(store)
    store.reject_live(version, "bad file", fallback=0)
    with pytest.raises(StoreError, match=f"Version v{version} was rejected and cannot go live."):
        store.roll_back(version)


def test_the_last_good_version_is_the_nearest_ancestor_that_no_server_rejected(store):
    first, second, third = (published(store) for _ in range(3))
    assert store.last_good_before(third) == second
    store.reject_live(third, "bad file", fallback=second)
    store.reject_live(second, "bad file", fallback=third)
    assert store.last_good_before(third) == first
    with store.writing() as db:
        db.execute("update policy set status = 'rejected' where version != 0")
    assert store.last_good_before(third) == 0 == store.last_good_before(first)


def test_weights_of_versions_that_a_server_rejected_before_hashes_covered_all_are_still_known(tmp_path):
    """`sha256` was the hash of the weights; it is that of the manifest now, which is another for the same weights in
    another version."""
    old = sqlite_utils.Database(tmp_path / "nudge.db")
    migrations.apply(old, stop_before="0004_beat")
    old["round"].insert({"id": 1, "state": "published", "created": "x"})
    old["policy"].insert(
        {"version": 1, "status": "rejected", "round": 1, "sha256": "weights", "reason": "bad", "created": "x"}
    )
    old.close()
    store = Store(tmp_path / "nudge.db")
    assert store.quarantined(2, "weights") == {"version": 1, "reason": "bad"}
    assert store.quarantined(2, "other weights") is None


def test_versions_are_counted_by_what_became_of_them(store):
    kept, withdrawn, rejected = published(store), published(store), published(store)
    store.withdraw(withdrawn, store.annotator("an admin"), "It swears.")
    store.reject_live(rejected, "It cannot be read.", kept)
    store.request_round()
    row = take(store)
    refused = store.add_policy(row["id"], "w1", parent=kept)
    store.refuse(row["id"], "w1", refused, "nowhere", "abc", {}, plain("No gain."))
    store.request_round()
    store.add_policy(take(store)["id"], "w1", parent=kept)  # nobody knows yet what becomes of it
    assert store.versions_by_state() == {"published": 1, "withdrawn": 1, "rejected": 1, "refused": 1}
