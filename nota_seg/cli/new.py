"""`nota-seg new`."""

from __future__ import annotations

from typing import Annotated

import typer


def new(
    kind: Annotated[str, typer.Argument(help="mixer, feedforward, skip, stem or decoder.", show_default=False)],
    name: Annotated[str, typer.Argument(help="As in model names: lower case, e.g. shift.", show_default=False)],
) -> None:
    """Start a new component in this checkout: its file, its import line and its test, working at once.

    Example: `nota-seg new mixer shift`, then `nota-seg flops --model segformer-b0-shift`
    """
    from nota_seg.scaffold import scaffold

    made = scaffold(kind, name)
    print(f"wrote    {made.component}\nwrote    {made.test}\nextended {made.package}")
    if kind == "decoder":
        print(f"try      nota-seg flops --model segformer-b0-{name}")
    else:
        print(f"try      nota-seg flops --model segformer-b0-{name}, --set model.{kind}s=[...] for single stages")
    print(f"test     pytest {made.test} tests/models/test_contract.py -k {name}")
