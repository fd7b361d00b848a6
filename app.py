"""Nudge in one command: `python app.py` serves the page and runs the training worker; `--help` lists every setting.

It answers at once, by a page that says what the start is doing, and builds settings → model → store → engine → chat →
page meanwhile, in this order. Ctrl-C or SIGTERM closes them again.
"""

import importlib
import logging
import os
import signal
import socket
import sqlite3
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from playground import settings as settings_module
from playground.people import guidelines, provider_setup
from playground.settings import Settings, jobs, space
from playground.system import compiling, safe_logging
from playground.system.messages import Message, UserFacingError
from playground.system.safe_logging import Loggable
from playground.web import http_server
from playground.web.starting import Starting

if TYPE_CHECKING:  # these take seconds to import
    from fastapi import FastAPI

    from playground.backup import Backup, Lease
    from playground.serving.alerts import Alerts
    from playground.serving.engine import Engine
    from playground.serving.gpu_slices import GPUSlices
    from playground.store import Store
    from playground.system.child import Child
    from playground.system.webhook import Webhook

log = logging.getLogger("nudge")

ROOT = Path(__file__).resolve().parent
END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MOST_OPEN_FILES = 65536


class CannotStart(Exception):
    """The app cannot start; the message says what to change."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run until a signal; returns the exit code."""
    safe_logging.configure_logging(sys.stderr, "%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
    for number in END_SIGNALS:
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        settings = settings_module.read(argv)
        safe_logging.write_as(settings.log_format)
        # a wrong path is told before the model is loaded
        guidelines.read(settings.people.guidelines)
        if settings.oidc.issuer:
            provider_setup.checked_secret(settings.oidc)
        check_prompts(settings)
        jobs.check(settings, os.environ)
        if serve(settings, listen(settings)):
            start_again()
    except (CannotStart, UserFacingError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def check_prompts(settings: Settings) -> None:
    """SettingsError where the prompts of the queue cannot be read."""
    if settings.queue.prompts:
        from playground.data import queueing  # with the store, which --help does not wait for

        queueing.check(settings)


def listen(settings: Settings) -> socket.socket:
    """A bound socket. It is bound before the slow part of the start, so that a busy port is noticed at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((settings.host, settings.port))
        sock.listen(http_server.BACKLOG)  # else a second start could bind the same port until the first one listens
    except OSError as error:
        raise CannotStart(
            f"Cannot listen on {settings.host} port {settings.port}: {error.strerror}. "
            "Stop what uses it, or pass another --port (0 takes a free one)."
        ) from None
    return sock


def serve(settings: Settings, sock: socket.socket) -> bool:
    """Answer from the first moment on, build the app meanwhile, serve until a signal, close everything. Returns whether
    to start again, as where this server takes over from another one.
    """
    log.info(
        "starting: %s says how far it is", Loggable(http_server.address(*sock.getsockname()[:2]) + settings.root_path)
    )
    port = sock.getsockname()[1]
    if port in http_server.REFUSED_BY_BROWSERS:
        log.warning("browsers refuse to open port %d: pass another --port, unless a proxy is in front", port)
    app = App(settings)
    web = http_server.Web(
        app.starting.answer,
        before_shutdown=app.close_engine,
        request_seconds=settings.limits.request_seconds,
        make=app.build,
        ready=lambda: app.ready(sock),
        trusted_proxies=settings.trusted_proxies,
    )
    app.end = lambda: setattr(web, "should_exit", True)
    try:
        web.run([sock])
    finally:
        for number in END_SIGNALS:
            # closing takes a limited time; a second Ctrl-C must not leave the worker running
            signal.signal(number, signal.SIG_IGN)
        all_ended = app.close()
        if web.making and not app.again:
            os._exit(0)  # the thread that builds is in the middle of an import or a matrix product, which nothing ends
    if app.again:
        return True
    if web.error:
        raise web.error
    if not all_ended:
        os._exit(0)  # a backup's target that does not answer would keep the process
    return False


def start_again() -> None:
    """Be the same command from its beginning, in the same process."""
    logging.shutdown()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


class App:
    """The parts of the running app: `build` makes them in order, `close` ends those that there are."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.starting = Starting(settings)
        self.backup: Backup | None = None
        self.lease: Lease | None = None  # of the servers that share the backup
        self.store: Store | None = None
        self.engine: Engine | None = None
        self.worker: Child | None = None
        self.slices: GPUSlices | None = None
        self.webhook: Webhook | None = None
        self.alerts: Alerts | None = None
        self.page: FastAPI | None = None
        self.end: Callable[[], None] = lambda: None  # has the server end
        self.again = False  # whether to start again then

    def build(self) -> "FastAPI":
        """Settings → model → store → engine → chat → page. CannotStart where the model or the database is no use, and
        BadTarget where the backup's URL is.
        """
        compiling.begin(self.settings.decode_format, self.settings.device)
        load_zero_gpu()
        # These imports take seconds. Here they delay neither --help nor the first answer.
        from playground import server
        from playground.backup import Backup
        from playground.chat.session import Chat
        from playground.data import queueing
        from playground.models import loading
        from playground.serving.engine import Engine
        from playground.system import memory
        from playground.system.threads import run_in_own_thread

        if self.settings.backup.url:
            self.backup = Backup(self.settings)
        memory.return_freed_memory()
        memory.limit_onednn_cache()
        allow_connections()
        self.starting.say(Message("loading the model"))
        try:
            settings = self.settings = loading.bounded(self.settings)
            tokenizer = loading.load_tokenizer(settings)
            trunk = run_in_own_thread(settings.threads, lambda: loading.load_trunk(settings))
        except loading.ModelUnavailable as error:
            raise CannotStart(error) from None
        if self.backup:
            self.starting.say(Message("reading the backup"))
            self.lease = read_backup(settings, self.backup)
            self.lease.start(self.stop_recording, self.take_over)
        store = self.store = open_store(settings, self.reads_only)
        if not self.reads_only:
            queueing.fill(store, settings)
        self.starting.say(Message("making the model ready; the first start also measures what is fastest here"))
        self.engine = Engine(store, settings, trunk, tokenizer)
        if not self.reads_only:
            use_base(store, self.engine)
        self.engine.start()
        self.starting.say(Message("making the page"))
        self.slices = gpu_slices(settings, store, self.reads_only)
        chat = Chat(store, self.engine, settings)
        self.page = server.create(settings, store, self.engine, chat, self.backup, self.slices)
        if self.backup and not self.reads_only:
            start_backup(self.backup, store)
        return self.page

    @property
    def reads_only(self) -> bool:
        """Whether another server answers and records."""
        return self.lease is not None and self.lease.holder == "another"

    def ready(self, sock: socket.socket) -> None:
        """Everything is built. The worker starts only now: its imports would take a core from the start."""
        from playground import server
        from playground.serving.alerts import Alerts
        from playground.system.child import Child
        from playground.system.webhook import Webhook

        assert self.page is not None and self.engine is not None
        if self.settings.worker and not self.reads_only:
            command = [sys.executable, "-m", "training.worker", "--server-pid", str(os.getpid())]
            self.worker = Child(command, child_environ(self.settings)).start()
            self.engine.worker_process = self.worker
        if self.settings.alerts.url and not self.reads_only:
            self.webhook = Webhook(self.settings.alerts.url).start()
            self.alerts = Alerts(self.engine.store, self.webhook.put, self.worker, backup=self.backup).start()
        server.announce(self.page, *sock.getsockname()[:2])

    def stop_recording(self) -> None:
        """Another server has taken over: from now on this one only shows what there is."""
        from playground.backup import status

        if self.backup:
            self.backup.follow(status.TAKEN_OVER)
        if self.store:
            self.store.read_only = status.TAKEN_OVER
        if self.slices:
            self.slices.close()
        if self.worker:
            self.worker.stop()

    def take_over(self) -> None:
        """The server that recorded is gone: start again, from the newest snapshot."""
        from playground.backup import starting, status

        assert self.backup
        only_read = self.backup.was_restored and self.backup.status().trouble == status.FOLLOWS
        starting.mark(self.settings.data_dir, is_copy=only_read)
        self.again = True
        self.end()

    def close_engine(self) -> None:
        if self.engine:
            self.engine.close()

    def close(self) -> bool:
        """End everything; the last snapshot comes last. Returns whether it has ended too."""
        compiling.stop()
        if self.alerts and self.webhook:
            self.alerts.close()
            self.webhook.close()
        if self.worker:
            self.worker.stop()
        if self.slices:
            self.slices.close()
        self.close_engine()
        saved = self.backup is None or self.backup.close()
        if self.lease and not self.again:
            self.lease.close()
        return saved


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


def read_backup(settings: Settings, backup: "Backup") -> "Lease":
    """Claim the lease of the servers that share the backup, then restore what is to be restored."""
    from playground.backup import Lease, starting, status

    lease = backup.lease = Lease(backup.target, settings.database, settings.backup.lease_seconds)
    lease.begin()
    if lease.took_over:  # what another server has saved is newer than what is here
        starting.mark(settings.data_dir)
    elif lease.holder == "we":
        starting.mark_if_overtaken(settings.data_dir, backup.target)
    backup.restore()
    if lease.holder == "unknown" and backup.was_restored:  # the target answers now
        lease.begin()
    if lease.holder == "another":
        backup.follow(status.FOLLOWS)
    elif backup.status().held:  # another server may be able to save
        lease.give_up()
    return lease


def open_store(settings: Settings, reads_only: bool = False) -> "Store":
    """The store. Replies that a crash cut off are marked as failed."""
    from playground.backup import status
    from playground.store import Store, StoreError

    try:
        store = Store(settings.database)
        if reads_only:
            store.read_only = status.FOLLOWS
        else:
            store.fail_streaming()
    except (OSError, sqlite3.Error, StoreError) as error:
        raise CannotStart(
            f"The database {settings.database} cannot be opened: {error}. Pass --data-dir a folder that can be written "
            "to."
        ) from None
    return store


def use_base(store: "Store", engine: "Engine") -> None:
    """Let the votes on this model's replies count. A database that cannot be written to is told on the page."""
    from playground.store import StoreError

    try:
        store.use_base(str(engine.identity["hash"]), str(engine.identity["model"]))
    except StoreError as error:
        log.warning("which model answers could not be recorded: %s", error)


def load_zero_gpu() -> None:
    """On a ZeroGPU Space: load `spaces` before Gradio, which loads it in the middle of its own import, where it fails
    without a word; and before anything asks torch about CUDA, after which it refuses to be loaded.
    """
    if space.KIND == "zero-gpu":
        importlib.import_module("playground.system.zero_gpu")


def gpu_slices(settings: Settings, store: "Store", reads_only: bool = False) -> "GPUSlices | None":
    """On a ZeroGPU Space: what trains rounds on its GPU, unless the settings name the CPU. The hub is told either way
    that a function is marked for the GPU, since it ends a Space that has none.
    """
    if space.KIND != "zero-gpu":
        return None
    from playground.serving.gpu_slices import GPUSlices
    from playground.system import zero_gpu

    zero_gpu.report()
    if settings.device != "auto" or not settings.worker or reads_only:
        return None
    return GPUSlices(store, settings, zero_gpu.run, child_variables(settings))


def start_backup(backup: "Backup", store: "Store") -> None:
    """Begin to save what people will do. CannotStart where another app has saved since this one was restored: what it
    saved would be lost.
    """
    if backup.is_behind():
        raise CannotStart(
            "Another app has saved to the backup since this one restored it, so this one ends before anybody uses it. "
            "Start it again: that restores the newest snapshot. Let the app that runs end before the next one starts."
        )
    backup.start(store)


def child_environ(settings: Settings) -> dict[str, str]:
    """The worker's environment."""
    return {**os.environ, **child_variables(settings)}


def child_variables(settings: Settings) -> dict[str, str]:
    """What the environment of a program of ours has more: the same settings, and a path by which it finds its code from
    any directory.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**settings.environ(), "PYTHONPATH": path}


if __name__ == "__main__":
    sys.exit(main())
