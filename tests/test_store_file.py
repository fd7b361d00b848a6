"""The file itself: schema, connections, transactions, several writers at once."""

import hashlib
import json
import multiprocessing
import re
import sqlite3
import threading
from pathlib import Path

import pytest
import sqlite_utils

from playground.settings import Settings, overridden
from playground.store import Store
from playground.store.migrations import migrations
from tests.stores import BASE, cast, file_store, store, take  # noqa: F401 (fixtures)

COMMENT = re.compile(r"--[^\n]*")
# `schema` after each migration; a line that is there never changes, since databases have run it
SCHEMAS = {
    "0001_initial": "bfa0eae92b3f",
    "0002_forecast": "45673fdae919",
    "0003_gestures": "ae70f85ace20",
    "0004_beat": "863cca0698a4",
    "0005_early_votes": "e063d6f371a7",
    "0006_erasure": "bcb181bab6ac",
    "0007_report": "bcb181bab6ac",
    "0008_settings": "bcb181bab6ac",
    "0009_trial": "a0c6556242dc",
    "0010_asked": "4a192c372df8",
    "0011_policy_event": "87e106de9757",
    "0012_data": "5a514d2b5293",
    "0013_api_key": "cd2d53c63e73",
    "0014_edited": "63675ed8bd9e",
    "0015_sign_in": "8f610a169be1",
    "0016_base": "a8d9e2115e3e",
    "0017_dialogue": "1065582e3d4b",
    "0018_features": "1065582e3d4b",
    "0019_queue": "14ba205bf6c1",
    "0021_origin": "4abcc5938aaa",
    "0022_provider": "0cb25e9aa844",
    "0023_changed_vote": "bf7962d38d46",
}


def schema(db: sqlite_utils.Database) -> str:
    """Hash of all tables and indexes, without comments and line breaks."""
    rows = db.query("select name, sql from sqlite_master where sql is not null order by type, name")
    texts = {row["name"]: COMMENT.sub("", row["sql"]).split() for row in rows if not row["name"].startswith("_sqlite")}
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12]


def test_migrations_are_applied_once_and_recorded(file_store):
    recorded = file_store.rows("select name, applied_at from _sqlite_migrations")
    assert [r["name"] for r in recorded] == list(SCHEMAS)
    assert Store(Path(file_store.path)).rows("select name, applied_at from _sqlite_migrations") == recorded


def test_a_migration_does_what_it_did_when_it_was_new():
    """Two columns had moved from the 19th into the 21st, which databases that had run the 19th refused."""
    db = sqlite_utils.Database(memory=True)
    for name, following in zip(SCHEMAS, [*list(SCHEMAS)[1:], None], strict=True):
        migrations.apply(db, stop_before=following)
        assert schema(db) == SCHEMAS[name], name


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
    """The server and the worker both migrate at start-up: unlocked, more than half of such starts died of 'table
    annotator already exists' or 'database is locked'."""
    fork = multiprocessing.get_context("fork")
    start, answers = fork.Barrier(4), fork.Queue()
    processes = [
        fork.Process(target=open_and_write, args=(tmp_path / "nudge.db", f"person {i}", start, answers))
        for i in range(4)
    ]
    for process in processes:
        process.start()
    assert [answers.get(timeout=60) for _ in processes] == [None] * 4
    for process in processes:
        process.join()
    assert len(Store(tmp_path / "nudge.db").votes_for_training(BASE)) == 20


def test_one_of_two_workers_gets_the_round(file_store):
    file_store.request_round()
    taken = []
    threads = [
        threading.Thread(target=lambda name=name: taken.append(take(file_store, name))) for name in ("w1", "w2", "w3")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(row is not None for row in taken) == 1


def test_a_file_of_before_the_gestures_shows_what_it_showed(tmp_path):
    """Chats from before migration 3 have no pair on screen recorded; the page showed the newest with texts."""
    path = tmp_path / "nudge.db"
    old = sqlite_utils.Database(path)
    migrations.apply(old, stop_before="0003_gestures")
    old["annotator"].insert({"id": 1, "token_hash": "x", "kind": "anonymous", "created": "2026-01-01T00:00:00.000Z"})
    old["conversation"].insert({"id": 1, "annotator": 1, "created": "2026-01-01T00:00:00.000Z"})
    old["prompt"].insert({"id": 1, "sha256": "p", "token_ids": "[1]"})
    for n, status in ((0, "complete"), (1, "error")):
        user, left, right = (3 * n + i for i in (1, 2, 3))
        old["message"].insert(
            {"id": user, "conversation": 1, "role": "user", "text": f"Turn {n}", "status": "complete", "created": "x"}
        )
        for reply in (left, right):
            old["message"].insert(
                {
                    "id": reply,
                    "conversation": 1,
                    "parent": user,
                    "role": "assistant",
                    "text": "r",
                    "status": status,
                    "created": "x",
                }
            )
            old["generation"].insert(
                {
                    "id": reply,
                    "message": reply,
                    "prompt": 1,
                    "policy": 0,
                    "base_model": "m",
                    "base_hash": BASE,
                    "template_hash": "t",
                    "sampling": "{}",
                    "seed": 1,
                    "token_ids": "[1]",
                }
            )
        old["duel"].insert(
            {
                "id": n + 1,
                "conversation": 1,
                "user_message": user,
                "left_generation": left,
                "right_generation": right,
                "pairing": "same_policy",
                "probability": 1.0,
                "created": "x",
            }
        )
    old.close()
    store = Store(path)
    assert store.shown_duel(1)["id"] == 1
    assert store.conversation(1)["opened"] == store.conversation(1)["created"]
    assert [c["title"] for c in store.conversations(1)] == ["Turn 0"]


def test_a_file_of_before_the_groups_keeps_what_admins_changed_and_what_rounds_ran_with(tmp_path):
    """Settings were one flat list: `kl_target`, `ppo_lr`, `round_votes`."""
    path = tmp_path / "nudge.db"
    old = sqlite_utils.Database(path)
    migrations.apply(old, stop_before="0008_settings")
    created = "2026-01-01T00:00:00.000Z"
    old["annotator"].insert({"id": 1, "token_hash": "x", "kind": "anonymous", "created": created})
    for name, value in (("kl_target", "4.0"), ("auto_train", "false"), ("start_from", '"live"')):
        old["override"].insert({"name": name, "value": value, "annotator": 1, "created": created})
    flat = {"port": 7860, "data_dir": "data", "seed": 3, "ppo_lr": 1e-3, "kl_target": 4.0, "temperature": 0.9}
    for state, config in (("published", json.dumps(flat)), ("running", json.dumps(flat)), ("failed", None)):
        old["round"].insert({"state": state, "phase": "ppo", "config": config, "created": created})
    old.close()
    store = Store(path)
    assert store.overrides() == {"ppo.kl_target": 4.0, "round.auto": False, "round.start_from": "live"}
    now = {"port": 7860, "data_dir": "data", "seed": 3, "ppo.lr": 1e-3, "ppo.kl_target": 4.0, "chat.temperature": 0.9}
    assert [row["config"] for row in store.rounds()] == [{}, now, now]
    assert overridden(Settings(_env_file=None), store.overrides()).ppo.kl_target == 4.0


def test_a_file_of_before_the_feature_sets_keeps_which_one_an_admin_chose(tmp_path):
    """The setting was called `reward.view`."""
    path = tmp_path / "nudge.db"
    old = sqlite_utils.Database(path)
    migrations.apply(old, stop_before="0018_features")
    created = "2026-01-01T00:00:00.000Z"
    old["annotator"].insert({"id": 1, "token_hash": "x", "kind": "anonymous", "created": created})
    old["override"].insert({"name": "reward.view", "value": '"words"', "annotator": 1, "created": created})
    with_it, without = {"seed": 3, "reward.view": "words"}, {"seed": 3}
    for state, config in (("running", with_it), ("failed", without), ("failed", None)):
        old["round"].insert(
            {"state": state, "phase": "ppo", "config": config and json.dumps(config), "created": created}
        )
    old.close()
    store = Store(path)
    assert store.overrides() == {"reward.features": "words"}
    assert [row["config"] for row in store.rounds()] == [{}, without, {"seed": 3, "reward.features": "words"}]
    assert overridden(Settings(_env_file=None), store.overrides()).reward.features == "words"
