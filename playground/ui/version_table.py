"""The table of versions as HTML: what each was made from, how often people prefer it, and why it is not live any more.
Functions of the store's rows; nothing here knows the page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape

from playground.models.export import is_public
from playground.models.ratings import Rating, WinRate
from playground.system.messages import Message
from playground.ui import words
from playground.ui.handlers import Row
from playground.ui.status_bar import trial_text, version_name
from playground.ui.text import visible
from playground.ui.words import Words

STATES = {
    "live": words.mark("answers now"),
    "loading": words.mark("is being loaded"),
    "trial": words.mark("answers now, on trial"),
    "retired": words.mark("replaced by another one"),
    "rolled_back": words.mark("rolled back"),
    "refused": words.mark("refused"),
    "rejected": words.mark("could not be loaded"),
    "withdrawn": words.mark("withdrawn"),
}
COLUMNS = 6
NO_FIGURE = "–"


@dataclass(frozen=True)
class Board:
    """What the table shows. `history`: rows of `Store.version_history`; `trial`: of `loop_status.trial_of` for the live
    version; `answering`: the version that the server answers with; `way_back`: the live version and the one to which
    an admin rolls it back, or None where there is none.
    """

    history: Sequence[Row]
    ratings: Mapping[int, Rating]
    trial: Row | None
    answering: int
    way_back: tuple[int, int] | None


def board_html(board: Board, limit: int, translate: Words, names: Mapping[int, str] | None = None) -> str:
    """The newest `limit` versions, newest first, and above them the one that answers now where it is older. `names`: of
    people by their ids, for an admin.
    """
    if len(board.history) < 2:
        return _nothing_html(translate)
    headings = (
        translate("Version"),
        translate("Made from"),
        translate("Preferred to the base"),
        translate("Preferred to the one before"),
        translate("Tokens of a reply · KL"),
        translate("Live from (UTC)"),
    )
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    answering = [row for row in board.history[limit:] if row["version"] == board.answering]
    shown = [*answering, *board.history[:limit]]
    bodies = "".join(_version_html(row, board, headings, translate, names or {}) for row in shown)
    note = translate(
        "Win rates are by votes on blind pairs of two versions, ties left out, with 95 % intervals (Bradley–Terry with "
        "ties, Bayesian bootstrap). Tokens and KL, in nats a reply, are those that the gate measured."
    )
    return (
        f'<table class="versions"><thead><tr>{head}</tr></thead>{bodies}</table>'
        f'<p class="versions-note">{escape(note)}</p>'
    )


def _nothing_html(translate: Words) -> str:
    heading = translate("Only the base model so far")
    text = translate(
        "Each training round whose result passes the gate makes a version. Here you will see what each was made from, "
        "how often people prefer it in blind pairs, and why one was refused or rolled back."
    )
    return f'<div class="empty"><h2>{escape(heading)}</h2><p>{escape(text)}</p></div>'


def state(row: Row, board: Board) -> str:
    """The key of STATES that fits a version."""
    if row["withdrawn"]:
        return "withdrawn"
    if row["status"] == "live":
        if board.answering != row["version"]:
            return "loading"
        return "trial" if _on_trial(row, board) else "live"
    if row["status"] == "rejected":
        return "refused" if row["rejected_by"] == "gate" else "rejected"
    return str(row["status"])


def _on_trial(row: Row, board: Board) -> bool:
    trial = board.trial
    return trial is not None and trial["version"] == row["version"] and trial["state"] == "open"


def _version_html(row: Row, board: Board, headings: Sequence[str], translate: Words, names: Mapping[int, str]) -> str:
    """One version: its line, and below it the reason where there is one."""
    kind = state(row, board)
    rating = board.ratings.get(row["version"])
    cells = (
        f'<b class="version-name">{escape(version_name(row["version"], translate))}</b> '
        f'<span class="chip state-{kind}">{escape(translate(STATES[kind]))}</span>{_download_html(row, translate)}',
        escape(_origin(row, translate)),
        _rate_html(rating.over_base if rating else None, picture=True),
        _before_html(row, rating, translate),
        escape(_figures(row)),
        _time_html(row["live_since"]),
    )
    labelled = zip(cells, headings, strict=True)
    line = "".join(_cell_html(cell, heading) for cell, heading in labelled)
    reason = _reason(row, board, translate, names)
    below = f'<tr class="why"><td colspan="{COLUMNS}">{escape(visible(reason))}</td></tr>' if reason else ""
    return f'<tbody class="version {kind}"><tr>{line}</tr>{below}</tbody>'


def _download_html(row: Row, translate: Words) -> str:
    """The link to the adapter of a version that may be downloaded."""
    if not is_public(row):
        return ""
    title = escape(
        translate("Download the adapter of {version} (PEFT)", version=version_name(row["version"], translate))
    )
    address = f"adapters/v{row['version']}.zip"
    return f' <a class="download" href="{address}" download title="{title}" aria-label="{title}">⤓</a>'


def _cell_html(cell: str, heading: str) -> str:
    """A cell with its heading, which a phone shows before it; a phone leaves out cells without a figure."""
    css_class = ' class="nothing"' if cell == NO_FIGURE else ""
    return f'<td{css_class} data-label="{escape(heading)}">{cell}</td>'


def _origin(row: Row, translate: Words) -> str:
    """The parent, the round and its votes."""
    if row["version"] == 0:
        return NO_FIGURE
    parent = version_name(row["parent"] or 0, translate)
    if row["round"] is None:
        return parent
    return translate("{parent}, round {round}, votes: {n}", parent=parent, round=row["round"], n=row["votes"])


def _rate_html(rate: WinRate | None, picture: bool = False) -> str:
    """A win rate with its interval; with `picture` also as a point and a line on a scale from 0 to 100 %."""
    if rate is None:
        return NO_FIGURE
    text = f"{rate.mean:.0%} [{rate.low:.0%}, {rate.high:.0%}]"
    return (_picture(rate) if picture else "") + f'<span class="rate">{text}</span>'


def _picture(rate: WinRate) -> str:
    """The interval as a line, the estimate as a point, and the middle of the scale, on a scale 100 wide."""
    low, mean, high = (100 * share for share in (rate.low, rate.mean, rate.high))
    kind = "better" if rate.low > 0.5 else "worse" if rate.high < 0.5 else "open"
    return (
        f'<svg class="interval {kind}" viewBox="-4 0 108 16" aria-hidden="true">'
        '<line class="scale" x1="0" y1="8" x2="100" y2="8"/><line class="middle" x1="50" y1="1" x2="50" y2="15"/>'
        f'<line class="range" x1="{low:.1f}" y1="8" x2="{high:.1f}" y2="8"/>'
        f'<circle cx="{mean:.1f}" cy="8" r="3.5"/></svg>'
    )


def _before_html(row: Row, rating: Rating | None, translate: Words) -> str:
    """The win rate over the version before; where that is the base, the column before says it."""
    if rating is None or not row["before"]:
        return NO_FIGURE
    text = translate(
        "{name}: {n} {n:vote|votes} on blind pairs", name=version_name(row["before"], translate), n=rating.duels
    )
    return f'<span title="{escape(text)}">{_rate_html(rating.over_before)}</span>'


def _figures(row: Row) -> str:
    """Length and KL, as the gate measured them."""
    report = row["report"]
    length, kl = report.get("length_new"), report.get("kl")
    return f"{length:.0f} · {kl:.1f}" if length is not None and kl is not None else NO_FIGURE


def _time_html(created: str | None) -> str:
    if created is None:
        return NO_FIGURE
    time = datetime.fromisoformat(created).astimezone(UTC).strftime("%Y-%m-%d %H:%M")
    return f"<time>{time}</time>"


def deciders(history: Sequence[Row]) -> set[int]:
    """The ids of people who decided about versions."""
    events = [row["event"] for row in history if row["event"]]
    return {event["annotator"] for event in events if event["annotator"] is not None}


def _reason(row: Row, board: Board, translate: Words, names: Mapping[int, str]) -> str:
    """How its trial goes, or why the version is what it is; empty where nothing needs a reason."""
    if _on_trial(row, board):
        return trial_text(board.trial, version_name(row["version"], translate), translate)
    event = row["event"]
    if event is None or event["reason"] is None:
        return ""
    reason = event["reason"]
    if event["what"] == "refused":
        return translate("It did not pass the gate: {reason}", reason=reason.values.get("reason", reason))
    if event["annotator"] is not None:
        who = names.get(event["annotator"]) or translate("An admin")
        if event["instead_of"] is not None:
            gone = version_name(event["instead_of"], translate)
            return translate(
                "It answers again, since {who} rolled {version} back: {reason}", who=who, version=gone, reason=reason
            )
        return _decision(event["what"], who, reason, translate)
    if event["what"] == "rejected":
        return translate("The server could not use it: {reason}", reason=reason)
    if event["what"] == "rolled_back":
        return translate("It was rolled back: {reason}", reason=reason)
    return translate("It answers again: {reason}", reason=reason) if event["what"] == "live" else ""


def _decision(what: str, who: str, reason: Message, translate: Words) -> str:
    """What an admin did to a version."""
    if what == "live":
        return translate("{who} made it live: {reason}", who=who, reason=reason)
    if what == "retired":
        return translate("{who} put another version in its place: {reason}", who=who, reason=reason)
    if what == "rolled_back":
        return translate("{who} rolled it back: {reason}", who=who, reason=reason)
    return translate("{who} withdrew it: {reason}", who=who, reason=reason)
