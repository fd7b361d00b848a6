"""What training does now: read once for everybody who looks, and told in one line at the top of every page."""

import threading
import time
from dataclasses import dataclass, field
from html import escape

import gradio as gr

from playground.store import StoreError
from playground.store.reasons import without_words
from playground.ui import words
from playground.ui.notice import GESTURE
from playground.ui.text import line

PHASES = {
    "collect": words.mark("reading the votes"),
    "sft": words.mark("warming up on edited replies"),
    "reward": words.mark("reward model"),
    "ppo": words.mark("PPO"),
    "gate": words.mark("gate: comparing with the version that answers now"),
    "publish": words.mark("publishing"),
}
ENDED = {
    "refused": words.mark("Refused: the new version did not pass; the old one stays."),
    "not_enough": words.mark("Not enough evidence yet."),
    "failed": words.mark("The round failed."),
}
LAST_VOTES = 20  # over which the reward model's hit rate is told
TICK = 1.5  # seconds between two looks of an open page
FRESH = 1.0  # seconds for which what was read serves everybody


@dataclass(frozen=True)
class Now:
    """Training at one moment: the settings with what an admin changed, the rounds (newest first), the last one's row
    and curves, the version it made (a policy row), the new votes, the version that answers, and (hits, calls) of the
    reward model's forecasts of the last votes.
    """

    settings: object
    rounds: list
    curves: dict
    policy: dict | None
    votes: int
    version: int
    forecasts: tuple = (0, 0)
    at: float = field(default_factory=time.time)

    @classmethod
    def read(cls, settings, store, engine):
        rounds = store.rounds()
        last = rounds[0] if rounds else None
        return cls(
            settings.model_copy(update=store.overrides()),
            rounds,
            store.metrics(last["id"]) if last else {},
            store.round_policy(last["id"]) if last else None,
            store.new_votes(),
            engine.live.version,
            store.forecasts(LAST_VOTES),
        )

    @property
    def round(self):
        return self.rounds[0] if self.rounds else None

    @property
    def state(self):
        return self.round["state"] if self.round else "idle"

    @property
    def active(self):
        return self.state in ("requested", "running")

    @property
    def paused(self):
        return self.state == "running" and self.round["wish"] == "pause"

    @property
    def share(self):
        """How far the running phase is, 0 to 1; None where nobody knows."""
        return min(self.round["step"] / self.round["steps"], 1.0) if self.round and self.round["steps"] else None

    @property
    def minutes_left(self):
        """Of the running phase, by its own pace so far; None before there is a basis."""
        if self.state != "running" or self.paused:
            return None
        began, first = (self.round["metrics"].get(key) for key in ("phase_began", "phase_from"))
        done = self.round["step"] - (first or 0 if self.round["phase"] == "ppo" else 0)
        if not began or done <= 0 or done < 0.05 * self.round["steps"]:
            return None
        return max(self.at - began, 0) * (self.round["steps"] - self.round["step"]) / done / 60


class Strip:
    """The line above the tabs, and what is known of training now, for everybody who shows some of it."""

    def __init__(self, settings, store, engine):
        self.settings, self.store, self.engine = settings, store, engine
        self.html = gr.HTML(elem_id="strip", padding=False)
        self.painted = gr.State(None)
        self.timer = gr.Timer(TICK)
        self._now, self._read, self._lock = None, 0.0, threading.Lock()
        self._failed = None  # why the store could not tell

    def now(self):
        """Training now, at most a second old: one read serves every visitor's tick, and so does one that failed, or
        each would wait in turn."""
        with self._lock:
            if time.monotonic() - self._read > FRESH:
                try:
                    self._now, self._failed = Now.read(self.settings, self.store, self.engine), None
                except StoreError as error:
                    self._failed = error.message
                self._read = time.monotonic()
            if self._failed:
                raise StoreError(self._failed)
            return self._now

    def changed(self):
        """What was read is out of date: somebody has just changed it."""
        self._read = 0.0

    def wire(self, page):
        gr.on([page.load, self.timer.tick], self.on_tick, [self.painted], [self.html, self.painted], **GESTURE)

    def on_tick(self, painted, request: gr.Request):
        """The line where it has changed."""
        html = strip(self.now(), words.of(request))
        return (gr.skip(), gr.skip()) if painted == html else (html, html)


def strip(now, w):
    """One line: what is going on, how far it is, and which version answers."""
    kind = "paused" if now.paused else now.state
    if now.state == "requested":
        parts = _line(w("A training round is asked for"), w("waiting for the worker"))
    elif now.paused:
        parts = _line(w("Paused: {phase}", phase=_phase(now, w)), _steps(now, w), now.share)
    elif now.state == "running":
        parts = _line(_phase(now, w), _steps(now, w), now.share)
    else:
        ended = now.round and outcome(now, w)
        parts = _line(ended or invitation(now.settings, w), *_votes(now, w))
    version = f'<span class="version">{escape(name(now.version, w))}</span>'
    return f'<div class="strip {kind}" role="status">{version}{parts}</div>'


def outcome(now, w):
    """How the last round ended, in one sentence."""
    if now.state == "refused":
        return w(
            "{version} was refused: {reason}",
            version=name(now.policy["version"], w),
            reason=now.round["reason"].values.get("reason", now.round["reason"]),
        )
    if now.state != "published":
        why = public_reason(now.round)
        return w.message(why) if why else w(ENDED[now.state])
    version = name(now.policy["version"], w)
    if now.policy["status"] == "rejected":
        return w("{version} could not be loaded: {reason}", version=version, reason=now.policy["reason"])
    if now.policy["status"] == "live" and now.version != now.policy["version"]:
        return w("{version} is published and is being loaded.", version=version)
    if now.policy["status"] == "live":
        return w("{version} is live.", version=version)
    return w("{version} was published; {name} answers now.", version=version, name=name(now.version, w))


def public_reason(row):
    """Why a round ended, as everybody may read it: of one that broke, without what the error itself said, which may
    quote a person.
    """
    return without_words(row["reason"]) if row["reason"] and row["state"] == "failed" else row["reason"]


def name(version, w):
    """A policy version as people read it."""
    return w("v0 (base)") if version == 0 else f"v{version}"


def invitation(settings, w):
    """What a visitor can do for the next round."""
    return (
        w("Vote on {n} replies and I start learning", n=settings.round_votes)
        if settings.auto_train
        else w("Training is on demand here")
    )


def _phase(now, w):
    return w(PHASES.get(now.round["phase"], now.round["phase"] or ""))


def _votes(now, w):
    if now.settings.auto_train:
        return w("{n} of {total} new votes", n=now.votes, total=now.settings.round_votes), min(
            now.votes / now.settings.round_votes, 1.0
        )
    return w("{n} new votes", n=now.votes), None


def _steps(now, w):
    """How far a running round is: steps, a share where steps mean nothing to people, what PPO has reached, and the time
    left.
    """
    parts = []
    if now.round["phase"] == "reward" and now.share is not None:
        parts.append(f"{now.share:.0%}")
    elif now.share is not None:
        parts.append(w("{n} of {total}", n=now.round["step"], total=now.round["steps"]))
    if now.round["phase"] in ("ppo", "gate"):
        if rewards := now.curves.get("reward"):
            arrow = "" if len(rewards) < 2 else " ↑" if rewards[-1][1] > rewards[0][1] else " ↓"
            parts.append(w("reward {value}", value=f"{rewards[-1][1]:.2f}") + arrow)
        if kls := now.curves.get("kl"):
            parts.append(f"KL {kls[-1][1]:.2f}")
    if (left := now.minutes_left) is not None:
        parts.append(w("about {n} min left", n=f"{max(left, 1):.0f}"))
    return " · ".join(parts)


def _line(text, detail, share=None):
    """A sentence, a bar where a share from 0 to 1 is known, and a detail."""
    text = line(text)
    bar = "" if share is None else f'<span class="bar"><i style="width:{100 * share:.0f}%"></i></span>'
    what = f'<span class="what" title="{escape(text)}">{escape(text)}</span>'
    return f'{what}{bar}<span class="detail">{escape(detail)}</span>'
