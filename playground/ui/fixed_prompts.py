"""What two versions said to the same shipped prompts, side by side, from the samples that rounds' gates have kept.

Samples on people's own prompts are left out, for admins too: those are on the tab "Training".
"""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from playground.ui.handlers import Row
from playground.ui.round_summary import is_shipped, question
from playground.ui.status_bar import version_name
from playground.ui.text import visible
from playground.ui.words import Words


def replies(version: int, history: Sequence[Row], rounds_dir: Path) -> dict[str, str]:
    """A version's reply to each shipped prompt that a gate has kept: in its own round as the new version, and in later
    ones as the live one. `history`: rows of `Store.version_history`.
    """
    by_prompt: dict[str, str] = {}
    for row in sorted(history, key=lambda row: row["version"] != version):  # its own round counts first
        column = "new" if row["version"] == version else "live" if row["parent"] == version else None
        file = rounds_dir / f"{row['round'] or 0:04d}" / "gate.json"
        if column is None or not file.exists():
            continue
        for sample in json.loads(file.read_text())["samples"]:
            if is_shipped(sample):
                by_prompt.setdefault(sample["prompt"], sample[column])
    return by_prompt


def table_html(left: int, right: int, history: Sequence[Row], rounds_dir: Path, translate: Words) -> str:
    """The replies of two versions to the shipped prompts that both have answered; a sentence where there are none."""
    ours, theirs = (replies(version, history, rounds_dir) for version in (left, right))
    both = [prompt for prompt in ours if prompt in theirs]
    if not both:
        text = translate("No gate has compared these two on the same prompts. Compare them on a message of your own.")
        return f'<p class="compare-progress">{escape(text)}</p>'
    names = (version_name(version, translate) for version in (left, right))
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = ""
    for prompt in both:
        cells = "".join(f"<td>{escape(visible(text.strip()))}</td>" for text in (ours[prompt], theirs[prompt]))
        body += f'<tr><th scope="row" colspan="2">{escape(visible(question(prompt)))}</th></tr><tr>{cells}</tr>'
    return f'<table class="samples"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
