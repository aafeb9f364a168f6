"""Compositions under a budget, before anything is trained: count, keep what fits, rank, show the front.

Nothing here knows how good a composition will be. The rules rank by what can be known beforehand, and say so:

`capacity`: most parameters for fewest MACs. On the front no other candidate has as many parameters for as few MACs.
    Parameters and MACs alone are predictors that training-free scores rarely beat (arXiv 2101.08134, 2104.01177).
`small`: fewest parameters and fewest MACs: what is cheap in both ways.
`macs`: fewest MACs alone.

Costs are sums of pieces (`nota_seg.piecewise`); what is returned has been counted anew as a whole.
"""

from __future__ import annotations

import csv
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from nota_seg.flops import cost
from nota_seg.latency import latency
from nota_seg.models.registry import DECODERS, FEEDFORWARDS, MIXERS, SKIPS
from nota_seg.models.zoo import architecture, bases, create_config, create_model
from nota_seg.piecewise import PieceCounter
from util.errors import InputError, did_you_mean
from util.files import whole_folder, write_json
from util.seed import derive

RULES = {
    "capacity": "most parameters for fewest MACs",
    "small": "fewest parameters and fewest MACs",
    "macs": "fewest MACs",
}
Row = dict[str, Any]
PASSES = 4  # of measuring the front and mending it


@dataclass
class Space:
    """What may be chosen. Mixer and feed-forward per stage, the others once for all stages.

    Attributes:
        base: Model name: strides, ratios and whatever is not chosen.
        mixers: Names; all registered ones by default.
        feedforwards: The same.
        skips: The same.
        decoders: The same.
        dims: Rows of channels, one a stage; the base's by default.
        depths: Rows of depths, one a stage; the base's by default.
    """

    base: str = "segformer-b0"
    mixers: Sequence[str] = ()
    feedforwards: Sequence[str] = ()
    skips: Sequence[str] = ()
    decoders: Sequence[str] = ()
    dims: Sequence[Sequence[int]] = ()
    depths: Sequence[Sequence[int]] = ()
    _stages: list[dict[str, Any]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        known = {"mixers": MIXERS, "feedforwards": FEEDFORWARDS, "skips": SKIPS, "decoders": DECODERS}
        for key, registry in known.items():
            for name in getattr(self, key):
                registry.get(name)  # an unknown one suggests the nearest
            setattr(self, key, list(dict.fromkeys(getattr(self, key))) or registry.names())
        arch = architecture(self.base)
        self._stages = arch["stages"]
        if any(stage.get("blocks") for stage in self._stages):
            fitting = [b for b, a in bases().items() if not any(s.get("blocks") for s in a["stages"])]
            raise InputError(f"{self.base} has blocks of fixed kinds: {did_you_mean(self.base, fitting)}")
        for key in ("dims", "depths"):
            rows = [tuple(row) for row in getattr(self, key)] or [tuple(s[key[:-1]] for s in self._stages)]
            for row in rows:
                if len(row) != len(self._stages) or min(row) < 1:
                    raise InputError(f"{key} {row}: {self.base} has {len(self._stages)} stages, one number for each")
            setattr(self, key, list(dict.fromkeys(rows)))
        # Each component with the options that it takes over from the base's (the ratio of the stage), as in names.
        self._mixers = {m: [s["mixer"] for s in self._with("mixer", m)] for m in self.mixers}
        self._feedforwards = {f: [s["feedforward"] for s in self._with("feedforward", f)] for f in self.feedforwards}
        same = arch.get("decoder", {"name": "mlp"})
        self._decoders = {d: same if d == same["name"] else {"name": d} for d in self.decoders}

    def _with(self, kind: str, component: str) -> list[dict[str, Any]]:
        before = [s.get(kind) for s in self._stages]
        if all((b if isinstance(b, str) else (b or {}).get("name")) == component for b in before):
            return self._stages
        for change in (component, f"{kind}:{component}"):
            try:
                return architecture(f"{self.base}-{change}")["stages"]
            except InputError:
                continue
        raise InputError(f"{kind} {component!r} does not fit {self.base}")

    @property
    def axes(self) -> list[Sequence[Any]]:
        n = len(self._stages)
        return [
            *[self.mixers] * n, *[self.feedforwards] * n, self.skips, self.decoders, self.dims, self.depths,
        ]  # fmt: skip

    def __len__(self) -> int:
        return math.prod(len(axis) for axis in self.axes)

    def overrides(self, choice: Sequence[Any]) -> dict[str, Any]:
        """A choice, one value an axis, as overrides of `create_model`."""
        n = len(self._stages)
        mixers, feedforwards = choice[:n], choice[n : 2 * n]
        skip, decoder, dims, depths = choice[2 * n :]
        heads = []
        for stage, mixer, dim in zip(self._stages, mixers, dims, strict=True):
            wanted = stage.get("heads", 1) if dim == stage["dim"] else max(1, dim // 32)
            wanted = next(h for h in range(wanted, 0, -1) if dim % h == 0)
            fitting = getattr(MIXERS.get(mixer), "fitting_heads", None)
            heads.append(fitting(dim, wanted) if fitting else wanted)
        return {
            "mixers": [self._mixers[m][i] for i, m in enumerate(mixers)],
            "feedforwards": [self._feedforwards[f][i] for i, f in enumerate(feedforwards)],
            "skip": skip,
            "decoder": self._decoders[decoder],
            "dims": list(dims),
            "depths": list(depths),
            "heads": heads,
        }

    def choices(self, samples: int, seed: int) -> Iterator[tuple[Any, ...]]:
        """All of them where there are no more than `samples`, otherwise so many different ones, drawn by the seed."""
        axes = self.axes
        if len(self) <= samples:
            yield from itertools.product(*axes)
            return
        rng = np.random.default_rng(derive(seed, "search"))
        seen: set[tuple[int, ...]] = set()
        lengths = [len(axis) for axis in axes]
        while len(seen) < samples:
            index = tuple(int(i) for i in rng.integers(lengths))
            if index not in seen:
                seen.add(index)
                yield tuple(axis[i] for axis, i in zip(axes, index, strict=True))


def search(
    space: Space,
    *,
    samples: int = 5000,
    seed: int = 0,
    size: tuple[int, int] = (512, 512),
    num_labels: int = 150,
    max_params: float | None = None,
    max_gmacs: float | None = None,
    max_latency: float | None = None,
    rule: str = "capacity",
    top: int = 20,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Count compositions and return the cost front of those within the budget.

    Args:
        space: What may be chosen.
        samples: Compositions to count; all of a smaller space.
        seed: Of the drawing.
        size: (height, width) in pixels that MACs and latency are for.
        num_labels: Classes.
        max_params: Most parameters, millions.
        max_gmacs: Most MACs as executed, in 10^9.
        max_latency: Most milliseconds, median of eager runs on `device`. Measured on the front alone; for the others a
            line through what was measured decides who may be on it.
        rule: Of `RULES`.
        top: Rows of the front to return.
        device: For the latency.
        progress: Called with 1 after every composition.

    Returns:
        `front`, best first: `rank`, `params`, `gmacs`, `latency` (milliseconds, or None), `name` where a model name
        says it all, `model`: the section of a configuration that `pretrain`, `finetune` and `create_model` take.
        Beside it what was done: `counted`, `fitting`, `space`, `invalid`, `seconds`, `rule`, `latency_measured`, ...

    Raises:
        InputError: An unknown rule, or nothing fits.
    """
    if rule not in RULES:
        raise InputError(f"unknown rule {rule!r}: {did_you_mean(rule, RULES)}")
    started = time.monotonic()
    counter, fitting, invalid, counted = PieceCounter(), [], 0, 0
    least: Row | None = None
    for choice in space.choices(samples, seed):
        overrides = space.overrides(choice)
        counted += 1
        if progress is not None:
            progress(1)
        try:
            params, macs = counter.cost(create_config(space.base, num_labels=num_labels, **overrides), size)
        except InputError:  # a composition that its components refuse, such as heads that do not divide
            invalid += 1
            continue
        row = {"params": params, "macs": macs, "overrides": overrides, "choice": choice}
        if least is None or macs < least["macs"]:
            least = row
        if params <= 1e6 * (max_params or math.inf) and macs <= 1e9 * (max_gmacs or math.inf):
            fitting.append(row)
    spent = time.monotonic() - started
    if not fitting:
        hint = f"; the fewest MACs found are {least['macs'] / 1e9:.2f} G" if least else ""
        raise InputError(f"none of {counted} compositions is within the budget{hint}: raise it, or widen the space")
    chosen, measured = front(fitting, rule)[:top], 0
    if max_latency is not None:

        def measure(row: Row) -> float:
            return _milliseconds(space, row, num_labels, size, device)

        chosen, measured = _fast_enough(fitting, rule, max_latency, top, measure)
    return {
        "rule": rule,
        "meaning": RULES[rule],
        "size": list(size),
        "num_labels": num_labels,
        "space": len(space),
        "counted": counted,
        "invalid": invalid,
        "fitting": len(fitting),
        "pieces": len(counter),
        "seconds": round(spent, 2),
        "seed": seed,
        "budget": {"params": max_params, "gmacs": max_gmacs, "latency": max_latency},
        "latency_measured": measured,
        "front": [_result(i, space, row, num_labels, size) for i, row in enumerate(chosen, start=1)],
    }


def front(rows: Sequence[Row], rule: str) -> list[Row]:
    """What no other row beats by the rule, best first; of equals the one that was found first.

    For `capacity` that is by parameters, from many to few; for `small` by MACs, from few to many; `macs` has no front
    and ranks all.
    """
    sign = -1 if rule == "capacity" else 1
    ordered = sorted(rows, key=lambda r: (r["macs"], sign * r["params"]))
    if rule == "macs":
        return ordered
    best, found = math.inf, []
    for row in ordered:
        if sign * row["params"] < best:
            best = sign * row["params"]
            found.append(row)
    return found[::-1] if rule == "capacity" else found


def _fast_enough(
    rows: Sequence[Row], rule: str, limit: float, top: int, measure: Callable[[Row], float]
) -> tuple[list[Row], int]:
    """The first `top` rows of the front that were measured within the limit, and how many were measured.

    A line through what was measured (milliseconds over MACs) says which rows are worth a measurement. None is taken on
    its word: those of the front that prove too slow leave it, the line is drawn anew, and what they hid is tried.
    """
    first = sorted(front(rows, rule), key=lambda row: row["macs"])
    measured = {id(row): row for row in (first[0], first[len(first) // 2], first[-1])}
    for row in measured.values():
        row["latency"] = measure(row)
    good: list[Row] = []
    for _ in range(PASSES):
        macs, times = zip(*((row["macs"], row["latency"]) for row in measured.values()), strict=True)
        line = np.polyfit(macs, times, 1) if len(set(macs)) > 1 else (0.0, 0.0)
        left = [row for row in rows if row.get("latency", float(np.polyval(line, row["macs"]))) <= limit]
        chosen = front(left, rule)[:top]
        for row in chosen:
            if id(row) not in measured:
                measured[id(row)] = row
                row["latency"] = measure(row)
        good = [row for row in chosen if row["latency"] <= limit]
        if len(good) == len(chosen):
            break
    if not good:
        raise InputError(f"none of the {len(measured)} compositions that were measured runs in {limit:g} ms")
    return good, len(measured)


def _milliseconds(space: Space, row: Row, num_labels: int, size: tuple[int, int], device: torch.device | str) -> float:
    model = create_model(space.base, num_labels=num_labels, **row["overrides"]).to(device)
    found = latency(model, name=space.base, size=size, device=device, rounds=5, seconds=1.0)
    return float(found["measurements"][0]["p50"])


def _result(rank: int, space: Space, row: Row, num_labels: int, size: tuple[int, int]) -> Row:
    overrides = row["overrides"]
    whole = cost(create_model(space.base, num_labels=num_labels, **overrides), size)
    if (whole["params"], whole["macs"]) != (row["params"], row["macs"]):
        raise RuntimeError(
            f"{overrides}: the pieces add up to {row['params']} parameters and {row['macs']} MACs, the whole has "
            f"{whole['params']} and {whole['macs']}: one of its components looks into another"
        )
    return {
        "rank": rank,
        "params": row["params"],
        "gmacs": round(row["macs"] / 1e9, 3),
        "latency": row.get("latency"),
        "name": _name(space, overrides),
        "components": _words(space, row["choice"]),
        "model": {"name": space.base, **overrides},
    }


def _words(space: Space, choice: Sequence[Any]) -> dict[str, str]:
    n = (len(choice) - 4) // 2
    per_stage = {"mixers": choice[:n], "feedforwards": choice[n : 2 * n]}
    short = {k: v[0] if len(set(v)) == 1 else ",".join(v) for k, v in per_stage.items()}
    skip, decoder, dims, depths = choice[2 * n :]
    numbers = {"dims": ",".join(map(str, dims)), "depths": ",".join(map(str, depths))}
    return {**short, "skip": skip, "decoder": decoder, **numbers}


def _name(space: Space, overrides: Mapping[str, Any]) -> str | None:
    """A model name of the same architecture, where there is one."""
    wanted = create_config(space.base, **overrides)
    names = {kind: {s[kind]["name"] for s in wanted.stages} for kind in ("mixer", "feedforward", "skip")}
    if any(len(one) > 1 for one in names.values()):
        return None
    for base in dict.fromkeys([space.base, *bases()]):
        changes = [("mixer", *names["mixer"]), ("feedforward", *names["feedforward"]), ("skip", *names["skip"])]
        try:
            before = create_config(base)
            if before.channels != wanted.channels or any(s["blocks"] for s in before.stages):
                continue
            words = [
                component if kind == "skip" or component in _single() else f"{kind}:{component}"
                for kind, component in changes
                if any(s[kind]["name"] != component for s in before.stages)
            ]
            decoder = wanted.decoder["name"]
            if decoder != before.decoder["name"]:
                words.append(decoder if decoder in _single() else f"decoder:{decoder}")
            name = "-".join([base, *words])
            made = create_config(name)
        except InputError:
            continue
        if made.stages == wanted.stages and made.decoder == wanted.decoder:
            return name
    return None


def _single() -> set[str]:
    """Names of components that one kind alone has: those need no `kind:` in a model name."""
    every = [name for registry in (MIXERS, FEEDFORWARDS, SKIPS, DECODERS) for name in registry]
    return {name for name in every if every.count(name) == 1}


def format_search(result: Mapping[str, Any]) -> str:
    """For people: what was done, then the front."""
    budget = [f"{k} <= {v:g}" for k, v in result["budget"].items() if v is not None]
    lines = [
        f"{result['counted']} of {result['space']} compositions counted in {result['seconds']:.1f} s from "
        f"{result['pieces']} pieces, {result['fitting']} within {', '.join(budget) or 'no budget'}",
        f"rule {result['rule']}: {result['meaning']}; nothing was trained",
    ]
    if result["latency_measured"]:
        lines.append(f"latency measured on the front alone: {result['latency_measured']} compositions")
    lines.append("")
    for row in result["front"]:
        speed = f"{row['latency']:8.1f} ms" if row["latency"] is not None else ""
        words = row["name"] or " ".join(f"{k}={v}" for k, v in row["components"].items())
        lines.append(f"{row['rank']:3} {row['params'] / 1e6:8.3f} M {row['gmacs']:8.3f} GMACs{speed}  {words}")
    return "\n".join(lines)


def write(result: Mapping[str, Any], folder: str | Path) -> None:
    """`front.json`, `front.csv`, and for every row `front-RANK.yaml`, for `--config` of pretrain and finetune."""
    with whole_folder(folder) as out:
        write_json(out / "front.json", result)
        with (out / "front.csv").open("w", encoding="utf-8", newline="") as file:
            names = list(result["front"][0]["components"])
            table = csv.writer(file)
            table.writerow(["rank", "params", "gmacs", "latency", "name", *names])
            for row in result["front"]:
                cells = [row[k] for k in ("rank", "params", "gmacs", "latency", "name")]
                table.writerow([*cells, *row["components"].values()])
        for row in result["front"]:
            text = yaml.safe_dump({"model": row["model"]}, sort_keys=False)
            (out / f"front-{row['rank']}.yaml").write_text(text, encoding="utf-8")
