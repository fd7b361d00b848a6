"""Starts the app and the worker by a fork from a process that has imported what they import, which takes most of a
start: `Popen` is `subprocess.Popen` for these programs.

The process that forks is a `python -m tests.fork_server` and computes nothing itself. It forks twice and lets the
middle one end, so that what it starts becomes a child of the process that asked (a "child subreaper", prctl(2)), which
waits for it and kills it like any child. A program that was started so has a server of its own for its worker, forked
before it has a thread. `tests/test_app.py` and its like start the programs as people do.
"""

import ctypes
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = {str(ROOT / "app.py"), str(ROOT / "tests" / "paced_app.py")}
MODULES = {
    "training.worker",
    "training.round_slice",
    "training.job",
    "training.simulate",
    "benchmarks.gpu_side",
    "benchmarks.quantisation",
    "benchmarks.rounds",
    "tests.crashing_worker",
    "tests.killed_eraser",
}
IMPORTED = (
    "playground.server",
    "playground.chat.session",
    "playground.serving.engine",
    "playground.system.memory",
    "training.erase",
    "training.forecast",
    "training.round",
    "training.annotators",
)
READ_LATER = ("PYTHONPATH", "GRADIO_ANALYTICS_ENABLED")  # variables that no import reads
NAME = "fork server"  # of the process that forks for a program that was forked
PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 15, 36
MOST_BYTES = 1 << 20
RealPopen = subprocess.Popen
_lock = threading.Lock()
_server: socket.socket | None = None  # to this process's fork server


class Popen(RealPopen):
    """Like `subprocess.Popen`, but a program of ours is forked by the fork server."""

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest):
        whole = with_whole_path(args, cwd)
        if not can_fork(whole, env):
            return super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)
        _, _, _, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *_, process_group = rest
        ends = [given if given != -1 else own for own, given in enumerate((p2cread, c2pwrite, errwrite))]
        program = {
            "args": whole,
            "cwd": str(cwd or os.getcwd()),
            "env": dict(env or os.environ),
            "group": process_group,
        }
        with _lock:
            server = _server or begin()
            adopt_orphans(True)
            socket.send_fds(server, [json.dumps(program).encode()], ends)
            self.pid = int(server.recv(32))
            adopt_orphans(False)  # else this process had to wait for each process that Chromium leaves behind
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)
        return None


def with_whole_path(args, cwd):
    """The arguments of a program, its file named from the root, without `-W ignore` before it. A shell's line stays."""
    if isinstance(args, str):
        return args
    args = [str(argument) for argument in args]
    if args[1:3] == ["-W", "ignore"]:
        del args[1:3]
    if args[1:] and args[1].endswith(".py"):
        args[1] = str(Path(cwd or os.getcwd(), args[1]))
    return args


def can_fork(args, env):
    """Whether these are the arguments of a program of ours, and of an environment that no import has read before."""
    if isinstance(args, str) or len(args) < 3:
        return False
    changed = {
        key for key in {*os.environ, *(env or os.environ)} if os.environ.get(key) != (env or os.environ).get(key)
    }
    known = args[0] == sys.executable and (args[1] in FILES or (args[1] == "-m" and args[2] in MODULES))
    return known and all(key.startswith("NUDGE_") or key in READ_LATER for key in changed)


def begin():
    """Start the fork server of this process, which has imported nothing of the programs itself, as a new Python."""
    global _server
    _server, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "tests.fork_server", str(theirs.fileno())]
    RealPopen(command, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    theirs.close()
    return _server


def begin_here():
    """Fork the fork server of this process, which has imported what its children need and has only this one thread."""
    global _server
    _server, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork():
        theirs.close()
    else:
        _server.close()
        control_process(PR_SET_NAME, NAME.encode())
        run(serve(theirs))
        sys.exit()


def adopt_orphans(yes):
    """Whether a process whose parent ends, below this one, becomes a child of this one."""
    control_process(PR_SET_CHILD_SUBREAPER, int(yes))


def control_process(option, value):
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def serve(client):
    """Fork for `client` until it ends. Returns in each program that was forked: its arguments, once it can run."""
    while True:
        message, files, _, _ = socket.recv_fds(client, MOST_BYTES, 3)
        if not message:
            os._exit(0)
        if middle := os.fork():
            os.waitpid(middle, 0)
            for file in files:
                os.close(file)
            continue
        middle = os.getpid()
        if os.fork():
            os._exit(0)
        while os.getppid() == middle:
            time.sleep(0.001)
        client.send(str(os.getpid()).encode())  # it is the child of the client now, which may wait for it
        client.close()
        return become(json.loads(message), files)


def become(program, files):
    """Have this process stand as if it had been started as `program`; returns its arguments."""
    for standard, file in enumerate(files):
        if file != standard:
            os.dup2(file, standard)
    for file in set(files) - {0, 1, 2}:
        os.close(file)
    control_process(PR_SET_NAME, b"python")
    os.environ.clear()
    os.environ.update(program["env"])
    os.chdir(program["cwd"])
    if program["group"] == 0:
        os.setpgid(0, 0)
    return program["args"]


def run(args):
    """Run `python file ...` or `python -m module ...`, with a fork server for what it starts itself."""
    begin_here()
    subprocess.Popen = Popen
    if args[1] == "-m":
        sys.argv = args[2:]
        runpy.run_module(args[2], run_name="__main__", alter_sys=True)
    else:
        sys.argv = args[1:]
        runpy.run_path(args[1], run_name="__main__")


def import_all():
    """Import what the programs import, but for their own files; without pyarrow, which only tests install: pandas would
    import it, and it starts a thread.
    """
    from playground.system import memory

    sys.modules["pyarrow"] = None
    for name in IMPORTED:
        importlib.import_module(name)
    memory.leave_out_imports()  # nor does a collection in a program write to the pages that all share
    [thread] = os.listdir("/proc/self/task")


if __name__ == "__main__":
    asked = socket.socket(fileno=int(sys.argv[1]))
    import_all()
    run(serve(asked))
