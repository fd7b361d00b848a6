"""One's own vote in its open row of the tab "Data": the buttons that change it and take it back, and what they do.

Whose vote it is, and whether it may change, is checked by `Chat` and the store, whatever the page sends.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from playground.chat.session import Chat
from playground.ui import words
from playground.ui.chat_panel import CHOICES
from playground.ui.handlers import Row
from playground.ui.status_bar import version_name
from playground.ui.text import visible
from playground.ui.words import Words

GESTURES = re.compile(r"(?:vote ([0-9]{1,15}) (a|b|tie|both_bad)|delete ([0-9]{1,15}))", re.ASCII)
DELETE = words.mark("Delete this vote")


@dataclass(frozen=True)
class OwnVote:
    """What somebody wants of a vote of theirs: another choice, or (None) that it is deleted."""

    vote: int
    choice: str | None


def read(decision: str | None) -> OwnVote | None:
    """The gesture that a button's `data-decision` says; None where it says another one."""
    match = GESTURES.fullmatch(decision or "")
    if match is None:
        return None
    changed, choice, deleted = match.groups()
    return OwnVote(int(changed or deleted), choice)


def buttons_html(row: Row, translate: Words) -> str:
    """The buttons of a row of `Store.judged_page`: the choices that it does not have, and the deletion."""
    number = row["vote"]
    others = [(choice, text) for choice, text in CHOICES.items() if choice not in ("skip", row["choice"])]
    buttons = "".join(_button(f"vote {number} {choice}", translate(text)) for choice, text in others)
    question = translate(
        "Delete your vote on this pair? The chat stays, and what versions have learnt from the vote stays in them."
    )
    delete = _button(f"delete {number}", translate(DELETE), question)
    return f'<p class="decision own"><span>{escape(translate("Change your vote:"))}</span>{buttons}{delete}</p>'


def _button(decision: str, text: str, question: str = "") -> str:
    asked = f' data-question="{escape(visible(question))}"' if question else ""
    return f'<button type="button" data-decision="{decision}"{asked}>{escape(text)}</button>'


def carry_out(chat: Chat, annotator: int, wanted: OwnVote, translate: Words) -> tuple[str, int | None]:
    """Do it; returns what is said of it and the vote that is there now, if one is. Refused where it cannot be done."""
    if wanted.choice is not None:
        vote = chat.correct(annotator, wanted.vote, wanted.choice)
        choice = translate(CHOICES[wanted.choice])
        if vote == wanted.vote:
            return translate("Your vote was {choice} already; nothing was changed.", choice=choice), vote
        return translate("Your vote is changed: {choice}.", choice=choice), vote
    learnt = chat.store.versions_of_votes([wanted.vote]).get(wanted.vote, [])
    chat.withdraw(annotator, wanted.vote)
    return f"{translate('Your vote is deleted.')} {_stays_text(learnt, translate)}".strip(), None


def _stays_text(versions: Sequence[int], translate: Words) -> str:
    if not versions:
        return ""
    names = ", ".join(version_name(version, translate) for version in versions)
    return translate("Versions that had learnt from it: {what}. What a version has learnt stays in it.", what=names)
