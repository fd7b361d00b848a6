"""An export as the lines of a JSONL file, made while it is downloaded. Who may have it is asked by the server."""

import json
from collections.abc import Iterator

from playground.data import export, formats
from playground.data.export import Export
from playground.store import Store

DOWNLOADS = {
    "pairs": "everything",
    "preference": "preference",
    "undecided": "preference",
    "kto": "kto",
    "sft": "sft",
    "prompts": "prompts",
}
AT_ONCE = 64 << 10  # bytes


def lines(store: Store, name: str) -> Iterator[bytes]:
    """The file NAME.jsonl of an export of everybody's, in pieces of about AT_ONCE bytes. `name`: one of DOWNLOADS."""
    part = next(part for part in export.parts(store, Export(DOWNLOADS[name])) if part.name == name)
    waiting: list[bytes] = []
    size = 0
    for record in part.records:
        for row in part.as_rows(record, formats.conversational):
            line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
            waiting.append(line)
            size += len(line)
        if size >= AT_ONCE:
            yield b"".join(waiting)
            waiting, size = [], 0
    yield b"".join(waiting)
