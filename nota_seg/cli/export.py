"""`nota-seg export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nota_seg.cli.common import Overwrite, parse_size, print_json, quiet_libraries


def export(
    pretrain: Annotated[str, typer.Option(help="A run's folder, or its best/ or last/.")],
    output_dir: Annotated[Path, typer.Option(help="Folder to write.")],
    format: Annotated[
        str, typer.Option("--format", help="onnx, pt2 (torch.export), int8 (ONNX); with commas.")
    ] = "onnx",
    size: Annotated[str, typer.Option(help="Of a file that cannot take any size: 512 or HxW.")] = "512",
    data_dir: Annotated[
        str | None, typer.Option(help="Data as in finetune: mIoU of each file; calibration of int8.")
    ] = None,
    calibration: Annotated[int, typer.Option(min=1, help="Training pictures for int8.")] = 32,
    limit: Annotated[int | None, typer.Option(min=1, help="The first N validation pictures only.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a model as ONNX or torch.export, of any picture size, checked against the model's own logits.

    Example: `nota-seg export --pretrain result/b0-ade --output-dir exported --format onnx,int8 --data-dir ADEChallengeData2016`
    """
    from nota_seg.data.sources import open_source
    from nota_seg.export import export as run
    from nota_seg.export import format_export
    from nota_seg.models.loading import load_model
    from util.progress import Progress

    quiet_libraries()
    pixels = parse_size(size, "--size")
    assert pixels is not None
    formats = [f.strip() for f in format.split(",") if f.strip()]
    source = open_source(data_dir) if data_dir is not None else None
    model, class_names = load_model(pretrain, "cpu")
    result = run(
        model, class_names, output_dir, formats=formats, size=pixels, source=source, calibration=calibration,
        limit=limit, overwrite=overwrite, say=Progress(0, "").say,
    )  # fmt: skip
    print_json(result) if json else print(format_export(result, output_dir))
