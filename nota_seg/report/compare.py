"""Runs beside each other: one table, one page, static plots, CSV."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nota_seg.config import differences
from nota_seg.flops import cost
from nota_seg.models.zoo import create_model
from nota_seg.report.overlays import Disagreement
from nota_seg.report.runs import SCORE_NAMES, SCORES, Latency, Run, read_json
from nota_seg.report.significance import Verdict, check_alike, format_p, resampled_miou, verdict
from util.errors import InputError
from util.files import whole_folder
from util.flops import outlined

PAGE, RESULT = "index.html", "compare.json"
# Keys of the configuration that say where a run lies rather than what it is.
PLACES = {"data.path", "train.seed", "train.workers", "train.tracker", "train.log_every", "eval.grid"}


@dataclass
class Comparison:
    """Everything that the table, the page and the plots show; the first run is the baseline."""

    runs: list[Run]
    size: tuple[int, int]  # of the picture that costs are counted for, pixels
    costs: dict[str, dict[str, Any] | None]  # by run
    verdicts: dict[tuple[str, str], Verdict]  # (a, b): how much better b is than a
    notes: list[str] = field(default_factory=list)  # what could not be compared, and why
    overlays: list[Disagreement] = field(default_factory=list)
    pair: tuple[str, str] | None = None  # of the overlays

    @property
    def baseline(self) -> Run:
        return self.runs[0]

    @property
    def score(self) -> str:
        return SCORES[self.baseline.first.phase]

    @property
    def score_name(self) -> str:
        return SCORE_NAMES[self.score]

    @property
    def settings(self) -> list[str]:
        """Settings of latency that any run was measured in; numbers of different ones are never mixed."""
        return sorted({setting for run in self.runs for setting in run.latencies})

    def latency(self, run: Run, setting: str) -> Latency | None:
        return run.latencies.get(setting)

    def verdict(self, run: Run) -> Verdict | None:
        """Against the baseline."""
        return self.verdicts.get((self.baseline.name, run.name))

    def sentences(self) -> list[str]:
        found = ((run.name, self.verdict(run)) for run in self.runs[1:])
        return [one.sentence(self.baseline.name, name) for name, one in found if one is not None]

    def caveat(self) -> str | None:
        """What the verdicts cannot know."""
        if self.sentences() and all(len(run.seeds) == 1 for run in self.runs):
            return "One seed each: the verdicts are on these weights, another seed may turn small differences."
        return None

    def config_rows(self) -> list[tuple[str, list[str]]]:
        """Keys whose values are not the same in all runs, with the value of each run."""
        configs = [run.first.config for run in self.runs]
        keys = {key for config in configs[1:] for key in differences(configs[0], config)}
        return [(key, [_shown(_dig(config, key)) for config in configs]) for key in sorted(keys - PLACES)]


def compare(
    runs: Sequence[Run],
    *,
    size: tuple[int, int] = (512, 512),
    samples: int = 5000,
    seed: int = 0,
) -> Comparison:
    """Put runs beside each other; the first is the baseline.

    Args:
        runs: Of one phase.
        size: (height, width) in pixels that parameters and MACs are counted for.
        samples: Of the bootstrap.
        seed: Of the bootstrap.
    """
    if not runs:
        raise InputError("give at least one run")
    result = Comparison(list(runs), size, {}, {})
    for run in runs:
        try:
            result.costs[run.name] = cost_of(run, size)
        except (InputError, ImportError) as error:
            result.costs[run.name] = None
            result.notes.append(f"{run.name}: not counted ({error})")
    if result.score == "miou":
        _judge_all(result, samples, seed)
    return result


def _judge_all(result: Comparison, samples: int, seed: int) -> None:
    draws: dict[str, np.ndarray] = {}
    for run in result.runs:
        if run.counts is None:
            result.notes.append(
                f"{run.name} has no per-picture counts and is in no test: "
                f"`nota-seg eval --pretrain {run.path} --json {run.path / run.evaluation}.json` writes them"
            )
            continue
        try:
            check_alike(run.counts, [run.name] * len(run.counts))
            draws[run.name] = np.mean([resampled_miou(c, samples=samples, seed=seed) for c in run.counts], axis=0)
        except InputError as error:
            result.notes.append(str(error))
    tested = [run for run in result.runs if run.name in draws]
    for a in tested:
        for b in tested:
            counts = [(a.counts or [])[0], (b.counts or [])[0]]
            if a is b:
                continue
            try:
                check_alike(counts, [a.name, b.name])
            except InputError as error:
                if tested.index(a) < tested.index(b):
                    result.notes.append(str(error))
                continue
            result.verdicts[a.name, b.name] = verdict(
                draws[a.name], draws[b.name], a.scores, b.scores, pictures=len(counts[0].names)
            )


def cost_of(run: Run, size: tuple[int, int]) -> dict[str, Any]:
    """Parameters and MACs at `size`: from the run's `flops.json` where that is of the same size, else counted now."""
    for folder in (run.path, run.first.path):
        saved = read_json(folder / "flops.json")
        if isinstance(saved, dict) and saved.get("size") == list(size):
            return saved
    settings = dict(run.first.config["model"])
    saved = read_json(run.first.path / "best" / "config.json") or {}
    classes = len(run.per_class) or len(saved.get("id2label", ()))
    if not classes:
        raise InputError("neither an evaluation nor best/config.json says how many classes it has")
    task = "segmentation" if run.first.phase == "finetune" else "classification"
    create = partial(create_model, settings.pop("name"), task, num_labels=classes, **settings)
    return outlined(lambda model: cost(model, size), create)


def _dig(config: dict[str, Any], dotted: str) -> Any:
    value: Any = config
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _shown(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value)


def number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def spread(mean: float | None, std: float | None, digits: int = 2) -> str:
    return number(mean, digits) + (f" ± {std:.{digits}f}" if std is not None else "")


def difference(found: Verdict | None, digits: int = 2) -> str:
    return "" if found is None else f"{found.difference:+.{digits}f} ± {found.margin:.{digits}f}"


def short_p(found: Verdict | None, *, seeds: bool = False) -> str:
    """`0.01`: over the pictures, or over the seeds."""
    p = None if found is None else found.p_seeds if seeds else found.p
    return format_p(p).removeprefix("p ").removeprefix("= ")


def table(result: Comparison) -> tuple[list[str], list[list[str]]]:
    """Head and cells for people."""
    latencies = result.settings
    segmentation = result.score == "miou"
    head = ["model", "params M", "GMACs", *(f"p50 ms ({s})" for s in latencies), result.score_name]
    head += ["mAcc", "aAcc", "boundary", f"against {result.baseline.name}", "p"] if segmentation else []
    rows = []
    for run in result.runs:
        price, found = result.costs[run.name], result.verdict(run)
        times = [result.latency(run, s) for s in latencies]
        cells = [run.name, *(number(price[k] / d if price else None, 2) for k, d in (("params", 1e6), ("macs", 1e9)))]
        cells += [number(t.p50 if t else None, 1) for t in times] + [spread(run.mean, run.std)]
        if segmentation:
            cells += [number(run.number(key)) for key in ("macc", "aacc", "boundary_iou")]
            cells += [difference(found), short_p(found)]
        rows.append(cells)
    return head, rows


def format_table(head: list[str], rows: list[list[str]]) -> str:
    """Columns side by side, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        for cells in (head, *rows)
    )


def csv_text(result: Comparison) -> str:
    """One line a run, plain numbers: points for scores, milliseconds for times."""
    columns = ["model", "path", "seeds", "params", "macs", "macs_reference", result.score, f"{result.score}_std"]
    columns += ["macc", "aacc", "boundary_iou", "difference", "low", "high", "p", "p_seeds"]
    columns += [f"p50_ms {s}" for s in result.settings]
    lines = []
    for run in result.runs:
        price, found = result.costs[run.name] or {}, result.verdict(run)
        line = [run.name, str(run.path), len(run.seeds), *(price.get(k) for k in ("params", "macs", "macs_reference"))]
        line += [run.mean, run.std, *(run.number(k) for k in ("macc", "aacc", "boundary_iou"))]
        line += [getattr(found, k, None) for k in ("difference", "low", "high", "p", "p_seeds")]
        line += [getattr(result.latency(run, s), "p50", None) for s in result.settings]
        lines.append(line)
    return _csv(columns, lines)


def per_class_csv(result: Comparison) -> str:
    """One line a class, IoU in points."""
    names = list(result.baseline.per_class)
    return _csv(
        ["class", *(r.name for r in result.runs)], [[n, *(r.per_class.get(n) for r in result.runs)] for n in names]
    )


def _csv(head: list[str], lines: list[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(
        [["" if v is None else round(v, 6) if isinstance(v, float) else v for v in line] for line in lines]
    )
    return text.getvalue()


def result_json(result: Comparison) -> dict[str, Any]:
    """The comparison for other programs."""
    return {
        "score": result.score,
        "size": list(result.size),
        "runs": [
            {
                "name": run.name,
                "path": str(run.path),
                "params": (result.costs[run.name] or {}).get("params"),
                "macs": (result.costs[run.name] or {}).get("macs"),
                "scores": run.scores,
                "mean": run.mean,
                "std": run.std,
                "latency": {s: one.p50 for s, one in run.latencies.items()},
            }
            for run in result.runs
        ],
        "verdicts": [{"a": a, "b": b, **v.as_dict()} for (a, b), v in result.verdicts.items()],
        "notes": result.notes,
    }


def prepare(output: Path, *, overwrite: bool) -> None:
    """Refuse, before any work, a folder that holds something else than an earlier comparison."""
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file: name a folder")
    if output.exists() and any(output.iterdir()):
        ours = (output / RESULT).exists()
        if not ours or not overwrite:
            hint = "--overwrite replaces the comparison in it" if ours else "name a new folder"
            raise InputError(f"{output} exists and is not empty: {hint}")


def write(result: Comparison, output: Path, *, title: str | None = None) -> list[Path]:
    """Write page, CSV, JSON and static plots; the files written, the page first. Earlier plots are replaced."""
    from nota_seg.report.page import render
    from nota_seg.report.plots import draw

    with whole_folder(output) as temporary:
        try:
            draw(result, temporary / "plots")
        except ImportError:
            result.notes.append("no static plots: `pip install 'nota-seg[plots]'` brings matplotlib")
        (temporary / PAGE).write_text(render(result, title=title), encoding="utf-8")
        (temporary / "compare.csv").write_text(csv_text(result), encoding="utf-8")
        if result.baseline.per_class:
            (temporary / "per_class.csv").write_text(per_class_csv(result), encoding="utf-8")
        (temporary / RESULT).write_text(json.dumps(result_json(result), indent=2, allow_nan=False), encoding="utf-8")
        written = sorted(f.relative_to(temporary) for f in temporary.rglob("*") if f.is_file())
        if (output / "plots").exists():
            shutil.rmtree(output / "plots")
    return [output / PAGE, *(output / f for f in written if str(f) != PAGE)]
