"""What to watch a loop of votes and training by, live: length, distance from the base, agreement with fresh votes,
sides; each with its limits drawn.
"""

from html import escape

import gradio as gr
from scipy.stats import binomtest

from playground.ui import plots, words
from playground.ui.notice import GESTURE

WINDOW = 40  # duels or votes that a rolling mean is over
TITLES = {
    "length": words.mark("Tokens of a reply, pair by pair"),
    "kl": words.mark("KL of each round's policy to the base, nats a reply"),
    "agreement": words.mark("Share of fresh votes that the reward model foresaw, vote by vote"),
    "position": words.mark("Share of side A among votes for A or B, vote by vote"),
}


class WatchTab:
    """Builds the tab inside the current Blocks."""

    def __init__(self, store, strip):
        self.store, self.strip = store, strip
        self.painted = gr.State({})
        self.plots, self.notes = {}, {}
        with gr.Row(elem_id="watch"):
            for key, title in TITLES.items():
                with gr.Column(min_width=320, elem_classes="watched"):
                    self.notes[key] = gr.HTML(elem_id=f"note-{key}", padding=False)
                    self.plots[key] = plots.plot(f"watch-{key}", title, limits=True)

    def wire(self, moments):
        gr.on(
            moments, self.on_tick, [self.painted], [*self.plots.values(), *self.notes.values(), self.painted], **GESTURE
        )

    def on_tick(self, painted, request: gr.Request):
        """The plots that have changed, each with a sentence."""
        w, settings = words.of(request), self.strip.now().settings
        found = {
            "length": length(self.store.reply_lengths(), settings, w),
            "kl": kl(self.store.round_kls(), settings, w),
            "agreement": agreement(self.store.forecast_history(), w),
            "position": position(self.store.position_votes(), w),
        }
        fresh = {key: value for key, value in found.items() if painted.get(key) != value}
        if not fresh:
            return gr.skip()
        updates = {self.painted: {**painted, **fresh}}
        for key, (points, limits, fine, note) in fresh.items():
            updates[self.plots[key]] = plots.update(plots.frame(points, w, **limits), w)
            updates[self.notes[key]] = (
                f'<p class="note {"" if fine is None else "fine" if fine else "look"}">{escape(note)}</p>'
            )
        return updates


# -- each: (points, limits, whether all is well or None where too little is known, a sentence)


def length(rows, settings, w):
    """Mean reply length, against what the gate lets a version drift from the base's."""
    points = plots.rolling([row["tokens"] for row in rows], WINDOW)
    base = [row["tokens"] for row in rows if row["policy"] == 0]
    if not points or not base:
        return points, {}, None, w("Length of replies: nothing to see yet. Chat, and it fills.")
    mean, last = sum(base) / len(base), points[-1][1]
    low, high = mean / settings.length_drift, mean * settings.length_drift
    fine = low <= last <= high
    text = (
        w("Length is steady: {n} tokens, the base's replies have {base}.", n=f"{last:.0f}", base=f"{mean:.0f}")
        if fine
        else w(
            "Look here: replies have {n} tokens, the base's {base}. Is that what the votes ask for?",
            n=f"{last:.0f}",
            base=f"{mean:.0f}",
        )
    )
    return points, {"low": low, "high": high}, fine, text


def kl(rows, settings, w):
    """Distance of each round's policy from the base, against the target of PPO and the budget of the gate."""
    points = [(w("base"), 0.0), *((str(row["round"]), row["kl"]) for row in rows)]
    if not rows:
        return [], {}, None, w("Distance from the base: nothing to see before the first round has ended.")
    limits, last = {"target": settings.kl_target, "limit": settings.kl_budget}, points[-1][1]
    fine = last <= settings.kl_budget
    text = (
        w(
            "The last policy is {kl} nats a reply from the base; the budget is {limit}.",
            kl=f"{last:.1f}",
            limit=f"{settings.kl_budget:g}",
        )
        if fine
        else w(
            "Look here: the last policy is {kl} nats a reply from the base, over the budget of {limit}.",
            kl=f"{last:.1f}",
            limit=f"{settings.kl_budget:g}",
        )
    )
    return points, limits, fine, text


def agreement(rows, w):
    """How often the reward model named the winner before it learned from the vote; at 50 % it knows nothing."""
    hits = [row["hit"] for row in rows]
    points = plots.rolling(hits, WINDOW)
    if not points:
        return points, {}, None, w("Agreement with fresh votes: nothing to see before some votes were foreseen.")
    recent = hits[-WINDOW:]
    low, high = interval(sum(recent), len(recent))
    fine, share = low > 0.5, f"{sum(recent) / len(recent):.0%}"
    said = {"share": share, "n": len(recent), "low": f"{low:.0%}", "high": f"{high:.0%}"}
    text = (
        w(
            "The reward model foresaw {share} of the last {n} votes for A or B [{low}, {high}]: better than guessing.",
            **said,
        )
        if fine
        else w(
            "Look here: it foresaw {share} of the last {n} votes for A or B [{low}, {high}]; that may be guessing.",
            **said,
        )
    )
    return points, {"limit": 0.5}, fine, text


def position(rows, w):
    """Whether people pick a side rather than a reply: sides are drawn at random, so A should win half the time."""
    picks = [row["choice"] == "a" for row in rows]
    points = plots.rolling(picks, WINDOW)
    if not points:
        return points, {}, None, w("Sides: nothing to see before there are votes for A or B.")
    recent = picks[-WINDOW:]
    n, (low, high) = (
        len(recent),
        interval(sum(recent), len(recent), 0.99),
    )  # it is looked at all the time, and must not cry wolf
    fine = low <= 0.5 <= high
    said = {"share": f"{sum(recent) / n:.0%}", "n": n, "low": f"{low:.0%}", "high": f"{high:.0%}"}
    text = (
        w("Side A won {share} of the last {n} votes for A or B [{low}, {high}]: no side is favoured.", **said)
        if fine
        else w(
            "Look here: side A won {share} of the last {n} votes for A or B [{low}, {high}]. People seem to favour a "
            "side.",
            **said,
        )
    )
    band = interval(n / 2, n, 0.99)
    return points, {"target": 0.5, "low": band[0], "high": band[1]}, fine, text


def interval(right, n, confidence=0.95):
    """Wilson's interval of a share."""
    found = binomtest(round(right), n).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)
