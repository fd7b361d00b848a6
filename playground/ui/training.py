"""What training is doing, live: a strip above the chat and a tab with the last round's curves. It reads the store and trains nothing."""

from dataclasses import dataclass
from html import escape

import gradio as gr
import pandas as pd

from playground import visitor

PHASES = {
    "collect": "reading the votes", "sft": "warming up on edited replies", "reward": "learning what people prefer", "ppo": "practising with PPO",
    "gate": "comparing with the version that answers now", "publish": "publishing"}
ENDED = {"refused": "The new version did not pass; the old one stays.", "not_enough": "Not enough evidence yet.", "failed": "The round failed."}
LAST_VOTES = 20  # over which the reward model's hit rate is shown
CURVES = {"reward": "Reward of the policy's replies", "kl": "KL to the base, nats a reply"}


@dataclass(frozen=True)
class Now:
    """Training at one moment: the last round's row and curves, the version it made (a policy row), the new votes, the version that answers."""

    round: dict | None
    curves: dict
    policy: dict | None
    votes: int
    version: int
    forecasts: tuple = (0, 0)  # hits and calls among the last votes

    @classmethod
    def read(cls, store, engine):
        last = store.last_round()
        return cls(last, store.metrics(last["id"]) if last else {}, store.round_policy(last["id"]) if last else None,
                   store.new_votes(), engine.live.version, store.forecasts(LAST_VOTES))

    @property
    def state(self):
        return self.round["state"] if self.round else "idle"

    @property
    def active(self):
        return self.state in ("requested", "running")

    @property
    def points(self):
        """Changes whenever there is something new to plot."""
        return (self.round["id"] if self.round else 0, sum(map(len, self.curves.values())))


class Strip:
    """The line at the top of the page."""

    def __init__(self):
        self.html = gr.HTML(elem_id="strip", padding=False)
        self.timer = gr.Timer(1.5)  # here and not in the tab, where it would stand still until the tab is opened


class TrainingTab:
    """Builds the tab inside the current Blocks; one timer keeps the strip and the tab up to date on every page."""

    def __init__(self, settings, store, engine, strip):
        self.settings, self.store, self.engine, self.strip = settings, store, engine, strip
        self.plotted = gr.State(None)
        with gr.Row(elem_id="round"):
            self.summary = gr.HTML(elem_id="round-summary", padding=False)
            self.start = gr.Button("Train now", variant="primary", elem_id="train-now", scale=0, min_width=120, visible=False)
        with gr.Row(elem_id="curves"):
            self.plots = {name: gr.LinePlot(x="iteration", y="value", title=title, x_title="PPO iteration", y_title=" ", height=260,
                                            elem_id=f"curve-{name}", buttons=[], visible=False) for name, title in CURVES.items()}

    def wire(self, page):
        quiet = {"api_visibility": "private", "show_progress": "hidden"}
        words = [self.strip.html, self.summary, self.start]
        live = [*words, self.plotted, *self.plots.values()]
        page.load(self.on_load, None, live, queue=False, **quiet)
        self.strip.timer.tick(self.on_tick, [self.plotted], live, queue=False, **quiet)
        self.start.click(self.on_train, None, words, **quiet)

    # -- handlers

    def on_load(self, request: gr.Request):
        updates = self.on_tick(None)
        updates[self.start]["visible"] = visitor.is_owner(self.settings, request)
        return updates

    def on_tick(self, plotted):
        """What there is now; the plots only when they have a new point, since drawing them moves the page."""
        now = Now.read(self.store, self.engine)
        updates = self.paint(now)
        if now.points != plotted:
            updates |= {self.plotted: now.points, **{plot: curve(now, name) for name, plot in self.plots.items()}}
        return updates

    def on_train(self, request: gr.Request):
        """Ask for a round; only the owner of the machine may."""
        if not visitor.is_owner(self.settings, request):
            raise gr.Error("Only the person at the machine that runs Nudge can start a round.", title="Not allowed", print_exception=False)
        self.store.request_round()
        return self.paint(Now.read(self.store, self.engine))

    def paint(self, now):
        return {self.strip.html: strip(now, self.settings), self.summary: summary(now, self.settings), self.start: gr.update(interactive=not now.active)}


# -- a round in words

def strip(now, settings):
    """One line: what is going on, how far it is, and which version answers."""
    if now.state == "requested":
        parts = _line("A training round is asked for", "waiting for the worker")
    elif now.state == "running":
        parts = _line(f"Training: {PHASES.get(now.round['phase'], now.round['phase'])}", _steps(now), _share(now.round["step"], now.round["steps"]))
    else:
        ended = now.round and (now.round["reason"] or outcome(now))
        parts = _line(ended or _invitation(settings), *_votes(now.votes, settings))
    return f'<div class="strip {now.state}"><span class="version">{name(now.version)}</span>{parts}</div>'


def summary(now, settings):
    """The last round in a few lines: its state, its reason and what was measured."""
    if now.round is None:
        return f"<h3>No training round yet</h3><p>{escape(_invitation(settings))}. {name(now.version)} answers now.</p>{_agreement(now)}"
    doing = PHASES.get(now.round["phase"], "waiting for the worker")
    words = f"{doing[0].upper()}{doing[1:]}…" if now.active else outcome(now)
    reason = f'<p>{escape(now.round["reason"])}</p>' if now.round["reason"] else ""
    facts = "".join(f"<div><b>{escape(value)}</b><span>{escape(label)}</span></div>" for label, value in _facts(now))
    return f'<h3>Round {now.round["id"]}</h3><p class="outcome {now.state}">{escape(words)}</p>{reason}<div class="facts">{facts}</div>{_agreement(now)}'


def outcome(now):
    """How the last round ended, in one sentence."""
    if now.state != "published":
        return ENDED[now.state]
    version = name(now.policy["version"])
    if now.policy["status"] == "rejected":
        return f"{version} could not be loaded: {now.policy['reason']}"
    if now.policy["status"] == "live" and now.version != now.policy["version"]:
        return f"{version} is published and is being loaded."
    if now.policy["status"] == "live":
        return f"{version} is live."
    return f"{version} was published; {name(now.version)} answers now."


def name(version):
    """A policy version as people read it."""
    return f"v{version} (base)" if version == 0 else f"v{version}"


def curve(now, name):
    """The plot of one metric of the last round; none before its first point."""
    points = now.curves.get(name, [])
    return gr.LinePlot(pd.DataFrame(points, columns=["iteration", "value"]), visible=bool(points))


def _invitation(settings):
    return f"Vote on {settings.round_votes} replies and I start learning" if settings.auto_train else "Training is on demand here"


def _votes(votes, settings):
    if settings.auto_train:
        return f"{votes} of {settings.round_votes} votes", _share(votes, settings.round_votes)
    return f"{votes} new votes", None


def _steps(now):
    parts = [f"{now.round['step']} of {now.round['steps']}"] if now.round["steps"] else []
    if now.round["phase"] in ("ppo", "gate"):
        parts += [f"{label} {now.curves[key][-1][1]:.2f}" for key, label in (("reward", "reward"), ("kl", "KL")) if now.curves.get(key)]
    return " · ".join(parts)


def _facts(now):
    """(label, value) of what the round measured so far."""
    m = now.round["metrics"]
    wanted = (("votes used", "votes", "{:.0f}"), ("reward model, cross-validated accuracy", "cv_accuracy", "{:.0%}"),
              ("gain in reward over the version before", "gate_gain", "{:+.2f}"), ("KL to the base, nats a reply", "kl", "{:.1f}"))
    return [(label, form.format(m[key])) for label, key, form in wanted if m.get(key) is not None]


def _agreement(now):
    """How well the reward model foresaw the last votes."""
    hits, calls = now.forecasts
    if not calls:
        return ""
    return (f'<p class="agreement">The reward model foresaw {hits} of your last {calls} picks ({hits / calls:.0%}), each before it learned from it; '
            "guessing gives 50%.</p>")


def _line(text, detail, share=None):
    """A sentence, a bar where a share from 0 to 1 is known, and a detail."""
    bar = "" if share is None else f'<span class="bar"><i style="width:{100 * share:.0f}%"></i></span>'
    return f'<span class="what" title="{escape(text)}">{escape(text)}</span>{bar}<span class="detail">{escape(detail)}</span>'


def _share(part, whole):
    return min(part / whole, 1.0) if whole else None
