"""Exported data in the hands of TRL 1.12: one step of its RewardTrainer, DPOTrainer, KTOTrainer and SFTTrainer on each
form of an export, with a tiny model: `python -m benchmarks.trl_formats`.

The datasets are loaded by their cards, and each file is also written as Parquet and read again.
"""

import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from benchmarks import peer, report
from benchmarks.ppo_step import PEER, PINS
from benchmarks.report import Row
from playground.data import export
from playground.data.export import Export
from playground.settings import Settings, SettingsError, read
from playground.store import Store
from tests.stores import candidate, outcome
from tests.tiny import tiny_folder

PEER_CODE = peer.ROOT / "benchmarks" / "peers" / "trl_formats.py"
VOTES = 40
CHOICES = ("a", "b", "a", "tie", "both_bad")
FORMS = {"messages": {}, "texts": {"plain": True}}


class TrlFormatsSettings(Settings):
    """Exported data in the hands of TRL."""

    json_file: str = Field("", alias="json")
    """File to write the rows to."""


def fill(store: Store) -> None:
    """Votes of each kind, some in longer chats with a system prompt, thumbs and edits."""
    who = store.annotator("somebody")
    conversation = None
    for number in range(VOTES):
        if number % 3 == 0:
            conversation = store.new_conversation(who, "Be brief." if number % 2 else None)
        duel = store.start_duel(conversation, f"Question {number}?", [1, 2], [candidate(1), candidate(2)])
        replies = (f"The answer is {number}.", f"It is {number}, as you may know.")
        store.finish_duel(duel, [outcome(text, [4, i]) for i, text in enumerate(replies)])
        row = store.duel(duel)
        left, right = row["left"]["message"], row["right"]["message"]
        choice = CHOICES[number % len(CHOICES)]
        vote = store.vote(duel, who, choice, right if choice == "b" else left)
        store.explain(vote, who, ["clearer"] if number % 2 else [])
        store.rate(left, who, 1 if number % 2 else -1)
        if number % 4 == 0:
            store.demonstrate(left, who, f"{number}.")


def exports(store: Store, folder: Path) -> list[dict[str, Any]]:
    """Write each form of each format; returns their descriptions for the peer."""
    entries = []
    for form, more in FORMS.items():
        kinds = {
            f"preference, {form}": (Export("preference", **more), ["reward", "dpo"]),
            f"preference, implicit, {form}": (Export("preference", implicit=True, **more), ["reward", "dpo"]),
            f"kto, {form}": (Export("kto", **more), ["kto"]),
            f"sft, {form}": (Export("sft", **more), ["sft"]),
        }
        if not more:
            kinds["everything"] = (Export("everything"), [])
        for name, (wanted, trainers) in kinds.items():
            out = folder / name.replace(", ", "-")
            tally = export.write(store, wanted, out)
            for file, rows in tally.rows.items():
                config = file.split(".")[0]
                steps = [] if config == "undecided" else trainers  # no trainer takes pairs without a better reply
                entry = {"name": name, "folder": str(out), "config": config, "trainers": steps, "rows": rows}
                entries.append(entry)
    return entries


def rows_of(results: Sequence[dict[str, Any]]) -> Iterator[Row]:
    """The rows of the report: whether every row was loaded, and whether a step had a loss."""
    for one in results:
        yield report.row(f"{one['what']}: rows", one["rows"], f"of {one['of']}", f"≥ {one['of']}")
        if one["loss"] is not None:
            finite = math.isfinite(one["loss"]) and one["loss"] > 0
            yield report.row(f"{one['what']}: loss of a step", one["loss"] if finite else None, "nats", "≥ 0.001")


def main(argv: Sequence[str] | None = None) -> None:
    try:
        settings = read(argv, TrlFormatsSettings, "python -m benchmarks.trl_formats")
        python = peer.python(settings, PEER, PINS)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            store = Store()
            fill(store)
            job = {
                "model": str(tiny_folder(folder / "model")),
                "threads": settings.threads,
                "exports": exports(store, folder),
            }
            (folder / "job.json").write_text(json.dumps(job))
            environment = {**os.environ, "PYTHONPATH": str(peer.ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder)}
            said = peer.run([python, PEER_CODE, folder / "job.json"], environment)
    except (SettingsError, peer.SideFailed) as error:
        sys.exit(str(error))
    report.show(list(rows_of(json.loads(said.splitlines()[-1]))), settings.json_file)


if __name__ == "__main__":
    main()
