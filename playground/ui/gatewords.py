"""The gate's report in sentences: each check with its figure, its limit, and whether it passed. The checks themselves
are `training/gate.py`'s.
"""

from collections.abc import Mapping
from html import escape
from typing import Any, NamedTuple

from playground.ui.words import Words


class Check(NamedTuple):
    """One check of the gate, as a sentence in the reader's language."""

    passed: bool
    text: str


def checks(report: Mapping[str, Any], config: Mapping[str, Any], translate: Words) -> list[Check]:
    """The checks of a policy's gate report under its round's config. Each is written so that a figure that is not a
    number never passes.
    """
    low, high = report["gain_interval"]
    drift = report["length_new"] / report["length_live"] if report["length_live"] else float("inf")
    favoured_low, favoured_high = report["length_votes"]
    shortest = 1 / (config["gate.length_factor"] if favoured_high < 0 else config["gate.length_drift"])
    longest = config["gate.length_factor"] if favoured_low > 0 else config["gate.length_drift"]
    fall = report["canary_base"] - report["canary_new"]
    return [
        Check(
            low > 0,
            translate(
                "Better: the reward rises by {gain} deviations [{low}, {high}] on {n} held-out prompts; the interval "
                "must lie above 0.",
                gain=f"{report['gain']:+.2f}",
                low=f"{low:+.2f}",
                high=f"{high:+.2f}",
                n=report["prompts"],
            ),
        ),
        Check(
            report["kl"] <= config["gate.kl_budget"],
            translate(
                "Near the base: KL {kl} nats a reply; at most {limit}.",
                kl=f"{report['kl']:.1f}",
                limit=f"{config['gate.kl_budget']:g}",
            ),
        ),
        Check(
            shortest <= drift <= longest,
            translate(
                "Length: {new} tokens against {live}; {low} to {high} times as long is accepted.",
                new=f"{report['length_new']:.0f}",
                live=f"{report['length_live']:.0f}",
                low=f"{shortest:.2f}",
                high=f"{longest:.2f}",
            ),
        ),
        Check(
            report["empty"] <= config["gate.empty_replies"],
            translate(
                "Not empty: {empty} of its replies are; at most {limit}.",
                empty=f"{report['empty']:.0%}",
                limit=f"{config['gate.empty_replies']:.0%}",
            ),
        ),
        Check(
            report["repetition_new"] <= report["repetition_live"] + config["gate.repetition_rise"],
            translate(
                "No loops: {new} of its four-token runs are repeats, {live} of the live version's; at most {limit} "
                "more.",
                new=f"{report['repetition_new']:.0%}",
                live=f"{report['repetition_live']:.0%}",
                limit=f"{config['gate.repetition_rise']:.0%}",
            ),
        ),
        Check(
            report["distinct_new"] >= config["gate.distinct_share"] * report["distinct_live"],
            translate(
                "Varied: {new} of its word pairs are distinct, {live} of the live version's; {limit} of that must be "
                "left.",
                new=f"{report['distinct_new']:.0%}",
                live=f"{report['distinct_live']:.0%}",
                limit=f"{config['gate.distinct_share']:.0%}",
            ),
        ),
        Check(
            report["ended_new"] >= report["ended_live"] - config["gate.ended_fall"],
            translate(
                "Comes to an end: {new} of its replies do, {live} of the live version's; at most {limit} fewer.",
                new=f"{report['ended_new']:.0%}",
                live=f"{report['ended_live']:.0%}",
                limit=f"{config['gate.ended_fall']:.0%}",
            ),
        ),
        Check(
            fall <= config["gate.canary_fall"],
            translate(
                "Still plain: plain replies are {fall} nats a token less likely than under the base; at most {limit}.",
                fall=f"{fall:.2f}",
                limit=f"{config['gate.canary_fall']:g}",
            ),
        ),
    ]


def listed(report: Mapping[str, Any], config: Mapping[str, Any], translate: Words) -> str:
    """The checks as an HTML list."""
    items = []
    for check in checks(report, config, translate):
        kind, sign, label = (
            ("passed", "✓", translate("passed")) if check.passed else ("missed", "✗", translate("not passed"))
        )
        mark = f'<b aria-label="{escape(label)}">{sign}</b>'
        items.append(f'<li class="{kind}">{mark} {escape(check.text)}</li>')
    return f'<ul class="checks">{"".join(items)}</ul>'
