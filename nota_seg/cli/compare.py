"""`nota-seg compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from nota_seg.cli.common import Device, Overwrite, parse_size, quiet_libraries, torch_device
from util.errors import InputError, did_you_mean


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="Run folders, or folders of seeds; NAME=FOLDER names one. The first is the baseline."
        ),
    ],
    output_dir: Annotated[
        Path | None, typer.Option(help="Folder for the page, CSV and plots; without it only the table is printed.")
    ] = None,
    evaluation: Annotated[
        str, typer.Option(metavar="NAME", help="Of NAME.json in each run: eval-test is that of a test split.")
    ] = "eval",
    size: Annotated[str, typer.Option(help="Pixels that parameters and MACs are counted for: 512 or HxW.")] = "512",
    samples: Annotated[int, typer.Option(min=100, help="Of the bootstrap over pictures.")] = 5000,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    title: Annotated[str | None, typer.Option(help="Of the page.")] = None,
    data_dir: Annotated[
        str | None,
        typer.Option(help="The data: the page then shows pictures on which two runs disagree (needs best/)."),
    ] = None,
    pair: Annotated[
        str | None, typer.Option(metavar="A,B", help="Which two.  [default: the first and the best]")
    ] = None,
    pictures: Annotated[int, typer.Option(min=1, help="How many of them.")] = 12,
    limit: Annotated[int | None, typer.Option(min=1, help="Look for them in the first N only.")] = None,
    export_metrics: Annotated[
        Path | None, typer.Option(help="Also copy the runs' small files (no weights) here, to compare them later.")
    ] = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Runs beside each other: table, significance, and one HTML page with plots. Reads metrics alone, no weights.

    Example: `nota-seg compare result/b0 lsra=result/b0-lsra --output-dir result/comparison`
    """
    from nota_seg.report import compare as verb
    from nota_seg.report.runs import export_metrics as export
    from nota_seg.report.runs import load_runs

    quiet_libraries()
    pixels = parse_size(size, "--size")
    assert pixels is not None
    if data_dir is not None and output_dir is None:
        raise InputError("--data-dir adds pictures to the page: give --output-dir too")
    if output_dir is not None:
        verb.prepare(output_dir, overwrite=overwrite)
    found = load_runs(runs, evaluation)
    result = verb.compare(found, size=pixels, samples=samples, seed=seed)
    if data_dir is not None:
        result.pair = _pair(pair, result)
        _add_overlays(result, data_dir, pictures, limit, device)
    print(verb.format_table(*verb.table(result)))
    for line in filter(None, [*result.sentences(), result.caveat()]):
        print(line)
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    if export_metrics is not None:
        export(found, export_metrics, overwrite=overwrite)
        print(f"metrics of {len(found)} runs in {export_metrics}", file=sys.stderr)
    if output_dir is not None:
        page = verb.write(result, output_dir, title=title)[0]
        print(f"page: {page}", file=sys.stderr)


def _pair(text: str | None, result: object) -> tuple[str, str]:
    from nota_seg.report.compare import Comparison

    assert isinstance(result, Comparison)
    names = [run.name for run in result.runs]
    if len(names) < 2:
        raise InputError("--data-dir compares two runs on pictures: give two")
    if text is None:
        best = max(result.runs[1:], key=lambda run: run.mean or 0)
        return names[0], best.name
    chosen = [part.strip() for part in text.split(",")]
    for name in chosen:
        if name not in names:
            raise InputError(f"--pair: no run is called {name!r}: {did_you_mean(name, names)}")
    if len(chosen) != 2 or chosen[0] == chosen[1]:
        raise InputError(f"--pair {text!r}: give the names of two runs with a comma between them")
    return chosen[0], chosen[1]


def _add_overlays(result: object, data_dir: str, pictures: int, limit: int | None, device: str | None) -> None:
    from nota_seg.data.sources import open_source
    from nota_seg.models.loading import load_model
    from nota_seg.report.compare import Comparison
    from nota_seg.report.overlays import disagreements, protocol_from
    from util.progress import Progress

    assert isinstance(result, Comparison) and result.pair is not None
    torch_dev = torch_device(device)
    chosen = [next(run for run in result.runs if run.name == name).first for name in result.pair]
    a, b = (load_model(run.path, torch_dev)[0] for run in chosen)
    protocols = [protocol_from((run.evaluation or {}).get("protocol")) for run in chosen]
    source = open_source(data_dir)
    split = ((chosen[0].evaluation or {}).get("protocol") or {}).get("split", "val")
    with Progress(min(limit or source.splits[split], source.splits[split]), "comparing pictures") as progress:
        result.overlays = disagreements(
            (a, b), source, split, (protocols[0], protocols[1]), device=torch_dev, count=pictures, limit=limit,
            progress=progress,
        )  # fmt: skip
