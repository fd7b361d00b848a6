"""The table of judged pairs as HTML; a row opens both replies. Functions of the store's rows; nothing here knows the
page.
"""

from collections.abc import Sequence
from datetime import datetime
from html import escape

from playground.ui.chat_panel import CHOICES
from playground.ui.handlers import Row
from playground.ui.status_bar import version_name
from playground.ui.text import one_line, visible
from playground.ui.words import Words

MESSAGE_CHARS = 90
REPLY_CHARS = 4000  # of each text in an open row


def pairs_html(rows: Sequence[Row], with_people: bool, translate: Words) -> str:
    """Judged pairs (rows of `Store.judged_page`), newest first; `with_people`: whether it says whose they are."""
    if not rows:
        return f'<p class="empty">{escape(translate("No judged pairs fit here."))}</p>'
    return f'<div class="pairs">{"".join(_pair_html(row, with_people, translate) for row in rows)}</div>'


def _pair_html(row: Row, with_people: bool, translate: Words) -> str:
    """One pair: its line, and both replies within."""
    message = one_line(row["message"])
    if len(message) > MESSAGE_CHARS:
        message = message[: MESSAGE_CHARS - 1] + "…"
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
    return f'<details class="pair"><summary>{line}</summary>{why}<div class="replies">{replies}</div></details>'


def _reply_html(row: Row, side: str, translate: Words) -> str:
    """A reply with the version that wrote it."""
    text = row[side]
    if len(text) > REPLY_CHARS:
        text = text[: REPLY_CHARS - 1] + "…"
    name = f"{'A' if side == 'left' else 'B'} · {version_name(row[f'{side}_version'], translate)}"
    typed = f'<div class="typed" dir="auto">{escape(visible(text))}</div>'
    return f"<section><h3>{escape(name)}</h3>{typed}</section>"
