"""`nota-seg convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nota_seg.cli.common import Overwrite, quiet_libraries
from util.errors import InputError


def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Published weights: a folder or a file.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The `save_pretrained` folder to write.")],
    model: Annotated[str, typer.Option(help="Model name that the weights belong to.")],
    num_classes: Annotated[int, typer.Option(min=1, help="Classes of its head.")] = 150,
    task: Annotated[str, typer.Option(help="segmentation or classification.")] = "segmentation",
    overwrite: Overwrite = False,
) -> None:
    """Convert published weights to a folder that every verb and transformers' Auto classes read.

    Example: `nota-seg convert mit_b2.pth weights/mit-b2 --model segformer-b2`
    """
    from nota_seg.models import create_model
    from nota_seg.models.checkpoints import load_checkpoint
    from nota_seg.training.loop import save_model

    quiet_libraries()
    if destination.exists() and not overwrite:
        raise InputError(f"{destination} exists: name a new folder, or --overwrite")
    net = create_model(model, task=task, num_labels=num_classes)
    report = load_checkpoint(net, source)
    save_model(net, destination)
    print(report)
