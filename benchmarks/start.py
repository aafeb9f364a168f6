"""How long `nota-seg --help` takes, process and all."""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

from benchmarks.common import Result


def run(quick: bool) -> list[Result]:
    times = []
    for _ in range(3 if quick else 11):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "nota_seg.cli", "--help"], capture_output=True, text=True)
        times.append(time.perf_counter() - start)
    works = done.returncode == 0 and "finetune" in done.stdout
    return [Result("start of nota-seg --help", median(times), None, median(times), 0.6, 0.25, works, "median")]
