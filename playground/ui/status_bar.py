"""One line at the top of each page: the state of the loop of votes and training, read once for all open pages.

`StatusBar` is the component that shows it, and the place where other tabs ask for a `LoopStatus`.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from typing import Any

import gradio as gr

from playground.backup import Backup, Status
from playground.serving.engine import Engine
from playground.settings import Settings
from playground.store import Store, StoreError
from playground.store.reasons import is_by_admin
from playground.system.messages import Message
from playground.ui import refresh, words
from playground.ui.handlers import GESTURE, Row
from playground.ui.loop_status import LoopStatus
from playground.ui.phases import PART_TEXTS, phase_text
from playground.ui.round_state import ENDED, displayed_state, public_reason
from playground.ui.text import one_line
from playground.ui.words import Words

FRESH_SECONDS = 1.0  # for which one status serves all pages
LONGEST_SECONDS = 10.0  # after which the store is read although its files look the same


class StatusBar:
    """The line above the tabs, made inside the current Blocks; and the LoopStatus for all who show a part of it."""

    def __init__(self, settings: Settings, store: Store, engine: Engine, backup: Backup | None = None) -> None:
        self.settings = settings
        self.store = store
        self.engine = engine
        self.backup = backup
        self.html = gr.HTML(elem_id="strip", padding=False)
        self.painted = gr.State(None)  # the HTML that this page has
        self.refresh = refresh.button("strip")
        self._lock = threading.Lock()
        self._changes: tuple[LoopStatus, refresh.Changes] | None = None  # of a status
        self._rounds_digest: tuple[Sequence[Row], str] | None = None  # of what was read together with these rounds
        self._known: LoopStatus | Message | None = None  # the last status, or why it could not be read
        self._known_at = self._read_at = 0.0  # when it was made, and read from the store; monotonic, in seconds
        self._state = ""  # of the store when it was read

    def status(self) -> LoopStatus:
        """The status, at most a second old. One read serves the ticks of all pages, and so does a failed read:
        otherwise each page would wait for the store in turn. StoreError where the store cannot answer.
        """
        with self._lock:
            if time.monotonic() - self._known_at > FRESH_SECONDS:
                self._known = self._next()
                self._known_at = time.monotonic()
            known = self._known
        if isinstance(known, LoopStatus):
            return known
        assert known is not None
        raise StoreError(known)

    def _next(self) -> LoopStatus | Message:
        """The status now: read from the store where that has changed."""
        state, known = self.store.state(), self._known
        unchanged = state == self._state and time.monotonic() - self._read_at < LONGEST_SECONDS
        if unchanged and isinstance(known, LoopStatus):
            backup = self.backup.status() if self.backup else None
            return replace(known, live_version=self.engine.live.version, backup=backup, read_at=time.time())
        self._state, self._read_at = state, time.monotonic()
        try:
            return LoopStatus.read(self.settings, self.store, self.engine, self.backup)
        except StoreError as error:
            return error.message

    def invalidate(self) -> None:
        """Read the status again at the next call: somebody has just changed it."""
        self._known_at = self._read_at = 0.0

    def changes(self) -> refresh.Changes:
        """What an open page compares with what it shows."""
        try:
            changes = self._changes_of(self.status())
        except StoreError:
            return {}
        return {**changes, "server": refresh.SERVER, "data": refresh.digest(self.store.state())}

    def _changes_of(self, status: LoopStatus) -> refresh.Changes:
        """`strip` and `loop` at this status."""
        known = self._changes
        if known is not None and known[0] is status:
            return known[1]
        strip = status_html(status, Words()) + backup_trouble_html(status.backup, Words())
        if self._rounds_digest is None or self._rounds_digest[0] is not status.rounds:
            read = replace(status, live_version=0, backup=None, read_at=0.0)  # the time left is in the strip
            self._rounds_digest = status.rounds, refresh.digest(read)
        loop = strip, self._rounds_digest[1], status.live_version, status.backup
        changes = {"strip": refresh.digest(strip), "loop": refresh.digest(loop)}
        self._changes = status, changes
        return changes

    def wire(self, page: gr.Blocks) -> None:
        gr.on([page.load, self.refresh.click], self.on_tick, [self.painted], [self.html, self.painted], **GESTURE)

    def on_tick(self, painted: str | None, request: gr.Request) -> tuple[Any, Any]:
        """The line, where it has changed."""
        translate = words.of(request)
        status = self.status()
        html = status_html(status, translate, self._changes_of(status)["strip"])
        html += backup_trouble_html(status.backup, translate)
        html += slowness_html(self.engine.slowness, translate)
        return (gr.skip(), gr.skip()) if painted == html else (html, html)


def status_html(status: LoopStatus, translate: Words, state: str = "") -> str:
    """One line: what is going on, how far it is, and which version answers. `state` is written where the page finds
    it, to compare it with what `changes` says later.
    """
    row = status.round
    if row is None:
        content = _line_html(invitation(status.settings, translate, status.new_votes), *_votes(status, translate))
    elif status.state == "running":
        text = translate("Round {n}: {phase}", n=row["id"], phase=phase_text(row, translate))
        content = _line_html(text, _progress(status, row, translate), status.phase_share)
    elif status.state == "requested":
        content = _line_html(translate("A training round is asked for"), translate("waiting for the worker"))
    else:
        sentence = outcome(status, row, translate)
        advice = more_votes(row, translate) if status.state == "not_enough" else None
        content = _line_html(advice or sentence, *_votes(status, translate), title=sentence)
    version = escape(version_name(status.live_version, translate))
    kind = displayed_state(row) if row else "idle"
    content = f'<span class="version">{version}</span>{content}'
    return f'<div class="strip {kind}" role="status" data-state="{state}">{content}</div>'


def slowness_html(slowness: Message | None, translate: Words) -> str:
    """A second line where replies grow slowly here; what it says stays true, so it stays."""
    return f'<p class="slow" role="note">{escape(translate.message(slowness))}</p>' if slowness else ""


def backup_trouble_html(backup: Status | None, translate: Words) -> str:
    """A line where the backup needs somebody's attention."""
    sentences = [backup.trouble, backup.not_saved, *backup.notices] if backup else []
    text = " ".join(translate.message(sentence) for sentence in sentences if sentence)
    return f'<p class="slow" role="note">{escape(text)}</p>' if text else ""


def backup_html(backup: Status | None, translate: Words) -> str:
    """How old the last snapshot is, and what is not in it."""
    if backup is None:
        return ""
    if backup.reads_only:
        text = translate("Backup: another copy of this app saves.")
    elif backup.not_saved:
        text = translate("Backup: nothing is saved from here. {what}", what=translate.message(backup.not_saved))
    elif backup.minutes is None:
        text = translate("Backup: nothing is saved yet.")
    elif backup.minutes == 0 and not backup.changed:
        text = translate("Backup: everything is saved, in the snapshot of {time}.", time=backup.snapshot)
    elif backup.minutes == 0:
        text = translate("Backup: saved as it was less than a minute ago.")
    else:
        text = translate("Backup: saved as it was {n} min ago.", n=backup.minutes)
    return f'<p class="agreement">{escape(text)}</p>'


def outcome(status: LoopStatus, row: Row, translate: Words) -> str:
    """How the newest round ended, in one sentence. `row` is that round's."""
    policy = status.policy
    if displayed_state(row) == "stopped":
        return translate("An admin stopped round {n}.", n=row["id"])
    if status.state not in ("refused", "published") or policy is None:
        why = public_reason(row)
        return translate.message(why) if why else translate(ENDED[status.state])
    version = version_name(policy["version"], translate)
    if status.state == "refused":
        reason = row["reason"].values.get("reason", row["reason"])
        return translate("{version} was refused: {reason}", version=version, reason=reason)
    if policy["status"] == "rejected":
        return translate("{version} could not be loaded: {reason}", version=version, reason=policy["reason"])
    if policy["status"] == "live" and status.live_version != policy["version"]:
        return translate("{version} is published and is being loaded.", version=version)
    if policy["status"] == "live":
        by_votes = status.trial if status.trial and not ended_by_admin(status.trial) else None
        return trial_text(by_votes, version, translate) or translate("{version} is live.", version=version)
    if policy["status"] == "rolled_back" and status.trial and status.trial["state"] == "rolled_back":
        return trial_text(status.trial, version, translate)
    live_name = version_name(status.live_version, translate)
    if policy["status"] == "rolled_back":
        return translate("{version} was rolled back; {name} answers now.", version=version, name=live_name)
    return translate("{version} was published; {name} answers now.", version=version, name=live_name)


def more_votes(row: Row, translate: Words) -> str | None:
    """What to do after a round that had not enough evidence, in few words: the strip cuts a long sentence. None where
    the round ended for another reason, which more votes do not change.
    """
    if row["reason"] is None or not row["reason"].template.startswith("Not enough evidence yet"):
        return None
    figures = row["reason"].values
    if "more" in figures:
        return translate("Vote A or B on about {n} more {n:reply|replies}: not enough evidence yet", n=figures["more"])
    if "hits" in figures:
        return translate("Vote A or B on more replies: the votes do not agree with each other yet")
    return translate("Vote A or B on more replies: not enough evidence yet")


def trial_text(trial: Row | None, version: str, translate: Words) -> str:
    """How the trial of a version goes, or how it ended; empty where it had none. `version` is its name."""
    if trial is None:
        return ""
    if trial["state"] == "open" and not trial["live"]:
        return translate("{version} was on trial until another version came.", version=version)
    if trial["state"] == "open" and not trial["wins"] + trial["losses"]:
        name = version_name(trial["against"], translate)
        return translate("{version} is on trial against {name}: no pair is judged yet", version=version, name=name)
    if trial["state"] == "open":
        return translate(
            "{version}: preferred to {name} in {wins} of {n} {n:pair|pairs} (on trial)",
            version=version,
            name=version_name(trial["against"], translate),
            wins=trial["wins"],
            n=trial["wins"] + trial["losses"],
        )
    reason = translate.message(trial["reason"])
    if trial["state"] == "rolled_back":
        return translate("{version} was rolled back: {reason}.", version=version, reason=reason)
    if ended_by_admin(trial) or not trial["live"]:
        return translate("The trial of {version} ended: {reason}.", version=version, reason=reason)
    return translate("{version} is live: {reason}.", version=version, reason=reason)


def ended_by_admin(trial: Row) -> bool:
    """Whether an admin ended the trial of a version, whose votes then say nothing about why it is live."""
    return trial["state"] == "undecided" and is_by_admin(trial["reason"])


def version_name(version: int, translate: Words) -> str:
    """A policy version as people read it."""
    return translate("v0 (base)") if version == 0 else f"v{version}"


def invitation(settings: Settings, translate: Words, given: int = 0) -> str:
    """What a visitor can do for the next round, for which so many votes are given."""
    if settings.round.auto and not settings.worker:
        return translate("Vote on replies: your votes are kept, and a worker learns from them once one runs")
    if settings.round.auto:
        if 0 < given < settings.round.votes:
            left = settings.round.votes - given
            return translate("Vote on {n} more {n:reply|replies} and I start learning", n=left)
        return translate("Vote on {n} {n:reply|replies} and I start learning", n=settings.round.votes)
    return translate("Training is on demand here")


def _votes(status: LoopStatus, translate: Words) -> tuple[str, float | None]:
    """The new votes, and their share of those that start a round."""
    if not status.settings.round.auto:
        return translate("{n} new {n:vote|votes}", n=status.new_votes), None
    needed = status.settings.round.votes
    text = translate("{n} of {total} new {total:vote|votes}", n=status.new_votes, total=needed)
    return text, min(status.new_votes / needed, 1.0)


def _progress(status: LoopStatus, row: Row, translate: Words) -> str:
    """How far a running round is: steps (a percentage where a step means nothing to people), what PPO has reached, and
    the time left.
    """
    parts = []
    if status.phase_share is not None:
        if row["phase"] == "reward":
            parts.append(f"{status.phase_share:.0%}")
        else:
            parts.append(translate("{n} of {total}", n=row["step"], total=row["steps"]))
    if not status.pausing and row["metrics"].get("part") in PART_TEXTS:
        parts.append(translate(PART_TEXTS[row["metrics"]["part"]]))
    if row["phase"] in ("ppo", "gate"):
        if rewards := [value for _, value in status.curves.get("reward", []) if value is not None]:
            arrow = ""
            if len(rewards) > 1:
                arrow = " ↑" if rewards[-1] > rewards[0] else " ↓"
            parts.append(translate("reward {value}", value=f"{rewards[-1]:.2f}") + arrow)
        if kls := [value for _, value in status.curves.get("kl", []) if value is not None]:
            parts.append(f"KL {kls[-1]:.2f}")
    if left := status.time_left:
        minutes = f"{max(left.minutes, 1):.0f}"
        if left.of_round:
            parts.append(translate("about {n} min left", n=minutes))
        else:
            parts.append(translate("about {n} min left of this step", n=minutes))
    return " · ".join(parts)


def _line_html(text: str, detail: str, share: float | None = None, title: str | None = None) -> str:
    """A sentence, a bar where a share from 0 to 1 is known, and a detail. `title` is what the tooltip says where it is
    not the sentence.
    """
    text = escape(one_line(text))
    title = text if title is None else escape(one_line(title))
    bar = "" if share is None else f'<span class="bar"><i style="width:{100 * share:.0f}%"></i></span>'
    return f'<span class="what" title="{title}">{text}</span>{bar}<span class="detail">{escape(detail)}</span>'
