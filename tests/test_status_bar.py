"""The line above the tabs: what it says in every state of a round, how much time is left, and how often it is read."""

import inspect
import json

import pytest

from playground.models import trial
from playground.models.trial import Tally
from playground.store import STOPPED, Store
from playground.system.messages import Message
from playground.ui import round_state, round_summary, status_bar
from playground.ui.loop_status import LoopStatus, TimeLeft
from playground.ui.phases import PART_TEXTS, phase_progress, phases_html
from playground.ui.quick_gradio import gradio as gr
from playground.ui.status_bar import StatusBar, status_html
from tests import rounds
from tests.controls import Engine
from tests.stores import cast
from tests.test_training_page import ZH, W, now, settings, store, tab  # noqa: F401 (fixtures)
from training import evidence, round_models
from training import round as training_round


def test_the_strip_counts_votes_before_the_first_round(store, settings):
    rounds.votes(store, 5)
    html = status_html(now(store, settings), W)
    assert "Vote on 11 more replies and I start learning" in html and "5 of 16 new votes" in html
    assert "v0 (base)" in html and "再给 11 个回答投票" in status_html(now(store, settings), ZH)
    assert "Vote on 16 replies and I start learning" in status_html(now(Store(), settings), W)
    assert "给 16 个回答投票" in status_html(now(Store(), settings), ZH)


def test_a_version_on_trial_says_how_it_goes_and_how_it_ended(tab, store, settings):
    rounds.published(store, settings)
    row = rounds.published(store, settings, trial=True)
    for choice, versions in (
        ("a", (2, 1)),
        ("b", (1, 2)),
        ("a", (1, 2)),
        ("tie", (1, 2)),
        ("a", (2, 0)),
        ("a", (2, 2)),
    ):
        cast(store, choice, versions=versions)
    status = now(store, settings, version=2)
    assert "v2: preferred to v1 in 2 of 3 pairs (on trial)" in status_html(status, W)
    assert "3 组中有 2 组" in status_html(status, ZH)
    summary = tab._round_contents(store.round(row["id"]) | {"version": 2}, status, W, False)["summary"]
    assert "2 / 3" in summary and "probability that people prefer it" in summary
    store.end_trial(2, "kept", trial.reason("kept", Tally(8, 1), 1))
    assert "v2 is live: people preferred it to v1 in 8 of 9 pairs." in status_html(now(store, settings, 2), W)


def test_a_version_that_was_rolled_back_says_why(store, settings):
    rounds.published(store, settings, trial=True)
    store.end_trial(1, "rolled_back", trial.reason("rolled_back", Tally(2, 9), 0))
    html = status_html(now(store, settings), W)
    assert "v1 was rolled back: people preferred v0 (base) in 9 of 11 pairs, so v0 (base) answers again." in html


def test_where_training_is_on_demand_the_strip_promises_nothing(store, settings):
    html = status_html(now(store, settings.with_values(round={"auto": False})), W)
    assert "on demand" in html and "start learning" not in html


@pytest.mark.parametrize(
    "forecasts, said, said_in_chinese",
    [
        ([0.6] * 15, "Vote A or B on about 15 more replies: not enough evidence yet", "再给大约 15 个回答投 A 或 B"),
        ([0.3] * 15, "Vote A or B on more replies: the votes do not agree with each other yet", "投票之间并不一致"),
        ([], "Vote A or B on more replies: not enough evidence yet", "请给更多回答投 A 或 B：证据还不够"),
    ],
)
def test_after_too_little_evidence_the_strip_begins_with_what_to_do(store, settings, forecasts, said, said_in_chinese):
    """It began with figures, and what to do was cut."""
    row = rounds.begun(store)
    so_far = evidence.fortune(forecasts)
    reason = evidence._reason(19, 12, so_far, needed=so_far[-1] ** 2)  # as many forecasts again
    store.end_round(row["id"], "w1", "not_enough", reason)
    html = status_html(now(store, settings), W)
    assert f'title="{reason}">{said}<' in html
    assert said_in_chinese in status_html(now(store, settings), ZH)


@pytest.mark.parametrize(
    "reason",
    [
        Message(
            "Nothing left to learn from these votes: {ties} of {n} on the current version's replies are ties.",
            ties=20,
            n=20,
        ),
        Message(
            "Nothing left to learn from these votes: {hits} of {n} on the current version's replies could be forecast.",
            hits=28,
            n=60,
        ),
        Message("Raise gate.kl_budget."),
    ],
    ids=str,
)
def test_a_round_that_more_votes_do_not_help_says_why_it_ended(store, settings, reason):
    row = rounds.begun(store)
    store.end_round(row["id"], "w1", "not_enough", reason)
    html = status_html(now(store, settings), W)
    assert "Vote A or B" not in html and f">{reason}<".replace("'", "&#x27;") in html


def test_without_a_worker_the_strip_says_what_a_round_waits_for(store, settings):
    """It said "I start learning"."""
    alone = now(store, settings.with_values(worker=False))
    assert "a worker learns from them once one runs" in status_html(alone, W)
    assert "start learning" not in status_html(alone, W) and "训练进程一运行" in status_html(alone, ZH)
    assert "on demand" in status_html(now(store, settings.with_values(worker=False, round={"auto": False})), W)


def test_what_an_admin_changed_is_what_the_strip_counts_to(store, settings):
    store.override({"round.votes": 4}, store.annotator("admin"))
    assert "0 of 4 new votes" in status_html(now(store, settings), W)


def test_a_round_is_told_step_by_step(store, settings):
    store.request_round()
    assert "waiting for the worker" in status_html(now(store, settings), W)
    row = rounds.begun(store)
    store.update_round(row["id"], "w1", phase="reward", step=62, steps=100)
    assert "Round 1: reward model" in status_html(now(store, settings), W) and ">62%<" in status_html(
        now(store, settings), W
    )
    rounds.curves(store, row, 6)
    html = status_html(now(store, settings), W)
    assert (
        "PPO" in html and "6 of 12 · reward 0.93 ↑ · KL 3.00" in html and "width:50%" in html and "min left" not in html
    )
    store.update_round(row["id"], "w1", metrics={"phase_began": 1000.0, "phase_from": 0})
    assert "about 5 min left" in status_html(now(store, settings, read_at=1300.0), W)
    store.update_round(row["id"], "w1", metrics={"phase_began": 1000.0, "phase_from": 3})
    assert "about 10 min left" in status_html(now(store, settings, read_at=1300.0), W), (
        "a round that was resumed has its pace from where it resumed"
    )
    store.set_round_command(row["id"], "pause")
    html = status_html(now(store, settings, read_at=1300.0), W)
    assert "Round 1: Pausing as soon as it can…" in html and "min left" not in html and 'class="strip running"' in html
    store.update_round(row["id"], "w1", metrics={"paused": True})
    html = status_html(now(store, settings, read_at=1300.0), W)
    assert "Round 1: PPO, paused" in html and "min left" not in html and 'class="strip paused"' in html


def test_a_command_to_pause_is_no_pause_until_the_worker_says_so(store, settings):
    """The page said "Paused" for the minutes that a step goes on, and "running" in the list."""
    row = rounds.running(store)

    def shown():
        found = store.rounds()[0]
        return round_state.displayed_state(found), phase_progress(found)["ppo"], round_summary.summary_html(found, W)

    store.update_round(row["id"], "w1", metrics={"paused": True})  # by a worker that was killed in an earlier pause
    assert shown()[:2] == ("running", "now")
    store.update_round(row["id"], "w1", metrics={"paused": False})
    store.set_round_command(row["id"], "pause")
    assert shown()[:2] == ("running", "now") and "Pausing as soon as it can…" in shown()[2]
    store.update_round(row["id"], "w1", metrics={"paused": True})
    assert shown()[:2] == ("paused", "paused") and '"outcome paused">PPO, paused<' in shown()[2]
    assert round_summary.timeline_entry(store.rounds()[0], W).startswith("‖ Round 1 · paused")
    store.set_round_command(row["id"], None)
    assert shown()[:2] == ("running", "now")
    store.set_round_command(row["id"], "pause")
    assert shown()[:2] == ("running", "now"), "it has gone on meanwhile, whether or not its worker has said so"


def test_the_time_left_is_the_whole_rounds_once_a_round_before_says_how_long_the_phases_take(store, settings):
    """It was the phase's alone, and read as the round's."""

    def left(read_at):
        return now(store, settings, read_at=read_at).time_left

    row = rounds.running(store, steps=6)
    store.update_round(row["id"], "w1", metrics={"phase_began": 1000.0})
    assert left(1300.0) == TimeLeft(5.0, of_round=False)
    assert "about 5 min left of this step" in status_html(now(store, settings, read_at=1300.0), W)
    store.end_round(row["id"], "w1", "failed", STOPPED)
    rounds.published(store, settings)
    assert "Round 2 took 3.9 min" in round_summary.pace_html(now(store, settings), W)
    row = rounds.running(store, steps=6)
    assert round_summary.pace_html(now(store, settings), W) == ""
    store.update_round(row["id"], "w1", metrics={"phase_began": 1000.0})
    assert left(1300.0).of_round and left(1300.0).minutes == pytest.approx(5 + 22 / 60)
    store.update_round(row["id"], "w1", phase="reward", step=0, steps=0, metrics={"phase_began": 2000.0})
    assert left(2011.0).minutes == pytest.approx((20 + 180 + 22) / 60), "before its first step: as the one before"
    assert left(2100.0).minutes == pytest.approx((180 + 22) / 60)
    store.end_round(row["id"], "w1", "failed", STOPPED)
    longer = rounds.begun(store, {"ppo.iterations": 80})
    store.update_round(longer["id"], "w1", phase="reward", metrics={"phase_began": 2000.0})
    assert left(2011.0) is None, "with other settings it takes another time"


def test_the_time_left_is_none_that_another_kind_of_round_took(store, settings):
    def left(read_at, **config):
        with store.writing() as db:
            db.execute("update round set config = ? where state = 'running'", [json.dumps({**rounds.CONFIG, **config})])
        return now(store, settings, read_at=read_at).time_left

    rounds.published(store, settings)
    row = rounds.begun(store)
    store.update_round(row["id"], "w1", phase="reward", metrics={"phase_began": 2000.0})
    assert left(2011.0).minutes == pytest.approx((20 + 180 + 22) / 60)
    assert left(1000.0).minutes == pytest.approx((31 + 180 + 22) / 60), "the clock was set back"
    for odd in ({"chat.reply_tokens": 20}, {"threads": 64}, {"sft.epochs": 100}, {"ppo.new": 1}):
        assert left(2011.0, **odd) is None
    store.update_round(row["id"], "w1", metrics={"left_gpu": "…"})
    assert left(2011.0) is None, "the round before trained on a GPU"
    store.update_round(row["id"], "w1", metrics={"left_gpu": ""})
    assert left(2011.0) is not None
    store.set_round_command(row["id"], "stop")
    assert left(2011.0) is None
    store.end_round(row["id"], "w1", "failed", STOPPED)
    row = store.take_fine_tuning("w", "file.jsonl", lease_seconds=30, config=rounds.CONFIG)
    store.update_round(row["id"], "w", phase="sft", metrics={"phase_began": 2000.0})
    assert left(2011.0) is None, "it has no PPO"


def test_a_round_that_was_resumed_says_nothing_of_how_long_one_takes(store, settings):
    rounds.published(store, settings)
    with store.writing() as db:
        db.execute("update round set metrics = json_set(metrics, '$.phase_from', 7)")
    assert now(store, settings).last_whole_round is None


def test_the_time_left_only_falls_while_a_step_goes_on(store, settings):
    """A step of minutes counted as if it had been part of those before it: 6, 7, 8, 9 min left, and done."""
    row = rounds.running(store, steps=2)  # of 12
    store.update_round(row["id"], "w1", metrics={"phase_began": 1000.0, "step_seconds": 240.0})
    lefts = [now(store, settings, read_at=1000.0 + seconds).time_left.minutes for seconds in (240, 300, 540, 3600)]
    assert lefts == [20.0, 19.0, 15.0, 0.0]
    store.update_round(row["id"], "w1", metrics={"part": "ppo: rollouts"})
    html = status_html(now(store, settings), W)
    assert "2 of 12 · writing replies · reward" in html
    store.set_round_command(row["id"], "pause")
    assert "writing replies" not in status_html(now(store, settings), W)


def test_a_trial_without_a_vote_says_so(tab, store, settings):
    """It said "preferred in 0 of 0 pairs", in green."""
    rounds.published(store, settings)
    rounds.published(store, settings, trial=True)
    html = status_html(now(store, settings, version=2), W)
    assert "v2 is on trial against v1: no pair is judged yet" in html and "0 of 0" not in html


def test_a_share_of_few_votes_says_of_how_many(store):
    row = rounds.running(store)
    store.update_round(row["id"], "w1", metrics={"heldout_pairs": 2})
    html = round_summary.summary_html(store.last_round(), W)
    assert "<span>reward model on 2 held-out votes</span>" in html
    assert "<span>time of the finished steps</span>" not in html


def test_what_a_phase_does_before_it_has_steps_is_told(store, settings):
    """The first round read 16 votes for minutes: it loaded and tested the model."""
    row = rounds.begun(store)
    store.update_round(row["id"], "w1", metrics={"part": "test policy"})
    assert "reading the votes" in status_html(now(store, settings), W)
    assert "testing the model" in status_html(now(store, settings), W)
    assert "正在检查模型" in status_html(now(store, settings), ZH)
    for part in (None, "gate: draws"):
        store.update_round(row["id"], "w1", metrics={"part": part})
        assert '<span class="detail"></span>' in status_html(now(store, settings), W)


def test_the_parts_that_the_page_knows_are_those_of_a_round():
    source = inspect.getsource(round_models) + inspect.getsource(training_round)
    assert all(f'part("{part}")' in source for part in PART_TEXTS)


def test_a_round_that_an_admin_stopped_is_no_error_and_its_votes_are_kept(store, settings):
    row = rounds.running(store)
    store.end_round(row["id"], "w1", "failed", STOPPED)
    html = status_html(now(store, settings), W)
    assert "An admin stopped round 1." in html and 'class="strip stopped"' in html
    assert "the next round learns from them too" in round_summary.summary_html(store.last_round(), W)


def test_edited_replies_are_no_step_of_a_round_without_any(store):
    row = rounds.running(store)
    assert phase_progress(row)["sft"] == "to-come", "it is not known yet"
    assert phase_progress(store.last_round())["sft"] == "left-out"
    html = phases_html(store.last_round(), W)
    assert '<li class="left-out"><i role="img" aria-label="nothing to do">–</i><span>edited replies<small>none' in html
    store.update_round(row["id"], "w1", metrics={"demonstrations": 2})
    assert phase_progress(store.last_round())["sft"] == "done"


def test_the_end_of_a_round_is_told_with_its_reason(store, settings):
    rounds.published(store, settings)
    assert "v1 is live." in status_html(now(store, settings, version=1), W)
    assert "v1 is published and is being loaded." in status_html(now(store, settings, version=0), W)
    store.reject_live(1, "<NaN>", 0)
    assert "v1 could not be loaded: &lt;NaN&gt;" in status_html(now(store, settings), W)
    rounds.refused(store, settings)
    assert "over" not in status_html(now(store, settings), W) and "it moved too far from the base" in status_html(
        now(store, settings), W
    )
    assert "离基础模型太远" in status_html(now(store, settings), ZH) and "61.3" in status_html(now(store, settings), ZH)
    rounds.failed(store)
    assert "ValueError in phase reward." in status_html(now(store, settings), W) and "odd" not in status_html(
        now(store, settings), W
    ), "an error may quote a person"


def test_everybody_who_looks_within_a_second_is_served_by_one_read(store, settings):
    reads = []
    shared = StatusBar.__new__(StatusBar)
    with gr.Blocks():
        shared.__init__(settings, store, Engine)
    read, LoopStatus.read = LoopStatus.read, classmethod(lambda cls, *a: reads.append(1) or read(*a))
    try:
        assert shared.status() is shared.status() and len(reads) == 1
        shared.invalidate()
        shared.status()
        assert len(reads) == 2
    finally:
        LoopStatus.read = read


def test_an_unchanged_store_is_not_read_again(store, settings, monkeypatch):
    """200 rounds took a tenth of a core, second by second, for a page on which nothing changed."""
    reads, read = [], LoopStatus.read
    monkeypatch.setattr(LoopStatus, "read", classmethod(lambda cls, *a: reads.append(1) or read(*a)))
    monkeypatch.setattr(status_bar, "FRESH_SECONDS", -1.0)
    engine = type("E", (Engine,), {"live": type("P", (), {"version": 0})})
    with gr.Blocks():
        shared = StatusBar(settings, store, engine)
    rounds.running(store)
    first, seen = shared.status(), shared.changes()
    later = shared.status()
    assert len(reads) == 1 and later.read_at > first.read_at and later.rounds is first.rounds
    assert shared.changes() == seen
    engine.live.version = 1
    assert shared.status().live_version == 1 and shared.changes()["loop"] != seen["loop"] and len(reads) == 1
    rounds.votes(store, 1)
    assert shared.status().new_votes == 1 and len(reads) == 2
    shared.invalidate()
    assert shared.status() and len(reads) == 3
    monkeypatch.setattr(status_bar, "LONGEST_SECONDS", 0.0)
    assert shared.status() and len(reads) == 4, "a write that its files do not show is seen after a while"
