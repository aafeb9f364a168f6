"""How the C library deals with memory that was freed."""

from __future__ import annotations

import ctypes

import numpy as np

LARGEST = 31 << 20  # bytes; of larger blocks Linux's library never learns


def keep_freed_memory() -> None:
    """Have freed memory kept for what comes next: fresh pages cost as much as the work that is done on them.

    The C library of Linux keeps as much as twice the largest block that was ever freed, and gives back the rest. This
    block, never touched, raises the limit to 62 MB. Elsewhere it does nothing.
    """
    np.empty(LARGEST, dtype=np.uint8)


def give_back_freed_memory() -> None:
    """Give back what is kept, where the C library can: what a process takes next is then seen in its size."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # not glibc
        return
    trim(ctypes.c_size_t(0))
