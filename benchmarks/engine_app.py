"""The server's process for `engine.py`: what `python app.py` builds, then eight people who chat at once; prints when it
is ready and its peak memory.
"""

import itertools
import json
import os
import re
import sys
import threading
import time
from pathlib import Path

import app
from playground import server
from playground.chat.session import Chat
from playground.models import loading
from playground.serving.engine import Engine
from playground.settings import read
from playground.system import memory
from playground.system.threads import run_in_own_thread
from playground.web import http_server

PEOPLE, TURNS = 8, 2


def peak_mb():
    """Of this process alone: getrusage would give the peak of the one that started it, if that was higher."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def main():
    settings = read([])
    sock = app.listen(settings)
    memory.return_freed_memory()
    tokenizer, trunk = (
        loading.load_tokenizer(settings),
        run_in_own_thread(settings.threads, lambda: loading.load_trunk(settings)),
    )
    store = app.open_store(settings)
    engine = Engine(store, settings, trunk, tokenizer).start()
    chat = Chat(store, engine, settings)
    web = http_server.Web(server.create(settings, store, engine, chat), before_shutdown=engine.close)
    threading.Thread(target=web.run, args=([sock],), daemon=True).start()
    while not web.started:
        time.sleep(0.01)
    print(json.dumps({"ready": engine.healthy}), flush=True)

    def person(name):
        annotator = store.annotator(name)
        for _ in range(TURNS):
            *_, view = itertools.chain(
                chat.send(annotator, "Tell me about your favourite place, and why you like it. " * 10)
            )
            chat.vote(annotator, view.duel, "a")

    people = [threading.Thread(target=person, args=(f"person {i}",)) for i in range(PEOPLE)]
    for thread in people:
        thread.start()
    for thread in people:
        thread.join()
    print(json.dumps({"peak_mb": peak_mb()}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
