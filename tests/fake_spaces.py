"""The package `spaces` as it is on a ZeroGPU Space, as far as this app uses it, after its source (0.51.3): a marked
function runs in a fork of the process, which is kept for the next call; arguments and results are pickled; each call
asks for its time on the quota of the visitor whose request is in the context; whatever is wrong is a `gr.Error`.

It has no GPU. What a test sets: `quota`, in seconds, and `abort`, after how many seconds a call is ended from outside.
"""

import multiprocessing
import pickle
import subprocess
import threading
from functools import wraps
from types import SimpleNamespace

import gradio as gr
from gradio.context import LocalContext

from tests import fork_server

FORK = multiprocessing.get_context("fork")


class Hub:
    """What the hub knows of this Space."""

    def __init__(self, quota=10_000.0, abort=None):
        self.quota = quota
        self.abort = abort
        self.tokens = []  # of the visitors on whose quota the calls were
        self.marked = []
        self.reported = False
        self._fork = None  # (process, our end of its pipe)

    def GPU(self, duration=60):  # noqa: N802 (the name that it has)
        def mark(task):
            self.marked.append(task)

            @wraps(task)
            def called(*args, **kwargs):
                request = LocalContext.request.get(None)
                self.tokens.append(request and request.headers.get("x-ip-token"))
                if self.quota < duration:
                    message = f"You have exceeded your free ZeroGPU quota ({duration}s requested)."
                    raise gr.Error(message, title="ZeroGPU quota exceeded", print_exception=False)
                self.quota -= duration
                return self._call(task, pickle.dumps((args, kwargs)))

            return called

        return mark

    def _call(self, task, arguments):
        if self._fork is None or not self._fork[0].is_alive():
            ours, theirs = FORK.Pipe()
            process = FORK.Process(target=work, args=(task, theirs), daemon=True)
            process.start()
            theirs.close()
            self._fork = process, ours
        process, pipe = self._fork
        if self.abort is not None:
            threading.Timer(self.abort, process.kill).start()
        pipe.send_bytes(arguments)
        try:
            ok, result = pickle.loads(pipe.recv_bytes())
        except EOFError:
            raise gr.Error("GPU task aborted", title="ZeroGPU worker error", print_exception=False) from None
        if not ok:
            raise gr.Error(result, title="ZeroGPU worker error", print_exception=False)
        return result

    @property
    def zero(self):
        return SimpleNamespace(startup=self._startup)

    def _startup(self):
        assert self.marked, "the hub ends a Space without a marked function"
        self.reported = True

    def close(self):
        if self._fork:
            self._fork[0].kill()
            self._fork[0].join()


def work(task, pipe):
    """The fork: does what it is asked for until it is killed."""
    fork_server._server = None  # the programs that it starts have to be its own children
    subprocess.Popen = fork_server.Popen
    while True:
        args, kwargs = pickle.loads(pipe.recv_bytes())
        try:
            answer = True, task(*args, **kwargs)
        except Exception as error:
            answer = False, type(error).__name__
        pipe.send_bytes(pickle.dumps(answer))
