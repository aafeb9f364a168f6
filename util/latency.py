"""How long something takes, how sure that is, and on what: timings in rounds, an interval on the median, a device card.

Two numbers may stand side by side only when they were measured on the same card: what the card holds never changes from
one run to the next (processor, threads, versions), and its id is made from that. What does change (clocks, other load)
is noted with each measurement.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch.profiler import ProfilerActivity, profile

from util.memory import give_back_freed_memory

CONFIDENCE = 0.95
WARM_UP = 1.0  # seconds, and at least three runs
PROCESS = 0.02  # allowed for the memory layout, which differs between processes (doi 10.1145/1508244.1508275)
SLOWDOWN = 1.1  # of a fixed piece of work between the beginning and the end: the clocks fell, or other load came
_THROTTLED = {0x4: "power cap", 0x8: "slowdown", 0x20: "heat (driver)", 0x40: "heat (hardware)", 0x80: "power brake"}


@dataclass
class Chain:
    """What is timed: named parts, each called with the result of the one before.

    Attributes:
        parts: Name and function.
        device: `cpu` or `cuda`.
        asynchronous: Whether calls return before the device is done (torch on a GPU does, ONNX Runtime does not).
    """

    parts: Sequence[tuple[str, Callable[[Any], Any]]]
    device: str = "cpu"
    asynchronous: bool = False

    def __call__(self, x: Any) -> Any:
        for _, part in self.parts:
            x = part(x)
        return x

    def timed(self, x: Any) -> list[float]:
        """Seconds of the whole, then of each part."""
        if not self.asynchronous:
            marks = [time.perf_counter()]
            for _, part in self.parts:
                x = part(x)
                marks.append(time.perf_counter())
            return [marks[-1] - marks[0], *np.diff(marks).tolist()]
        events = [torch.cuda.Event(enable_timing=True) for _ in range(len(self.parts) + 1)]
        torch.cuda.synchronize()
        start = time.perf_counter()
        events[0].record()
        for (_, part), event in zip(self.parts, events[1:], strict=True):
            x = part(x)
            event.record()
        torch.cuda.synchronize()
        whole = time.perf_counter() - start
        return [whole, *(a.elapsed_time(b) / 1000 for a, b in pairwise(events))]


@dataclass
class Timings:
    """Seconds of every run, round by round: [round][run] is the whole and each part."""

    parts: list[str]
    rounds: list[list[list[float]]] = field(default_factory=list)

    def summary(self, other_load: float = 0.0) -> dict[str, Any]:
        """Milliseconds: `p50`, its interval, `p90`, `p99`, `mean`, and of each part `p50` and its share.

        Args:
            other_load: Share of the machine that other programs took, for the interval.
        """
        runs = 1000 * np.array([run for one in self.rounds for run in one])
        p50, p90, p99 = np.percentile(runs[:, 0], [50, 90, 99])
        low, high = interval([median(run[0] for run in one) for one in self.rounds], other_load)
        share = np.median(runs[:, 1:] / runs[:, :1], axis=0)
        return {
            "unit": "ms",
            "p50": float(p50),
            "p50_interval": [float(p50 * low), float(p50 * high)],
            "p90": float(p90),
            "p99": float(p99),
            "mean": float(runs[:, 0].mean()),
            "rounds": len(self.rounds),
            "runs": len(runs),
            "parts": {
                name: {"p50": float(np.median(runs[:, i + 1])), "share": float(share[i])}
                for i, name in enumerate(self.parts)
            },
        }


def interval(medians: Sequence[float], other_load: float = 0.0) -> tuple[float, float]:
    """Where the median of another measurement like this one will lie, relative to this one's: 95 %.

    A prediction, not a confidence interval: both measurements have their error, hence the 2; both are medians, whose
    variance is pi / 2 of a mean's. Neighbouring rounds resemble each other (another load comes and stays), so that
    there are fewer independent ones than rounds: their number is reduced by the first autocorrelation, as is usual for
    batch means. Two things that rounds cannot show are added: what other programs took may be gone the next time, or
    twice as much; and another process has its memory elsewhere (`PROCESS`), which moves medians too.

    Args:
        medians: Of the rounds, 3 at least.
        other_load: Share of the machine that other programs took, 0 to 1.
    """
    logs = np.log(np.asarray(medians, dtype=np.float64))
    n = len(logs)
    if n < 3:
        raise ValueError(f"an interval needs 3 rounds or more, got {n}")
    centred = logs - logs.mean()
    variance = float((centred**2).mean())
    r = float((centred[1:] * centred[:-1]).mean()) / variance if variance else 0.0
    r = min(max(r + 1 / n, 0.0), 0.9)  # 1 / n: its bias in a short series
    effective = max(3.0, n * (1 - r) / (1 + r))
    spread = math.sqrt(2 * math.pi / 2 * variance * n / (n - 1) / effective)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, effective - 1)) * spread
    half = math.hypot(half, PROCESS, math.log(1 - min(other_load, 0.9)))
    return math.exp(-half), math.exp(half)


def measure(
    chains: Mapping[str, Chain],
    x: Mapping[str, Any],
    *,
    rounds: int = 20,
    seconds: float = 10.0,
    progress: Callable[[int], object] | None = None,
) -> tuple[dict[str, Timings], dict[str, Any]]:
    """Time chains in turns, round by round, so that what else the machine does meets all of them.

    Args:
        chains: What to time, by name.
        x: Of each, the input of its first part.
        rounds: At least 3.
        seconds: Of each chain, all rounds together; a round is at least one run.
        progress: Called with 1 after every round.

    Returns:
        Timings by name, and the conditions: when, clocks, whether they fell, other load.
    """
    before, work = _Conditions.now(), []
    runs = {}
    for name, chain in chains.items():
        start = time.perf_counter()
        warm: list[float] = []
        while len(warm) < 3 or time.perf_counter() - start < WARM_UP:
            warm.append(chain.timed(x[name])[0])
        runs[name] = min(200, max(1, round(seconds / rounds / median(warm[-3:]))))
    result = {name: Timings([part for part, _ in chain.parts]) for name, chain in chains.items()}
    for number in range(rounds):
        work.append(_fixed_work())
        names = list(chains) if number % 2 == 0 else list(chains)[::-1]
        for name in names:
            result[name].rounds.append([chains[name].timed(x[name]) for _ in range(runs[name])])
        if progress is not None:
            progress(1)
    return result, before.until_now(chains, work)


def peak_memory(chain: Chain, x: Any) -> dict[str, Any]:
    """Bytes at the peak of one run, beyond weights and input, and how they were found; None where they cannot be."""
    if chain.device == "cuda" and chain.asynchronous:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        chain(x)
        torch.cuda.synchronize()
        return {"bytes": torch.cuda.max_memory_allocated() - held, "method": "torch's allocator"}
    if chain.device == "cuda":
        return {"bytes": None, "method": "unknown: this runtime does not tell"}
    return {"bytes": peak_tensor_bytes(lambda: chain(x)), "method": "tensors alive"}


def peak_tensor_bytes(call: Callable[[], Any]) -> int:
    """The most bytes of torch's tensors on the CPU alive at once, of those that the call makes."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports that there is no GPU as an error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            kept = call()
    now = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    del kept
    return peak


def resident_growth(call: Callable[[], Any]) -> int | None:
    """By how many bytes this process is larger at the peak of the call than before it; None where nobody counts."""
    give_back_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from now
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before)
    except (OSError, KeyError):
        return None


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return {k: int(v.split()[0]) * 1024 for k, v in (line.split(":", 1) for line in lines) if v.endswith("kB")}[key]


def device_card(device: str, packages: Sequence[str] = ("torch", "onnxruntime")) -> dict[str, Any]:
    """What numbers are measured on, and an `id` of it: equal ids, comparable numbers.

    Args:
        device: `cpu` or `cuda`.
        packages: Whose versions are part of it, where they are installed.
    """
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    affinity = getattr(os, "sched_getaffinity", None)
    card: dict[str, Any] = {
        "device": device,
        "processor": processor_name(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        card |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "driver": next(iter(_nvidia("driver_version") or []), None),
        }
        versions |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    digest = hashlib.blake2b(json.dumps(card, sort_keys=True).encode(), digest_size=4).hexdigest()
    return {"id": f"{device}-{digest}", **card}


def format_card(card: Mapping[str, Any]) -> str:
    """One line for people."""
    versions = ", ".join(f"{k} {v}" for k, v in card["versions"].items())
    gpu = f"{card['gpu']} ({card['gpu_memory_gib']} GiB, driver {card['driver']}), " if card.get("gpu") else ""
    threads = f"{card['threads']} thread{'s' * (card['threads'] > 1)}"
    return f"{gpu}{card['processor']}, {threads} of {card['cores']} cores, {card['instructions']}, {versions}"


def processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        facts = dict(reversed([[p.strip() for p in line.split(":", 1)] for line in lines if ":" in line]))
        model = [f"{key} {facts[key]}" for key in ("cpu family", "model") if key in facts]  # virtual ones hide the name
        return " ".join([facts["model name"], f"({', '.join(model)})"] if model else [facts["model name"]])
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


@dataclass
class _Conditions:
    """What may have slowed a measurement, at one moment."""

    when: str
    wall: float
    own: float  # processor seconds of this process
    all: list[int] | None  # the machine's, by kind
    events: int | None  # how often the processor was slowed down for heat

    @classmethod
    def now(cls) -> _Conditions:
        kinds: list[int] | None
        try:
            kinds = [int(v) for v in Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:]]
        except (OSError, ValueError):
            kinds = None
        counts = [_number(p) for p in Path("/sys/devices/system/cpu").glob("cpu*/thermal_throttle/*_throttle_count")]
        known = [c for c in counts if c is not None]
        when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        return cls(when, time.perf_counter(), time.process_time(), kinds, int(sum(known)) if known else None)

    def until_now(self, chains: Mapping[str, Chain], work: Sequence[float]) -> dict[str, Any]:
        end = _Conditions.now()
        third = max(1, len(work) // 3)
        slower = min(work[-third:]) / min(work[:third])
        reasons = [f"a fixed piece of work took {slower:.2f} times as long at the end"] if slower > SLOWDOWN else []
        if self.events is not None and end.events is not None and end.events > self.events:
            reasons.append("heat (processor)")
        found: dict[str, Any] = {"when": self.when, "cpu_mhz": _cpu_clocks()}
        if any(chain.device == "cuda" for chain in chains.values()):
            clocks = _nvidia("clocks.sm", "clocks.max.sm", "temperature.gpu", "clocks_event_reasons.active")
            if clocks:
                now, most, heat, mask = clocks
                found["gpu_mhz"] = {"now": float(now), "max": float(most)}
                found["gpu_celsius"] = float(heat)
                reasons += [text for bit, text in _THROTTLED.items() if int(mask, 16) & bit]
        if self.all and end.all:
            spent = np.subtract(end.all, self.all)[:8]  # user, nice, system, idle, iowait, irq, softirq, steal
            ticks = float(spent.sum()) or 1.0
            busy = 1 - (spent[3] + spent[4]) / ticks
            own = (end.own - self.own) / (end.wall - self.wall) / (os.cpu_count() or 1)
            found["other_load"] = round(max(0.0, busy - own), 3)  # share of the whole machine, not ours
        return {**found, "throttled": bool(reasons), "reasons": reasons}


def _fixed_work() -> float:
    """Seconds of the same additions, at their quickest: longer when clocks fall."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        sum(range(30_000))
        times.append(time.perf_counter() - start)
    return min(times)


def _cpu_clocks() -> dict[str, float] | None:
    """Of the fastest core, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        now = max(float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz"))
    except (OSError, ValueError):
        return None
    most = _number(Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq"))
    return {"now": round(now), **({"max": round(most / 1000)} if most else {})}


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _nvidia(*keys: str) -> list[str] | None:
    """What the driver's own tool says of the first visible GPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    call = ["nvidia-smi", f"--query-gpu={','.join(keys)}", "--format=csv,noheader,nounits", "-i", visible or "0"]
    try:
        out = subprocess.run(call, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    values = [v.strip() for v in out.splitlines()[0].split(",")] if out.strip() else []
    return values if len(values) == len(keys) else None


@contextmanager
def threads_of(threads: int | None) -> Iterator[None]:
    """Inside the block torch computes with so many threads; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
