"""Nudge in one command: `python app.py` serves the page and runs the training worker beside it; `--help` lists every
setting.

Builds settings → model → store → engine → chat → page, in that order, and takes them down again on Ctrl-C or SIGTERM.
"""

import logging
import os
import signal
import socket
import sqlite3
import sys
from pathlib import Path

from playground import settings as settings_module
from playground.store import StoreError
from playground.system import discreet

log = logging.getLogger("nudge")

ROOT = Path(__file__).resolve().parent


class CannotStart(Exception):
    """The app cannot run like this; the message tells what to change."""


def main(argv=None):
    """Run until told to stop; the exit code."""
    discreet.log_to(sys.stderr, "%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        settings = settings_module.read(argv)
        serve(settings, listen(settings))
    except (settings_module.SettingsError, CannotStart, StoreError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def listen(settings):
    """A bound socket, taken before the slow start so that a busy port is known at once."""
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


def serve(settings, sock):
    """Build everything, serve until a signal, take everything down."""
    from playground import server  # these take seconds to import; a wrong setting and --help answer at once
    from playground.chat.session import Chat
    from playground.models import loading
    from playground.serving.engine import Engine
    from playground.system import memory
    from playground.system.child import Child
    from playground.system.threads import apart

    memory.return_freed()
    allow_connections()
    try:
        settings = loading.bounded(settings)
        tokenizer, trunk = (
            loading.load_tokenizer(settings),
            apart(settings.threads, lambda: loading.load_trunk(settings)),
        )
    except loading.ModelUnavailable as error:
        raise CannotStart(error) from None
    store = open_store(settings)
    engine = Engine(store, settings, trunk, tokenizer).start()
    worker = (
        Child([sys.executable, "-m", "training.worker"], child_environ(settings)).start() if settings.worker else None
    )
    engine.worker_process = worker
    try:
        server.Web(
            server.create(settings, store, engine, Chat(store, engine, settings)),
            before_shutdown=engine.close,
            request_seconds=settings.request_seconds,
        ).run([sock])
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(
                number, signal.SIG_IGN
            )  # stopping is bounded; a second Ctrl-C must not leave the worker behind
        if worker:
            worker.stop()
        engine.close()


def allow_connections():
    """As many open files as this user may have: each connection is one, and the usual 1,024 are soon spent."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def open_store(settings):
    """The store, with turns that a crash cut off marked as such."""
    from playground.store import Store

    try:
        store = Store(settings.database)
        store.fail_streaming()
    except (OSError, sqlite3.Error, StoreError) as error:
        raise CannotStart(
            f"The database {settings.database} cannot be opened: {error}. Pass --data-dir a folder that can be written "
            "to."
        ) from None
    return store


def child_environ(settings):
    """The worker reads the same settings and finds its code from any working directory."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, **settings.environ(), "PYTHONPATH": path}


if __name__ == "__main__":
    sys.exit(main())
