"""A round as six steps in a row: what is done and how long it took, what runs now, where it ended. Told by a sign as
well as by a colour.
"""

from html import escape

from playground.ui import words

STEPS = {
    "collect": words.mark("votes"),
    "sft": words.mark("edited replies"),
    "reward": words.mark("reward model"),
    "ppo": words.mark("PPO"),
    "gate": words.mark("gate"),
    "publish": words.mark("live"),
}
SIGNS = {"done": "✓", "now": "●", "ended": "✗", "to-come": "○"}
KINDS = {
    "done": words.mark("done"),
    "now": words.mark("running"),
    "ended": words.mark("ended here"),
    "to-come": words.mark("to come"),
}


def steps(row, w):
    """The steps of a round's `row`; None before the first round."""
    seconds, items = (row or {}).get("metrics", {}).get("phase_seconds", {}), ""
    for phase, kind in kinds(row).items():
        took = f"<small>{_duration(seconds[phase], w)}</small>" if kind == "done" and seconds.get(phase, 0) >= 1 else ""
        sign = f'<i role="img" aria-label="{escape(w(KINDS[kind]))}">{SIGNS[kind]}</i>'
        items += f'<li class="{kind}">{sign}<span>{escape(w(STEPS[phase]))}{took}</span></li>'
    return f'<ol class="steps">{items}</ol>'


def kinds(row):
    """{phase: done, now, ended or to-come}."""
    names = list(STEPS)
    if row is None or row["phase"] is None:
        return dict.fromkeys(names, "to-come")
    at = names.index("gate" if row["state"] == "refused" else row["phase"])  # the gate's word is kept while publishing
    here = {"running": "now", "requested": "now", "published": "done"}.get(row["state"], "ended")
    return {name: "done" if i < at else here if i == at else "to-come" for i, name in enumerate(names)}


def _duration(seconds, w):
    return w("{n} min", n=f"{seconds / 60:.1f}") if seconds >= 60 else w("{n} s", n=f"{seconds:.0f}")
