"""The table of judged pairs as HTML; a row opens its chat and both replies. Functions of the store's rows; nothing here
knows the page.
"""

from collections.abc import Sequence
from datetime import datetime
from html import escape

from playground.ui import words
from playground.ui.chat_panel import CHOICES
from playground.ui.handlers import Row
from playground.ui.status_bar import version_name
from playground.ui.text import one_line, visible
from playground.ui.words import Words

LINE_CHARS = 90  # of the message, while the row is closed
MESSAGE_CHARS = 20_000  # of it, in an open row
CHAT_CHARS = 8000  # of the messages before it, all together
REPLY_CHARS = 4000  # of a reply, and of the system prompt
SPOKEN = {"system": words.mark("System prompt"), "user": words.mark("Message"), "assistant": words.mark("Reply")}


def pairs_html(rows: Sequence[Row], with_people: bool, translate: Words, empty: str | None = None) -> str:
    """Judged pairs (rows of `Store.judged_page`), newest first; `with_people`: whether it says whose they are; `empty`:
    what it says where there are none, by default that none fit.
    """
    if not rows:
        return f'<p class="empty">{escape(empty or translate("No judged pairs fit here."))}</p>'
    return f'<div class="pairs">{"".join(_pair_html(row, with_people, translate) for row in rows)}</div>'


def _pair_html(row: Row, with_people: bool, translate: Words) -> str:
    """One pair: its line, and within it the chat and both replies."""
    message = _cut(one_line(row["messages"][-1]["content"]), LINE_CHARS)
    created = datetime.fromisoformat(row["created"]).strftime("%Y-%m-%d %H:%M")
    css_class = f' class="side-{row["choice"]}"' if row["choice"] in ("a", "b") else ""
    person = f"<i>{escape(translate('person {n}', n=row['person']))}</i>" if with_people else ""
    marks = [translate("left out of training")] if row["excluded"] else []
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
    return f'<details class="pair"><summary>{line}</summary>{chat}{why}<div class="replies">{replies}</div></details>'


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
