"""When rounds run, and that a worker killed anywhere loses nothing but time."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

import training.worker
from playground.models import loading
from playground.store import Store, StoreLost, StoreUnavailable
from playground.system.messages import plain
from tests.test_loop import liking, settings_for
from training import simulate
from training.annotators import Person
from training.round_control import PHASES
from training.worker import MAX_ATTEMPTS, run_once, step

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def voted(tmp_path_factory):
    """Settings whose store holds 16 votes on the tiny model's replies, one demonstration, and no round yet."""
    settings = settings_for(
        tmp_path_factory.mktemp("voted"),
        round={"lease_seconds": 1.0, "poll_seconds": 0.2},
        ppo={"iterations": 3, "episodes": 32, "kl_target": 30.0},
        gate={"better": 0.01, "not_worse": 0.01, "prompts": 8},
        reward={"evidence_confidence": 0, "features": "layers"},
    )
    store = Store(settings.database)
    votes = simulate.SimulateSettings.like(settings, votes=16)
    tokenizer, trunk = loading.load_tokenizer(settings), loading.load_trunk(settings)
    simulate.make_duels(
        store, votes, trunk, tokenizer, {"liking": Person(lambda prompt, reply: liking(reply))}, log=lambda text: None
    )
    store.demonstrate(
        store.duel(1)["left"]["message"], store.duel(1)["annotator"], "You are here, and this is a good answer."
    )
    return settings, store


def worker(settings):
    return subprocess.run(
        [sys.executable, "-m", "training.worker", "--once"],
        cwd=ROOT,
        env={**os.environ, **settings.environ()},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_worker_killed_in_each_phase_is_followed_by_one_that_goes_on(voted):
    settings, store = voted
    command = [sys.executable, "-m", "tests.crashing_worker"]
    environ = {**os.environ, **settings.environ()}
    with subprocess.Popen(
        command, cwd=ROOT, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as workers:
        for phase in PHASES:
            workers.stdin.write(f"{phase}\n")
            workers.stdin.flush()
            assert workers.stdout.readline() == f"{-signal.SIGKILL}\n"
            row = store.last_round()
            assert (row["id"], row["state"], row["phase"]) == (1, "running", phase)
            assert store.live_policy()["version"] == 0  # the next worker waits until it has seen no beat for a lease
    assert [step for step, _ in store.metrics(1)["reward"]] == [1, 2, 3]

    done = worker(settings)
    assert done.returncode == 0, done.stderr
    assert "Round 1: published" in done.stdout
    assert store.live_policy()["version"] == 1
    assert len(store.rows("select 1 from policy")) == 2


def test_nothing_to_do_is_no_round(tmp_path):
    settings = settings_for(tmp_path)
    store = Store(settings.database)
    assert run_once(store, settings, "w") is None
    assert store.last_round() is None


def test_a_requested_round_without_votes_says_that_there_is_not_enough_evidence(tmp_path):
    settings = settings_for(tmp_path)
    store = Store(settings.database)
    store.request_round()
    row = run_once(store, settings, "w")
    assert row["state"] == "not_enough"
    assert "Votes so far: 0" in str(row["reason"])


def test_a_round_that_breaks_is_failed_with_its_reason_and_the_next_one_can_run(tmp_path):
    settings = settings_for(tmp_path).model_copy(update={"model": str(tmp_path / "nowhere")})
    store = Store(settings.database)
    store.request_round()
    row = run_once(store, settings, "w")
    assert row["state"] == "failed"
    assert "nowhere" in str(row["reason"])
    assert store.request_round() == row["id"] + 1


def test_a_round_that_kills_every_worker_is_given_up(tmp_path):
    """Regression: a worker that died at the start of a phase was followed by the next one for ever."""
    settings = settings_for(tmp_path, round={"lease_seconds": 0.01})
    store = Store(settings.database)
    store.request_round()
    for attempt in range(MAX_ATTEMPTS):
        assert store.take_round(f"w{attempt}", lease_seconds=0.01)
        time.sleep(0.02)
    row = run_once(store, settings, "last")
    assert row["state"] == "failed"
    assert "died 3 times" in str(row["reason"])


# -- a store that cannot answer


class Scripted:
    """A round that does what it is told when it runs."""

    def __init__(self, act):
        self.act = act

    def __call__(self, *_):
        return self

    def run(self):
        self.act()


class Idle:
    """A forecaster, or an eraser, with nothing to do."""

    def step(self):
        return False

    def rest(self):
        pass


def test_a_round_whose_database_is_gone_stays_where_it_is_and_the_worker_ends(tmp_path):
    """The round would have been ended as failed, in a file that is not there any more, with a traceback, again and
    again."""
    settings = settings_for(tmp_path)
    store = Store(settings.database)
    store.request_round()

    def moved_away():
        settings.database.rename(tmp_path / "elsewhere.db")
        store.last_round()

    with pytest.raises(StoreLost):
        run_once(store, settings, "w", kind=Scripted(moved_away))
    with pytest.raises(StoreLost):
        step(store, settings, "w", Idle(), Idle())
    done = worker(settings)
    assert done.returncode == 1 and "There is no database at" in done.stderr and "Traceback" not in done.stderr
    assert not settings.database.exists(), "no new one in its place"


def test_a_round_whose_database_is_locked_for_long_is_left_to_the_next_and_costs_no_attempt(tmp_path, monkeypatch):
    settings = settings_for(tmp_path)
    store = Store(settings.database, patience=0.1)
    store.request_round()
    other = sqlite3.connect(settings.database, isolation_level=None)
    monkeypatch.setattr(training.worker, "STORE_PAUSE", 0.01)

    def locked():
        other.execute("begin immediate")
        store.update_round(1, "w")

    with pytest.raises(StoreUnavailable):
        run_once(store, settings, "w", kind=Scripted(locked))
    assert store.last_round()["state"] == "running"
    assert step(store, settings, "w", Idle(), Idle()) is False, "it waits for the database"
    other.execute("rollback")
    row = run_once(store, settings, "w", kind=Scripted(lambda: store.end_round(1, "w", "failed", plain("told so"))))
    assert row["reason"] == plain("told so")
