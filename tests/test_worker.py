"""When rounds run, and that a worker killed anywhere loses nothing but time."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from playground import models
from playground.store import Store
from tests.test_loop import liking, settings_for
from training import simulate
from training.annotators import Person
from training.round import PHASES
from training.worker import MAX_ATTEMPTS, run_once

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def voted(tmp_path_factory):
    """Settings whose store holds 40 votes on the tiny model's replies, one demonstration, and no round yet."""
    settings = settings_for(tmp_path_factory.mktemp("voted"), lease_seconds=1.0, poll_seconds=0.2, ppo_iterations=3, kl_target=30.0, gate_confidence=0.2)
    store = Store(settings.database)
    votes = simulate.SimulateSettings(**{**settings.model_dump(), "votes": 40})
    tokenizer, trunk = models.load_tokenizer(settings), models.load_trunk(settings)
    simulate.make_duels(store, votes, trunk, tokenizer, {"liking": Person(lambda prompt, reply: liking(reply))}, log=lambda text: None)
    store.demonstrate(store.duel(1)["left"]["message"], store.duel(1)["annotator"], "You are here, and this is a good answer.")
    return settings, store


def worker(settings, *command):
    return subprocess.run([sys.executable, "-m", *command, "--once"], cwd=ROOT, env={**os.environ, **settings.environ()},
                          capture_output=True, text=True, timeout=300)


def test_a_worker_killed_in_each_phase_is_followed_by_one_that_goes_on(voted):
    settings, store = voted
    for phase in PHASES:
        done = worker(settings, "tests.crashing_worker", phase)
        assert done.returncode == -signal.SIGKILL, done.stderr
        row = store.last_round()
        assert (row["id"], row["state"], row["phase"]) == (1, "running", phase)
        assert store.live_policy()["version"] == 0
        time.sleep(settings.lease_seconds)
    assert [step for step, _ in store.metrics(1)["reward"]] == [1, 2, 3]

    done = worker(settings, "training.worker")
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
    assert "0 votes" in row["reason"]


def test_a_round_that_breaks_is_failed_with_its_reason_and_the_next_one_can_run(tmp_path):
    settings = settings_for(tmp_path).model_copy(update={"model": str(tmp_path / "nowhere")})
    store = Store(settings.database)
    store.request_round()
    row = run_once(store, settings, "w")
    assert row["state"] == "failed"
    assert "nowhere" in row["reason"]
    assert store.request_round() == row["id"] + 1


def test_a_round_that_kills_every_worker_is_given_up(tmp_path):
    """Regression: a worker that died at the start of a phase was followed by the next one for ever."""
    settings = settings_for(tmp_path, lease_seconds=0.01)
    store = Store(settings.database)
    store.request_round()
    for attempt in range(MAX_ATTEMPTS):
        assert store.take_round(f"w{attempt}", lease_seconds=0.01)
        time.sleep(0.02)
    row = run_once(store, settings, "last")
    assert row["state"] == "failed"
    assert "died 3 times" in row["reason"]
