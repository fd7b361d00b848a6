"""The table of judged pairs as HTML, and what stands around it; a row opens its chat and both replies. Functions of the
store's rows; nothing here knows the page.

A button with `data-decision` is pressed for `DataTab.on_decide`, after its `data-question` was answered.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from html import escape

from playground.data.http import DOWNLOADS
from playground.data.times import spoken
from playground.store import Filters
from playground.store.checks import MOST
from playground.ui import own_votes, words
from playground.ui.chat_panel import CHOICES
from playground.ui.handlers import Row
from playground.ui.quality import learnt_text, person_name
from playground.ui.reasons import TAGS
from playground.ui.status_bar import version_name
from playground.ui.text import one_line, visible
from playground.ui.words import Words

Names = Mapping[int, str]  # of people by their ids
NOBODY: Names = {}
LINE_CHARS = 90  # of the message, while the row is closed
MESSAGE_CHARS = 20_000  # of it, in an open row
CHAT_CHARS = 8000  # of the messages before it, all together
REPLY_CHARS = 4000  # of a reply, and of the system prompt
LEAVE_OUT = ("out", words.mark("Leave it out of training"))
TAKE_IN = ("in", words.mark("Take it in again"))
SPOKEN = {"system": words.mark("System prompt"), "user": words.mark("Message"), "assistant": words.mark("Reply")}


@dataclass(frozen=True)
class Known:
    """What admins alone see beside the pairs."""

    names: Mapping[int, str] = field(default_factory=dict)  # of people who have one
    versions: Mapping[int, list[int]] = field(default_factory=dict)  # by vote: those that have learnt from it


def pairs_html(
    rows: Sequence[Row],
    known: Known | None,
    translate: Words,
    empty: str | None = None,
    opened: int | None = None,
    own: int | None = None,
) -> str:
    """Judged pairs (rows of `Store.judged_page`), newest first; `known`: for an admin, to whom it says whose they are,
    and who leaves them out of training; `empty`: what it says where there are none, by default that none fit; `opened`:
    the vote whose row is open; `own`: the person who may change votes of theirs.
    """
    if not rows:
        return f'<p class="empty">{escape(empty or translate("No judged pairs fit here."))}</p>'
    return f'<div class="pairs">{"".join(_pair_html(row, known, translate, opened, own) for row in rows)}</div>'


def _pair_html(row: Row, known: Known | None, translate: Words, opened: int | None, own: int | None) -> str:
    """One pair: its line, and within it the chat and both replies."""
    message = _cut(one_line(row["messages"][-1]["content"]), LINE_CHARS)
    created = datetime.fromisoformat(row["created"]).strftime("%Y-%m-%d %H:%M")
    css_class = f' class="side-{row["choice"]}"' if row["choice"] in ("a", "b") else ""
    person = f"<i>{escape(one_line(person_name(row['person'], known.names, translate)))}</i>" if known else ""
    marks = [translate("left out of training")] if row["excluded"] else []
    marks += [translate("the person is left out")] if known and row["person_out"] else []
    marks += [translate("voted before the replies ended")] if row["early"] else []
    chips = "".join(f'<i class="chip skipped">{escape(mark)}</i>' for mark in marks)
    line = (
        f"<span>{row['vote']}</span><time>{created}</time><span>{escape(message)}</span>"
        f"<b{css_class}>{escape(translate(CHOICES[row['choice']]))}</b>{person}{chips}"
    )
    replies = "".join(_reply_html(row, side, translate) for side in ("left", "right"))
    said = [translate(tag) for tag in row["tags"]] + ([row["comment"]] if row["comment"] else [])
    why = f"<p>{escape(one_line(' · '.join(said)))}</p>" if said else ""
    chat = f'<div class="chat">{_chat_html(row, translate)}</div>'
    is_open = row["vote"] == opened
    decision = own_votes.buttons_html(row, translate) if row["person"] == own else ""
    if known:
        decision += _decision_html(row, known.versions.get(row["vote"], []), translate, is_open)
    return (
        f'<details class="pair"{" open" if is_open else ""}><summary>{line}</summary>{chat}{why}'
        f'<div class="replies">{replies}</div>{decision}</details>'
    )


def _decision_html(row: Row, versions: list[int], translate: Words, pressed: bool) -> str:
    """The button that leaves a vote out of training, or takes it in again, and the versions that have learnt from the
    vote; `pressed`: it was the last one pressed.
    """
    where, text = TAKE_IN if row["excluded"] else LEAVE_OUT
    again = " data-again" if pressed else ""
    button = f'<button type="button" data-decision="{where} {row["vote"]}"{again}>{escape(translate(text))}</button>'
    learnt = f" <span>{escape(learnt_text(versions, translate))}</span>" if versions else ""
    return f'<p class="decision">{button}{learnt}</p>'


def _chat_html(row: Row, translate: Words) -> str:
    """The chat up to the message that was answered: the system prompt, as many of the last messages as CHAT_CHARS
    hold, and the message.
    """
    *earlier, message = row["messages"]
    is_cut = row["cut"]
    parts = [_said_html(message, MESSAGE_CHARS, translate)]
    left = CHAT_CHARS
    system = earlier.pop(0) if earlier and earlier[0]["role"] == "system" else None
    for turn in reversed(earlier):
        if left <= 0:
            is_cut = True
            break
        parts.append(_said_html(turn, left, translate))
        left -= len(turn["content"])
    if is_cut:
        parts.append(f"<p>{escape(translate('Earlier messages of this chat are not shown.'))}</p>")
    if system is not None:
        parts.append(_said_html(system, REPLY_CHARS, translate))
    return "".join(reversed(parts))


def _said_html(turn: Row, most: int, translate: Words) -> str:
    """A message of the chat with what it is."""
    return f"<section><h3>{escape(translate(SPOKEN[turn['role']]))}</h3>{_typed_html(turn['content'], most)}</section>"


def _typed_html(text: str, most: int) -> str:
    """At most `most` characters of a text, as it was typed."""
    return f'<div class="typed" dir="auto">{escape(visible(_cut(text, most)))}</div>'


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _reply_html(row: Row, side: str, translate: Words) -> str:
    """A reply with the version that wrote it, marked where it was picked."""
    letter = "A" if side == "left" else "B"
    name = escape(f"{letter} · {version_name(row[f'{side}_version'], translate)}")
    css_class, picked = "", ""
    if row["choice"] == letter.lower():
        css_class = f' class="picked side-{row["choice"]}"'
        picked = f' <b class="side-{row["choice"]}">✓ {escape(translate("picked"))}</b>'
    return f"<section{css_class}><h3>{name}{picked}</h3>{_typed_html(row[side], REPLY_CHARS)}</section>"


# -- around the table


def asked_html(filters: Filters, translate: Words, names: Names = NOBODY) -> str:
    """What the list is narrowed to, as one line that folds the fields on a phone."""
    said = escape(one_line(asked_text(filters, translate, names) or translate("everything")))
    return (
        f'<button type="button" class="fold" aria-expanded="false" aria-controls="data-filters">'
        f"{escape(translate('Search'))}: <span>{said}</span></button>"
    )


def all_html(filters: Filters, translate: Words, names: Names = NOBODY) -> str:
    """The buttons that leave all votes that fit out of training, or take them in again; "" where nothing is searched
    for.
    """
    asked = asked_text(filters, translate, names)
    if not asked:
        return ""
    buttons = ""
    if filters.excluded is not True:
        question = translate("Leave every vote that fits this search out of training? {asked}", asked=asked)
        buttons += _all_button("out", filters, translate("Leave all that fit out of training"), question)
    if filters.excluded is not False:
        question = translate("Take every vote that fits this search in again? {asked}", asked=asked)
        buttons += _all_button("in", filters, translate("Take all that fit in again"), question)
    return f'<div class="all">{buttons}</div>'


def _all_button(where: str, filters: Filters, text: str, question: str) -> str:
    decision = f"{where} all {search_key(filters)}"
    return (
        f'<button type="button" data-decision="{decision}" data-question="{escape(visible(question))}">'
        f"{escape(text)}</button>"
    )


def search_key(filters: Filters) -> str:
    """What tells a search from others: a decision on all that fits is for the search that the person was asked about,
    which need not be the last one.
    """
    return hashlib.blake2s(repr(filters).encode(), digest_size=8).hexdigest()


def asked_text(filters: Filters, translate: Words, names: Names = NOBODY) -> str:
    """What is searched for, such as "Vote: Tie · Text: rivers"; "" where nothing is."""
    parts = []
    if filters.version is not None:
        parts.append(f"{translate('Version')}: {_number_text(filters.version)}")
    if filters.choice is not None:
        choice = CHOICES.get(filters.choice)
        parts.append(f"{translate('Vote')}: {translate(choice) if choice else '?'}")
    if filters.tag is not None:
        tag = translate(filters.tag) if filters.tag in TAGS else "?"
        parts.append(f"{translate('Reason')}: {tag}")
    if filters.excluded is not None:
        out = translate("left out of training") if filters.excluded else translate("in training")
        parts.append(f"{translate('Training')}: {out}")
    if filters.since is not None:
        parts.append(f"{translate('From (UTC)')}: {spoken(filters.since)}")
    if filters.until is not None:
        parts.append(f"{translate('To (UTC)')}: {spoken(filters.until, end=True)}")
    if filters.person is not None:
        person = names.get(filters.person) or _number_text(filters.person)
        parts.append(f"{translate('Person')}: {person}")
    if filters.text is not None:
        parts.append(f"{translate('Text')}: {filters.text}")
    return " · ".join(parts)


def _number_text(number: int) -> str:
    """A number that is searched for; what was no number is MOST."""
    return "?" if number == MOST else str(number)


def downloads_html(translate: Words) -> str:
    """Links to the files that an admin may download, and what they hold."""
    links = " ".join(f'<a href="export/{name}.jsonl" download>{name}.jsonl</a>' for name in DOWNLOADS)
    held = translate(
        "The files hold everybody's, whatever the search above shows; votes left out of training are not in."
    )
    return f"<p>{escape(translate('Download:'))} {links}</p><p>{escape(held)}</p>"


def imported_html(counts: Mapping[str, int], read: tuple[int, int] | None, translate: Words) -> str:
    """How many rows were imported, and how many pairs of them the newest round that has read any data took:
    `read`, as (round, pairs). Nothing where none was.
    """
    if not counts:
        return ""
    held = translate(
        "Imported: pairs {pairs}, demonstrations {demonstrations}, prompts {prompts}.",
        **{f"{kind}s": f"{counts.get(kind, 0):,}" for kind in ("pair", "demonstration", "prompt")},
    )
    learned = ""
    if read is not None:
        learned = " " + translate(
            "Round {n} read {pairs} of the imported pairs, beside the votes.", n=read[0], pairs=f"{read[1]:,}"
        )
    return f"<p>{escape(held + learned)}</p>"
