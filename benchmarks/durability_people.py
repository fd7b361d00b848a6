"""A process that `durability.py` kills: people vote in a store that is backed up, and each vote that was accepted is
written to a file of its own, which outlives the process and the store's disk.
"""

import os
import random
import secrets
import signal
import sys
import threading
import time
from pathlib import Path

from playground.backup import Backup
from playground.settings import Settings
from playground.store import Store

PEOPLE = 3
CHOICES = ("a", "b", "tie", "both_bad")
VERSION_BYTES = 200_000
VERSION_SHARE = 0.02  # of the turns after which there is a new version
REPLY = {"finish_reason": "end", "first_token_ms": 90.0, "total_ms": 1500.0, "logprobs": [-0.5] * 40}
SIDE = {"policy": 0, "base_model": "none", "base_hash": "none", "template_hash": "t", "sampling": {"temperature": 0.7}}


def settings_of(folder: Path, url: str, interval: float) -> Settings:
    return Settings(_env_file=None, data_dir=folder, backup={"url": url, "interval": interval})


def turn(store: Store, who: int, conversation: int, choice: str) -> str:
    """One message, two replies and a vote; returns the message."""
    text = secrets.token_hex(8)
    duel = store.start_duel(conversation, text, [1, 2, 3], [{**SIDE, "seed": 1}, {**SIDE, "seed": 2}])
    replies = [{**REPLY, "text": secrets.token_hex(80), "seed": i, "token_ids": list(range(40))} for i in (1, 2)]
    store.finish_duel(duel, replies)
    row = store.duel(duel)
    store.vote(duel, who, choice, row["left" if choice != "b" else "right"]["message"])
    return text


def write_version(folder: Path, content: bytes) -> None:
    """A version beside those that are there, whole from the moment that it has its name."""
    folder.mkdir(exist_ok=True)
    partial = folder / f".{secrets.token_hex(4)}.partial"
    partial.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json", "manifest.json"):
        (partial / name).write_bytes(content)
    partial.rename(folder / f"v{len(list(folder.glob('v*'))) + 1:04d}")


def vote_on(store: Store, settings: Settings, number: int, accepted: int, stop: threading.Event) -> None:
    """One person, until `stop`."""
    rng = random.Random(secrets.token_hex(4))
    who = store.annotator(f"person {number}")
    conversation = store.new_conversation(who)
    while not stop.is_set():
        choice = rng.choice(CHOICES)
        text = turn(store, who, conversation, choice)
        os.write(accepted, f"{text} {choice} {time.time():.3f}\n".encode())  # one call, so a line is whole or not there
        if number == 0 and rng.random() < VERSION_SHARE:
            write_version(settings.adapters_dir, rng.randbytes(VERSION_BYTES // 3))


def main() -> None:
    folder, url, interval, accepted_file = sys.argv[1:]
    settings = settings_of(Path(folder), url, float(interval))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    backup = Backup(settings)
    backup.restore()
    store = Store(settings.database)
    store.fail_streaming()
    backup.start(store)
    accepted = os.open(accepted_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    people = [threading.Thread(target=vote_on, args=(store, settings, i, accepted, stop)) for i in range(PEOPLE)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    sys.exit(0 if backup.close(60) and backup.status().trouble is None else 1)


if __name__ == "__main__":
    main()
