"""`nota-seg ablate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from nota_seg.cli.common import Overwrite, quiet_libraries
from util.errors import InputError


def ablate(
    context: typer.Context,
    spec: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="A ladder, a grid or variants; see the README.")],
    output_dir: Annotated[Path, typer.Option(help="Folder of the ablation.")],
    device: Annotated[
        str | None,
        typer.Option(
            "--device", "--gpu", help="GPU numbers: 0,1,2,3 trains a variant on each; cpu; cpu,cpu: two at once."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after a kill; what is done is not repeated.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train, evaluate, count and compare a list of variants; a table as Markdown and LaTeX, and compare's page.

    Example: `nota-seg ablate ladder.yaml --output-dir result/ladder`
    """
    from nota_seg.ablate import ablate as run
    from nota_seg.ablate import load_spec

    quiet_libraries()
    devices = [None] if device is None else [d.strip() for d in device.removeprefix("cuda:").split(",")]
    if device not in (None, "cuda") and not all(d is not None and (d == "cpu" or d.isdigit()) for d in devices):
        raise InputError(f"--device {device!r}: give cpu, cpu,cpu, cuda, or GPU numbers such as 0 or 0,1,2,3")
    assert context.parent is not None
    verbs = context.parent.command.commands  # type: ignore[attr-defined]
    options = {name: {o for p in verb.params for o in p.opts if o.startswith("--")} for name, verb in verbs.items()}
    try:
        table, failed = run(
            load_spec(spec), output_dir, devices=devices, resume=resume, overwrite=overwrite, options=options
        )
    except KeyboardInterrupt:
        print(f"error: stopped; go on with: nota-seg ablate {spec} --output-dir {output_dir} --resume", file=sys.stderr)
        raise typer.Exit(1) from None
    print(table)
    if (output_dir / "report").exists():
        print(f"page: {output_dir / 'report' / 'index.html'}", file=sys.stderr)
    if failed:
        print(f"error: {len(failed)} failed: {', '.join(failed)}; mend, then --resume", file=sys.stderr)
        raise typer.Exit(1)
