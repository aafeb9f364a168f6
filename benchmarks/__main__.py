"""`python -m benchmarks`: every benchmark of the list below, as a table of targets and what was measured."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.common import Result, machine, set_threads
from util.files import write_json

# Each is a module of this package with `run(quick: bool) -> list[Result]`, in the order of the table; the list is empty
# where it needs a GPU and there is none.
BENCHMARKS = [
    "logits",
    "label_map",
    "training_step",
    "pipeline_finetune",
    "pipeline_tiny_imagenet",
    "validation",
    "start",
    "training_gpu",
]


def table(results: list[Result]) -> str:
    """Target and measured side by side."""
    rows = [("what", "ours", "theirs", "at least", "aim", "measured", "")]
    for r in results:
        times = "" if r.theirs is not None else f" {r.unit}"
        mark = times or "x"
        sign = "<" if r.smaller_is_better else ""
        rows.append(
            (
                r.name,
                f"{r.ours:.4g} {r.unit}",
                "" if r.theirs is None else f"{r.theirs:.4g} {r.unit}",
                f"{sign}{r.at_least:g}{mark}",
                f"{sign}{r.aim:g}{mark}",
                f"{r.ratio:.2f}{mark}",
                r.verdict,
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for name, *numbers, verdict in rows:
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=False)]
        lines.append("  ".join([name.ljust(widths[0]), *cells, verdict]))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="fewer repeats: to see that everything runs")
    parser.add_argument("--threads", type=int, default=1, help="of both sides (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}: choose from {', '.join(BENCHMARKS)}")
    set_threads(options.threads)
    results: list[Result] = []
    left_out: list[str] = []
    for name in options.names or BENCHMARKS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows = importlib.import_module(f"benchmarks.{name}").run(options.quick)
        results += rows
        left_out += [] if rows else [name]
    where = machine()
    print(json.dumps(where), file=sys.stderr)
    print(table(results))
    print("\n" + "\n".join(f"{r.name}: {r.note}" for r in results))
    for name in left_out:
        print(f"{name}: not measured, there is no GPU here")
    if options.json is not None:
        written = [asdict(r) | {"verdict": r.verdict} for r in results]
        write_json(options.json, {"machine": where, "quick": options.quick, "results": written})
    return 0 if all(r.equal for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
