"""The tab "Training": the timeline of rounds, and all that is known of the one that is picked, live while it runs. It
reads the store and trains nothing.

Everybody sees figures, and samples on shipped prompts. A round's log, an error's own message and samples on people's
prompts are for admins: each handler asks whether the person is one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any

import gradio as gr
from gradio.blocks import Block

from playground.settings import Settings
from playground.store import Store
from playground.ui import gatewords, plots, unchecked, words
from playground.ui.control import Control
from playground.ui.handlers import GESTURE, LATEST_GESTURE, Row, Trigger, Updates
from playground.ui.loop_status import LoopStatus, trial_of
from playground.ui.plots import Curve
from playground.ui.round_summary import (
    agreement_html,
    config_html,
    kl_target,
    log_tail,
    no_round_html,
    pace_html,
    samples,
    summary_html,
    timeline_entry,
)
from playground.ui.status_bar import StatusBar, backup_html
from playground.ui.words import Words

CURVES = {
    "sft_loss": words.mark("Loss on demonstrations, nats a token"),
    "reward": words.mark("Reward of the replies, deviations"),
    "kl": words.mark("KL to the base, nats"),
    "beta": words.mark("β, weight of the KL"),
    "entropy": words.mark("Entropy, nats a token"),
    "length": words.mark("Length of a reply, tokens"),
    "clip_fraction": words.mark("Share of clipped ratios"),
    "explained_variance": words.mark("Explained variance"),
    "calibration": words.mark("Calibration: said, seen"),
}
BY_ITERATION, BY_STEP = words.mark("by iteration"), words.mark("by step")
LEAST_CALIBRATED = 20  # votes of a calibration plot
PAGE_SIZE = 30  # rounds in the timeline at first, and more at each press


@dataclass
class Shown:
    """What somebody's page shows."""

    picked: int | None = None  # id of the round that was picked; None follows the newest
    limit: int = PAGE_SIZE  # rounds in the timeline
    painted: Mapping[str, Any] = field(default_factory=dict)  # content by part; and "stamp", what all of it depends on


class TrainingTab:
    """Builds the tab inside the current Blocks, below the Control that is already there."""

    def __init__(self, settings: Settings, store: Store, status_bar: StatusBar, control: Control) -> None:
        self.settings = settings
        self.store = store
        self.status_bar = status_bar
        self.control = control
        self.shown = gr.State(Shown())
        self.agreement = gr.HTML(elem_id="agreement", padding=False)
        with gr.Row(elem_id="rounds"):
            with gr.Column(scale=1, min_width=220, elem_id="timeline-side"):
                self.timeline = unchecked.Radio([], label=words.label("Rounds"), elem_id="timeline", visible=False)
                self.more = gr.Button(
                    words.label("Show earlier rounds"), size="sm", elem_id="earlier-rounds", visible=False
                )
            with gr.Column(scale=4, min_width=300):
                self.summary = gr.HTML(elem_id="round-summary", padding=False)
                self.curves = gr.HTML(elem_id="curves", padding=False)
                self.gate = gr.HTML(elem_id="gate", padding=False)
                self.samples = gr.HTML(elem_id="samples", padding=False)
                with gr.Accordion(
                    words.label("Settings of this round"), open=False, visible=False, elem_id="config"
                ) as self.config_fold:
                    self.config = gr.HTML(padding=False)
                with gr.Accordion(
                    words.label("Log of this round"), open=False, visible=False, elem_id="log"
                ) as self.log_fold:
                    self.log = gr.Textbox(
                        label=words.label("Log of this round"),
                        show_label=False,
                        container=False,
                        lines=12,
                        max_lines=12,
                        interactive=False,
                        autoscroll=True,
                    )
        self.parts: dict[str, Block] = {
            "agreement": self.agreement,
            "timeline": self.timeline,
            "more": self.more,
            "summary": self.summary,
            "curves": self.curves,
            "gate": self.gate,
            "samples": self.samples,
            "config": self.config,
            "config_fold": self.config_fold,
            "log": self.log,
            "log_fold": self.log_fold,
        }
        control.build_folds()

    def wire(self, refresh_events: Sequence[Trigger]) -> None:
        outputs = list(self.parts.values())
        gr.on(refresh_events, self.on_tick, [self.shown], outputs, **GESTURE)
        self.timeline.input(self.on_pick, [self.timeline, self.shown], outputs, **LATEST_GESTURE)
        self.more.click(self.on_more, [self.shown], outputs, **GESTURE)

    # -- handlers

    def on_tick(self, shown: Shown, request: gr.Request) -> Updates:
        """What has changed since the page was last brought up to date."""
        translate = words.of(request)
        status = self.status_bar.status()
        is_admin = self.control.is_admin(request)
        row = next((row for row in status.rounds if row["id"] == shown.picked), status.round)
        limit = shown.limit
        stamp = self._stamp(status, row, limit, is_admin)
        if shown.painted.get("stamp") == stamp:
            return gr.skip()
        timeline = [(timeline_entry(row, translate), row["id"]) for row in status.rounds[:limit]]
        contents = {
            "agreement": agreement_html(status, translate)
            + pace_html(status, translate)
            + backup_html(status.backup, translate),
            "timeline": (timeline, row["id"] if row else None),
            "more": len(status.rounds) > limit,
            **self._round_contents(row, status, translate, is_admin),
        }
        contents["config_fold"] = bool(contents["config"])
        contents["log_fold"] = bool(contents["log"])
        updates: Updates = {
            self.parts[part]: self._part_update(part, content)
            for part, content in contents.items()
            if shown.painted.get(part) != content
        }
        shown.painted = {**contents, "stamp": stamp}
        return updates or gr.skip()

    def on_more(self, shown: Shown, request: gr.Request) -> Updates:
        """A longer timeline. It is not shown in full at once, since each line on a page makes its gestures slower."""
        shown.limit += PAGE_SIZE
        return self._clicked(shown, request)

    def on_pick(self, picked: int | None, shown: Shown, request: gr.Request) -> Updates:
        """Show another round. A page that shows the newest round goes on to the next one when that begins."""
        newest = self.store.last_round()
        shown.picked = None if newest and picked == newest["id"] else picked
        return self._clicked(shown, request)

    def _clicked(self, shown: Shown, request: gr.Request) -> Updates:
        """What has changed by a click."""
        updates = self.on_tick(shown, request)
        shown.painted = {}
        return updates

    # -- what is shown

    @staticmethod
    def _stamp(status: LoopStatus, row: Row | None, limit: int, is_admin: bool) -> tuple[Any, ...]:
        """What all that is shown depends on."""
        keys = ("id", "state", "policy_status", "step", "beat", "wish")
        rounds = [tuple(row[key] for key in keys) for row in status.rounds]
        trial = status.trial if row and status.round and row["id"] == status.round["id"] else None
        shown = status.forecasts, status.settings, status.backup
        return (row["id"] if row else None, limit, rounds, shown, is_admin, trial)

    def _round_contents(self, row: Row | None, status: LoopStatus, translate: Words, is_admin: bool) -> dict[str, Any]:
        """What each part shows of a round to an admin or to somebody else, as plain values that can be compared."""
        if row is None:
            return {
                "summary": no_round_html(status, translate),
                **dict.fromkeys(("curves", "gate", "samples", "config", "log"), ""),
            }
        folder = self.settings.rounds_dir / f"{row['id']:04d}"
        return {
            "summary": summary_html(row, translate, is_admin, self._trial(row)),
            "curves": curves_html(row, self.store.metrics(row["id"]), translate),
            "gate": self._gate_html(row, translate),
            "samples": samples(folder / "gate.json", translate, is_admin),
            "config": config_html(row, translate),
            "log": log_tail(folder / "log.txt") if is_admin else "",
        }

    def _trial(self, row: Row) -> Row | None:
        """The trial of the version that a round made."""
        return trial_of(self.store, row["version"]) if row["version"] is not None else None

    def _gate_html(self, row: Row, translate: Words) -> str:
        """The gate's report on the version that a round made."""
        policy = self.store.round_policy(row["id"])
        report = json.loads(policy["gate_report"]) if policy and policy["gate_report"] else None
        if not report or "gain_interval" not in report:
            return ""
        return f"<h2>{escape(translate('The gate'))}</h2>{gatewords.listed(report, row['config'], translate)}"

    def _part_update(self, part: str, content: Any) -> Any:
        """The update of one part's component."""
        if part == "timeline":
            choices, value = content
            return gr.Radio(choices=choices, value=value, visible=bool(choices))
        if part in ("more", "config_fold", "log_fold"):
            return gr.update(visible=content)
        return content


def curves_html(row: Row, metrics: Mapping[str, Sequence[tuple[float, float | None]]], translate: Words) -> str:
    """The plots of a round's figures; `metrics` has its [(step, value)] by name."""
    curves = {key: Curve(plots.thinned(metrics.get(key, [])), across=BY_ITERATION) for key in CURVES}
    limits = {"target": kl_target(row["metrics"], row["config"]), "limit": row["config"].get("gate.kl_budget")}
    curves["kl"] = replace(curves["kl"], limits=limits, name="kl")
    heldout = plots.thinned(metrics.get("sft_heldout_loss", []))
    curves["sft_loss"] = Curve(curves["sft_loss"].points, {"heldout": heldout}, "training", BY_STEP)
    curves["calibration"] = _calibration_curve(row)
    return "".join(
        plots.figure_html(curve, CURVES[key], translate, f"curve-{key.replace('_', '-')}")
        for key, curve in curves.items()
    )


def _calibration_curve(row: Row) -> Curve:
    """How often the reward model was right (y) where it said a probability (x), beside the line of perfect calibration;
    `cv_reliability` has (probability, share, number of votes) of each bin. Of a handful of votes it says nothing.
    """
    bins = row["metrics"].get("cv_reliability", [])
    if sum(votes for _, _, votes in bins) < LEAST_CALIBRATED:
        return Curve()
    points = [(probability, share) for probability, share, _ in bins]
    return Curve(points, {"perfect": [(0.0, 0.0), (1.0, 1.0)]}, "seen")
