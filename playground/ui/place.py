"""Where a round trains, in a sentence: nothing where that is the worker beside the server."""

from html import escape

from playground.serving import gpu_slices
from playground.system.messages import loads
from playground.ui.handlers import Row
from playground.ui.text import visible
from playground.ui.words import Words


def place_html(row: Row, translate: Words, is_admin: bool) -> str:
    """A paragraph, or nothing. `row` is the round's; only admins see what ZeroGPU itself said of their quota."""
    text = _place(row, translate)
    words = row["metrics"].get("left_gpu_words")
    if words and is_admin:
        text = f"{text} ({words})"
    return f'<p class="place">{escape(visible(text))}</p>' if text else ""


def _place(row: Row, translate: Words) -> str:
    if left := row["metrics"].get("left_gpu"):
        return translate.message(loads(left))
    if not (row["owner"] or "").startswith(gpu_slices.OWNER):
        return ""
    if row["state"] == "running":
        return translate("This round trains on a GPU of ZeroGPU, a minute at a time.")
    return translate("This round trained on a GPU of ZeroGPU.")
