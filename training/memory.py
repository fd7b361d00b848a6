"""Memory of a training process that lives beside a chat: what it freed goes back to the system."""

import ctypes
import os

MAPPED, TRIMMED = 8 << 20, 1 << 20  # bytes: blocks mapped one by one, and free space at the top of the heap that is given back
PRIMITIVES = "32"  # of 1,024: oneDNN keeps the scratch memory of every shape it has multiplied, and in PPO every batch has its own


def return_freed():
    """To be called before the first matrix product. Have blocks from 8 MB on mapped one by one, and given back when freed: PPO's activations, of
    another size in every batch, otherwise fragment the heap, and the peak nearly doubles. From 1 MB on it would cost a tenth of the time."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", PRIMITIVES)  # read by oneDNN at its first product
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        libc.mallopt(mmap_threshold, MAPPED)
        libc.mallopt(trim_threshold, TRIMMED)


def trim():
    """Give back the free pages inside the heap; at the end of a phase or an iteration, a few milliseconds."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
