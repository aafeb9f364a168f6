"""The plots of a comparison for a paper: PNG and SVG by matplotlib, one column wide, readable in print."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nota_seg.report.style import LIGHT, MARKERS, pareto_front

if TYPE_CHECKING:
    from nota_seg.report.compare import Comparison

MARKS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "cross": "X"}
DASHES = ["-", "--", "-.", ":"]


def look(i: int) -> dict[str, Any]:
    """Colour and marker of the i-th run, the same in every plot and on the page."""
    return {"color": LIGHT[i % len(LIGHT)], "marker": MARKS[MARKERS[i % len(MARKERS)]]}


def draw(result: Comparison, folder: Path) -> list[Path]:
    """Draw what there are numbers for.

    Returns:
        The files written.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style = {
        "font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
        "grid.linewidth": 0.5, "axes.axisbelow": True, "legend.frameon": False, "svg.hashsalt": "nota-seg",
        "svg.fonttype": "none", "figure.constrained_layout.use": True,
    }  # fmt: skip
    written: list[Path] = []

    def save(name: str, paint: Callable[[Any], None], size: tuple[float, float] = (3.5, 2.7)) -> None:
        with plt.rc_context(style):
            figure, axes = plt.subplots(figsize=size)
            paint(axes)
            for suffix, metadata in ((".png", {}), (".svg", {"Date": None})):
                # Tight: the layout makes no room for a label that is longer than its axis.
                figure.savefig(folder / (name + suffix), dpi=300, metadata=metadata, bbox_inches="tight")
                written.append(folder / (name + suffix))
            plt.close(figure)

    folder.mkdir(parents=True, exist_ok=True)
    for name, label, values in cost_axes(result):
        save(name, partial(_pareto, result=result, values=values, label=label))
    curves = [run.first.curve("val", result.score) for run in result.runs]
    if any(len(c) > 1 for c in curves):
        save("learning-curves", lambda axes: _curves(axes, result))
    if result.sentences():
        save("differences", lambda axes: _forest(axes, result), (3.5, 0.8 + 0.3 * len(result.runs)))
    if result.baseline.per_class:
        height = 0.9 + 0.16 * len(result.baseline.per_class)
        save("per-class-iou", lambda axes: _heat(axes, result), (1.6 + 0.55 * len(result.runs), height))
    return written


def cost_axes(result: Comparison) -> list[tuple[str, str, list[float | None]]]:
    """File name, label and a value a run for each cost that at least two runs have."""
    price = [result.costs[run.name] for run in result.runs]
    pixels = "x".join(map(str, result.size))
    axes: list[tuple[str, str, list[float | None]]] = [
        ("pareto-params", "parameters, M", [p["params"] / 1e6 if p else None for p in price]),
        ("pareto-macs", f"GMACs at {pixels}", [p["macs"] / 1e9 if p else None for p in price]),
    ]
    for i, setting in enumerate(result.settings):
        times = [result.latency(run, setting) for run in result.runs]
        axes.append((f"pareto-latency-{i}", f"p50 ms ({setting})", [t.p50 if t else None for t in times]))
    return [a for a in axes if sum(v is not None for v in a[2]) > 1]


def _pareto(axes: Any, result: Comparison, values: Sequence[float | None], label: str) -> None:
    points = []
    for i, (run, x) in enumerate(zip(result.runs, values, strict=True)):
        if x is None or run.mean is None:
            continue
        points.append((x, run.mean))
        axes.errorbar(x, run.mean, yerr=run.std, capsize=2, markersize=5, linestyle="", label=run.name, **look(i))
    front = pareto_front(points)
    axes.step([p[0] for p in front], [p[1] for p in front], where="post", color="0.6", linewidth=0.8, zorder=0)
    axes.set(xlabel=label, ylabel=f"{result.score_name}, %")
    axes.margins(x=0.12, y=0.12)
    _legend(axes)


def _curves(axes: Any, result: Comparison) -> None:
    for i, run in enumerate(result.runs):
        for k, seed in enumerate(run.seeds):
            curve = seed.curve("val", result.score)
            steps, values = [s for s, _ in curve], [100 * v for _, v in curve]
            name = run.name if k == 0 else None
            axes.plot(steps, values, color=look(i)["color"], linestyle=DASHES[i % 4], linewidth=1, label=name)
    axes.set(xlabel="optimiser steps", ylabel=f"validation {result.score_name}, %")
    _legend(axes)


def _legend(axes: Any) -> None:
    """Below the plot: names are long, and beside points they would cover each other."""
    axes.figure.legend(loc="outside lower center", ncols=2, fontsize=6.5, handletextpad=0.4, columnspacing=1.2)


def _forest(axes: Any, result: Comparison) -> None:
    runs = [run for run in result.runs[1:] if result.verdict(run)]
    for y, run in enumerate(runs):
        found = result.verdict(run)
        assert found is not None
        error = [[max(0, found.difference - found.low)], [max(0, found.high - found.difference)]]
        axes.errorbar(found.difference, y, xerr=error, capsize=2, markersize=5, **look(result.runs.index(run)))
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_yticks(range(len(runs)), [run.name for run in runs])
    axes.set_ylim(len(runs) - 0.5, -0.5)
    axes.set_xlabel(f"{result.score_name} against {result.baseline.name}, points\n(95 % over pictures)")


def _heat(axes: Any, result: Comparison) -> None:
    names = list(result.baseline.per_class)
    columns = [[run.per_class.get(name) for name in names] for run in result.runs]
    values = np.array([[np.nan if v is None else v for v in column] for column in columns]).T
    axes.imshow(values, aspect="auto", cmap="cividis", vmin=0, vmax=max(1.0, float(np.nanmax(values, initial=1))))
    axes.set_xticks(range(len(result.runs)), [run.name for run in result.runs], rotation=35, ha="right", fontsize=6.5)
    axes.set_yticks(range(len(names)), names, fontsize=6.5)
    axes.grid(visible=False)
    if len(names) <= 40:
        middle = np.nanmax(values, initial=1) / 2
        for y, x in np.ndindex(values.shape):
            if not np.isnan(values[y, x]):
                ink = "white" if values[y, x] < middle else "black"
                axes.text(x, y, f"{values[y, x]:.1f}", ha="center", va="center", fontsize=5.5, color=ink)
