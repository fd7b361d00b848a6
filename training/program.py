"""How a program that trains begins: settings, log, the end with its server, priority and memory."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import TypeVar

import psutil
import torch
from pydantic import Field

from playground.models import loading
from playground.settings import Settings, SettingsError, read
from playground.system import gpu_share, memory, safe_logging
from playground.system.gpu_share import GpuShare, StreamingSign

log = logging.getLogger("training.program")

# seconds that a program which trains waits for another process that holds the database; long, since nobody waits for it
PATIENCE = 60.0
PARENT_PAUSE = 1.0  # seconds between two checks whether the server still runs


class ProgramSettings(Settings):
    """The settings of a program that a server starts."""

    server_pid: int = Field(0, ge=0)
    """Process id of the server; this program ends when that process has ended. 0 is never."""


SomeSettings = TypeVar("SomeSettings", bound=ProgramSettings)


def begin(argv: Sequence[str] | None, kind: type[SomeSettings], name: str) -> SomeSettings:
    """Read the settings of the class `kind`; this process ends with its server from now on. `name`: the command that
    --help names. Ends the process where a setting cannot be used. What takes time is `prepare`'s.
    """
    safe_logging.configure_logging(sys.stderr, "%(asctime)s %(name)s %(message)s")
    try:
        settings = read(argv, kind, name)
        safe_logging.write_as(settings.log_format)
    except SettingsError as error:
        sys.exit(str(error))
    if settings.server_pid:
        end_with(settings.server_pid)
    return settings


def end_with(parent: int) -> None:
    """End this process, in order as on SIGTERM, soon after `parent` (the process id that started it) has ended.

    A server that was killed would otherwise leave its worker training, beside the worker of the next server.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_PAUSE)
        log.warning("the server has ended; its worker ends too")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def be_quiet(settings: Settings) -> None:
    """Train at the lowest priority: with `nice 19` and all threads, a chat beside the worker keeps more of its speed
    than with half of the threads each.
    """
    torch.set_num_threads(settings.threads)
    if sys.platform == "win32":
        psutil.Process().nice(psutil.IDLE_PRIORITY_CLASS)
    else:
        psutil.Process().nice(19)


def prepare(settings: Settings) -> None:
    """Make this process one that trains: at the lowest priority, and with its memory kept small."""
    be_quiet(settings)
    memory.leave_out_imports()
    memory.return_freed_memory()
    memory.limit_onednn_cache()
    memory.let_gpu_segments_grow()
    share_gpu(settings)


def share_gpu(settings: Settings) -> None:
    """On a GPU, keep to a share of the time while the server's replies stream."""
    if settings.gpu_share < 1 and loading.device_of(settings).type == "cuda":
        is_streaming = StreamingSign(settings.streaming_file).shown
        gpu_share.keep_to(GpuShare(is_streaming, settings.gpu_share, torch.cuda.synchronize))
