"""`nota-seg search`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nota_seg.cli.common import Device, Overwrite, parse_size, print_json, quiet_libraries, torch_device
from util.errors import InputError


def search(
    base: Annotated[
        str, typer.Option(help="Model that gives strides, ratios and whatever is not chosen.")
    ] = "segformer-b0",
    mixers: Annotated[
        str | None, typer.Option(help="To choose from in every stage, with commas.  [default: all]")
    ] = None,
    feedforwards: Annotated[str | None, typer.Option(help="The same.  [default: all]")] = None,
    skips: Annotated[str | None, typer.Option(help="To choose from for all stages.  [default: all]")] = None,
    decoders: Annotated[str | None, typer.Option(help="To choose from.  [default: all]")] = None,
    dims: Annotated[
        str | None, typer.Option(help="Rows of channels: 32,64,160,256/64,128,256,512.  [default: the base's]")
    ] = None,
    depths: Annotated[str | None, typer.Option(help="Rows of depths: 2,2,2,2/1,2,2,1.  [default: the base's]")] = None,
    max_params: Annotated[float | None, typer.Option(min=0, help="Millions.")] = None,
    max_gmacs: Annotated[float | None, typer.Option(min=0, help="As executed.")] = None,
    max_latency: Annotated[
        float | None, typer.Option(min=0, help="Milliseconds, eager, here; measured on the front alone.")
    ] = None,
    rank: Annotated[str, typer.Option(help="capacity (most parameters for fewest MACs), small, macs.")] = "capacity",
    samples: Annotated[
        int, typer.Option(min=1, help="Compositions to count; a smaller space is counted whole.")
    ] = 5000,
    top: Annotated[int, typer.Option(min=1, help="Of the front.")] = 20,
    size: Annotated[str, typer.Option(help="Input in pixels: 512 or HxW.")] = "512",
    num_classes: Annotated[int, typer.Option(min=1)] = 150,
    seed: Annotated[int, typer.Option(help="Of the drawing.")] = 0,
    output_dir: Annotated[
        Path | None, typer.Option(help="Write front.json, front.csv and a YAML a row, for --config.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")] = False,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Count thousands of compositions before any training, and print the cost front of those within a budget.

    Example: `nota-seg search --max-params 8 --max-gmacs 6 --mixers sra,lsra,pool --decoders mlp,hamburger --output-dir found`
    """
    if output_dir is not None and output_dir.exists() and not overwrite:
        raise InputError(f"{output_dir} exists: name a new folder, or --overwrite")
    rows_of_dims, rows_of_depths = parse_rows(dims, "--dims"), parse_rows(depths, "--depths")
    pixels = parse_size(size, "--size")
    torch_dev = torch_device(device)
    from nota_seg.search import Space, format_search, write
    from nota_seg.search import search as run
    from util.progress import Progress

    quiet_libraries()
    assert pixels is not None
    space = Space(
        base, mixers=words(mixers), feedforwards=words(feedforwards), skips=words(skips), decoders=words(decoders),
        dims=rows_of_dims, depths=rows_of_depths,
    )  # fmt: skip
    with Progress(min(samples, len(space)), "counting") as progress:
        result = run(
            space, samples=samples, seed=seed, size=pixels, num_labels=num_classes, max_params=max_params,
            max_gmacs=max_gmacs, max_latency=max_latency, rule=rank, top=top, device=torch_dev, progress=progress,
        )  # fmt: skip
    if output_dir is not None:
        write(result, output_dir)
    print_json(result) if json else print(format_search(result))


def words(text: str | None) -> list[str]:
    return [] if text is None else [w.strip() for w in text.split(",") if w.strip()]


def parse_rows(text: str | None, option: str) -> list[list[int]]:
    """`32,64/64,128` as rows of numbers."""
    if text is None:
        return []
    try:
        return [[int(n) for n in row.split(",")] for row in text.split("/")]
    except ValueError:
        raise InputError(f"{option} {text!r}: give rows of numbers as 32,64,160,256/64,128,256,512") from None
