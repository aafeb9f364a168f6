"""The page of a comparison: one HTML file that carries its styles, scripts, pictures and numbers in itself."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from nota_seg.report.significance import format_p
from nota_seg.report.style import DARK, LIGHT, MARKERS

if TYPE_CHECKING:
    from nota_seg.report.compare import Comparison
    from nota_seg.report.runs import Run

TEMPLATES = Path(__file__).parent / "templates"
MOST_POINTS = 400  # of a learning curve; longer ones are thinned


def render(result: Comparison, *, title: str | None = None) -> str:
    """The whole page."""
    from nota_seg.report.compare import csv_text, per_class_csv

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    base = result.baseline
    evaluation = base.first.evaluation or {}
    protocol = {k: v for k, v in evaluation.get("protocol", {}).items() if v not in (None, False)}
    return environment.get_template("page.html.j2").render(
        title=title or f"{len(result.runs)} runs compared",
        css=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        js=Markup((TEMPLATES / "page.js").read_text(encoding="utf-8")),
        light=LIGHT,
        dark=DARK,
        data=Markup(_script_json(page_data(result))),
        csv=Markup(_script_json({"compare.csv": csv_text(result), "per_class.csv": per_class_csv(result)})),
        result=result,
        rows=_rows(result),
        sentences=result.sentences(),
        caveat=result.caveat(),
        abouts={s: next(r.latencies[s].about for r in result.runs if s in r.latencies) for s in result.settings},
        matrix=_matrix(result),
        facts={
            "data": Path(str(base.first.config.get("data", {}).get("path", ""))).name,
            "pictures": evaluation.get("images"),
            "protocol": ", ".join(f"{k.replace('_', ' ')} {_flat(v)}" for k, v in protocol.items()),
            "date": time.strftime("%Y-%m-%d"),
        },
        config_rows=result.config_rows(),
        provenance=[_provenance(run) for run in result.runs],
    )


def page_data(result: Comparison) -> dict[str, Any]:
    """The numbers behind the plots."""
    names = list(result.baseline.per_class)
    return {
        "score": result.score_name,
        "size": "x".join(map(str, result.size)),
        "markers": MARKERS,
        "runs": [_run_data(result, run, names) for run in result.runs],
        "classes": names,
        "shares": _class_shares(result),
        "settings": result.settings,
    }


def _run_data(result: Comparison, run: Run, names: list[str]) -> dict[str, Any]:
    price, found = result.costs[run.name], result.verdict(run)
    times = {setting: result.latency(run, setting) for setting in result.settings}
    return {
        "name": run.name,
        "params": price["params"] / 1e6 if price else None,
        "macs": price["macs"] / 1e9 if price else None,
        "score": run.mean,
        "std": run.std,
        "latency": [t.p50 if t else None for t in times.values()],
        "perClass": [run.per_class.get(name) for name in names],
        "curves": [_thin([(s, 100 * v) for s, v in seed.curve("val", result.score)]) for seed in run.seeds],
        "losses": [_thin(seed.curve("train", "loss")) for seed in run.seeds],
        "difference": [found.difference, found.low, found.high] if found else None,
    }


def _class_shares(result: Comparison) -> list[float] | None:
    """Share of each class in the truth, 0..1."""
    counts = result.baseline.counts
    if not counts:
        return None
    total = counts[0].truth.sum(axis=0)
    return [round(float(v), 6) for v in total / max(1, total.sum())]


def _thin(curve: list[tuple[int, float]]) -> list[tuple[int, float]]:
    step = -(-len(curve) // MOST_POINTS) or 1
    kept = curve[::step]
    kept += [] if not curve or kept[-1] == curve[-1] else [curve[-1]]
    return [(s, round(v, 4)) for s, v in kept]


def _rows(result: Comparison) -> list[dict[str, Any]]:
    """Cells of the table: text for people, the number to sort by beside it."""
    from nota_seg.report.compare import difference, number, short_p, spread

    best = max((run.mean for run in result.runs if run.mean is not None), default=None)
    rows = []
    for run in result.runs:
        price, found = result.costs[run.name], result.verdict(run)
        params, macs = (price[k] / d if price else None for k, d in (("params", 1e6), ("macs", 1e9)))
        cells = [(spread(run.mean, run.std), run.mean)]
        if result.score == "miou":
            cells += [(difference(found), found.difference if found else None)]
            cells += [(short_p(found), found.p if found else None)]
            cells += [(number(v), v) for v in (run.number(k) for k in ("macc", "aacc", "boundary_iou"))]
        cells += [(number(params), params), (number(macs), macs)]
        for setting in result.settings:
            time_ = result.latency(run, setting)
            cells.append((number(time_.p50 if time_ else None, 1), time_.p50 if time_ else None))
        rows.append({"name": run.name, "seeds": len(run.seeds), "cells": cells, "best": run.mean == best})
    return rows


def _matrix(result: Comparison) -> list[tuple[str, list[dict[str, Any] | None]]]:
    """How much better the row is than the column."""
    if len(result.runs) < 2 or not result.verdicts:
        return []
    rows = []
    for run in result.runs:
        cells: list[dict[str, Any] | None] = []
        for other in result.runs:
            found = result.verdicts.get((other.name, run.name))
            if found is None:
                cells.append(None)
                continue
            kind = "same" if not found.significant else "better" if found.difference > 0 else "worse"
            cells.append({"text": f"{found.difference:+.1f}", "margin": f"{found.margin:.1f}", "p": format_p(found.p),
                          "kind": kind})  # fmt: skip
        rows.append((run.name, cells))
    return rows


def _provenance(run: Run) -> dict[str, Any]:
    facts = run.first.facts
    versions = facts.get("versions", {})
    command = facts.get("command") or []
    words = [Path(command[0]).name.replace("__main__.py", "nota-seg"), *command[1:]] if command else []
    return {
        "name": run.name,
        "command": shlex.join(map(str, words)),
        "git": str(facts.get("git") or "not in a checkout")[:12],
        "device": f"{facts.get('device', '?')} x {facts.get('processes', 1)}, {facts.get('precision', '?')}",
        "seeds": ", ".join(str(s.facts.get("seed", "?")) for s in run.seeds),
        "versions": ", ".join(f"{k} {versions[k]}" for k in ("torch", "transformers", "nota-seg") if k in versions),
    }


def _flat(value: Any) -> str:
    return (
        "x".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value) if isinstance(value, list) else str(value)
    )


def _script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")
