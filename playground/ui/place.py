"""Where a round trains, in a sentence: nothing where that is the worker beside the server."""

from html import escape

from playground.serving import gpu_slices
from playground.store import is_paused
from playground.system.messages import Message, loads
from playground.ui.handlers import Row
from playground.ui.text import visible
from playground.ui.words import Words


def place_html(row: Row, translate: Words, is_admin: bool) -> str:
    """A paragraph, or nothing. `row` is the round's; only admins see what ZeroGPU itself said of their quota, and the
    address of a job.
    """
    text = _place(row, translate)
    words = row["metrics"].get("left_gpu_words") or (row["metrics"].get("job") or {}).get("url")
    if words and is_admin:
        text = f"{text} ({words})"
    return f'<p class="place">{escape(visible(text))}</p>' if text else ""


def _place(row: Row, translate: Words) -> str:
    if job := row["metrics"].get("job"):
        where = translate.message(_job(job, row["state"] == "running"))
        return f"{where} {translate('The job goes on during the pause.')}" if is_paused(row) else where
    if left := row["metrics"].get("left_gpu"):
        return translate.message(loads(left))
    if not (row["owner"] or "").startswith(gpu_slices.OWNER):
        return ""
    if row["state"] == "running":
        return translate("This round trains on a GPU of ZeroGPU, a minute at a time.")
    return translate("This round trained on a GPU of ZeroGPU.")


def _job(job: Row, runs: bool) -> Message:
    """Where a round trains as a job (`SentJob` of training, as its row has it), for how long and for about how much."""
    machine, minutes, price = job["flavour"], job["seconds"] / 60, job["usd_per_minute"]
    if runs and job["stage"] == "waiting":
        where = Message("This round waits for a machine of Hugging Face ({machine}).", machine=machine)
        return where if price is None else _with_price(where, price, job.get("minutes"))
    if runs:
        where = Message("This round trains on a machine of Hugging Face ({machine}).", machine=machine)
    else:
        where = Message("This round trained on a machine of Hugging Face ({machine}).", machine=machine)
    if price is None:
        return Message("{where} Minutes so far: {minutes}.", where=where, minutes=f"{minutes:.0f}")
    cost = f"{minutes * price:.2f}"
    return Message(
        "{where} Minutes so far: {minutes}, about ${cost}.", where=where, minutes=f"{minutes:.0f}", cost=cost
    )


def _with_price(where: Message, price: float, limit: int | None) -> Message:
    """What a job that has not begun may cost: `price` is in dollars a minute, `limit` the minutes that it may run."""
    a_minute = f"{price:.4f}".rstrip("0").rstrip(".")
    if limit is None:
        return Message("{where} It costs about ${price} a minute.", where=where, price=a_minute)
    return Message(
        "{where} It costs about ${price} a minute, at most ${cost} in {minutes} minutes.",
        where=where,
        price=a_minute,
        cost=f"{price * limit:.2f}",
        minutes=f"{limit:,}",
    )
