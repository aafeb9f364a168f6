"""Random numbers as a function of what they are for, never of when or in which process they are drawn.

Training seeds every step from (seed, step, rank) and every picture from (seed, epoch, position). Nothing has to be
saved to continue a run exactly, and the number of loader workers does not change what is drawn.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derive(*parts: int | str) -> int:
    """A 32-bit seed from any integers and words, well mixed, the same on every platform."""
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def deterministic() -> None:
    """Only algorithms that give the same bits every time, for the rest of the process; call it before the first
    computation on a GPU.

    An operation that has none warns and goes on. The bits are those of one machine, one version of torch and one
    number of threads or devices.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the three CPU generators inside the block and put their states back after it.

    For library code that draws from global generators (timm's and torchvision's transforms), so that a picture's
    augmentation disturbs nothing else when it runs in the training process itself (`workers=0`).
    """
    # NumPy's generator is put aside whole: copying its state there and back costs ten times as much. Inside it is a
    # PCG64, which is seeded in a tenth of an MT19937's time; only `np.random.seed` cannot be called there.
    generators: Any = np.random  # two functions of it are missing in its stubs
    states = random.getstate(), generators.get_bit_generator(), torch.random.get_rng_state()
    random.seed(seed)
    generators.set_bit_generator(np.random.PCG64(seed))
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        generators.set_bit_generator(states[1])
        torch.random.set_rng_state(states[2])
