"""The training and watch tabs in words and figures: every state of a round, the gate's checks, curves, samples, log,
limits.
"""

import json
import re

import pytest

from playground.people.visitor import COOKIE
from playground.settings import Settings
from playground.store import STOPPED, Store
from playground.system.messages import Message
from playground.ui import gatewords, round_state, round_summary, watch
from playground.ui.loop_status import LoopStatus, trial_of
from playground.ui.phases import PROGRESS_LABELS, SIGNS, phase_progress, phases_html
from playground.ui.quick_gradio import gradio as gr
from playground.ui.rounds import CURVES, Shown, TrainingTab
from playground.ui.status_bar import StatusBar, status_html
from playground.ui.words import Words
from tests import rounds
from tests.controls import OWNER, Engine, Request
from training import gate

W, ZH = Words(), Words("zh-CN")


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path, _env_file=None)


@pytest.fixture
def store():
    return Store()


class NoControl:
    """Stands in for the Control: one visitor is an admin."""

    def build_folds(self):
        pass

    def is_admin(self, request):
        return request.cookies[COOKIE] == OWNER


@pytest.fixture
def tab(settings, store):
    with gr.Blocks():
        return TrainingTab(settings, store, StatusBar(settings, store, Engine), NoControl())


def now(store, settings, version=0, **more):
    found = LoopStatus.read(settings, store, type("E", (), {"live": type("P", (), {"version": version})}))
    return LoopStatus(**{**{f: getattr(found, f) for f in found.__dataclass_fields__}, **more})


# -- the timeline and a round


def plots_of(html):
    """{id: HTML} of all plots."""
    return dict(re.findall(r'<figure class="plot" id="(.*?)">(.*?)</figure>', html))


def test_every_round_has_its_line_the_newest_first(tab, store, settings):
    rounds.not_enough(store), rounds.failed(store), rounds.refused(store, settings), rounds.published(store, settings)
    stopped = rounds.begun(store)
    store.end_round(stopped["id"], "w1", "failed", STOPPED)
    rounds.running(store)
    lines = [round_summary.timeline_entry(row, W).rsplit(" · ", 1)[0] for row in store.rounds()]
    assert lines == [
        "● Round 6 · running · votes: 64",
        "■ Round 5 · stopped",
        "✓ Round 4 · v2 published · votes: 64",
        "✗ Round 3 · v1 refused · votes: 64",
        "! Round 2 · failed",
        "– Round 1 · not enough evidence",
    ]
    assert "An admin stopped this round." in round_summary.summary_html(store.rounds()[1], W)


def test_a_fine_tuning_shows_both_losses_and_its_time(tab, store):
    """It said "0.0 minutes", and had no curve at all."""
    row = store.take_fine_tuning("w", "file.jsonl", lease_seconds=30)
    for step in range(1, 121):
        store.add_metrics(row["id"], step, {"sft_loss": 3 - step / 100})
    for step, loss in ((0, 3.0), (60, 2.5), (120, 2.25)):
        store.add_metrics(row["id"], step, {"sft_heldout_loss": loss})
    store.update_round(row["id"], "w", phase="gate", metrics={"phase_seconds": {"collect": 0.01, "sft": 2.4}})
    painted = tab.on_tick(Shown(), Request())
    html = painted[tab.curves]
    assert list(plots_of(html)) == ["curve-sft-loss"]
    training, heldout = re.findall(r'<g class="dots (.*?)</g>', html)
    assert training.count("<circle") == 60 and ">2: 2.99<" in training, "the mean of steps 1 and 2"
    assert re.findall("<title>(.*?)<", heldout) == ["0: 3", "60: 2.5", "120: 2.25"]
    assert "<b>2.4 s</b><span>time of the finished steps</span>" in painted[tab.summary]


def test_a_published_round_shows_all_that_is_known_of_it(tab, store, settings):
    row = rounds.published(store, settings)
    painted = tab.on_tick(Shown(), Request())
    summary = painted[tab.summary]
    assert all(
        text in summary for text in ("v1 was published.", "83% [61%, 94%]", "78% [67%, 86%]", "+1.10", "5.6", "64")
    )
    assert painted[tab.timeline].value == row["id"] and "collect" in painted[tab.log]
    shown = {f"curve-{key.replace('_', '-')}" for key in set(CURVES) - {"sft_loss"}}
    assert set(plots_of(painted[tab.curves])) == shown and painted[tab.gate].count("✓") == 9
    assert (
        "&lt;b&gt;that&lt;/b&gt;" in painted[tab.samples]
        and "<b>that" not in painted[tab.samples]
        and "How do I boil an egg?" in painted[tab.samples]
    )
    assert "You are helpful" not in painted[tab.samples], "the question, not the template"
    assert 'class="changed"' not in painted[tab.config] and "ppo.kl_target" in painted[tab.config]


STRANGER = ("y" * 43,)  # a cookie


def test_a_stranger_reads_shipped_prompts_and_neither_others_messages_nor_the_log(tab, store, settings):
    """Anybody could read other people's messages among the samples before and after, and a round's log."""
    row = rounds.published(store, settings)
    file = settings.rounds_dir / f"{row['id']:04d}" / "gate.json"
    mine = [
        {"prompt": "user\nOttokar's secret\nassistant\n", "new": "x", "live": "y", **mark}
        for mark in ({"shipped": False}, {}, {"shipped": "yes"})
    ]
    file.write_text(json.dumps({**rounds.REPORT, "samples": [*mine, *rounds.SAMPLES]}))
    seen = tab.on_tick(Shown(), Request(*STRANGER))
    assert "Ottokar" not in str(seen) and "collect" not in str(seen.get(tab.log)) and "boil an egg" in seen[tab.samples]
    admin = tab.on_tick(Shown(), Request())
    assert (
        admin[tab.samples].count("Ottokar") == 3
        and admin[tab.samples].count("seen by admins only") == 3
        and "collect" in admin[tab.log]
    )


def test_who_signs_out_or_names_an_admins_page_reads_no_more_than_a_stranger(tab, store, settings):
    """What was painted is kept under a name that the browser chooses."""
    rounds.published(store, settings)
    shown = Shown()
    assert "collect" in tab.on_tick(shown, Request())[tab.log]
    later = tab.on_tick(shown, Request(*STRANGER))
    assert later[tab.log] == "" and not later[tab.log_fold]["visible"], "what was there is taken away"
    assert "collect" not in str(later)


def test_what_an_error_said_is_for_admins(tab, store, settings):
    """A template's or a tokenizer's error may quote a message."""
    rounds.failed(store)
    assert "odd" not in str(tab.on_tick(Shown(), Request(*STRANGER))) and "&lt;odd&gt;" in str(
        tab.on_tick(Shown(), Request())
    )


def test_a_reason_that_an_earlier_version_stored_is_shown_in_english(store, settings):
    """It stored the English sentence, and of a round that broke the error's own words with it."""
    row = rounds.begun(store)
    store.update_round(row["id"], "w1", state="failed", reason="ValueError in phase reward: <odd>", ended="x")
    html = status_html(now(store, settings), ZH)
    assert "ValueError in phase reward." in html and "odd" not in html
    row = rounds.begun(store)
    store.update_round(row["id"], "w1", state="failed", reason="An admin stopped this round.", ended="x")
    assert round_state.displayed_state(store.last_round()) == "stopped"
    assert "管理员停止了第 2 轮训练。" in status_html(now(store, settings), ZH)
    rounds.refused(store, settings)
    text = "The new version was not published: it is {odd}."
    with store.writing() as db:
        db.execute("update round set reason = ? where state = 'refused'", [text])
    assert text in status_html(now(store, settings), ZH)


def test_a_rounds_steps_say_what_is_done_what_runs_and_where_it_ended(store, settings):
    signs = lambda row: "".join(SIGNS[kind] for kind in phase_progress(row).values())
    assert SIGNS.keys() == PROGRESS_LABELS.keys()
    assert signs(None) == "○○○○○○"
    store.request_round()
    assert signs(store.last_round()) == "○○○○○○"
    row = rounds.take(store, config=rounds.CONFIG)
    store.update_round(row["id"], "w1", phase="reward")
    assert signs(store.round(row["id"])) == "✓–●○○○"
    store.end_round(
        row["id"], "w1", "not_enough", Message("Not enough evidence yet. Votes so far: {n}; vote on more replies.", n=1)
    )
    assert signs(store.round(row["id"])) == "✓–✗○○○"
    stopped = {**store.round(row["id"]), "state": "failed", "reason": STOPPED}
    assert signs(stopped) == "✓–■○○○", "what an admin stopped has not failed"
    assert signs({**store.round(row["id"]), "phase": "publish", "state": "refused"}) == "✓–✓✓✗○", (
        "it is published as refused, and was refused by the gate"
    )
    done = {
        **store.round(row["id"]),
        "phase": "publish",
        "state": "published",
        "metrics": {"phase_seconds": {"collect": 0.4, "reward": 31.0, "ppo": 180.0}},
    }
    assert (
        signs(done) == "✓–✓✓✓✓"
        and "31 s" in phases_html(done, W)
        and "3.0 min" in phases_html(done, W)
        and "0 s" not in phases_html(done, W)
    )


def test_a_summary_says_how_many_imported_pairs_were_learned_from(store):
    """It stood in the round's log alone."""
    row = rounds.begun(store)
    store.update_round(row["id"], "w1", metrics={"votes": 9, "imported": 0})
    assert "imported" not in round_summary.summary_html(store.round(row["id"]), W)
    store.update_round(row["id"], "w1", metrics={"imported": 12})
    assert "<b>12</b><span>imported pairs used</span>" in round_summary.summary_html(store.round(row["id"]), W)


def test_a_summary_says_how_many_people_would_lose_by_the_version(store):
    row = rounds.begun(store)
    store.update_round(row["id"], "w1", metrics={"people": 1, "people_who_lose": 1})
    assert "By their own votes" not in round_summary.summary_html(store.round(row["id"]), W), "a person alone"
    store.update_round(row["id"], "w1", metrics={"people": 3, "people_who_lose": 1})
    html = round_summary.summary_html(store.round(row["id"]), W)
    assert "By their own votes, 1 of 3 people with eight or more votes would clearly lose by this version." in html


def test_what_differs_from_the_defaults_comes_first(store):
    row = rounds.begun(store, {"ppo.kl_target": 3.5})
    html = round_summary.config_html(store.round(row["id"]), W)
    assert (
        html.index("ppo.kl_target") < html.index("round.votes")
        and "1 differs from the defaults" in html
        and "<td>3.5</td>" in html
    )


def test_nothing_is_painted_again_that_has_not_changed(tab, store, settings):
    rounds.published(store, settings)
    shown = Shown()
    tab.on_tick(shown, Request())
    assert tab.on_tick(shown, Request()) == gr.skip()
    row = rounds.running(store)
    tab.status_bar.invalidate()
    fresh = tab.on_tick(shown, Request())
    assert fresh[tab.timeline].value == row["id"] and tab.summary in fresh, "the newest round is followed"
    store.add_metrics(row["id"], 6, {"kl": 9.0})
    store.update_round(row["id"], "w1", step=6)
    tab.status_bar.invalidate()
    later = tab.on_tick(shown, Request())
    assert tab.curves in later and tab.agreement not in later and tab.gate not in later


def test_a_round_that_was_picked_stays_while_others_run(tab, store, settings):
    first = rounds.published(store, settings)
    rounds.failed(store)
    shown = Shown()
    assert "v1 was published." in tab.on_pick(first["id"], shown, Request())[tab.summary]
    third = rounds.running(store)
    tab.status_bar.invalidate()
    later = tab.on_tick(shown, Request())
    assert later[tab.timeline].value == first["id"]
    assert "v1 was published." in later[tab.summary], "an answer that came too late had stayed on the page"
    assert tab.on_tick(shown, Request()) == gr.skip()
    assert tab.on_pick(third["id"], shown, Request())[tab.timeline].value == third["id"]
    assert shown.picked is None, "the newest is followed on"


def test_earlier_rounds_are_shown_when_asked_for(tab, store):
    for _ in range(5):
        rounds.failed(store)
    shown = Shown(limit=3)
    seen = tab.on_tick(shown, Request())
    assert [value for _, value in seen[tab.timeline].choices] == [5, 4, 3] and seen[tab.more]["visible"]
    more = tab.on_more(shown, Request())
    assert (
        [value for _, value in more[tab.timeline].choices] == [5, 4, 3, 2, 1]
        and not more[tab.more]["visible"]
        and shown.limit == 33
    )


def test_before_the_first_round_the_page_says_what_to_do(tab):
    assert "Vote on 16 replies" in tab.on_tick(Shown(), Request())[tab.summary]


def test_the_end_of_a_long_log_is_shown(tmp_path):
    file = tmp_path / "log.txt"
    assert round_summary.log_tail(file) == ""
    file.write_text("old\n" * 20_000 + "the end")
    assert (
        round_summary.log_tail(file).endswith("the end")
        and len(round_summary.log_tail(file)) == round_summary.LOG_CHARS
    )


# -- the gate


@pytest.mark.parametrize(
    ("figure", "value", "missed"),
    [
        ("better", 0.7, 0),
        ("not_worse", 0.85, 1),
        ("kl", 60.5, 2),
        ("kl", float("nan"), 2),
        ("length_new", 200.0, 3),
        ("length_new", 20.0, 3),
        ("length_base", 20.0, 3),
        ("empty", 0.2, 4),
        ("repetition_new", 0.5, 5),
        ("distinct_new", 0.3, 6),
        ("ended_new", 0.2, 7),
        ("canary_new", -4.0, 8),
        ("better", float("nan"), 0),
    ],
)
def test_a_check_that_was_missed_is_marked_with_its_figure(figure, value, missed):
    found = gatewords.checks({**rounds.REPORT, figure: value}, rounds.CONFIG, W)
    assert [i for i, (ok, _) in enumerate(found) if not ok] == [missed]


def test_a_length_that_the_votes_favour_may_go_further():
    report = {**rounds.REPORT, "length_new": 25.0, "length_votes": [-0.5, -0.1]}
    assert all(ok for ok, _ in gatewords.checks(report, rounds.CONFIG, W))
    assert "25 tokens, and 72 of the base; 0.12 to 1.75" in gatewords.checks(report, rounds.CONFIG, W)[3][1]


def test_the_checks_name_their_probabilities_and_the_base():
    better, not_worse, *others = [text for _, text in gatewords.checks(rounds.REPORT, rounds.CONFIG, W)]
    assert (
        "by +1.10 deviations [+0.70, +1.50] on 64 held-out prompts; it rises with a probability of 0.99, at least 0.75"
        in better
    )
    assert "by more than 0.1 deviations, with a probability of 1.00, at least 0.9" in not_worse
    assert gatewords.SLIGHTLY_WORSE == gate.SLIGHTLY_WORSE
    assert sum("of the base" in text for text in others) == 4 and not any("live version" in text for text in others)
    chinese = [text for _, text in gatewords.checks(rounds.REPORT, rounds.CONFIG, ZH)]
    assert sum("基础模型是" in text for text in chinese) == 4


@pytest.mark.parametrize(
    ("figure", "value", "missed"),
    [
        ("gain_interval", [-0.1, 0.4], 0),
        ("gain_interval", [float("nan"), 1.0], 0),
        ("kl", 60.5, 1),
        ("length_live", 20.0, 2),
        ("repetition_new", 0.5, 4),
        ("distinct_new", 0.3, 5),
        ("ended_new", 0.2, 6),
    ],
)
def test_a_report_of_an_earlier_version_is_shown_as_it_was_judged(figure, value, missed):
    """Against the live version, and by an interval. Its round's settings lack what came later."""
    config = {name: value for name, value in rounds.CONFIG.items() if name not in ("gate.better", "gate.not_worse")}
    found = gatewords.checks(rounds.OLD_REPORT, config, W)
    assert len(found) == 8 and all(ok for ok, _ in found)
    assert "the interval must lie above 0" in found[0].text
    assert sum("of the live version" in text for _, text in found) == 4
    found = gatewords.checks({**rounds.OLD_REPORT, figure: value}, config, W)
    assert [i for i, (ok, _) in enumerate(found) if not ok] == [missed]


# -- how far a round goes


def test_a_round_says_where_it_started_and_how_far_it_goes(tab, store, settings):
    row = rounds.running(store)
    store.update_round(row["id"], "w1", metrics={"started_from": 2, "kl_step": 4.0, "kl_start": 7.5, "kl_target": 11.5})
    facts = round_summary.summary_html(store.rounds()[0], W)
    assert "<b>v2</b><span>started from" in facts
    assert "<b>4.0</b><span>step of the KL, nats" in facts and "<b>11.5</b><span>KL target, nats" in facts
    store.update_round(row["id"], "w1", metrics={"started_from": 0, "kl_step": None, "kl_target": 8.0})
    facts = round_summary.summary_html(store.rounds()[0], W)
    assert "<b>v0 (base)</b><span>started from" in facts and "step of the KL" not in facts


def test_the_kl_is_drawn_with_the_target_of_its_own_round(tab, store, settings):
    row = rounds.running(store)

    def target():
        """What the legend of the KL's plot says of the target."""
        tab.status_bar.invalidate()
        html = plots_of(tab.on_tick(Shown(), Request())[tab.curves])["curve-kl"]
        return re.findall('<li class="target">(.*?)<', html)

    assert target() == ["target 8"], "from the base it is the setting"
    store.update_round(row["id"], "w1", metrics={"started_from": 2})
    assert target() == [], "not known before the first rollouts"
    store.update_round(row["id"], "w1", metrics={"kl_target": 11.5})
    assert target() == ["target 11.5"]


def test_a_round_that_finds_nothing_left_to_learn_says_so(store, settings):
    rounds.nothing_left(store)
    [row] = store.rounds()
    assert "= Round 1 · nothing left to learn" in round_summary.timeline_entry(row, W)
    html = round_summary.summary_html(row, W)
    assert "Nothing left to learn from these votes." in html and "14 of 16 on the current version" in html
    assert "not enough" not in html.lower().replace("not_enough", "")
    assert "14 张是平局" in status_html(now(store, settings), ZH)
    rounds.not_enough(store)
    assert "not enough evidence" in round_summary.timeline_entry(store.rounds()[0], W)


# -- what to watch


def test_without_data_each_plot_says_what_it_waits_for(settings):
    for watched in (
        watch.length([], settings, W),
        watch.kl([], settings, W),
        watch.agreement([], W),
        watch.position([], W),
    ):
        assert (list(watched.curve.points), watched.curve.limits, watched.ok) == ([], {}, None)
        assert "0 of 10" in watched.note or "nothing to see before a round" in watched.note
    alone = watch.length([{"policy": 1, "tokens": 9.0}] * 12, settings, W)
    assert "none of the last 12 pairs is by the base" in alone.note, "it said that there were not ten pairs"


def test_length_drift_is_told_against_the_base(settings):
    rows = [{"policy": 0, "tokens": 100.0}] * 40
    watched = watch.length(rows + [{"policy": 1, "tokens": 110.0}] * 40, settings, W)
    assert (
        watched.ok
        and watched.curve.limits == {"low": 100 / 1.75, "high": 175.0}
        and watched.curve.points[-1] == (80, 110.0)
    )
    assert watch.length(rows + [{"policy": 1, "tokens": 20.0}] * 40, settings, W).ok is False


def test_a_distance_over_the_budget_asks_for_a_look(settings):
    measured = [{"round": 1, "kl": 5.0, "target": 8.0}, {"round": 2, "kl": 61.0, "target": 13.0}]
    watched = watch.kl(measured, settings, W)
    assert (
        watched.ok is False
        and "61.0" in watched.note
        and watched.curve.limits == {"target": [("1", 8.0), ("2", 13.0)], "limit": 60.0}
        and watched.curve.points == [("base", 0.0), ("1", 5.0), ("2", 61.0)]
    )
    assert watch.kl(measured[:1], settings, W).ok
    assert watch.kl([{"round": 1, "kl": 5.0, "target": None}], settings, W).curve.limits["target"] == []


def test_agreement_must_clear_guessing():
    assert watch.agreement([{"hit": 1}] * 30 + [{"hit": 0}] * 10, W).ok
    assert watch.agreement([{"hit": i % 2} for i in range(40)], W).ok is False
    few = watch.agreement([{"hit": i % 2} for i in range(12)], W)
    assert few.ok is None and "50% of the last 12 votes" in few.note and "too few to tell" in few.note, "it alarmed"
    alike = [{"hit": i % 3 > 0} for i in range(400)] + [{"hit": i % 5 > 1} for i in range(40)]
    assert watch.agreement(alike, W).ok is None, "it alarmed where the plot was at 65% for 400 votes"
    assert watch.agreement([{"hit": 1}] * 100 + [{"hit": 0}] * 40, W).ok is False, (
        "the last votes count, not those long ago"
    )


def test_a_favoured_side_is_seen():
    assert watch.position([{"choice": "ab"[i % 2]} for i in range(40)], W).ok
    watched = watch.position([{"choice": "a"}] * 35 + [{"choice": "b"}] * 5, W)
    assert (
        watched.ok is False
        and "favour a side" in watched.note
        and watched.curve.limits["even"] == 0.5
        and watched.curve.limits["chance_low"] < 0.5 < watched.curve.limits["chance_high"]
    )


def test_a_version_that_was_taken_back_is_not_called_live_or_a_success(store, settings):
    """It said "v2 is live: an admin decided: it is rude" of a version that an admin had rolled back."""
    rounds.published(store, settings)
    rounds.published(store, settings, trial=True)
    admin = store.annotator("admin")

    def shown():
        return round_summary.summary_html(store.rounds()[0], W, trial=trial_of(store, 2))

    store.roll_back(1, admin, "it is rude", live=2)
    assert "v2 was published, and rolled back later" in shown() and "v2 is live" not in shown()
    assert "The trial of v2 ended: an admin decided: it is rude." in shown()
    entry = round_summary.timeline_entry(store.rounds()[0], W)
    assert entry.startswith("↩") and "v2 rolled back" in entry
    assert "v2 was rolled back; v1 answers now." in status_html(now(store, settings, 1), W)
    store.promote(2, admin, "try again")
    assert "v2 is live: an admin" not in shown()
    assert "v2 is live.<" in status_html(now(store, settings, 2), W), "not that it is live since it is rude"
