"""The phases of a round as a row of steps: what is done and how long it took, what runs now, where the round ended.
A sign says it as well as a colour.
"""

from html import escape

from playground.store import is_fine_tuning, is_paused
from playground.ui import words
from playground.ui.handlers import Row
from playground.ui.round_state import displayed_state
from playground.ui.words import Words

PHASE_LABELS = {
    "collect": words.mark("votes"),
    "sft": words.mark("edited replies"),
    "reward": words.mark("reward model"),
    "ppo": words.mark("PPO"),
    "gate": words.mark("gate"),
    "publish": words.mark("live"),
}
PHASE_TEXTS = {
    "collect": words.mark("reading the votes"),
    "sft": words.mark("warming up on edited replies"),
    "reward": words.mark("reward model"),
    "ppo": words.mark("PPO"),
    "gate": words.mark("gate: comparing with the version that answers now"),
    "publish": words.mark("publishing"),
}
FILE_TEXTS = {"collect": words.mark("reading the file"), "sft": words.mark("fine-tuning on demonstrations")}
FILE_LABELS = {"collect": words.mark("file"), "sft": words.mark("demonstrations")}
# what is done within a step or before a phase has any, by the names in training/round_models.py and round.py
PART_TEXTS = {
    "load policy": words.mark("loading the model"),
    "add LoRA": words.mark("adding LoRA, choosing a number format"),
    "test policy": words.mark("testing the model"),
    "load reward trunk": words.mark("loading the reward model"),
    "test reward trunk": words.mark("testing the reward model"),
    "ppo: rollouts": words.mark("writing replies"),
    "ppo: scores": words.mark("scoring them"),
    "ppo: update": words.mark("learning from them"),
}
STOPPING = words.mark("Stopping as soon as it can…")
PAUSING = words.mark("Pausing as soon as it can…")
FINE_TUNING = ("collect", "sft", "gate", "publish")  # phases of a round on a file
SIGNS = {"done": "✓", "left-out": "–", "now": "●", "paused": "‖", "ended": "✗", "stopped": "■", "to-come": "○"}
PROGRESS_LABELS = {
    "done": words.mark("done"),
    "left-out": words.mark("nothing to do"),
    "now": words.mark("running"),
    "paused": words.mark("paused"),
    "ended": words.mark("ended here"),
    "stopped": words.mark("stopped here"),
    "to-come": words.mark("to come"),
}


def phases_html(round_row: Row | None, translate: Words) -> str:
    """The phases of a round as an HTML list; None is before the first round."""
    seconds = round_row["metrics"].get("phase_seconds", {}) if round_row else {}
    on_file = round_row is not None and is_fine_tuning(round_row)
    items = ""
    for phase, progress in phase_progress(round_row).items():
        took = ""
        if progress == "done" and seconds.get(phase, 0) >= 1:
            took = f"<small>{duration(seconds[phase], translate)}</small>"
        elif progress == "left-out":
            took = f"<small>{escape(translate('none'))}</small>"
        label = escape(translate(PROGRESS_LABELS[progress]))
        phase_label = FILE_LABELS.get(phase, PHASE_LABELS[phase]) if on_file else PHASE_LABELS[phase]
        sign = f'<i role="img" aria-label="{label}">{SIGNS[progress]}</i>'
        items += f'<li class="{progress}">{sign}<span>{escape(translate(phase_label))}{took}</span></li>'
    return f'<ol class="steps">{items}</ol>'


def phase_text(round_row: Row, translate: Words) -> str:
    """What a round does in its phase, that it is about to stop or to pause, or where it is paused."""
    wish = round_row["wish"] if round_row["state"] == "running" else None
    if wish == "stop":
        return translate(STOPPING)
    if wish == "pause" and not is_paused(round_row):
        return translate(PAUSING)
    phase = round_row["phase"] or ""
    text = PHASE_TEXTS.get(phase, phase)
    doing = translate(FILE_TEXTS.get(phase, text) if is_fine_tuning(round_row) else text)
    return translate("{phase}, paused", phase=doing) if wish == "pause" else doing


def phase_progress(round_row: Row | None) -> dict[str, str]:
    """{phase: one of PROGRESS_LABELS}."""
    phases = list(PHASE_LABELS)
    if round_row is not None and is_fine_tuning(round_row):
        phases = list(FINE_TUNING)
    if round_row is None or round_row["phase"] is None:
        return dict.fromkeys(phases, "to-come")
    state = round_row["state"]
    # the gate refuses a version; the round is then in the phase "publish", in which the refusal is recorded
    current_phase = "gate" if state == "refused" else round_row["phase"]
    current = phases.index(current_phase)
    progress = dict.fromkeys(phases[:current], "done")
    if progress.get("sft") and "demonstrations" not in round_row["metrics"]:
        progress["sft"] = "left-out"
    here = {"running": "now", "requested": "now", "published": "done", "paused": "paused", "stopped": "stopped"}
    progress[current_phase] = here.get(displayed_state(round_row), "ended")
    return progress | dict.fromkeys(phases[current + 1 :], "to-come")


def duration(seconds: float, translate: Words) -> str:
    """A time as people say it: minutes, or seconds below one."""
    if seconds >= 60:
        return translate("{n} min", n=f"{seconds / 60:.1f}")
    return translate("{n} s", n=f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}")
