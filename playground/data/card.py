"""The dataset card beside exported files: what is in them, counted while they were written."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from playground.data.records import JudgedPair, Record
from playground.store import Origin
from playground.system.pushing import MARKER

CHOICES = {"a": "the left reply", "b": "the right reply", "tie": "a tie", "both_bad": "both bad"}

COLUMNS = {
    "messages": "the chat up to the message that was answered, with its system prompt",
    "prompt": "the chat up to the message that was answered",
    "completion": "a reply",
    "chosen": "the better reply",
    "rejected": "the other reply",
    "left": "the reply that was shown on the left",
    "right": "the reply that was shown on the right",
    "reply": "a reply",
    "before": "the reply as the model had written it",
    "choice": "what the person picked: a (left), b (right), tie or both_bad",
    "label": "whether the reply is good",
    "thumb": "1 for good, -1 for bad",
    "said_by": "which gesture says so: thumb, both_bad, edit or pick",
    "tags": "the person's reasons, from a list",
    "comment": "the person's own words about the choice",
    "early": "whether it was picked while the replies were being written; the texts are what they became",
    "left_tokens": "of an early pick: how many tokens the left reply had at that moment",
    "right_tokens": "the same of the right reply",
    "left_grew": "of an early pick: whether the left reply went on after it",
    "right_grew": "the same of the right reply",
    "version": "the version that wrote the reply; 0 is the base model",
    "left_version": "the version that wrote the left reply; 0 is the base model",
    "right_version": "the version that wrote the right reply",
    "chosen_version": "the version that wrote the chosen reply; 0 is the base model",
    "rejected_version": "the version that wrote the rejected reply",
    "left_ended": "why the left reply ended: end, length (the limit) or stopped",
    "right_ended": "why the right reply ended",
    "pairing": "how the two replies came together",
    "probability": "the probability with which this pair was chosen",
    "base_model": "the model below the versions",
    "sampling": "the sampling settings",
    "vote": "the vote's number",
    "demonstration": "the edit's number",
    "rating": "the thumb's number",
    "message": "the number of the prompt's last message",
    "person": "a number for the person; it is no name",
    "conversation": "the chat's number",
    "created": "when it was said, in UTC",
    "imported": "of an imported row: its source, its weight beside a vote's 1, and where others publish it",
}


@dataclass
class Tally:
    """What was written, counted row by row."""

    rows: Counter[str] = field(default_factory=Counter)  # by file
    columns: dict[str, list[str]] = field(default_factory=dict)  # by file
    choices: Counter[str] = field(default_factory=Counter)
    versions: Counter[int] = field(default_factory=Counter)  # replies by version
    bases: Counter[str] = field(default_factory=Counter)
    people: set[int] = field(default_factory=set)
    early: int = 0
    left_out: dict[str, Counter[str]] = field(default_factory=dict)  # by file: what it has no row for, and why
    first: str | None = None
    last: str | None = None

    def add_record(self, record: Record) -> None:
        """Count a record that a file has."""
        if isinstance(record, JudgedPair):
            self.choices[record.choice] += 1
            self.early += record.early
            versions = [record.left_version, record.right_version]
        else:
            versions = [getattr(record, "version", None)]
        self.versions.update(version for version in versions if version is not None)
        base, person, created = (getattr(record, name, None) for name in ("base_model", "person", "created"))
        if base:
            self.bases[base] += 1
        if person is not None:
            self.people.add(person)
        if created:
            self.first = min(self.first or created, created)
            self.last = max(self.last or created, created)

    def add_left_out(self, file: str, reasons: Iterable[str]) -> None:
        """Count what a file has no row for."""
        self.left_out.setdefault(file, Counter()).update(reasons)

    def left_out_lines(self) -> list[str]:
        """What each file has no row for, and why, in a sentence each."""
        return [
            f"Left out of {file}: {', '.join(f'{n:,} {reason}' for reason, n in sorted(reasons.items()))}."
            for file, reasons in self.left_out.items()
            if reasons
        ]

    def add_row(self, file: str, row: Mapping[str, Any]) -> None:
        """Count a row of a file."""
        self.rows[file] += 1
        self.columns.setdefault(file, list(row))


def card(
    tally: Tally,
    files: Iterable[str],
    asked: Mapping[str, Any],
    license: str | None = None,
    origins: Iterable[Origin] = (),
) -> str:
    """README.md of a folder with these files. `asked`: what the export was narrowed to. `license`: the hub's name of
    one. `origins`: where imported rows were published.
    """
    files = list(files)
    total = sum(tally.rows.values())
    lines = [
        "---",
        f"license: {license}" if license else "# license: yours to choose before you publish this",
        "pretty_name: Preferences from Nudge",
        f"size_categories: [{_size(total)}]",
        "tags: [preference, rlhf, human-feedback, trl]",
        *(["configs:"] if total else []),
        *[line for file in files if tally.rows[file] for line in _config(file)],
        "---",
        "",
        "# Preferences from Nudge",
        "",
        "What people said about two replies side by side, exported from a Nudge chat playground. The texts are "
        "people's own words: look through them before you publish them. Chats that were deleted, people who do not let "
        "training have theirs, votes that were replaced, and those that an admin left out are not in it. What somebody "
        "takes back later stays in this copy until you export again.",
        "",
        *_narrowed(asked),
        *_undecided(tally, files),
        *[line for said in tally.left_out_lines() for line in (said, "")],
        "| file | rows |",
        "|---|---:|",
        *[f"| `{file}` | {tally.rows[file]:,} |" for file in files],
        "",
        *_counts(tally),
        *_origins(origins),
        *[line for file in files for line in _columns(file, tally.columns.get(file, []))],
        MARKER,
        "",
    ]
    return "\n".join(lines)


def _size(rows: int) -> str:
    """The hub's name for a number of rows."""
    limits = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((name for limit, name in limits if rows < limit), "1M<n<10M")


def _config(file: str) -> list[str]:
    name = file.split(".")[0]
    default = ["  default: true"] if name == "preference" else []
    return [f"- config_name: {name}", f"  data_files: {file}", *default]


def undecided_file(files: Iterable[str]) -> str | None:
    """The file of pairs in which neither reply is better, where they have one of their own."""
    return next((file for file in files if file.startswith("undecided.")), None)


def _undecided(tally: Tally, files: Iterable[str]) -> list[str]:
    file = undecided_file(files)
    if file is None or not tally.rows[file]:
        return []
    return [
        f"Pairs in which neither reply is better (a tie, or both bad): {tally.rows[file]:,}. They are left out of "
        f"`preference` and stand in `{file}`.",
        "",
    ]


def _narrowed(asked: Mapping[str, Any]) -> list[str]:
    if not asked:
        return []
    return [f"It holds only rows with {', '.join(f'{name} = {value}' for name, value in asked.items())}.", ""]


def _counts(tally: Tally) -> list[str]:
    lines = []
    if tally.choices:
        choices = [f"{tally.choices[choice]:,} for {name}" for choice, name in CHOICES.items() if tally.choices[choice]]
        lines.append(f"- Votes: {', '.join(choices)}. {tally.early:,} came while the replies were being written.")
    if tally.versions:
        versions = [f"{_version(version)} {n:,}" for version, n in sorted(tally.versions.items())]
        lines.append(f"- Replies by version: {', '.join(versions)}.")
    if tally.bases:
        lines.append(f"- Base model: {', '.join(sorted(tally.bases))}.")
    if tally.people:
        lines.append(f"- People: {len(tally.people):,}.")
    if tally.first:
        lines.append(f"- From {tally.first} to {tally.last}.")
    return [*lines, ""] if lines else []


def _origins(origins: Iterable[Origin]) -> list[str]:
    lines = [
        f"- Imported from `{origin.url}`, split {origin.split}. Its licence: {origin.license or 'not named'}."
        for origin in origins
    ]
    return [*lines, ""] if lines else []


def _version(version: int) -> str:
    return f"v{version}" if version else "base"


def _columns(file: str, names: list[str]) -> list[str]:
    if not names:
        return []
    rows = [f"| `{name}` | {COLUMNS[name]} |" for name in names]
    return [f"## {file}", "", "| column | what it says |", "|---|---|", *rows, ""]
