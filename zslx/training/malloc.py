"""Keep freed memory in the process: large activations otherwise go back to the system at every step, and each of
their pages is faulted in and cleared again at the next (a quarter of a small model's step on CPU, measured by
benchmarks/training.py). Linux's glibc only; elsewhere nothing is done.
"""

from __future__ import annotations

import ctypes
import sys

M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # malloc.h
LARGEST_THRESHOLD = 32 << 20  # glibc refuses more


def keep_freed_memory() -> bool:
    """Let malloc serve blocks up to 32 MiB from the heap and not return the heap; whether it took effect."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_THRESHOLD) and mallopt(M_TRIM_THRESHOLD, 1 << 30))
