"""How two ways to do the same are compared: in one process, in turns, by the median of the ratios of the pairs.

Another load on the machine slows both halves of a pair, so that the ratio stays where single times drift.
"""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which both sides normalise by


@dataclass
class Result:
    """One line of the table.

    Attributes:
        name: What was measured, with the model and the size.
        ours: Median of our runs, in `unit`.
        theirs: Median of the peer's runs; None where there is no peer and `ratio` is `ours` itself.
        ratio: How many times faster ours is; for memory ours / theirs.
        at_least: The ratio that must be reached; an upper bound where `aim` is the smaller number.
        aim: The ratio to strive for.
        equal: Whether both gave the same result, within the tolerance that the note states.
        note: Peer, tolerance, and whatever one must know to believe the number.
        unit: Of `ours` and `theirs`.
    """

    name: str
    ours: float
    theirs: float | None
    ratio: float
    at_least: float
    aim: float
    equal: bool
    note: str = ""
    unit: str = "s"

    @property
    def smaller_is_better(self) -> bool:
        return self.aim < self.at_least

    def reaches(self, target: float) -> bool:
        return self.equal and (self.ratio <= target if self.smaller_is_better else self.ratio >= target)

    @property
    def verdict(self) -> str:
        if not self.equal:
            return "NOT EQUAL"
        return "aim" if self.reaches(self.aim) else "reached" if self.reaches(self.at_least) else "missed"


@dataclass
class Timing:
    """Medians in seconds, and the median over the pairs of theirs / ours with its quartiles."""

    ours: float
    theirs: float
    ratio: float
    quartiles: tuple[float, float]


def paired(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int = 9, warmup: int = 2) -> Timing:
    """Run both in turns, the first of each pair alternating.

    Args:
        ours: Called without arguments; must leave the state as it found it (a training step clears its gradients).
        theirs: The same.
        repeats: Pairs that count.
        warmup: Pairs before them.
    """
    times: list[tuple[float, float]] = []
    for i in range(warmup + repeats):
        pair = [0.0, 0.0]
        for which in (0, 1) if i % 2 == 0 else (1, 0):
            gc.collect()
            start = time.perf_counter()
            (ours, theirs)[which]()
            pair[which] = time.perf_counter() - start
        times.append((pair[0], pair[1]))
    times = times[warmup:]
    ratios = sorted(b / a for a, b in times)
    quarter = len(ratios) // 4
    return Timing(
        median(a for a, _ in times),
        median(b for _, b in times),
        median(ratios),
        (ratios[quarter], ratios[-1 - quarter]),
    )


def real_data() -> Path:
    """The folder of real data sets that `NOTA_SEG_DATA` names; one that does not exist where it names none."""
    return Path(os.environ.get("NOTA_SEG_DATA", "/nonexistent"))


def set_threads(threads: int) -> None:
    """For torch and the libraries below it; both sides always have the same number."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # also of processes that a benchmark starts
    import torch

    torch.set_num_threads(threads)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    import torch
    import transformers

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": card,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
