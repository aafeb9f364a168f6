"""The table of a comparison for a paper: Markdown and LaTeX."""

from __future__ import annotations

import re
import statistics
from typing import TYPE_CHECKING

from nota_seg.report.compare import difference, number, short_p, spread
from nota_seg.report.runs import TEST, Run

if TYPE_CHECKING:
    from nota_seg.report.compare import Comparison

_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "<": "$<$", "–": "--",
}  # fmt: skip


def paper_table(result: Comparison) -> tuple[list[str], list[list[str]]]:
    """Head and cells: variant, cost, latency, scores, difference to the baseline with its 95 % interval, p.

    Columns that would be empty, or say the same twice, are left out.
    """
    costs = {"params": ("params (M)", 1e6), "macs": ("GMACs", 1e9), "macs_reference": ("textbook", 1e9)}
    known = [price for price in result.costs.values() if price]
    if all(price.get("macs_reference") in (None, price["macs"]) for price in known):
        del costs["macs_reference"]
    times = [s for s in result.settings if all(result.latency(run, s) for run in result.runs)]
    encoders = [run.encoder_top1 for run in result.runs]
    borders = [run.number("boundary_iou") for run in result.runs]
    head = ["variant", *(title for title, _ in costs.values()), *(f"p50 (ms), {s}" for s in times)]
    head += ["top-1"] * any(v is not None for v in encoders) + [result.score_name]
    head += ["boundary IoU"] * any(v is not None for v in borders)
    head += ["difference", "p"] if result.verdicts else []
    seeded = any(found.p_seeds is not None for found in result.verdicts.values())
    head += ["p (seeds)"] * seeded + ["test"] * _tested(result)
    rows = []
    for run, encoder, border in zip(result.runs, encoders, borders, strict=True):
        price, found = result.costs[run.name], result.verdict(run)
        cells = [run.name, *(number(price[k] / unit if price else None) for k, (_, unit) in costs.items())]
        cells += [number(run.latencies[s].p50, 1) for s in times]
        cells += [number(encoder)] * ("top-1" in head) + [spread(run.mean, run.std)]
        cells += [number(border)] * ("boundary IoU" in head)
        cells += [difference(found), short_p(found)] if result.verdicts else []
        cells += [short_p(found, seeds=True)] * seeded + [_test_cell(run)] * _tested(result)
        rows.append(cells)
    return head, rows


def _tested(result: Comparison) -> bool:
    """Whether there is a test split beside what is compared."""
    return result.baseline.evaluation != TEST and any(run.test_scores for run in result.runs)


def _test_cell(run: Run) -> str:
    scores = run.test_scores
    return spread(statistics.fmean(scores), statistics.stdev(scores) if len(scores) > 1 else None) if scores else "–"


def _legend(result: Comparison) -> str:
    head, _ = paper_table(result)
    seeds = max(len(run.seeds) for run in result.runs)
    text = f"Cost at {'x'.join(map(str, result.size))} pixels"
    text += ", as executed and in the textbook order." if "textbook" in head else "."
    if any(run.encoder_top1 is not None for run in result.runs):
        text += " Top-1 of the pre-training."
    if seeds > 1:
        text += f" {result.score_name}: mean and standard deviation over {seeds} seeds."
    if result.verdicts:
        pictures = next(iter(result.verdicts.values())).pictures
        text += (
            f" Difference to {result.baseline.name} with its 95 % interval: paired bootstrap over {pictures} pictures."
        )
        if "p (seeds)" in head:
            text += " p (seeds): Welch's test over the seeds."
    if "test" in head:
        text += f" Test: {result.score_name} on the split that chose nothing."
    return f"{text} {result.caveat() or ''}".rstrip()


def _best(result: Comparison) -> int | None:
    known = [(run.mean, i) for i, run in enumerate(result.runs) if run.mean is not None]
    return max(known)[1] if known else None


def markdown(result: Comparison) -> str:
    """A table as GitHub shows it, the best score in bold, and what its columns mean."""
    head, rows = paper_table(result)
    place, best = head.index(result.score_name), _best(result)
    if best is not None:
        rows[best][place] = f"**{rows[best][place]}**"
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"{text}\n\n{_legend(result)}\n"


def latex(result: Comparison, *, caption: str | None = None) -> str:
    """A table environment with booktabs rules."""
    head, rows = paper_table(result)
    place, best = head.index(result.score_name), _best(result)
    cells = [[_escape(cell) for cell in row] for row in rows]
    if best is not None:
        cells[best][place] = rf"\textbf{{{cells[best][place]}}}"
    lines = [" & ".join(row) + r" \\" for row in cells]
    title = f"{caption.rstrip('.')}. {_legend(result)}" if caption else _legend(result)
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}", r"\begin{table}", r"\centering", rf"\caption{{{_escape(title)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule", " & ".join(map(_escape, head)) + r" \\",
            r"\midrule", *lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
        ]
    )  # fmt: skip


def _escape(text: str) -> str:
    text = "".join(_ESCAPES.get(c, c) for c in text)
    return re.sub(r"^[+-](?=\d)", lambda sign: f"${sign[0]}$", text)
