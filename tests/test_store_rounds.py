"""Rounds: asked for, taken, held, measured, paused and stopped."""

import time
from pathlib import Path

import pytest

from playground.store import STOPPED, LeaseLost, Store, StoreError
from playground.system.messages import plain
from tests.stores import cast, file_store, published, store, take  # noqa: F401 (fixtures)


def test_new_votes_count_from_the_last_round(store):
    cast(store)
    cast(store)
    assert store.new_votes() == 2
    store.request_round()
    take(store)
    assert store.new_votes() == 0
    cast(store)
    assert store.new_votes() == 1


def test_a_round_starts_by_itself_at_enough_votes_and_not_before(store):
    cast(store)
    assert take(store, auto_votes=2) is None
    cast(store)
    assert take(store, auto_votes=2)["state"] == "running"


def test_the_same_votes_start_no_second_round(store):
    cast(store)
    store.end_round(take(store, auto_votes=1)["id"], "w1", "not_enough", plain("why"))
    assert take(store, auto_votes=1) is None


# -- rounds


def test_asking_for_a_round_twice_asks_once(store):
    assert store.request_round() == store.request_round()


def test_asking_while_a_round_runs_gives_that_round(store):
    asked = store.request_round()
    take(store)
    assert store.request_round() == asked and len(store.rows("select * from round")) == 1


def test_a_round_knows_whether_a_person_asked_for_it(store):
    cast(store)
    began_by_itself = take(store, auto_votes=1)
    assert began_by_itself["asked"] == 0
    store.request_round()  # somebody presses the button meanwhile
    assert store.round(began_by_itself["id"])["asked"] == 1
    store.end_round(began_by_itself["id"], "w1", "failed", plain("why"))
    assert store.round(store.request_round())["asked"] == 1


def test_asking_after_a_round_ended_gives_a_new_one(store):
    asked = store.request_round()
    take(store)
    store.end_round(asked, "w1", "failed", plain("why"))
    assert store.request_round() == asked + 1


def test_nothing_to_do_is_none(store):
    assert take(store) is None and store.last_round() is None and store.rounds() == []


def test_taking_a_round_records_its_config_and_seed(store):
    store.request_round()
    row = take(store, config={"port": 1}, seed=7)
    assert (row["state"], row["owner"], row["phase"], row["config"], row["seed"], row["attempts"]) == (
        "running",
        "w1",
        "collect",
        {"port": 1},
        7,
        1,
    )


def test_a_round_that_is_held_is_not_taken_twice(store):
    store.request_round()
    take(store, "w1")
    assert take(store, "w2") is None


def test_its_own_round_can_be_taken_again(store):
    store.request_round()
    take(store, "w1")
    assert take(store, "w1")["attempts"] == 2


def test_a_round_whose_heartbeat_lapsed_is_taken_over_where_it_was(store):
    asked = store.request_round()
    take(store, "w1", config={"port": 1}, seed=7)
    store.update_round(asked, "w1", phase="ppo")
    time.sleep(0.02)
    row = take(store, "w2", lease_seconds=0.01, config={"port": 2}, seed=8)
    assert (row["owner"], row["phase"], row["config"], row["seed"], row["attempts"]) == ("w2", "ppo", {"port": 1}, 7, 2)


def test_the_worker_that_lost_the_lease_is_told(store):
    asked = store.request_round()
    take(store, "w1")
    time.sleep(0.02)
    take(store, "w2", lease_seconds=0.01)
    with pytest.raises(LeaseLost, match=f"round {asked} is running, held by w2, not by w1"):
        store.update_round(asked, "w1", step=1)


def test_the_worker_that_lost_the_lease_publishes_nothing(store):
    asked = store.request_round()
    take(store, "w1")
    version = store.add_policy(asked, "w1", parent=0)
    time.sleep(0.02)
    take(store, "w2", lease_seconds=0.01)
    with pytest.raises(LeaseLost):
        store.publish(asked, "w1", version, "path", "abc", {})
    assert store.live_policy()["version"] == 0 and store.policy(version)["path"] is None


def test_an_ended_round_is_held_by_nobody(store):
    asked = store.request_round()
    take(store)
    store.end_round(asked, "w1", "failed", plain("why"))
    with pytest.raises(LeaseLost, match=f"round {asked} is failed"):
        store.update_round(asked, "w1", step=1)


def test_an_unknown_round_is_a_lost_lease(store):
    with pytest.raises(LeaseLost, match="round 9 does not exist"):
        store.update_round(9, "w1", step=1)


def test_every_update_is_a_beat(store):
    asked = store.request_round()
    first = take(store)["beat"]
    store.update_round(asked, "w1", step=3)
    assert store.round(asked)["beat"] == first + 1


# -- a lease knows nothing of the time of day


class Clock:
    """A monotonic clock that the test moves on."""

    def __init__(self):
        self.seconds = 1000.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def two(file_store):
    """Two processes' stores on one file, the second with a clock of its own; w1 holds a round in the first."""
    other = Store(Path(file_store.path))
    other.clock = Clock()
    file_store.request_round()
    take(file_store, "w1")
    return file_store, other


@pytest.mark.parametrize("jump", [-3600, 3600])
def test_the_time_of_day_changes_no_lease(two, jump, monkeypatch):
    """An hour forward, a living worker lost its round; an hour back, a dead one's was not free for an hour."""
    store, other = two
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + jump)
    assert take(other, "w2") is None
    store.update_round(1, "w1", step=1)
    assert take(other, "w2") is None, "it lives"
    other.clock.seconds += 31
    assert take(other, "w2")["owner"] == "w2", "it has been silent for longer than the lease"


def test_whoever_looks_for_the_first_time_waits_a_whole_lease(two):
    _, other = two
    assert take(other, "w2") is None
    other.clock.seconds += 29
    assert take(other, "w2") is None
    other.clock.seconds += 2
    assert take(other, "w2")["owner"] == "w2"


def test_a_worker_that_beats_keeps_its_round_for_ever(two):
    store, other = two
    for _ in range(5):
        other.clock.seconds += 29
        assert take(other, "w2") is None
        store.update_round(1, "w1")


def test_a_round_that_another_took_meanwhile_has_a_lease_of_its_own(two):
    """The same beat of another owner is another worker."""
    store, other = two
    assert take(other, "w2") is None
    other.clock.seconds += 29
    store.release_round(1, "w1")
    take(store, "w3")
    other.clock.seconds += 2
    assert take(other, "w2") is None


def test_a_released_round_has_no_owner_and_is_free_to_whoever_looks_first(two):
    store, other = two
    store.release_round(1, "w1")
    assert store.round(1)["owner"] is None
    assert take(other, "w2")["owner"] == "w2"


def test_a_released_round_is_taken_at_once_and_costs_no_attempt(store):
    asked = store.request_round()
    take(store, "w1")
    store.release_round(asked, "w1")
    assert take(store, "w2")["attempts"] == 1


def test_only_the_owner_can_release_a_round(store):
    asked = store.request_round()
    take(store, "w1")
    store.release_round(asked, "w2")
    assert take(store, "w2") is None


def test_metrics_of_a_round_are_merged(store):
    asked = store.request_round()
    take(store)
    store.update_round(asked, "w1", metrics={"votes": 3, "kl": 1.0})
    store.update_round(asked, "w1", metrics={"kl": 2.0})
    assert store.last_round()["metrics"] == {"votes": 3, "kl": 2.0}


def test_a_repeated_step_replaces_its_point(store):
    asked = store.request_round()
    for value in (1.0, 2.0):
        store.add_metrics(asked, 1, {"kl": value})
    store.add_metrics(asked, 2, {"kl": 3.0})
    assert store.metrics(asked) == {"kl": [(1, 2.0), (2, 3.0)]}


def test_a_round_remembers_which_votes_it_used(store):
    cast(store)
    cast(store)
    asked = store.request_round()
    for _ in range(2):  # a resumed round collects again
        store.record_used_votes(asked, [(1, False), (2, True)])
    assert store.rows("select * from vote_use order by vote") == [
        {"round": asked, "vote": 1, "heldout": 0},
        {"round": asked, "vote": 2, "heldout": 1},
    ]


# -- commands of an admin


def test_a_command_waits_for_the_round_to_obey(store):
    store.request_round()
    row = take(store)
    for command in ("pause", None, "stop"):
        store.set_round_command(row["id"], command)
        assert store.round_command(row["id"]) == command and store.round(row["id"])["state"] == "running"


def test_a_round_that_nobody_has_begun_stops_at_once(store):
    asked = store.request_round()
    store.set_round_command(asked, "stop")
    assert (store.round(asked)["state"], store.round(asked)["reason"]) == ("failed", STOPPED)
    assert take(store) is None


@pytest.mark.parametrize(("command", "said"), [("pause", "to pause"), ("stop", "to stop"), (None, "to resume")])
def test_without_a_round_there_is_nothing_to_command(store, command, said):
    with pytest.raises(StoreError, match=said):
        store.set_round_command(1, command)


def test_settings_of_the_next_rounds_are_kept_and_taken_back(store):
    who = store.annotator("admin")
    store.override({"ppo.kl_target": 4.0, "round.auto": False}, who)
    store.override({"ppo.kl_target": 5.0, "seed": None}, who)
    assert store.overrides() == {"round.auto": False, "ppo.kl_target": 5.0}
    store.override({"ppo.kl_target": None, "round.auto": None}, who)
    assert store.overrides() == {}


def test_rounds_are_listed_newest_first_with_the_version_they_made(store):
    version = published(store)
    store.request_round()
    assert [(r["id"], r["state"], r["version"], r["policy_status"]) for r in store.rounds()] == [
        (2, "requested", None, None),
        (1, "published", version, "live"),
    ]
    assert store.rounds(limit=1)[0]["metrics"] == {}
