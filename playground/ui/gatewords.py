"""The gate's report in sentences: each check with its figure, its limit, and whether it passed. The checks themselves
are `training/gate.py`'s.
"""

from collections.abc import Mapping
from html import escape
from typing import Any, NamedTuple

from playground.ui.words import Words

SLIGHTLY_WORSE = 0.1  # deviations of the reward, or nats a token, as in `training/gate.py`


class Check(NamedTuple):
    """One check of the gate, as a sentence in the reader's language."""

    passed: bool
    text: str


def checks(report: Mapping[str, Any], config: Mapping[str, Any], translate: Words) -> list[Check]:
    """The checks of a policy's gate report under its round's config. Each is written so that a figure that is not a
    number never passes.
    """
    other = "base" if "better" in report else "live"  # earlier reports compared with the live version
    name = translate("the base") if other == "base" else translate("the live version")
    return [
        *_gain(report, config, translate),
        Check(
            report["kl"] <= config["gate.kl_budget"],
            translate(
                "Near the base: KL {kl} nats a reply; at most {limit}.",
                kl=f"{report['kl']:.1f}",
                limit=f"{config['gate.kl_budget']:g}",
            ),
        ),
        _length(report, config, translate, other, name),
        Check(
            report["empty"] <= config["gate.empty_replies"],
            translate(
                "Not empty: {empty} of its replies are; at most {limit}.",
                empty=f"{report['empty']:.0%}",
                limit=f"{config['gate.empty_replies']:.0%}",
            ),
        ),
        Check(
            report["repetition_new"] <= report[f"repetition_{other}"] + config["gate.repetition_rise"],
            translate(
                "No loops: {new} of its four-token runs are repeats, and {other} of those of {name}; at most {limit} "
                "more.",
                new=f"{report['repetition_new']:.0%}",
                other=f"{report[f'repetition_{other}']:.0%}",
                name=name,
                limit=f"{config['gate.repetition_rise']:.0%}",
            ),
        ),
        Check(
            report["distinct_new"] >= config["gate.distinct_share"] * report[f"distinct_{other}"],
            translate(
                "Varied: {new} of its word pairs are distinct, and {other} of those of {name}; {limit} of that must be "
                "left.",
                new=f"{report['distinct_new']:.0%}",
                other=f"{report[f'distinct_{other}']:.0%}",
                name=name,
                limit=f"{config['gate.distinct_share']:.0%}",
            ),
        ),
        _ended(report, config, translate, other, name),
        _still_plain(report, config, translate),
    ]


def _gain(report: Mapping[str, Any], config: Mapping[str, Any], translate: Words) -> list[Check]:
    """Whether the version is better; reports of earlier versions have no probabilities, but an interval above 0."""
    low, high = report["gain_interval"]
    figures: dict[str, str | int] = {
        "gain": f"{report['gain']:+.2f}",
        "low": f"{low:+.2f}",
        "high": f"{high:+.2f}",
        "n": report["prompts"],
    }
    if "better" not in report:
        text = translate(
            "Better: the reward rises by {gain} deviations [{low}, {high}] on {n} held-out prompts; the interval "
            "must lie above 0.",
            **figures,
        )
        return [Check(low > 0, text)]
    if report.get("demonstrations"):
        return _likelihood(report, config, {**figures, "n": report["demonstrations"]}, translate)
    return [
        Check(
            report["better"] >= config["gate.better"],
            translate(
                "Better: the reward changes by {gain} deviations [{low}, {high}] on {n} held-out prompts; it rises "
                "with a probability of {better}, at least {limit}.",
                **figures,
                better=f"{report['better']:.2f}",
                limit=f"{config['gate.better']:g}",
            ),
        ),
        Check(
            report["not_worse"] >= config["gate.not_worse"],
            translate(
                "Not worse: the reward does not fall by more than {slightly} deviations, with a probability of "
                "{not_worse}, at least {limit}.",
                slightly=f"{SLIGHTLY_WORSE:g}",
                not_worse=f"{report['not_worse']:.2f}",
                limit=f"{config['gate.not_worse']:g}",
            ),
        ),
    ]


def _likelihood(
    report: Mapping[str, Any], config: Mapping[str, Any], figures: Mapping[str, str | int], translate: Words
) -> list[Check]:
    """Whether a version that was fine-tuned on a file makes what was held out of it likelier."""
    better = translate(
        "Better: {n} held-out demonstrations become likelier by {gain} nats a token [{low}, {high}], with a "
        "probability of {better}, at least {limit}.",
        **figures,
        better=f"{report['better']:.2f}",
        limit=f"{config['gate.better']:g}",
    )
    not_worse = translate(
        "Not worse: they do not become less likely by more than {slightly} nats a token, with a probability of "
        "{not_worse}, at least {limit}.",
        slightly=f"{SLIGHTLY_WORSE:g}",
        not_worse=f"{report['not_worse']:.2f}",
        limit=f"{config['gate.not_worse']:g}",
    )
    return [
        Check(report["better"] >= config["gate.better"], better),
        Check(report["not_worse"] >= config["gate.not_worse"], not_worse),
    ]


def _length(report: Mapping[str, Any], config: Mapping[str, Any], translate: Words, other: str, name: str) -> Check:
    """Whether the replies are about as long as those of the `other` version, which is called `name`."""
    length = report[f"length_{other}"]
    drift = report["length_new"] / length if length else float("inf")
    favoured_low, favoured_high = report["length_votes"]
    shortest = 1 / (config["gate.length_factor"] if favoured_high < 0 else config["gate.length_drift"])
    longest = config["gate.length_factor"] if favoured_low > 0 else config["gate.length_drift"]
    text = translate(
        "Length: {new} tokens, and {other} of {name}; {low} to {high} times as long is accepted.",
        new=f"{report['length_new']:.0f}",
        other=f"{length:.0f}",
        name=name,
        low=f"{shortest:.2f}",
        high=f"{longest:.2f}",
    )
    return Check(shortest <= drift <= longest, text)


def _ended(report: Mapping[str, Any], config: Mapping[str, Any], translate: Words, other: str, name: str) -> Check:
    """Whether the replies come to an end about as often as those of the `other` version, which is called `name`."""
    figures = {"new": f"{report['ended_new']:.0%}", "other": f"{report[f'ended_{other}']:.0%}", "name": name}
    if report["length_votes"][0] > 0 and report.get("demonstrations"):
        text = translate(
            "Comes to an end: {new} of its replies do, and {other} of those of {name}; no limit, since longer replies "
            "were demonstrated.",
            **figures,
        )
        return Check(True, text)
    if report["length_votes"][0] > 0:
        text = translate(
            "Comes to an end: {new} of its replies do, and {other} of those of {name}; no limit, since the votes "
            "favour longer replies.",
            **figures,
        )
        return Check(True, text)
    fall = config["gate.ended_fall"]
    text = translate(
        "Comes to an end: {new} of its replies do, and {other} of those of {name}; at most {limit} fewer.",
        **figures,
        limit=f"{fall:.0%}",
    )
    return Check(report["ended_new"] >= report[f"ended_{other}"] - fall, text)


def _still_plain(report: Mapping[str, Any], config: Mapping[str, Any], translate: Words) -> Check:
    """Whether plain replies to plain requests are still likely."""
    fall = report["canary_base"] - report["canary_new"]
    text = translate(
        "Still plain: plain replies are {fall} nats a token less likely than under the base; at most {limit}.",
        fall=f"{fall:.2f}",
        limit=f"{config['gate.canary_fall']:g}",
    )
    return Check(fall <= config["gate.canary_fall"], text)


def listed(report: Mapping[str, Any], config: Mapping[str, Any], translate: Words) -> str:
    """The checks as an HTML list."""
    items = []
    if report.get("share", 1) < 1:
        text = translate(
            "It had gone too far, and was taken back to {share} of the way that training went.",
            share=f"{report['share']:.0%}",
        )
        items.append(f"<li>{escape(text)}</li>")
    for check in checks(report, config, translate):
        kind, sign, label = (
            ("passed", "✓", translate("passed")) if check.passed else ("missed", "✗", translate("not passed"))
        )
        mark = f'<b aria-label="{escape(label)}">{sign}</b>'
        items.append(f'<li class="{kind}">{mark} {escape(check.text)}</li>')
    return f'<ul class="checks">{"".join(items)}</ul>'
