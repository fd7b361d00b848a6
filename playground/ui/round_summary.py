"""A round in words and figures, as HTML: its line in the timeline, its summary, samples, settings and log. Functions of
a round's row and its files; nothing here knows the page.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from playground.models.trial import Tally
from playground.settings import Settings, fields, sections
from playground.store import STOPPED
from playground.ui.handlers import Row
from playground.ui.loop_status import LoopStatus
from playground.ui.phases import duration, phase_text, phases_html
from playground.ui.place import place_html
from playground.ui.round_state import ENDED, SIGNS, STATES, displayed_state, public_reason
from playground.ui.status_bar import invitation, trial_text, version_name
from playground.ui.text import visible
from playground.ui.words import Words

LOG_CHARS = 20_000
SAMPLES = 8  # shown of each kind


def kl_target(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> float | None:
    """The KL to the base at which a round's PPO ends, in nats a reply, by its figures and settings. None before PPO has
    measured where a round starts that goes on from a version.
    """
    if "kl_target" in metrics or metrics.get("started_from"):
        return metrics.get("kl_target")
    return config.get("ppo.kl_target")


def timeline_entry(row: Row, translate: Words) -> str:
    """A round's line in the timeline."""
    state = displayed_state(row)
    state_text = translate(STATES[state])
    if row["version"] is not None:
        state_text = f"{version_name(row['version'], translate)} {state_text}"
    parts = [f"{SIGNS[state]} " + translate("Round {n}", n=row["id"]), state_text]
    if row["metrics"].get("votes"):
        parts.append(translate("votes: {n}", n=row["metrics"]["votes"]))
    time = datetime.fromisoformat(row["ended"] or row["started"] or row["created"])
    parts.append(time.astimezone(UTC).strftime("%m-%d %H:%M UTC"))
    return " · ".join(parts)


def no_round_html(status: LoopStatus, translate: Words) -> str:
    """What stands in place of a summary before the first round."""
    heading = translate("No training round yet")
    advice = invitation(status.settings, translate)
    explanation = translate(
        "A round reads the votes, fits a reward model to them, trains the policy against it with PPO, and goes live "
        "only if it is better on prompts that it has not seen. With the default model that takes a minute or two on a "
        "GPU and 10 to 40 minutes on two CPU cores; the chat goes on meanwhile."
    )
    return (
        f'<div class="empty"><h2>{escape(heading)}</h2><p>{escape(advice)}.</p>'
        f"{phases_html(None, translate)}<p>{escape(explanation)}</p></div>"
    )


def summary_html(row: Row, translate: Words, is_admin: bool = False, trial: Row | None = None) -> str:
    """A round in a few lines: its state, its reason, what was measured, and the trial of its version (a row of
    `loop_status.trial_of`). Only admins see an error's own message.
    """
    state = displayed_state(row)
    reason = row["reason"] if is_admin else public_reason(row)
    reason_html = ""
    if reason and state != "stopped":
        reason_html = f'<p class="reason">{escape(visible(translate.message(reason)))}</p>'
    if row["state"] == "failed" and row["metrics"].get("votes"):
        sentence = translate("Its votes are kept: the next round learns from them too.")
        reason_html += f"<p>{escape(sentence)}</p>"
    losing, of_people = row["metrics"].get("people_who_lose"), row["metrics"].get("people", 0)
    if losing and of_people > 1:
        sentence = translate(
            "By their own votes, {n} of {people} people with eight or more votes would clearly lose by this version.",
            n=losing,
            people=of_people,
        )
        reason_html += f"<p>{escape(sentence)}</p>"
    facts = "".join(
        f"<div><b>{escape(value)}</b><span>{escape(label)}</span></div>"
        for label, value in [*_facts(row, translate), *_trial_facts(trial, translate)]
    )
    if trial:
        text = trial_text(trial, version_name(trial["version"], translate), translate)
        reason_html += f"<p>{escape(text)}</p>"
    if trial and trial["state"] == "open":
        rule = translate(
            "Only votes on pairs of the two versions count here; the trial ends as soon as they are clear."
        )
        reason_html += f"<p>{escape(rule)}</p>"
    return (
        f"<h2>{escape(translate('Round {n}', n=row['id']))}</h2>"
        f'<p class="outcome {state}">{escape(_state_sentence(row, translate))}</p>'
        f"{reason_html}{place_html(row, translate, is_admin)}"
        f'{phases_html(row, translate)}<div class="facts">{facts}</div>'
    )


def _state_sentence(row: Row, translate: Words) -> str:
    if row["state"] in ("requested", "running"):
        return phase_text(row, translate) if row["phase"] else translate("waiting for the worker")
    if displayed_state(row) == "rolled_back":
        return translate(
            "{version} was published, and rolled back later.", version=version_name(row["version"], translate)
        )
    if row["state"] == "published":
        return translate("{version} was published.", version=version_name(row["version"], translate))
    if displayed_state(row) == "nothing_left":
        return translate("Nothing left to learn from these votes.")
    return translate.message(STOPPED) if displayed_state(row) == "stopped" else translate(ENDED[row["state"]])


def _facts(row: Row, translate: Words) -> list[tuple[str, str]]:
    """(label, value) of what the round has measured so far, with intervals where there are any."""
    metrics = row["metrics"]
    facts = []
    if metrics.get("votes"):
        facts.append((translate("votes used"), str(metrics["votes"])))
    if metrics.get("imported"):
        facts.append((translate("imported pairs used"), str(metrics["imported"])))
    if metrics.get("heldout_accuracy") is not None:
        accuracy = _share(metrics["heldout_accuracy"], metrics.get("heldout_interval"))
        label = translate("reward model on {n} held-out {n:vote|votes}", n=metrics.get("heldout_pairs") or "…")
        facts.append((label if metrics.get("heldout_pairs") else translate("reward model on held-out votes"), accuracy))
    if metrics.get("cv_accuracy") is not None:
        facts.append((translate("cross-validated"), _share(metrics["cv_accuracy"], metrics.get("cv_interval"))))
    if metrics.get("cv_calibration_error") is not None:
        facts.append((translate("calibration error"), f"{metrics['cv_calibration_error']:.2f}"))
    facts += _fine_tuning_facts(metrics, translate)
    facts += _kl_facts(metrics, translate)
    if metrics.get("gate_gain") is not None:
        facts.append((translate("gain in reward, deviations"), f"{metrics['gate_gain']:+.2f}"))
    if metrics.get("kl") is not None:
        facts.append((translate("KL to the base, nats"), f"{metrics['kl']:.1f}"))
    if metrics.get("phase_seconds"):
        label = translate("time of the finished steps") if row["state"] == "running" else translate("time")
        facts.append((label, duration(sum(metrics["phase_seconds"].values()), translate)))
    return facts


def _fine_tuning_facts(metrics: Mapping[str, Any], translate: Words) -> list[tuple[str, str]]:
    """(label, value) of a round that fine-tunes on a file."""
    if "sft_file" not in metrics:
        return []
    facts = []
    if metrics.get("demonstrations") is not None:
        facts.append((translate("demonstrations of a file"), str(metrics["demonstrations"])))
    if metrics.get("heldout_loss") is not None:
        before, after = metrics["heldout_loss"]
        facts.append((translate("held-out loss, nats a token"), f"{before:.2f} → {after:.2f}"))
    return facts


def _kl_facts(metrics: Mapping[str, Any], translate: Words) -> list[tuple[str, str]]:
    """(label, value) of where a round started and how far it may go."""
    facts = []
    if metrics.get("rules"):
        facts.append(
            (translate("rewards of one's own"), ", ".join(f"{n} × {w:g}" for n, w in metrics["rules"].items()))
        )
    if metrics.get("started_from") is not None:
        facts.append((translate("started from"), version_name(metrics["started_from"], translate)))
    if metrics.get("kl_step") is not None:
        facts.append((translate("step of the KL, nats"), f"{metrics['kl_step']:.1f}"))
    if metrics.get("kl_target") is not None:
        facts.append((translate("KL target, nats"), f"{metrics['kl_target']:.1f}"))
    return facts


def _trial_facts(trial: Row | None, translate: Words) -> list[tuple[str, str]]:
    """(label, value) of what people's votes said of a round's version."""
    if trial is None or not trial["wins"] + trial["losses"]:
        return []
    tally = Tally(trial["wins"], trial["losses"])
    name = version_name(trial["against"], translate)
    return [
        (translate("pairs won against {name}", name=name), f"{tally.wins} / {tally.decided}"),
        (translate("probability that people prefer it"), f"{tally.better:.0%}"),
    ]


def _share(share: float, interval: tuple[float | None, float | None] | None) -> str:
    """A share as a percentage, with its interval where it is known."""
    low, high = interval or (None, None)
    return f"{share:.0%}" if low is None else f"{share:.0%} [{low:.0%}, {high:.0%}]"


def pace_html(status: LoopStatus, translate: Words) -> str:
    """How long a round takes, for whoever thinks of starting one."""
    row = status.last_whole_round
    if row is None or status.active or not row["metrics"].get("phase_seconds"):
        return ""
    took = duration(sum(row["metrics"]["phase_seconds"].values()), translate)
    text = translate("Round {n} took {time}; the chat goes on during a round.", n=row["id"], time=took)
    return f'<p class="agreement">{escape(text)}</p>'


def agreement_html(status: LoopStatus, translate: Words) -> str:
    """How often the reward model predicted the last votes."""
    hits, calls = status.forecasts
    if not calls:
        return ""
    text = translate(
        "The reward model predicted {n} of the last {calls} {calls:pick|picks} ({share}), each before it learned from "
        "it; guessing gives 50%.",
        n=hits,
        calls=calls,
        share=f"{hits / calls:.0%}",
    )
    return f'<p class="agreement">{escape(text)}</p>'


def samples(file: Path, translate: Words, is_admin: bool = False) -> str:
    """The sample replies in a round's `gate.json`, those of the live version beside those of the new one: on prompts
    that are shipped with the app and, for admins alone, on people's own prompts.
    """
    if not file.exists():
        return ""
    recorded = json.loads(file.read_text())["samples"]
    shown = [sample for sample in recorded if is_shipped(sample)][:SAMPLES]
    if is_admin:
        shown += [sample for sample in recorded if not is_shipped(sample)][:SAMPLES]
    if not shown:
        return ""
    headings = (translate("Before"), translate("After"))
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    body = "".join(_sample_html(sample, translate) for sample in shown)
    title = escape(translate("The same held-out prompts, before and after"))
    return f'<h2>{title}</h2><table class="samples"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def is_shipped(sample: Mapping[str, Any]) -> bool:
    """Whether a sample's prompt is shipped with the app; files of earlier versions do not say so."""
    return sample.get("shipped") is True


def _sample_html(sample: Mapping[str, Any], translate: Words) -> str:
    asked = escape(visible(question(sample["prompt"])))
    if not is_shipped(sample):
        note = escape(translate("from a person's chat, seen by admins only"))
        asked += f' <i class="chip">{note}</i>'
    live_reply = escape(visible(sample["live"].strip()))
    new_reply = escape(visible(sample["new"].strip()))
    return f'<tr><th scope="row" colspan="2">{asked}</th></tr><tr><td>{live_reply}</td><td>{new_reply}</td></tr>'


def question(prompt: str) -> str:
    """The last message of a decoded prompt, in which the roles are lines of their own."""
    if "user\n" not in prompt:
        return prompt.strip()
    return prompt.rsplit("user\n", 1)[-1].removesuffix("assistant\n").strip()


def config_html(row: Row, translate: Words) -> str:
    """The round's settings; those that differ from the defaults come first."""
    config = row["config"]
    if not config:
        return ""
    names = [name for group in sections().values() for name in group if name in config]
    defaults = {name: field.default for name, field in fields(Settings).items()}
    changed = [name for name in names if config[name] != defaults[name]]
    unchanged = [name for name in names if name not in changed]
    body = ""
    for name in (*changed, *unchanged):
        css_class = "changed" if name in changed else ""
        value = escape(visible(str(config[name])))
        body += f'<tr class="{css_class}"><th scope="row">{name}</th><td>{value}</td></tr>'
    caption = translate("{n} {n:differs|differ} from the defaults; seed {seed}", n=len(changed), seed=row["seed"])
    return f'<table class="config"><caption>{escape(caption)}</caption><tbody>{body}</tbody></table>'


def log_tail(file: Path) -> str:
    """The end of a round's log."""
    if not file.exists():
        return ""
    return visible(file.read_text(encoding="utf-8", errors="replace")[-LOG_CHARS:])
