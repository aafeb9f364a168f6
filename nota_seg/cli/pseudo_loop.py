"""`nota-seg pseudo-loop`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nota_seg.cli.common import (
    ConfigFile,
    Deterministic,
    Device,
    MaxSteps,
    Pictures,
    Resume,
    Seed,
    Set,
    Tta,
    choose_devices,
    parse_numbers,
    parse_size,
    quiet_libraries,
    views,
)
from nota_seg.cli.data_submission import ClassThresholds, ImageThreshold, PixelThreshold, class_thresholds
from util.errors import InputError


def pseudo_loop(
    data_dir: Annotated[str, typer.Option(help="COCO data with train and val: a fold's kfold_0_train.json, say.")],
    unlabelled: Annotated[
        Path, typer.Option("--unlabelled", "--test-json", help="Pictures to label: a COCO JSON, or their folder.")
    ],
    output_dir: Annotated[Path, typer.Option(help="New folder of the loop.")],
    rounds: Annotated[int, typer.Option(min=0, help="Of labelling and training again.")] = 3,
    pretrain: Annotated[str | None, typer.Option(help="Weights that every round starts from, as in finetune.")] = None,
    model: Annotated[str | None, typer.Option(help="As in finetune.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of each round.  [default: 60]")] = None,
    max_steps: MaxSteps = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="[default: 16]")] = None,
    crop_size: Annotated[str | None, typer.Option(help="Pixels: 512 or HxW.  [default: 512]")] = None,
    lr: Annotated[float | None, typer.Option(help="As in finetune.  [default: 6e-5]")] = None,
    pixel: PixelThreshold = 0.5,
    class_: ClassThresholds = None,
    image: ImageThreshold = 0.0,
    scales: Annotated[str, typer.Option(help="Of labelling, as in eval.")] = "1",
    tta: Tta = None,
    images: Pictures = None,
    seed: Seed = None,
    config: ConfigFile = None,
    set_: Set = None,
    deterministic: Deterministic = False,
    device: Device = None,
    resume: Resume = False,
) -> None:
    """Train, label pictures without labels, train again with them; the held-out fold's score of every round.

    Example: `nota-seg pseudo-loop --data-dir folds/kfold_0_train.json --unlabelled test.json --rounds 3 --output-dir loop`
    """
    if device is not None and "," in device:
        raise InputError(f"--device {device}: the loop runs on one device; name one")
    cpu = choose_devices(device)
    from nota_seg.config import FinetuneConfig, build
    from nota_seg.data.sources import open_source
    from nota_seg.finetune import model_options
    from nota_seg.pseudo_label import Thresholds
    from nota_seg.pseudo_loop import Labelling, format_table
    from nota_seg.pseudo_loop import pseudo_loop as run

    quiet_libraries()
    options = {
        "data.path": data_dir,
        "pretrain": pretrain,
        "train.epochs": epochs,
        "train.max_steps": max_steps,
        "train.batch_size": batch_size,
        "data.crop_size": parse_size(crop_size, "--crop-size"),
        "optim.lr": lr,
        "train.seed": seed,
        "train.deterministic": deterministic or None,
        **model_options(model, pretrain, resume=False),
    }
    settings = build(FinetuneConfig, file=config, options=options, sets=set_ or [])
    names = open_source(output_dir / "data" if resume else data_dir).class_names if class_ else []
    labelling = Labelling(
        Thresholds(pixel, class_thresholds(class_, names), image),
        {"scales": parse_numbers(scales, "--scales"), **views(tta)},
    )
    state = run(settings, output_dir, unlabelled, labelling, rounds=rounds, root=images, resume=resume, cpu=cpu)
    print(format_table(state))
    print(f"{output_dir}/loop.json")
