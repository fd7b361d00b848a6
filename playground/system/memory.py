"""Memory of a long-lived process: makes the allocators give freed memory back to the system and to the GPU."""

import ctypes
import gc
import os
from pathlib import Path

import psutil
import torch

MMAP_THRESHOLD = 8 << 20  # bytes; blocks from this size on are mapped one by one and unmapped when they are freed
TRIM_THRESHOLD = 1 << 20  # bytes of free space at the top of the heap from which on it is given back
HEAPS = 2  # of malloc, shared by all threads; it would make eight a core, each with its own gaps
# oneDNN keeps the scratch memory of every shape that it has multiplied (1,024 of them by default), and in PPO every
# batch has a shape of its own
ONEDNN_CACHE = "32"  # shapes

CONTROL_GROUP = Path("/sys/fs/cgroup")  # of this process, as it is seen in a container

M_TRIM_THRESHOLD = -1  # numbers of mallopt's parameters, from glibc's malloc.h
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8


def return_freed_memory() -> None:
    """Let the allocator map large blocks one by one. Call it before the first tensors are made.

    PPO's activations have another size in every batch. Without this they fragment the heap, and the peak nearly
    doubles; building a version leaves 300 MB of freed blocks behind. A threshold of 1 MB would cost a tenth of the
    speed. With few heaps the server of 64 people is 40 MB smaller, and no slower: nearly all that allocates holds
    Python's lock.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD)
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD)
        libc.mallopt(M_ARENA_MAX, HEAPS)


def limit_onednn_cache() -> None:
    """Let oneDNN keep few shapes. Call it before the first matrix product, at which oneDNN reads the variable."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", ONEDNN_CACHE)


def let_gpu_segments_grow() -> None:
    """Let torch's allocator grow its segments of GPU memory instead of adding new ones: batches of another size each
    would leave gaps that nothing fits into. Call it before the first tensor on a GPU, at which torch reads the
    variable.
    """
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def leave_out_imports() -> None:
    """Have no later collection look through what there is by now, as what imports have made, which stays anyway: each
    would take half a second.
    """
    gc.collect()
    gc.freeze()


def release() -> None:
    """Free what is held in cycles of references, and give free memory back to the system and to the GPU, whose other
    processes cannot use what torch's allocator keeps. Takes a tenth of a second and more, half a second without
    `leave_out_imports`.
    """
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim()


def trim() -> None:
    """Give the free pages inside the heap back to the system; takes a few milliseconds."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def available() -> int:
    """Bytes of main memory that can still be taken: of the machine, or of its control group (a container) where that
    allows less.
    """
    return min([psutil.virtual_memory().available, *_left_in_control_group()])


def _left_in_control_group() -> list[int]:
    """Bytes that the control group leaves, where there is one with a limit (cgroup v2); file caches can be dropped."""
    try:
        limit = int((CONTROL_GROUP / "memory.max").read_text())
        used = int((CONTROL_GROUP / "memory.current").read_text())
        statistics = dict(line.split() for line in (CONTROL_GROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no control group, or "max"
        return []
    return [limit - used + int(statistics.get("inactive_file", 0))]
