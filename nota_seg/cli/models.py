"""`nota-seg models`."""

from __future__ import annotations

from typing import Annotated

import typer

from nota_seg.cli.common import print_json, quiet_libraries


def models(
    family: Annotated[str | None, typer.Option(help="Of one family only.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="As docs/models.md, with the components.")] = False,
) -> None:
    """List models: components, parameters, GMACs at 512x512 with 150 classes. Any further list of changes builds too.

    Below it stands the table of the SegFormer study: what it printed and what is counted here.

    Example: `nota-seg models --family segformer --json`
    """
    from nota_seg import catalogue
    from nota_seg.models.external import FORMS
    from nota_seg.models.study import STUDY
    from nota_seg.models.zoo import list_models
    from util.errors import InputError
    from util.progress import Progress

    if markdown and (json or family):
        raise InputError("--markdown writes the whole document: leave --json and --family out")
    quiet_libraries()
    names = list_models(family)
    whole = family is None and not json
    with Progress(len(names) + len(STUDY) * whole, "counting") as progress:
        rows = catalogue.model_table(names, progress=progress)
        study = catalogue.study_table(progress=progress) if whole else []
    if json:
        print_json(rows)
    elif markdown:
        print(catalogue.markdown(rows, study), end="")
    else:
        print_table(
            ["model", "params M", "GMACs", "textbook", "components"],
            [[r["name"], f"{r['params'] / 1e6:.3f}", f"{r['gmacs']:.2f}", f"{r['gmacs_reference']:.2f}",
              catalogue.summary(r["components"])] for r in rows],
        )  # fmt: skip
        if family is None:
            print("\nbeside these (examples: --family smp, --family timm):")
            print("\n".join(f"  {form}" for form in FORMS.values()))
        if study:
            print("\nthe SegFormer study: counted here, and printed there; layers are without attention and resizing")
            head = ["variant", "model", "params M", "printed", "layers G", "printed", "GMACs", "printed", ""]
            print_table(head, catalogue.study_cells(study))
            for number, row in enumerate((r for r in study if r["note"]), start=1):
                print(f"[{number}] {row['note']}")


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """Columns side by side; numbers to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: list[str]) -> str:
        number = [c.replace(".", "").isdigit() or c == "-" for c in rows[0]]
        return "  ".join(
            c.rjust(w) if n else c.ljust(w) for c, w, n in zip(cells, widths, number, strict=True)
        ).rstrip()

    for cells in (head, *rows):
        print(line(cells))
