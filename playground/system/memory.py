"""CPU memory of a long-lived process: makes the allocator give freed memory back to the system."""

import ctypes
import os

MMAP_THRESHOLD = 8 << 20  # bytes; blocks from this size on are mapped one by one and unmapped when they are freed
TRIM_THRESHOLD = 1 << 20  # bytes of free space at the top of the heap from which on it is given back
# oneDNN keeps the scratch memory of every shape that it has multiplied (1,024 of them by default), and in PPO every
# batch has a shape of its own
ONEDNN_CACHE = "32"  # shapes

M_TRIM_THRESHOLD = -1  # numbers of mallopt's parameters, from glibc's malloc.h
M_MMAP_THRESHOLD = -3


def return_freed_memory() -> None:
    """Let the allocator map large blocks one by one. Call it before the first tensors are made.

    PPO's activations have another size in every batch. Without this they fragment the heap, and the peak nearly
    doubles; building a version leaves 300 MB of freed blocks behind. A threshold of 1 MB would cost a tenth of the
    speed.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD)
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD)


def limit_onednn_cache() -> None:
    """Let oneDNN keep few shapes. Call it before the first matrix product, at which oneDNN reads the variable."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", ONEDNN_CACHE)


def trim() -> None:
    """Give the free pages inside the heap back to the system; takes a few milliseconds."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
