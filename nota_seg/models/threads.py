"""Pieces of one computation side by side on the CPU's cores, a thread each.

torch shares out every single operation, and its threads wait for each other after each: for operations on pieces that
fit the cache the waiting costs more than the work as soon as something else wants a core. Here a thread has many
pieces and they meet once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def spread(work: Callable[[Sequence[T]], R], pieces: Sequence[T]) -> list[R]:
    """`work` of neighbouring pieces, in as many parts as torch has threads; no gradients are recorded.

    Args:
        work: Gets some of the pieces; what it writes to must be its own.
        pieces: All of them.

    Returns:
        What `work` gave for each part, in the order of the pieces. The parts depend on the number of threads alone, so
        that sums over them are the same in every run.
    """
    threads = min(torch.get_num_threads(), len(pieces))
    if threads <= 1:
        with torch.no_grad():
            return [work(pieces)]
    inference = torch.is_inference_mode_enabled()  # of this thread: the others have to be told

    def part(i: int) -> R:
        with torch.inference_mode(inference), torch.no_grad():
            return work(pieces[i * len(pieces) // threads : (i + 1) * len(pieces) // threads])

    return list(_pool(torch.get_num_threads(), os.getpid()).map(part, range(threads)))


@lru_cache(maxsize=4)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads in which torch's operations have one thread each; a forked process needs its own."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="pieces", initializer=torch.set_num_threads, initargs=(1,))
    barrier = Barrier(threads)
    list(pool.map(lambda _: barrier.wait(), range(threads)))  # all have started
    torch.set_num_threads(threads)  # also sets what threads to come begin with
    return pool
