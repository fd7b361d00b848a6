"""What people take back leaves every byte under the data folder, whenever the processes die, and a running round begins
again without it.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from playground.settings import Settings
from playground.store import Store, StoreError
from playground.store.reasons import broken
from playground.system import safe_logging
from playground.system.messages import plain
from tests.stores import BASE, candidate, cast, outcome, take
from training import erase
from training.erase import Eraser
from training.round import Round
from training.round_control import BeginsAgain

ROOT = Path(__file__).parent.parent
MARK = "Ottokar's secret"
IDS = [90210, 90211, 90212]  # what the mark is in tokens
TRACES = (MARK, "90210, 90211", "90210,90211")


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path / "data", device="cpu", _env_file=None)


@pytest.fixture
def store(settings):
    return Store(settings.database)


def say(store, who, text=MARK, ids=IDS, prompt=None, conversation=None):
    """A chat that has `text` and `ids` wherever a chat can have them; the duel's row."""
    conversation = conversation or store.new_conversation(who, text)
    duel = store.start_duel(conversation, text, prompt or [*ids, 7], [candidate(1), candidate(2)])
    store.finish_duel(duel, [outcome(text, ids), outcome(f"{text} too", [*ids, 1])])
    row = store.duel(duel)
    vote = store.vote(duel, who, "a", row["left"]["message"])
    store.explain(vote, who, [text], text)
    store.rate(row["left"]["message"], who, 1)
    store.demonstrate(row["left"]["message"], who, text)
    return row


NOW = broken("ValueError", "reward", MARK).dumps()
EARLIER = f"ValueError in phase reward: {MARK}"  # as earlier versions stored it


def round_over(store, settings, state="failed", reason=NOW):
    """A round that has read every chat there is, and left what the rounds of earlier versions left."""
    store.request_round()
    row = take(store)
    store.record_read_conversations(row["id"])
    store.record_used_votes(row["id"], [(vote["vote"], False) for vote in store.votes_for_training(BASE)])
    folder = erase.folder_of(settings, row["id"])
    folder.mkdir(parents=True)
    (folder / "preferences.json").write_text(json.dumps({"replies": [[IDS, IDS]]}))
    (folder / "gate.json").write_text(
        json.dumps(
            {
                "gain": 1.0,
                "samples": [
                    {"prompt": "Name a river.", "new": "a", "live": "b", "shipped": True},
                    {"prompt": MARK, "new": MARK, "live": MARK, "shipped": False},
                ],
            }
        )
    )
    (folder / "log.txt").write_text(
        f"2026-01-01 10:00:00 round 1: collect\nTraceback (most recent call last):\nValueError: {MARK}\n"
    )
    for name in ("ppo.pt", "reward.safetensors", "gate.json.partial"):
        (folder / name).write_text(MARK)
    if state == "published":
        version = store.add_policy(row["id"], "w1", parent=0)
        store.publish(row["id"], "w1", version, "nowhere", "abc", {})
    elif state:
        store.update_round(row["id"], "w1", state=state, reason=reason)
    return row["id"]


def caches(settings):
    """What the worker keeps of replies between rounds: theirs, and one of somebody else."""
    names = {
        who: erase.reply_name(reply) for who, reply in (("theirs", ([*IDS, 7], IDS)), ("other", ([1, 2, 3], [4, 2])))
    }
    folder = settings.data_dir / "features" / "k"
    folder.mkdir(parents=True)
    for name in names.values():
        np.save(folder / f"{name}.npy", np.zeros(3))
    head = settings.data_dir / "reward" / "base.safetensors"
    head.parent.mkdir()
    head.write_text("[90210, 90211]")
    return {who: folder / f"{name}.npy" for who, name in names.items()}


def traces(settings):
    """(file, trace) of every trace in the raw bytes of any file."""
    files = [file for file in settings.data_dir.rglob("*") if file.is_file()]
    return [(file.name, trace) for file in files for trace in TRACES if trace.encode() in file.read_bytes()]


def test_a_deleted_chat_leaves_no_byte_in_any_file(store, settings):
    """It stayed in preferences.json, in the gate's samples and in the database's pages; SQLite leaves copies where it
    had moved a row from.
    """
    ann, bob = store.annotator("ann"), store.annotator("bob")
    rows = []
    for i in range(60):  # so many that pages are split and rows are moved
        row = say(store, ann, f"{MARK} {i} " * (1 + i % 40))
        rows.append(row["conversation"])
        cast(store, who=bob)
    round_over(store, settings, "published")
    cached = caches(settings)
    assert {name for name, _ in traces(settings)} >= {"preferences.json", "gate.json", "log.txt", "base.safetensors"}
    for conversation in rows:
        store.delete_conversation(conversation, ann)
    assert not any(
        MARK in str(store.rows(f"select * from {table}"))
        for table in ("message", "prompt", "generation", "vote", "demonstration", "conversation")
    )
    assert Eraser(store, settings).step()
    assert traces(settings) == []
    assert store.unfinished_erasures() == []
    report = json.loads((erase.folder_of(settings, 1) / "gate.json").read_text())
    assert report["gain"] == 1.0 and [s["prompt"] for s in report["samples"]] == ["Name a river."], (
        "what is not theirs stays"
    )
    assert not cached["theirs"].exists() and cached["other"].exists()
    assert len(store.votes_for_training(BASE)) == 60 and store.vote_totals(ann) == {
        "votes": 0,
        "published": 0,
        "waiting": 0,
        "listed": 60,
    }
    assert store.learned_versions(ann) == [1] and store.learned_versions(bob) == [1]
    assert (
        store.row("pragma integrity_check")["integrity_check"] == "ok" and store.rows("pragma foreign_key_check") == []
    )


def test_a_prompt_that_somebody_else_used_too_stays_theirs(store):
    ann, bob = store.annotator("ann"), store.annotator("bob")
    mine = say(store, ann, prompt=[5, 6])
    theirs = say(store, bob, prompt=[5, 6])
    store.delete_conversation(mine["conversation"], ann)
    assert [vote["prompt"] for vote in store.votes_for_training(BASE)] == [[5, 6]]
    store.delete_conversation(theirs["conversation"], bob)
    assert "5,6" not in str(store.rows("select * from prompt"))


def test_a_reply_that_comes_in_behind_the_deletion_is_not_kept(store):
    ann = store.annotator("ann")
    conversation = store.new_conversation(ann)
    duel = store.start_duel(conversation, MARK, IDS, [candidate(1), candidate(2)])
    store.delete_conversation(conversation, ann)
    store.finish_duel(duel, [outcome(MARK, IDS)] * 2)
    assert MARK not in str(store.rows("select * from message")) and "90210" not in str(
        store.rows("select * from generation")
    )
    with pytest.raises(StoreError, match="deleted"):
        store.start_duel(conversation, MARK, IDS, [candidate(1), candidate(2)])
    assert store.conversation(ann) is None


def test_nobody_can_comment_on_a_deleted_chat(store):
    ann = store.annotator("ann")
    row = say(store, ann)
    store.delete_conversation(row["conversation"], ann)
    with pytest.raises(StoreError):
        store.explain(1, ann, comment=MARK)


def test_everything_of_a_person_goes_and_the_cookie_leads_to_nobody(store, settings):
    ann, bob = store.annotator("ann"), store.annotator("bob")
    say(store, ann), say(store, ann)
    kept = say(store, bob, "Bob's own", [1, 2, 3])
    store.sign_in(ann, "Ottokar's secret name", 2e9)
    token = store.share(kept["conversation"], bob)
    store.forget(ann)
    assert store.annotator("ann") != ann and store.signed_in(ann) is None and store.conversations(ann) == []
    Eraser(store, settings).step()
    assert traces(settings) == []
    assert store.shared(token) and [vote["annotator"] for vote in store.votes_for_training(BASE)] == [bob]
    assert len(store.rows("select * from vote")) == 3, "how many votes there were stays true"


def test_a_person_with_a_key_leaves_neither_name_nor_what_programs_sent_along(store, settings):
    ann = store.add_key(f"{MARK} name", "a key")
    chat = store.begin_with(ann, [("user", MARK), ("assistant", f"{MARK} indeed")])
    say(store, ann, conversation=chat["id"])
    store.forget(ann)
    Eraser(store, settings).step()
    assert traces(settings) == [] and store.person_of_key("a key") is None


@pytest.mark.parametrize("reason", [NOW, EARLIER])
def test_no_to_training_clears_what_rounds_kept_and_can_be_taken_back(reason, store, settings):
    ann = store.annotator("ann")
    say(store, ann)
    round_over(store, settings, reason=reason)
    cached = caches(settings)
    store.allow_training(ann, False)
    assert store.votes_for_training(BASE) == [] and store.new_votes() == 0 and store.vote_totals(ann)["waiting"] == 0
    assert Eraser(store, settings).step()
    assert {name for name, _ in traces(settings)} == {"nudge.db"}
    assert str(store.last_round()["reason"]) == "ValueError in phase reward."
    assert not cached["theirs"].exists(), "the chat itself is still there"
    store.allow_training(ann, True)
    assert len(store.votes_for_training(BASE)) == 1


def test_what_an_earlier_version_only_hid_is_erased(tmp_path):
    """Deletion hid a chat and left its texts; the samples of old rounds do not say whose they are, and stood in the
    database too, in the report of the version.
    """
    import sqlite_utils

    from playground.store.migrations import migrations

    settings = Settings(data_dir=tmp_path / "data", _env_file=None)
    store = Store(settings.database)
    row = say(store, store.annotator("ann"))
    round_id = round_over(store, settings, "")
    samples = {"samples": [{"prompt": MARK, "new": "x", "live": "y"}]}
    version = store.add_policy(round_id, "w1", parent=0)
    store.publish(round_id, "w1", version, "nowhere", "abc", {"gain": 1.0, **samples})
    file = erase.folder_of(settings, round_id) / "gate.json"
    file.write_text(json.dumps(samples))
    db = sqlite_utils.Database(str(settings.database))
    for statement in (
        "drop table queue_task",
        "drop table queued_prompt",
        "drop index duel_repeats",
        "alter table duel drop column repeats",
        "alter table annotator drop column left_out",
        "drop table base",
        "alter table conversation drop column dialogue",
        "drop table sign_in",
        "drop index annotator_account",
        "alter table annotator drop column account",
        "alter table annotator drop column provider_role",
        "drop table api_key",
        "drop table erasure",
        "drop table trial",
        "drop table policy_event",
        "alter table policy drop column withdrawn",
        "alter table round drop column asked",
        "drop table imported",
        "drop table origin",
        "alter table vote drop column excluded",
        "drop index vote_replaced",
        "alter table vote drop column changed",
        "alter table demonstration drop column edited",
        "drop table round_conversation",
        "drop index generation_prompt",
        f"update conversation set deleted = 'then' where id = {row['conversation']}",
        "delete from _sqlite_migrations where name >= '0006_erasure'",
    ):
        db.execute(statement)
    db.conn.commit()
    migrations.apply(db)
    db.conn.commit()
    assert Eraser(store, settings).step()
    assert traces(settings) == [] and json.loads(file.read_text()) == {"samples": []}
    assert json.loads(store.live_policy()["gate_report"]) == {"gain": 1.0}


# -- nothing is forgotten when a process dies


@pytest.mark.parametrize("at", ["blank_deleted", "scrub", "finish_erasures"])
def test_an_eraser_killed_anywhere_is_followed_by_one_that_finishes(store, settings, at):
    row = say(store, store.annotator("ann"))
    round_over(store, settings)
    store.delete_conversation(row["conversation"], row["annotator"])
    command = [sys.executable, "-m", "tests.killed_eraser", at]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **settings.environ()}, check=False)
    assert done.returncode == -signal.SIGKILL and len(store.unfinished_erasures()) == 1
    assert Eraser(store, settings).step() and traces(settings) == [] and store.unfinished_erasures() == []


def test_while_somebody_reads_the_log_the_erasure_stays_asked_for(store, settings, monkeypatch):
    monkeypatch.setattr(erase, "PATIENCE", 0.1)
    row = say(store, store.annotator("ann"))
    reader = Store(settings.database).db
    reader.execute("begin")
    reader.execute("select * from message").fetchall()
    store.delete_conversation(row["conversation"], row["annotator"])
    eraser = Eraser(store, settings)
    assert not eraser.step() and len(store.unfinished_erasures()) == 1
    reader.execute("rollback")
    assert not eraser.step(), "it rests, so that many deletions do not hold up the chat"
    eraser._not_before = 0
    assert eraser.step() and traces(settings) == []


def test_a_round_that_has_ended_keeps_no_votes_whatever_came_between(store, settings):
    say(store, store.annotator("ann"))
    for state in ("published", "failed", None):
        round_over(store, settings, state)
    Eraser(store, settings).tidy()
    left = {int(f.parent.name): f for f in settings.rounds_dir.rglob("preferences.json")}
    assert set(left) == {3}, "a round that runs needs them"
    assert all((erase.folder_of(settings, n) / "gate.json").exists() for n in (1, 2))


# -- a round that runs


class Light(Round):
    """A round whose phases are quick: `script` is called in PPO."""

    script = staticmethod(lambda this: None)

    def _collect(self):
        erase.remove_all_but_log(self.folder)
        self.store.record_read_conversations(self.id)
        votes = self.store.votes_for_training(BASE)
        self.store.record_used_votes(self.id, [(vote["vote"], False) for vote in votes])
        (self.folder / "preferences.json").write_text(json.dumps([vote["left_ids"] for vote in votes]))

    def _ppo(self):
        (self.folder / "ppo.pt").write_text(MARK)
        self.script(self)
        self.progress(1, 2, {"reward": 1.0})

    def _nothing(self):
        pass

    _sft = _reward = _gate = _nothing

    def _publish(self):
        self.end("refused", plain("It was no better."))


def run_light(store, settings, script):
    from training.worker import run_once

    store.request_round()
    return run_once(store, settings, "w", kind=type("Scripted", (Light,), {"script": staticmethod(script)}))


@pytest.mark.parametrize("how", ["delete", "refuse", "forget"])
def test_a_running_round_begins_again_without_a_chat_that_is_taken_back(store, settings, how):
    ann, bob = store.annotator("ann"), store.annotator("bob")
    mine = say(store, ann)
    say(store, bob, "Bob's own", [1, 2, 3])
    gestures = {
        "delete": lambda: store.delete_conversation(mine["conversation"], ann),
        "refuse": lambda: store.allow_training(ann, False),
        "forget": lambda: store.forget(ann),
    }
    seen = []

    def script(this):
        seen.append([use["vote"] for use in store.rows("select vote from vote_use where round = ?", this.id)])
        if len(seen) == 1:
            gestures[how]()

    row = run_light(store, settings, script)
    assert seen == [[1, 2], [2]], "it has read them, and then only the other one"
    assert row["state"] == "refused" and [use["vote"] for use in store.rows("select * from vote_use")] == [2]
    assert store.learned_versions(ann) == []
    folder = erase.folder_of(settings, row["id"])
    assert "begins again" in (folder / "log.txt").read_text()
    Eraser(store, settings).step()
    assert store.unfinished_erasures() == [] and [name for name, _ in traces(settings) if how != "refuse"] == []


def test_a_chat_that_a_round_has_not_read_leaves_it_alone(store, settings):
    ann = store.annotator("ann")
    say(store, store.annotator("bob"), "Bob's own", [1, 2, 3])
    calls = []

    def script(this):
        calls.append(1)
        store.delete_conversation(say(store, ann)["conversation"], ann)

    row = run_light(store, settings, script)
    assert calls == [1] and store.unfinished_erasures() == [], "it is erased while the round runs"
    assert "begins again" not in (erase.folder_of(settings, row["id"]) / "log.txt").read_text()


def test_a_worker_killed_between_the_row_and_the_files_is_followed_by_a_round_without_the_old_ones(store, settings):
    """The checkpoint of PPO on the votes taken back would have been gone on from."""
    ann = store.annotator("ann")
    row = say(store, ann)
    store.request_round()
    this = Light(store, settings, take(store, "w"), "w")
    this._collect()
    (this.folder / "ppo.pt").write_text(MARK)
    store.update_round(this.id, "w", phase="ppo")
    store.delete_conversation(row["conversation"], ann)
    assert not Eraser(store, settings).step(), "the round must begin again first"
    store.begin_again(this.id, "w")  # and here it is killed
    resumed = Light(store, settings, store.round(this.id), "w")
    assert resumed.phase == "collect" and not store.must_begin_again(this.id)
    resumed._collect()
    assert not (this.folder / "ppo.pt").exists()
    assert Eraser(store, settings).step() and traces(settings) == []


def test_a_paused_round_begins_again_at_once(store, settings):
    row = say(store, store.annotator("ann"))
    store.request_round()
    this = Light(store, settings, take(store, "w"), "w")
    this._collect()
    store.set_round_command(this.id, "pause")
    store.delete_conversation(row["conversation"], row["annotator"])
    with pytest.raises(BeginsAgain):
        this.obey()
    assert list(this.folder.iterdir()) == [] and store.round(this.id)["phase"] == "collect"


# -- what an error says


def test_an_error_that_may_quote_a_person_is_said_by_its_place(caplog):
    try:
        int(MARK)
    except ValueError as error:
        assert safe_logging.describe_error(error).startswith(
            "ValueError in test_erasure.py, line "
        ) and MARK not in safe_logging.describe_error(error)
    assert (
        safe_logging.describe_error(FileNotFoundError(2, "No such file", "x.bin"))
        == "FileNotFoundError: [Errno 2] No such file: 'x.bin'"
    )
    assert safe_logging.describe_error(StoreError("This is ours.")) == "StoreError: This is ours."


def test_a_round_that_breaks_on_a_persons_text_quotes_it_nowhere(store, settings):
    say(store, store.annotator("ann"), "Bob's own", [1, 2, 3])

    def script(this):
        try:
            json.loads("{")
        except ValueError:
            raise KeyError(MARK)  # noqa: B904 (the first one is to be told too)

    row = run_light(store, settings, script)
    assert (
        row["state"] == "failed"
        and str(row["reason"]).startswith("KeyError in test_erasure.py, line ")
        and str(row["reason"]).endswith(" in phase ppo.")
    )
    log = (erase.folder_of(settings, row["id"]) / "log.txt").read_text()
    assert (
        "Traceback" in log
        and "JSONDecodeError in decoder.py" in log
        and MARK not in log.replace("raise KeyError(MARK)", "")
    )
