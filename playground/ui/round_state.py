"""The state of a round as people see it, with a sign and words for it."""

from playground.store import STOPPED, is_paused
from playground.store.reasons import without_words
from playground.system.messages import Message
from playground.ui import words
from playground.ui.handlers import Row

STATES = {
    "requested": words.mark("asked for"),
    "running": words.mark("running"),
    "paused": words.mark("paused"),
    "published": words.mark("published"),
    "rolled_back": words.mark("rolled back"),
    "refused": words.mark("refused"),
    "not_enough": words.mark("not enough evidence"),
    "nothing_left": words.mark("nothing left to learn"),
    "failed": words.mark("failed"),
    "stopped": words.mark("stopped"),
}
SIGNS = {
    "requested": "○",
    "running": "●",
    "paused": "‖",
    "published": "✓",
    "rolled_back": "↩",
    "refused": "✗",
    "not_enough": "–",
    "nothing_left": "=",
    "failed": "!",
    "stopped": "■",
}
ENDED = {
    "refused": words.mark("Refused: the new version did not pass; the old one stays."),
    "not_enough": words.mark("Not enough evidence yet."),
    "failed": words.mark("The round failed."),
}


def displayed_state(row: Row) -> str:
    """A key of STATES. A round that an admin stopped is "stopped", not "failed"; one that found the votes of no more
    use is "nothing_left"; one whose version was taken back is "rolled_back".
    """
    if is_paused(row):
        return "paused"
    if row["state"] == "failed" and row["reason"] == STOPPED:
        return "stopped"
    if row["state"] == "published" and row.get("policy_status") == "rolled_back":
        return "rolled_back"
    return "nothing_left" if row["state"] == "not_enough" and row["metrics"].get("nothing_left") else row["state"]


def public_reason(row: Row) -> Message | None:
    """Why a round ended, as everybody may read it. The reason of a failed round comes without the error's own message,
    which may quote a person.
    """
    reason = row["reason"]
    return without_words(reason) if reason and row["state"] == "failed" else reason
