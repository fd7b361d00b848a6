"""The tab "Watch": figures that show whether the loop of votes and training goes well: reply length, distance from the
base, agreement with new votes, sides. Each is drawn with its limits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import gradio as gr

from playground.models.intervals import wilson
from playground.settings import Settings
from playground.store import Store
from playground.ui import plots, words
from playground.ui.handlers import GESTURE, Row, Trigger, Updates
from playground.ui.plots import Curve
from playground.ui.status_bar import StatusBar
from playground.ui.words import Words

WINDOW = 40  # duels or votes in a rolling mean
LEAST = WINDOW // 4  # of them before there is one
MANY = 4 * WINDOW  # votes that must look like guessing too before there is an alarm
TITLES = {
    "length": words.mark("Tokens of a reply, pair by pair"),
    "kl": words.mark("KL of each round's policy to the base, nats a reply"),
    "agreement": words.mark("Share of fresh votes that the reward model predicted, vote by vote"),
    "position": words.mark("Share of side A among votes for A or B, vote by vote"),
}
# of the interval for sides: the page is looked at all the time, so a chance finding would often be shown
SIDES_CONFIDENCE = 0.99


@dataclass(frozen=True)
class Watched:
    """What one plot of the tab says. `ok` is None where too little is known to judge."""

    curve: Curve
    ok: bool | None
    note: str  # a sentence


class WatchTab:
    """Builds the tab inside the current Blocks."""

    def __init__(self, store: Store, status_bar: StatusBar) -> None:
        self.store = store
        self.status_bar = status_bar
        self.painted = gr.State("")  # the HTML that the page shows
        self.html = gr.HTML(elem_id="watch", padding=False)

    def wire(self, refresh_events: Sequence[Trigger]) -> None:
        gr.on(refresh_events, self.on_tick, [self.painted], [self.html, self.painted], **GESTURE)

    def on_tick(self, painted: str, request: gr.Request) -> Updates:
        """All figures, where any has changed."""
        html = self.content(words.of(request))
        return gr.skip() if html == painted else {self.html: html, self.painted: html}

    def content(self, translate: Words) -> str:
        """All figures as HTML."""
        settings = self.status_bar.status().settings
        watched = {
            "length": length(self.store.reply_lengths(), settings, translate),
            "kl": kl(self.store.round_kls(), settings, translate),
            "agreement": agreement(self.store.forecast_history(), translate),
            "position": position(self.store.position_votes(), translate),
        }
        return "".join(_watched_html(key, figure, translate) for key, figure in watched.items())


def _watched_html(key: str, watched: Watched, translate: Words) -> str:
    """A figure below the sentence on it."""
    css_class = {None: "note", True: "note fine", False: "note look"}[watched.ok]
    return (
        f'<section class="watched"><p id="note-{key}" class="{css_class}">{escape(watched.note)}</p>'
        f"{plots.figure_html(watched.curve, TITLES[key], translate, f'watch-{key}')}</section>"
    )


def length(rows: Sequence[Row], settings: Settings, translate: Words) -> Watched:
    """The mean reply length (rows of `Store.reply_lengths`), compared with how far the gate lets a version's length be
    from the base's.
    """
    points = plots.rolling_mean([row["tokens"] for row in rows], WINDOW)
    base = [row["tokens"] for row in rows if row["policy"] == 0]
    if not points:
        note = translate(
            "Length of replies: {n} of {needed} {needed:pair|pairs} so far whose replies both came to their end.",
            n=len(rows),
            needed=LEAST,
        )
        return Watched(Curve(points), None, note)
    if not base:
        note = translate(
            "Length of replies: none of the last {n} {n:pair|pairs} is by the base, to compare with.", n=len(rows)
        )
        return Watched(Curve(points, name="mean"), None, note)
    base_mean = sum(base) / len(base)
    last = points[-1][1]
    limits = {"low": base_mean / settings.gate.length_drift, "high": base_mean * settings.gate.length_drift}
    ok = limits["low"] <= last <= limits["high"]
    if ok:
        note = translate(
            "Length is steady: {n} tokens, the base's replies have {base}.", n=f"{last:.0f}", base=f"{base_mean:.0f}"
        )
    else:
        note = translate(
            "Look here: replies have {n} tokens, the base's {base}. Is that what the votes ask for?",
            n=f"{last:.0f}",
            base=f"{base_mean:.0f}",
        )
    return Watched(Curve(points, limits, "mean"), ok, note)


def kl(rows: Sequence[Row], settings: Settings, translate: Words) -> Watched:
    """The KL of each round's policy to the base (rows of `Store.round_kls`), compared with the target of that round's
    PPO and the budget of the gate.
    """
    if not rows:
        note = translate("Distance from the base: nothing to see before a round has measured it.")
        return Watched(Curve(), None, note)
    last = rows[-1]["kl"]
    rows = rows[-plots.MAX_POINTS :]
    points = [(translate("base"), 0.0), *((str(row["round"]), row["kl"]) for row in rows)]
    figures = {"kl": f"{last:.1f}", "limit": f"{settings.gate.kl_budget:g}"}
    ok = last <= settings.gate.kl_budget
    if ok:
        note = translate("The last policy is {kl} nats a reply from the base; the budget is {limit}.", **figures)
    else:
        note = translate(
            "Look here: the last policy is {kl} nats a reply from the base, over the budget of {limit}.", **figures
        )
    targets = [(str(row["round"]), row["target"]) for row in rows if row["target"] is not None]
    return Watched(Curve(points, {"target": targets, "limit": settings.gate.kl_budget}, "kl"), ok, note)


def agreement(rows: Sequence[Row], translate: Words) -> Watched:
    """How often the reward model predicted the winner before it learned from the vote (rows of
    `Store.forecast_history`); guessing gives 50 %.
    """
    hits = [row["hit"] for row in rows]
    points = plots.rolling_mean(hits, WINDOW)
    if not points:
        note = translate(
            "Agreement with fresh votes: {n} of {needed} predicted {needed:vote|votes} so far.",
            n=len(hits),
            needed=LEAST,
        )
        return Watched(Curve(points), None, note)
    recent = hits[-WINDOW:]
    low, high = wilson(sum(recent), len(recent))
    figures = _figures(sum(recent), len(recent), low, high)
    longer = hits[-MANY:]
    may_be_guessing = sum(recent) <= len(recent) / 2 or wilson(sum(longer), len(longer))[0] <= 0.5
    ok = True if low > 0.5 else False if may_be_guessing and len(recent) == WINDOW else None
    if ok:
        note = translate(
            "The reward model predicted {share} of the last {n} {n:vote|votes} for A or B [{low}, {high}]: better than "
            "guessing.",
            **figures,
        )
    elif ok is None:
        note = translate(
            "The reward model predicted {share} of the last {n} {n:vote|votes} for A or B [{low}, {high}]: too few to "
            "tell it from guessing.",
            **figures,
        )
    else:
        note = translate(
            "Look here: the reward model predicted {share} of the last {n} {n:vote|votes} for A or B [{low}, {high}]; "
            "that may be guessing.",
            **figures,
        )
    return Watched(Curve(points, {"guessing": 0.5}, "mean"), ok, note)


def position(rows: Sequence[Row], translate: Words) -> Watched:
    """Whether people pick a side rather than a reply (rows of `Store.position_votes`): sides are drawn at random, so A
    should win half the time.
    """
    picks = [row["choice"] == "a" for row in rows]
    points = plots.rolling_mean(picks, WINDOW)
    if not points:
        note = translate(
            "Side A or B: {n} of {needed} {needed:vote|votes} for A or B so far.", n=len(picks), needed=LEAST
        )
        return Watched(Curve(points), None, note)
    recent = picks[-WINDOW:]
    low, high = wilson(sum(recent), len(recent), SIDES_CONFIDENCE)
    figures = _figures(sum(recent), len(recent), low, high)
    ok = low <= 0.5 <= high
    if ok:
        note = translate(
            "Side A won {share} of the last {n} {n:vote|votes} for A or B [{low}, {high}]: no side is favoured.",
            **figures,
        )
    else:
        note = translate(
            "Look here: side A won {share} of the last {n} {n:vote|votes} for A or B [{low}, {high}]. People seem to "
            "favour a side.",
            **figures,
        )
    lowest, highest = wilson(len(recent) / 2, len(recent), SIDES_CONFIDENCE)
    return Watched(Curve(points, {"even": 0.5, "chance_low": lowest, "chance_high": highest}, "mean"), ok, note)


def _figures(successes: int, trials: int, low: float, high: float) -> dict[str, str | int]:
    """The figures of a sentence about a share and its interval."""
    return {"share": f"{successes / trials:.0%}", "n": trials, "low": f"{low:.0%}", "high": f"{high:.0%}"}
