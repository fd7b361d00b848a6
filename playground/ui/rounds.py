"""The training tab: rounds as a timeline, and all that is known of the one that is picked, live while it runs. It reads
the store and trains nothing.

Everybody reads figures, and samples on shipped prompts. A round's log, an error's own words and samples on people's
prompts are for admins; who asks is found out in each handler.
"""

import json
from datetime import datetime
from html import escape

import gradio as gr

from playground.settings import Settings, sections
from playground.store import STOPPED
from playground.ui import gatewords, inputs, plots, words
from playground.ui.notice import GESTURE
from playground.ui.steps import steps
from playground.ui.strip import ENDED, PHASES, invitation, name, public_reason
from playground.ui.text import visible

CURVES = {
    "reward": words.mark("Reward of the replies"),
    "kl": words.mark("KL to the base, nats"),
    "beta": words.mark("β, weight of the KL"),
    "entropy": words.mark("Entropy, nats a token"),
    "length": words.mark("Length of a reply, tokens"),
    "clip_fraction": words.mark("Share of clipped ratios"),
    "explained_variance": words.mark("Explained variance"),
}
STATES = {
    "requested": words.mark("asked for"),
    "running": words.mark("running"),
    "published": words.mark("published"),
    "refused": words.mark("refused"),
    "not_enough": words.mark("not enough evidence"),
    "failed": words.mark("failed"),
    "stopped": words.mark("stopped"),
}
SIGNS = {
    "requested": "○",
    "running": "●",
    "published": "✓",
    "refused": "✗",
    "not_enough": "–",
    "failed": "!",
    "stopped": "■",
}
STRETCH = 30  # rounds in the timeline at first, and more at each press
LOG_CHARS = 20_000
SAMPLES = 8


class TrainingTab:
    """Builds the tab inside the current Blocks, below the Control that is already there."""

    def __init__(self, settings, store, strip, control):
        self.settings, self.store, self.strip, self.control = settings, store, strip, control
        self.picked, self.shown, self.painted = gr.State(None), gr.State(STRETCH), gr.State({})
        self.intro = gr.HTML(elem_id="agreement", padding=False)
        with gr.Row(elem_id="rounds"):
            with gr.Column(scale=1, min_width=220, elem_id="timeline-side"):
                self.timeline = inputs.Radio([], label=words.label("Rounds"), elem_id="timeline", visible=False)
                self.more = gr.Button(
                    words.label("Show earlier rounds"), size="sm", elem_id="earlier-rounds", visible=False
                )
            with gr.Column(scale=4, min_width=300):
                self.summary = gr.HTML(elem_id="round-summary", padding=False)
                with gr.Row(elem_id="curves"):
                    self.curves = {
                        key: plots.plot(f"curve-{key.replace('_', '-')}", title, limits=key == "kl")
                        for key, title in CURVES.items()
                    }
                    self.calibration = plots.plot("calibration", words.mark("Calibration: said, seen"), limits=True)
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
        self.parts = {
            "intro": self.intro,
            "timeline": self.timeline,
            "more": self.more,
            "summary": self.summary,
            **self.curves,
            "calibration": self.calibration,
            "gate": self.gate,
            "samples": self.samples,
            "config": self.config,
            "config_fold": self.config_fold,
            "log": self.log,
            "log_fold": self.log_fold,
        }
        control.more()

    def wire(self, moments):
        outputs = [*self.parts.values(), self.painted]
        gr.on(moments, self.on_tick, [self.picked, self.shown, self.painted], outputs, **GESTURE)
        self.timeline.input(self.on_pick, [self.timeline, self.shown, self.painted], [self.picked, *outputs], **GESTURE)
        self.more.click(self.on_more, [self.picked, self.shown, self.painted], [self.shown, *outputs], **GESTURE)

    # -- handlers

    def on_tick(self, picked, shown, painted, request: gr.Request):
        """What has changed since this page was painted."""
        w, now, admin = words.of(request), self.strip.now(), self.control.is_admin(request)
        rounds = now.rounds
        row = next((r for r in rounds if r["id"] == picked), now.round)
        stamp = (
            row and row["id"],
            shown,
            [(r["id"], r["state"], r["policy_status"], r["step"], r["beat"], r["wish"]) for r in rounds],
            now.forecasts,
            now.settings,
            admin,
        )
        if painted.get("stamp") == stamp:
            return gr.skip()
        contents = {
            "intro": agreement(now, w),
            "timeline": ([(entry(r, w), r["id"]) for r in rounds[:shown]], row and row["id"]),
            "more": len(rounds) > shown,
            **self.contents(row, now, w, admin),
        }
        contents |= {"config_fold": bool(contents["config"]), "log_fold": bool(contents["log"])}
        fresh = {key: content for key, content in contents.items() if painted.get(key) != content}
        return {
            self.painted: {**contents, "stamp": stamp},
            **{self.parts[key]: self.update(key, content, w) for key, content in fresh.items()},
        }

    def on_more(self, picked, shown, painted, request: gr.Request):
        """A longer timeline: not all at once, since every line on a page makes each of its gestures slower."""
        return {**self.on_tick(picked, shown + STRETCH, painted, request), self.shown: shown + STRETCH}

    def on_pick(self, picked, shown, painted, request: gr.Request):
        """Another round; the newest is followed on to the next."""
        newest = self.store.last_round()
        picked = None if newest and picked == newest["id"] else picked
        updates = self.on_tick(picked, shown, painted, request)
        return {self.picked: picked, **(updates if isinstance(updates, dict) and self.painted in updates else {})}

    def contents(self, row, now, w, admin):
        """What each part shows of a round to an admin or to somebody else, as plain values that can be compared."""
        if row is None:
            return {
                "summary": nothing_yet(now, w),
                **dict.fromkeys(CURVES, [[], {}]),
                "calibration": [],
                "gate": "",
                "samples": "",
                "config": "",
                "log": "",
            }
        folder, curves = self.settings.rounds_dir / f"{row['id']:04d}", self.store.metrics(row["id"])
        policy = self.store.round_policy(row["id"])
        report = json.loads(policy["gate_report"]) if policy and policy["gate_report"] else None
        shown = {
            key: [
                curves.get(key, []),
                {"target": row["config"].get("kl_target"), "limit": row["config"].get("kl_budget")}
                if key == "kl"
                else {},
            ]
            for key in CURVES
        }
        return {
            "summary": summary(row, now, w, admin),
            **shown,
            "calibration": row["metrics"].get("cv_reliability", []),
            "gate": f"<h2>{escape(w('The gate'))}</h2>{gatewords.listed(report, row['config'], w)}"
            if report and "gain_interval" in report
            else "",
            "samples": samples(folder / "gate.json", w, admin),
            "config": config(row, w),
            "log": tail(folder / "log.txt") if admin else "",
        }

    def update(self, key, content, w):
        """A part's component update."""
        if key in CURVES:
            return plots.update(plots.frame(content[0], w, **content[1]), w)
        if key == "calibration":
            return plots.update(plots.frame([(p, y) for p, y, _ in content], w, perfect=[(0.0, 0.0), (1.0, 1.0)]), w)
        if key == "timeline":
            return gr.Radio(choices=content[0], value=content[1], visible=bool(content[0]))
        if key in ("more", "config_fold", "log_fold"):
            return gr.update(visible=content)
        return content


# -- a round in words


def state(row):
    """A round's state as people know it: one that an admin stopped did not fail."""
    return "stopped" if row["state"] == "failed" and row["reason"] == STOPPED else row["state"]


def entry(row, w):
    """A round's line in the timeline."""
    ended = (
        f"{w(STATES[state(row)])}" if row["version"] is None else f"{name(row['version'], w)} {w(STATES[state(row)])}"
    )
    parts = [f"{SIGNS[state(row)]} " + w("Round {n}", n=row["id"]), ended]
    if row["metrics"].get("votes"):
        parts.append(w("{n} votes", n=row["metrics"]["votes"]))
    return " · ".join([*parts, _clock(row["ended"] or row["started"] or row["created"])])


def nothing_yet(now, w):
    """What stands in the place of the first round."""
    heading, advice = w("No training round yet"), invitation(now.settings, w)
    what = w(
        "A round reads the votes, fits a reward model to them, trains the policy against it with PPO, and goes live "
        "only if it is better on prompts that "
        "it has not seen."
    )
    return (
        f'<div class="empty"><h2>{escape(heading)}</h2><p>{escape(advice)}.</p>'
        f"{steps(None, w)}<p>{escape(what)}</p></div>"
    )


def summary(row, now, w, admin=False):
    """A round in a few lines: its state, its reason and what was measured. What an error said itself is for admins."""
    kind = state(row)
    if row["state"] in ("requested", "running"):
        said = w(PHASES[row["phase"]]) if row["phase"] else w("waiting for the worker")
        said = w("Paused: {phase}", phase=said) if row["wish"] == "pause" else said
    elif row["state"] == "published":
        said = w("{version} was published.", version=name(row["version"], w))
    else:
        said = w.message(STOPPED) if kind == "stopped" else w(ENDED[row["state"]])
    why = row["reason"] if admin else public_reason(row)
    reason = f"<p>{escape(visible(w.message(why)))}</p>" if why and kind != "stopped" else ""
    facts = "".join(f"<div><b>{escape(value)}</b><span>{escape(label)}</span></div>" for label, value in _facts(row, w))
    return (
        f'<h2>{escape(w("Round {n}", n=row["id"]))}</h2><p class="outcome {kind}">{escape(said)}</p>'
        f'{reason}{steps(row, w)}<div class="facts">{facts}</div>'
    )


def agreement(now, w):
    """How well the reward model foresaw the last votes."""
    hits, calls = now.forecasts
    if not calls:
        return ""
    text = w(
        "The reward model foresaw {n} of the last {calls} picks ({share}), each before it learned from it; guessing "
        "gives 50%.",
        n=hits,
        calls=calls,
        share=f"{hits / calls:.0%}",
    )
    return f'<p class="agreement">{escape(text)}</p>'


def _facts(row, w):
    """(label, value) of what the round measured so far, with intervals where there are any."""
    m = row["metrics"]

    def share(key, interval):
        if m.get(key) is None:
            return None
        low, high = m.get(interval) or (None, None)
        return f"{m[key]:.0%}" + (f" [{low:.0%}, {high:.0%}]" if low is not None else "")

    figures = (
        (w("votes used"), m.get("votes") and str(m["votes"])),
        (w("reward model on held-out votes"), share("heldout_accuracy", "heldout_interval")),
        (w("cross-validated"), share("cv_accuracy", "cv_interval")),
        (w("calibration error"), m.get("cv_calibration_error") is not None and f"{m['cv_calibration_error']:.2f}"),
        (w("gain in reward, deviations"), m.get("gate_gain") is not None and f"{m['gate_gain']:+.2f}"),
        (w("KL to the base, nats"), m.get("kl") is not None and f"{m['kl']:.1f}"),
        (w("minutes"), bool(m.get("phase_seconds")) and f"{sum(m['phase_seconds'].values()) / 60:.1f}"),
    )
    return [(label, value) for label, value in figures if value]


def samples(file, w, admin=False):
    """The gate's sample replies, those of the live version and of the new one side by side: on shipped prompts, and for
    admins on people's own.
    """
    if not file.exists():
        return ""
    found = json.loads(file.read_text())["samples"]
    rows = [s for s in found if s.get("shipped") is True][:SAMPLES]
    if admin:  # files of earlier versions have no mark
        rows += [s for s in found if s.get("shipped") is not True][:SAMPLES]
    if not rows:
        return ""
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in (w("Before"), w("After")))
    body = "".join(
        f'<tr><th scope="row" colspan="2">{escape(visible(_question(s["prompt"])))}{_private(s, w)}</th></tr>'
        f"<tr><td>{escape(visible(s['live'].strip()))}</td><td>{escape(visible(s['new'].strip()))}</td></tr>"
        for s in rows
    )
    heading = escape(w("The same held-out prompts, before and after"))
    return f'<h2>{heading}</h2><table class="samples"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'


def _private(sample, w):
    """A sign at what only admins read."""
    if sample.get("shipped") is True:
        return ""
    sign = w("from a person's chat, seen by admins only")
    return f' <i class="chip">{escape(sign)}</i>'


def _question(prompt):
    """The last message of a decoded prompt, whose roles are left as lines of their own."""
    return prompt.rsplit("user\n", 1)[-1].removesuffix("assistant\n").strip() if "user\n" in prompt else prompt.strip()


def config(row, w):
    """The round's settings, those first that differ from the defaults."""
    if not row["config"]:
        return ""
    names = [name for names in sections().values() for name in names if name in row["config"]]
    changed = [name for name in names if row["config"][name] != Settings.model_fields[name].default]
    ordered = [*changed, *(name for name in names if name not in changed)]
    rows = "".join(
        f'<tr class="{"changed" if name in changed else ""}"><th '
        f'scope="row">{name}</th><td>{escape(visible(str(row["config"][name])))}</td></tr>'
        for name in ordered
    )
    caption = escape(w("{n} differ from the defaults; seed {seed}", n=len(changed), seed=row["seed"]))
    return f'<table class="config"><caption>{caption}</caption><tbody>{rows}</tbody></table>'


def tail(file):
    """The end of a round's log."""
    return visible(file.read_text(encoding="utf-8", errors="replace")[-LOG_CHARS:]) if file.exists() else ""


def _clock(moment):
    return datetime.fromisoformat(moment).astimezone().strftime("%m-%d %H:%M")
