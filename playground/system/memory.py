"""The memory of a long-lived process on the CPU: what it freed goes back to the system."""

import ctypes
import os

MAPPED, TRIMMED = (
    8 << 20,
    1 << 20,
)  # bytes: blocks mapped one by one, and free space at the top of the heap that is given back
# of 1,024: oneDNN keeps the scratch memory of every shape it has multiplied, and in PPO every batch has its own
PRIMITIVES = "32"


def return_freed():
    """To be called before the first tensors. Have blocks from 8 MB on mapped one by one, and given back when freed:
    PPO's activations, of another size in every batch, otherwise fragment the heap, and the peak nearly doubles; and
    building a version leaves 300 MB of freed blocks behind. From 1 MB on it would cost a tenth of the time."""
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        libc.mallopt(mmap_threshold, MAPPED)
        libc.mallopt(trim_threshold, TRIMMED)


def keep_few_primitives():
    """To be called before the first matrix product of a process that trains."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", PRIMITIVES)  # read by oneDNN at its first product


def trim():
    """Give back the free pages inside the heap; a few milliseconds."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
