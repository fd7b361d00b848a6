"""The GPU of a ZeroGPU Space, which is there only while a function that is marked for it runs. Imported on such a Space
alone, where the hub installs `spaces`; a Space of this kind in which nothing is marked is ended by the hub.

`spaces` runs the function in a fork of this process, for as long as it asked for, on the quota of the visitor whose
request it finds in the context of the call. A fork of a server cannot train: its other threads are gone, and with them
whoever holds a lock, and SQLite's connections must not be used in it. So the function starts a program, which has the
GPU too, and waits for it.
"""

import logging
import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import spaces

log = logging.getLogger(__name__)

GPU_SECONDS = 60  # of quota that each call asks for; visitors without a paid plan get no more at once
LEAVE_SECONDS = 42  # after which the program has to leave the GPU by itself; what `spaces` does before takes some
MOST_SECONDS = 52  # after which it is killed, since `spaces` would kill this process
KILLED = -9  # the exit code then


@spaces.GPU(duration=GPU_SECONDS)
def run(command: Sequence[str], environ: Mapping[str, str], port: int) -> int:
    """Run a program with the GPU and return its exit code. Added to its arguments are `--until`, the time in seconds
    since the epoch at which it has to leave, and `--server-pid`, the process with which it has to end.

    `environ`: variables that differ from this process's. `port`: the server's, whose connections the fork gives up.
    Raises whatever `spaces` does where there is no quota or no GPU, or where the fork is ended from outside.
    """
    give_up_connections(port)
    full = [*command, "--until", str(time.time() + LEAVE_SECONDS), "--server-pid", str(os.getpid())]
    with_gpu = {name: value for name, value in os.environ.items() if name != "SPACES_ZERO_GPU"}
    with subprocess.Popen(full, env={**with_gpu, **environ}, stdin=subprocess.DEVNULL) as program:
        try:
            return program.wait(MOST_SECONDS)
        except subprocess.TimeoutExpired:
            program.kill()
            return KILLED


def give_up_connections(port: int) -> None:
    """Close this process's copies of the server's sockets. What the server closes would stay open for its visitors
    until this process ends, which may be kept for the next call.
    """
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            number = int(name)
            is_socket = os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
            if is_socket and _port_of(number) == port:
                os.close(number)


def _port_of(number: int) -> int | None:
    """The local port of a socket (a file descriptor, which stays open); None where it has none."""
    with socket.socket(fileno=os.dup(number)) as sock:
        address = sock.getsockname()
    return address[1] if isinstance(address, tuple) else None


def report() -> None:
    """Tell the hub that there is a marked function. `spaces` does so in `Blocks.launch`, which this app does not call:
    its page is mounted in a server of its own.
    """
    try:
        spaces.zero.startup()
    except Exception:  # whatever keeps the hub from answering, people can chat until it ends the Space
        log.exception("ZeroGPU does not know of this app's function")
