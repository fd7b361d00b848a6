"""Nudge in one command: `python app.py` serves the page and runs the training worker; `--help` lists every setting.

Builds settings → model → store → engine → chat → page, in this order, and closes them again on Ctrl-C or SIGTERM.
"""

import logging
import os
import signal
import socket
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

from playground import settings as settings_module
from playground.settings import Settings
from playground.store import Store, StoreError
from playground.system import safe_logging

log = logging.getLogger("nudge")

ROOT = Path(__file__).resolve().parent
END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MOST_OPEN_FILES = 65536


class CannotStart(Exception):
    """The app cannot start; the message says what to change."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run until a signal; returns the exit code."""
    safe_logging.configure_logging(sys.stderr, "%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for number in END_SIGNALS:
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        settings = settings_module.read(argv)
        serve(settings, listen(settings))
    except (settings_module.SettingsError, CannotStart, StoreError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def listen(settings: Settings) -> socket.socket:
    """A bound socket. It is bound before the slow part of the start, so that a busy port is noticed at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((settings.host, settings.port))
    except OSError as error:
        raise CannotStart(
            f"Cannot listen on {settings.host} port {settings.port}: {error.strerror}. "
            "Stop what uses it, or pass another --port (0 takes a free one)."
        ) from None
    return sock


def serve(settings: Settings, sock: socket.socket) -> None:
    """Build everything, serve until a signal, close everything."""
    # These imports take seconds. Here they do not delay --help and the message about a wrong setting.
    from playground import server
    from playground.chat.session import Chat
    from playground.models import loading
    from playground.serving.engine import Engine
    from playground.system import memory
    from playground.system.child import Child
    from playground.system.threads import run_in_own_thread

    memory.return_freed_memory()
    allow_connections()
    try:
        settings = loading.bounded(settings)
        tokenizer = loading.load_tokenizer(settings)
        trunk = run_in_own_thread(settings.threads, lambda: loading.load_trunk(settings))
    except loading.ModelUnavailable as error:
        raise CannotStart(error) from None
    store = open_store(settings)
    engine = Engine(store, settings, trunk, tokenizer).start()
    worker = None
    if settings.worker:
        command = [sys.executable, "-m", "training.worker", "--server-pid", str(os.getpid())]
        worker = Child(command, child_environ(settings)).start()
    engine.worker_process = worker
    try:
        app = server.create(settings, store, engine, Chat(store, engine, settings))
        web = server.Web(app, before_shutdown=engine.close, request_seconds=settings.limits.request_seconds)
        web.run([sock])
    finally:
        for number in END_SIGNALS:
            # closing takes a limited time; a second Ctrl-C must not leave the worker running
            signal.signal(number, signal.SIG_IGN)
        if worker:
            worker.stop()
        engine.close()


def allow_connections() -> None:
    """Raise the limit of open files as far as this user may: each connection is one, and 1,024 are not enough."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def open_store(settings: Settings) -> Store:
    """The store. Replies that a crash cut off are marked as failed."""
    try:
        store = Store(settings.database)
        store.fail_streaming()
    except (OSError, sqlite3.Error, StoreError) as error:
        raise CannotStart(
            f"The database {settings.database} cannot be opened: {error}. Pass --data-dir a folder that can be written "
            "to."
        ) from None
    return store


def child_environ(settings: Settings) -> dict[str, str]:
    """The worker's environment: the same settings, and a path by which it finds its code from any directory."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, **settings.environ(), "PYTHONPATH": path}


if __name__ == "__main__":
    sys.exit(main())
