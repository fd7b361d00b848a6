"""An admin's commands to a running round: pause, resume, stop. Changed settings reach the next rounds; a round keeps
its log and its times.
"""

import threading
import time

import pytest

from playground.models import loading
from playground.store import STOPPED, Store, is_paused
from tests.test_loop import liking, settings_for, wait_until
from training import simulate
from training.annotators import Person
from training.round_control import RoundControl
from training.worker import run_once, with_overrides


@pytest.fixture(scope="module")
def voted(tmp_path_factory):
    """Settings whose store holds 16 votes on the tiny model's replies."""
    settings = settings_for(
        tmp_path_factory.mktemp("voted"),
        round={"lease_seconds": 1.0, "poll_seconds": 0.05},
        ppo={"iterations": 6, "kl_target": 1e9},
        gate={"better": 0.01, "not_worse": 0.01},
        reward={"evidence_confidence": 0, "features": "layers"},
    )
    store = Store(settings.database)
    votes = simulate.SimulateSettings.like(settings, votes=16)
    simulate.make_duels(
        store,
        votes,
        loading.load_trunk(settings),
        loading.load_tokenizer(settings),
        {"liking": Person(lambda prompt, reply: liking(reply))},
        log=lambda text: None,
    )
    return settings, store


class Worker:
    """`run_once` in a thread."""

    def __init__(self, settings, store, owner):
        self.thread = threading.Thread(target=lambda: run_once(store, settings, owner))
        self.thread.start()

    def ended(self):
        self.thread.join(120)
        return not self.thread.is_alive()


def in_ppo(store, step):
    row = store.last_round()
    return row["phase"] == "ppo" and row["step"] >= step


def test_a_paused_round_waits_keeps_its_lease_and_continues_where_it_was(voted):
    settings, store = voted
    asked = store.request_round()
    worker = Worker(settings, store, "w1")
    wait_until(lambda: in_ppo(store, 2), 60)
    store.set_round_command(asked, "pause")
    wait_until(lambda: "is paused" in log(settings, asked), 30)
    wait_until(lambda: is_paused(store.round(asked)), 30)
    step = store.round(asked)["step"]
    time.sleep(2 * settings.round.lease_seconds)
    assert store.round(asked)["step"] == step
    assert store.take_round("thief", lease_seconds=settings.round.lease_seconds) is None, (
        "the heartbeat goes on while it waits"
    )
    store.set_round_command(asked, None)
    assert worker.ended()
    row = store.round(asked)
    assert row["state"] in ("published", "refused"), row["reason"]
    assert [n for n, _ in store.metrics(asked)["reward"]] == [1, 2, 3, 4, 5, 6]
    assert row["metrics"]["paused"] is False and row["metrics"]["part"] is None
    assert {"collect", "sft", "reward", "ppo", "gate"} <= row["metrics"]["phase_seconds"].keys()
    assert 0 < row["metrics"]["phase_seconds"]["ppo"] < 120
    assert "goes on after a pause" in log(settings, asked) and "ppo 6 of 6" in log(settings, asked)


class Ends(RoundControl):
    """A round whose process is told to end in the middle of its first phase."""

    def run_phase(self, phase):
        self.show_part("loading")
        time.sleep(0.05)
        raise SystemExit

    def drop_models(self):
        pass


def test_a_phase_that_a_process_did_not_end_has_the_seconds_of_both(tmp_path):
    """It had those of the second process alone."""
    settings, store = settings_for(tmp_path), Store()
    store.request_round()
    for attempt in (1, 2):
        row = store.take_round("w", lease_seconds=1)
        with pytest.raises(SystemExit):
            Ends(store, settings, row, "w").run()
        assert store.last_round()["metrics"]["phase_seconds"]["collect"] >= 0.05 * attempt


def test_a_stopped_round_ends_at_its_next_step_and_the_next_one_runs_with_what_was_changed(voted):
    settings, store = voted
    asked = store.request_round()
    worker = Worker(settings, store, "w1")
    wait_until(lambda: in_ppo(store, 1), 60)
    store.set_round_command(asked, "stop")
    assert worker.ended()
    row = store.round(asked)
    assert (row["state"], row["reason"]) == ("failed", STOPPED) and row["step"] < 6
    store.override({"ppo.iterations": 1, "ppo.epochs": 1}, store.annotator("admin"))
    asked = store.request_round()
    row = run_once(store, settings, "w1")
    assert row["id"] == asked and row["config"]["ppo.iterations"] == 1 and len(store.metrics(asked)["reward"]) == 1
    store.override({"ppo.iterations": None, "ppo.epochs": None}, store.annotator("admin"))


def test_a_worker_that_takes_a_paused_round_over_waits_too_and_obeys_a_stop(voted):
    settings, store = voted
    asked = store.request_round()
    store.take_round("dead worker", lease_seconds=1)
    store.set_round_command(asked, "pause")
    time.sleep(1.1)
    worker = Worker(settings, store, "w2")
    wait_until(lambda: "is paused" in log(settings, asked), 30)
    assert store.round(asked)["owner"] == "w2" and store.round(asked)["phase"] == "collect"
    store.set_round_command(asked, "stop")
    assert worker.ended() and store.round(asked)["reason"] == STOPPED


def test_automatic_rounds_can_be_turned_off_and_need_as_many_votes_as_was_set(voted):
    settings, store = voted
    admin = store.annotator("admin")
    store.override({"round.auto": False, "round.votes": 1}, admin)
    assert with_overrides(store, settings).round.auto is False
    with store.writing() as db:
        db.execute("update round set last_vote = 0")
    last = store.last_round()["id"]
    assert store.new_votes() == 16 and run_once(store, settings, "w") is None and store.last_round()["id"] == last
    store.override({"round.auto": None, "round.votes": 17}, admin)
    assert run_once(store, settings, "w") is None
    store.override({"round.votes": None}, admin)


def test_a_change_that_does_not_fit_any_more_is_left_out(voted, caplog):
    settings, store = voted
    admin = store.annotator("admin")
    store.override({"ppo.kl_target": -4}, admin)
    assert with_overrides(store, settings) is settings and "ppo.kl-target" in caplog.text
    store.override({"ppo.kl_target": None}, admin)


def log(settings, round_id):
    file = settings.rounds_dir / f"{round_id:04d}" / "log.txt"
    return file.read_text() if file.exists() else ""
