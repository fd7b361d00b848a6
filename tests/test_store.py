"""The store: schema, conversations, votes, rounds, policies, and several writers at once."""

import multiprocessing
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from playground.store import LeaseLost, Store, StoreError

BASE = "base hash"


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def file_store(tmp_path):
    return Store(tmp_path / "data" / "nudge.db")


def candidate(seed, policy=0, base_hash=BASE):
    return {"policy": policy, "base_model": "tiny", "base_hash": base_hash, "template_hash": "t", "sampling": {"temperature": 1.0}, "seed": seed}


def outcome(text, ids, reason="end"):
    return {"text": text, "seed": 7, "token_ids": ids, "logprobs": [-0.123456789] * len(ids), "finish_reason": reason, "first_token_ms": 5.0, "total_ms": 9.0}


def duel(store, who, conversation=None, text="Hello", base_hash=BASE):
    """A finished duel; returns its row."""
    conversation = conversation or store.new_conversation(who)
    d = store.start_duel(conversation, text, [1, 2, 3], [candidate(1, base_hash=base_hash), candidate(2, base_hash=base_hash)])
    store.finish_duel(d, [outcome("left", [4, 2]), outcome("right", [5, 2])])
    return store.duel(d)


def cast(store, choice="a", who=None, conversation=None, base_hash=BASE):
    """A duel and a vote on it; returns the duel's row."""
    who = who or store.annotator("somebody")
    row = duel(store, who, conversation, base_hash=base_hash)
    store.vote(row["id"], who, choice, row["left" if choice != "b" else "right"]["message"])
    return row


def take(store, owner="w1", lease_seconds=30, **more):
    return store.take_round(owner, lease_seconds=lease_seconds, **more)


def published(store, owner="w1", report=None):
    """Run a round to its publication; returns the version."""
    store.request_round()
    row = take(store, owner)
    version = store.add_policy(row["id"], owner, parent=store.live_policy()["version"])
    store.publish(row["id"], owner, version, f"adapters/v{version:04d}", "abc", report or {})
    return version


# -- the file

def test_migrations_are_applied_once_and_recorded(file_store):
    recorded = file_store.rows("select name, applied_at from _sqlite_migrations")
    assert [r["name"] for r in recorded] == ["0001_initial", "0002_forecast"]
    assert Store(Path(file_store.path)).rows("select name, applied_at from _sqlite_migrations") == recorded


def test_a_second_open_changes_nothing(file_store, tmp_path):
    who = file_store.annotator("somebody")
    before = file_store.rows("select * from sqlite_master"), file_store.rows("select * from policy")
    again = Store(tmp_path / "data" / "nudge.db")
    assert (again.rows("select * from sqlite_master"), again.rows("select * from policy")) == before
    assert again.annotator("somebody") == who


def test_a_new_store_has_version_0_live(store):
    assert store.live_policy()["version"] == 0 and store.live_policy()["path"] is None


def test_the_journal_is_a_write_ahead_log_that_waits_for_the_disk(file_store):
    assert file_store.row("pragma journal_mode")["journal_mode"] == "wal"
    assert file_store.row("pragma synchronous")["synchronous"] == 2


def test_foreign_keys_are_on(store):
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        store.new_conversation(annotator=12345)


def test_foreign_keys_are_on_in_every_thread(file_store):
    seen = []
    thread = threading.Thread(target=lambda: seen.append(file_store.row("pragma foreign_keys")["foreign_keys"]))
    thread.start()
    thread.join()
    assert seen == [1]


def test_a_write_that_fails_leaves_nothing_behind(store):
    with pytest.raises(ZeroDivisionError), store.writing() as db:
        db["annotator"].insert({"kind": "local", "created": "now"})
        1 / 0  # noqa: B018
    assert store.rows("select * from annotator") == []


def test_the_store_can_write_again_after_a_failed_write(store):
    with pytest.raises(sqlite3.IntegrityError):
        store.new_conversation(annotator=12345)
    assert store.new_conversation(store.annotator("somebody")) == 1


# -- people and conversations

def test_a_cookie_is_one_annotator_and_is_not_stored(store):
    assert store.annotator("secret") == store.annotator("secret") != store.annotator("other")
    assert "secret" not in str(store.rows("select * from annotator"))


def test_the_newest_conversation_that_was_not_deleted_is_current(store):
    who = store.annotator("somebody")
    first, second = store.new_conversation(who), store.new_conversation(who)
    assert store.conversation(who)["id"] == second
    with store.writing() as db:
        db.execute("update conversation set deleted = 'now' where id = ?", [second])
    assert store.conversation(who)["id"] == first


def test_history_runs_from_the_first_message_to_the_tail_without_rejected_siblings(store):
    who = store.annotator("somebody")
    conversation = store.new_conversation(who)
    cast(store, "b", who, conversation)
    cast(store, "a", who, conversation)
    assert [(m["role"], m["text"]) for m in store.history(conversation)] == [
        ("user", "Hello"), ("assistant", "right"), ("user", "Hello"), ("assistant", "left")]


# -- duels

def test_both_candidates_share_one_prompt(store):
    duel(store, store.annotator("somebody"))
    duel(store, store.annotator("somebody"))
    assert len(store.rows("select * from prompt")) == 1
    assert {g["prompt"] for g in store.rows("select prompt from generation")} == {1}


def test_a_duel_is_recorded_before_its_first_token(store):
    who = store.annotator("somebody")
    d = store.start_duel(store.new_conversation(who), "Hello", [1], [candidate(1), candidate(2)])
    row = store.duel(d)
    assert (row["left"]["status"], row["right"]["status"], row["user_text"], row["annotator"]) == ("streaming", "streaming", "Hello", who)


def test_a_finished_duel_keeps_its_sides_apart(store):
    row = duel(store, store.annotator("somebody"))
    assert (row["left"]["text"], row["right"]["text"], row["left"]["status"], row["left"]["tokens"]) == ("left", "right", "complete", 2)


def test_replies_that_still_stream_after_a_restart_are_errors(store):
    who = store.annotator("somebody")
    conversation = store.new_conversation(who)
    done = duel(store, who, conversation)
    broken = store.start_duel(conversation, "Hello", [1], [candidate(1), candidate(2)])
    assert store.fail_streaming() == 2
    assert store.duel(broken)["left"]["status"] == "error"
    assert store.last_duel(conversation)["id"] == done["id"]


def test_an_unknown_duel_is_none(store):
    assert store.duel(99) is None and store.last_duel(99) is None


# -- votes

def test_a_changed_vote_supersedes_the_earlier_one_and_keeps_both_rows(store):
    who = store.annotator("somebody")
    row = duel(store, who)
    first = store.vote(row["id"], who, "a", row["left"]["message"])
    second = store.vote(row["id"], who, "b", row["right"]["message"])
    assert [(v["id"], v["choice"], v["superseded_by"]) for v in store.rows("select * from vote order by id")] == [
        (first, "a", second), (second, "b", None)]
    assert store.current_vote(row["id"], who)["id"] == second


def test_a_changed_vote_changes_what_the_conversation_goes_on_with(store):
    who = store.annotator("somebody")
    row = duel(store, who)
    store.vote(row["id"], who, "a", row["left"]["message"])
    store.vote(row["id"], who, "b", row["right"]["message"])
    assert [m["text"] for m in store.history(row["conversation"])] == ["Hello", "right"]


def test_a_vote_is_refused_once_the_conversation_went_on(store):
    """The prompt of every later turn was made with the first choice."""
    who = store.annotator("somebody")
    row = cast(store, "a", who)
    store.start_duel(row["conversation"], "And then?", [1], [candidate(1), candidate(2)])
    with pytest.raises(StoreError, match="The conversation has gone on since; this vote can no longer be changed."):
        store.vote(row["id"], who, "b", row["right"]["message"])
    assert store.current_vote(row["id"], who)["choice"] == "a"


def test_an_unknown_choice_is_refused(store):
    row = duel(store, store.annotator("somebody"))
    with pytest.raises(StoreError, match="A vote is one of a, b, tie, both_bad, skip; got 'c'."):
        store.vote(row["id"], 1, "c", None)


def test_a_vote_on_an_unknown_duel_is_refused(store):
    with pytest.raises(sqlite3.IntegrityError):
        store.vote(99, store.annotator("somebody"), "a", None)


def test_one_current_vote_for_a_duel_and_annotator_is_enforced_by_the_file(store):
    row = cast(store)
    with pytest.raises(sqlite3.IntegrityError), store.writing() as db:
        db["vote"].insert({"duel": row["id"], "annotator": row["annotator"], "choice": "b", "created": "now"})


def test_votes_come_back_with_the_ids_of_prompt_and_replies(store):
    row = cast(store, "b")
    [vote] = store.votes_for_training(BASE)
    assert (vote["prompt"], vote["left_ids"], vote["right_ids"], vote["choice"]) == ([1, 2, 3], [4, 2], [5, 2], "b")
    assert (vote["conversation"], vote["duel"], vote["annotator"]) == (row["conversation"], row["id"], row["annotator"])


def test_votes_on_another_base_model_are_left_out(store):
    cast(store, base_hash="other")
    assert store.votes_for_training(BASE) == []


@pytest.mark.parametrize("change", [
    "update annotator set allow_training = 0", "update annotator set banned = 1", "update conversation set deleted = 'now'"])
def test_votes_that_may_not_be_used_are_left_out(store, change):
    cast(store)
    with store.writing() as db:
        db.execute(change)
    assert store.votes_for_training(BASE) == [] and store.new_votes() == 0


def test_skipped_and_superseded_votes_teach_nothing(store):
    cast(store, "skip")
    row = cast(store, "a")
    store.vote(row["id"], row["annotator"], "tie", row["left"]["message"])
    assert [v["choice"] for v in store.votes_for_training(BASE)] == ["tie"]


def test_a_changed_thumb_supersedes_the_earlier_one(store):
    row = cast(store)
    for thumb in (1, -1):
        store.rate(row["left"]["message"], row["annotator"], thumb)
    assert [r["thumb"] for r in store.ratings_for_training(BASE)] == [-1]
    assert len(store.rows("select * from rating")) == 2


def test_an_edited_reply_keeps_before_and_after(store):
    row = cast(store)
    store.demonstrate(row["left"]["message"], row["annotator"], "better")
    assert store.row("select before, after from demonstration") == {"before": "left", "after": "better"}
    [edit] = store.demonstrations(BASE)
    assert (edit["after"], edit["prompt"], edit["completion"]) == ("better", [1, 2, 3], [4, 2])


# -- counting votes towards a round

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
    store.end_round(take(store, auto_votes=1)["id"], "w1", "not_enough", "why")
    assert take(store, auto_votes=1) is None


# -- rounds

def test_asking_for_a_round_twice_asks_once(store):
    assert store.request_round() == store.request_round()


def test_asking_while_a_round_runs_gives_that_round(store):
    asked = store.request_round()
    take(store)
    assert store.request_round() == asked and len(store.rows("select * from round")) == 1


def test_asking_after_a_round_ended_gives_a_new_one(store):
    asked = store.request_round()
    take(store)
    store.end_round(asked, "w1", "failed", "why")
    assert store.request_round() == asked + 1


def test_nothing_to_do_is_none(store):
    assert take(store) is None and store.last_round() is None and store.round(1) is None


def test_taking_a_round_records_its_config_and_seed(store):
    store.request_round()
    row = take(store, config={"port": 1}, seed=7)
    assert (row["state"], row["owner"], row["phase"], row["config"], row["seed"], row["attempts"]) == ("running", "w1", "collect", {"port": 1}, 7, 1)


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
    store.end_round(asked, "w1", "failed", "why")
    with pytest.raises(LeaseLost, match=f"round {asked} is failed"):
        store.update_round(asked, "w1", step=1)


def test_an_unknown_round_is_a_lost_lease(store):
    with pytest.raises(LeaseLost, match="round 9 does not exist"):
        store.update_round(9, "w1", step=1)


def test_every_update_renews_the_lease(store):
    asked = store.request_round()
    first = take(store)["heartbeat"]
    time.sleep(0.01)
    store.update_round(asked, "w1", step=3)
    assert store.round(asked)["heartbeat"] > first


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
        store.use_votes(asked, [(1, False), (2, True)])
    assert store.rows("select * from vote_use order by vote") == [
        {"round": asked, "vote": 1, "heldout": 0}, {"round": asked, "vote": 2, "heldout": 1}]


# -- policies

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
        db.execute("create trigger fail before update of state on round when new.state = 'published' begin select raise(abort, 'crash'); end")
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
    store.refuse(asked, "w1", version, "path", "abc", {}, "worse")
    assert published(store) == version + 1


def test_a_refused_version_is_kept_with_the_reason_and_the_live_one_stays(store):
    asked = store.request_round()
    take(store)
    version = store.add_policy(asked, "w1", parent=0)
    store.refuse(asked, "w1", version, "path", "abc", {"gain": -1}, "worse")
    assert (store.policy(version)["status"], store.policy(version)["reason"], store.policy(version)["path"]) == ("rejected", "worse", "path")
    assert store.live_policy()["version"] == 0
    assert (store.last_round()["state"], store.last_round()["reason"]) == ("refused", "worse")


def test_a_live_version_that_cannot_be_loaded_is_rejected_and_the_fallback_goes_on(store):
    version = published(store)
    store.reject_live(version, "bad file", fallback=0)
    assert (store.policy(version)["status"], store.policy(version)["reason"], store.live_policy()["version"]) == ("rejected", "bad file", 0)


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


# -- several writers at once

def test_threads_that_write_at_once_lose_nothing(file_store):
    """A deferred transaction that reads and then writes fails at once when another wrote in between."""
    errors = []

    def write(name):
        try:
            who = file_store.annotator(name)
            conversation = file_store.new_conversation(who)
            for _ in range(5):
                cast(file_store, "a", who, conversation)
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=write, args=(f"person {i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and len(file_store.votes_for_training(BASE)) == 20


def test_threads_share_a_store_in_memory(store):
    errors = []

    def write(name):
        try:
            cast(store, "a", store.annotator(name))
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=write, args=(f"person {i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and len(store.votes_for_training(BASE)) == 8


def open_and_write(path, name, start, answers):
    try:
        start.wait()
        store = Store(path)
        for _ in range(5):
            cast(store, "a", store.annotator(name))
        answers.put(None)
    except Exception as error:  # noqa: BLE001
        answers.put(repr(error))


@pytest.mark.parametrize("attempt", range(5))  # one start in three failed while the switch to WAL was not locked
def test_processes_that_open_a_new_file_and_write_at_once_do_not_fail(tmp_path, attempt):
    """The server and the worker both migrate at start-up: unlocked, more than half of such starts died of 'table annotator already
    exists' or 'database is locked'."""
    fork = multiprocessing.get_context("fork")
    start, answers = fork.Barrier(4), fork.Queue()
    processes = [fork.Process(target=open_and_write, args=(tmp_path / "nudge.db", f"person {i}", start, answers)) for i in range(4)]
    for process in processes:
        process.start()
    assert [answers.get(timeout=60) for _ in processes] == [None] * 4
    for process in processes:
        process.join()
    assert len(Store(tmp_path / "nudge.db").votes_for_training(BASE)) == 20


def test_one_of_two_workers_gets_the_round(file_store):
    file_store.request_round()
    taken = []
    threads = [threading.Thread(target=lambda name=name: taken.append(take(file_store, name))) for name in ("w1", "w2", "w3")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(row is not None for row in taken) == 1


def test_a_pair_of_more_than_two_is_recorded_as_it_was_picked(store):
    who = store.annotator("ann")
    d = store.start_duel(store.new_conversation(who), "Hello", [1], [candidate(1), candidate(2)])
    store.finish_duel(d, [{**outcome("left", [4, 2]), "seed": 3}, {**outcome("right", [5, 2]), "seed": 4}], pairing="active", probability=0.25)
    row = store.row("select * from duel where id = ?", d)
    assert (row["pairing"], row["probability"]) == ("active", 0.25)
    assert [store.row("select seed from generation where id = ?", row[side])["seed"] for side in ("left_generation", "right_generation")] == [3, 4]
