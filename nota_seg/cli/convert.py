"""`nota-seg convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nota_seg.cli.common import Overwrite, Set, quiet_libraries
from util.errors import InputError


def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Published weights: a folder or a file.")],
    destination: Annotated[
        Path, typer.Argument(metavar="DST", help="The `save_pretrained` folder (or file) to write.")
    ],
    model: Annotated[str | None, typer.Option(help="Model name that the weights belong to; not with --to.")] = None,
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Classes of its head; those of the weights by default, else 150.")
    ] = None,
    task: Annotated[str, typer.Option(help="segmentation or classification.")] = "segmentation",
    to: Annotated[
        str | None,
        typer.Option(help="`mmseg`: the other way, a BEiT + UPerNet folder of ours to a file in mmseg's names."),
    ] = None,
    set_: Set = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert published weights to a folder that every verb and transformers' Auto classes read.

    Example: `nota-seg convert mit_b2.pth weights/mit-b2 --model segformer-b2`

    Example: `nota-seg convert weights/beit-b beit-b-mmseg.pth --to mmseg`
    """
    from nota_seg.models.checkpoints import beit, class_names, load_checkpoint
    from nota_seg.models.external import library_of
    from nota_seg.models.loading import load_model
    from nota_seg.models.zoo import create_from_settings
    from nota_seg.training.loop import save_model

    quiet_libraries()
    if destination.exists() and not overwrite:
        raise InputError(f"{destination} exists: name a new folder, or --overwrite")
    if to is not None:
        if to != "mmseg":
            raise InputError(f"--to {to!r}: only mmseg is written; without --to a `save_pretrained` folder is")
        if model is not None or num_classes is not None or set_:
            raise InputError("--to mmseg writes the folder's own model: leave --model, --num-classes and --set out")
        print(f"{beit.save_mmseg(load_model(source)[0], destination)}: written in mmseg's names")
        return
    if model is None:
        raise InputError("name the model that the weights belong to: --model NAME")
    names = class_names(source, task) or [f"class {i}" for i in range(150)]
    if num_classes not in (None, len(names)):
        names = [f"class {i}" for i in range(num_classes or 0)]
    labels: dict[str, Any] = dict(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    if library_of(model) == "beit":
        chosen = {item.partition("=")[0].removeprefix("model.") for item in set_ or []}
        labels |= {key: value for key, value in beit.settings(source, chosen).items() if key not in chosen}
    net = create_from_settings(model, num_labels=len(names), sets=set_ or [], task=task, **labels)
    report = load_checkpoint(net, source)
    save_model(net, destination)
    print(report)
