"""`nota-seg convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nota_seg.cli.common import Overwrite, Set, quiet_libraries
from util.errors import InputError


def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Published weights: a folder or a file.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The `save_pretrained` folder to write.")],
    model: Annotated[str, typer.Option(help="Model name that the weights belong to.")],
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Classes of its head; those of the weights by default, else 150.")
    ] = None,
    task: Annotated[str, typer.Option(help="segmentation or classification.")] = "segmentation",
    set_: Set = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert published weights to a folder that every verb and transformers' Auto classes read.

    Example: `nota-seg convert mit_b2.pth weights/mit-b2 --model segformer-b2`
    """
    from nota_seg.models.checkpoints import class_names, load_checkpoint
    from nota_seg.models.zoo import create_from_settings
    from nota_seg.training.loop import save_model

    quiet_libraries()
    if destination.exists() and not overwrite:
        raise InputError(f"{destination} exists: name a new folder, or --overwrite")
    names = class_names(source, task) or [f"class {i}" for i in range(150)]
    if num_classes not in (None, len(names)):
        names = [f"class {i}" for i in range(num_classes or 0)]
    labels = dict(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    net = create_from_settings(model, num_labels=len(names), sets=set_ or [], task=task, **labels)
    report = load_checkpoint(net, source)
    save_model(net, destination)
    print(report)
