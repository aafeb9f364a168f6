"""`nota-seg models`."""

from __future__ import annotations

from typing import Annotated

import typer

from nota_seg.cli.common import print_json, quiet_libraries


def models(
    family: Annotated[str | None, typer.Option(help="Of one family only.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")] = False,
) -> None:
    """List models: components, parameters, GMACs at 512x512 with 150 classes. Any further list of changes builds too.

    Example: `nota-seg models --family segformer --json`
    """
    from nota_seg.flops import model_table
    from nota_seg.models import list_models
    from util.progress import Progress

    quiet_libraries()
    names = list_models(family)
    with Progress(len(names), "counting") as progress:
        rows = model_table(names, progress=progress)
    if json:
        print_json(rows)
        return
    width = max(len(row["name"]) for row in rows)
    print(f"{'model':{width}}  {'params M':>9}  {'GMACs':>8}  {'textbook':>8}  components")
    for row in rows:
        parts = "; ".join(f"{kind} {', '.join(dict.fromkeys(names))}" for kind, names in row["components"].items())
        print(
            f"{row['name']:{width}}  {row['params'] / 1e6:9.3f}  {row['gmacs']:8.2f}  {row['gmacs_reference']:8.2f}  {parts}"
        )
