"""`nota-seg distill`: `finetune --teacher` with the settings of distillation as options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nota_seg.cli import finetune as finetune_verb
from nota_seg.cli.common import ConfigFile, Device, MaxSteps, Overwrite, Resume, Seed, Set


def distill(
    data_dir: Annotated[str, typer.Option(help="As in finetune.")],
    save_path: Annotated[Path, typer.Option("--save-path", "--output-dir", help="Folder of the run.")],
    teacher: Annotated[
        str, typer.Option(help="A run, or a saved folder of ours, transformers or smp, with these classes.")
    ],
    temperature: Annotated[float | None, typer.Option(help="That softens both logits.  [default: 2]")] = None,
    weight: Annotated[float | None, typer.Option(help="Of the logits' divergence.  [default: 1]")] = None,
    features: Annotated[
        float | None, typer.Option(help="Of the stages' resemblance, by a projection.  [default: 0]")
    ] = None,
    pretrain: Annotated[str | None, typer.Option(help="Weights of the student to start from.")] = None,
    model: Annotated[
        str | None, typer.Option(help="The student.  [default: that of --pretrain, else segformer-b0]")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="[default: 60]")] = None,
    max_steps: MaxSteps = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures per process.  [default: 16]")] = None,
    crop_size: Annotated[str | None, typer.Option(help="Pixels: 512 or HxW.  [default: 512]")] = None,
    lr: Annotated[float | None, typer.Option(help="As in finetune.  [default: 6e-5]")] = None,
    seed: Seed = None,
    config: ConfigFile = None,
    set_: Set = None,
    device: Device = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune a small model on the labels and on a larger model's logits, and on its maps with --features.

    Example: `nota-seg distill --data-dir ADEChallengeData2016 --teacher result/b2-ade --model segformer-b0 --save-path result/b0-by-b2`
    """
    chosen = {"temperature": temperature, "weight": weight, "features": features}
    sets = [f"distill.{key}={value}" for key, value in chosen.items() if value is not None]
    finetune_verb.finetune(
        data_dir=data_dir, save_path=save_path, pretrain=pretrain, model=model, teacher=teacher, epochs=epochs,
        max_steps=max_steps, batch_size=batch_size, crop_size=crop_size, lr=lr, seed=seed, config=config,
        set_=[*(set_ or []), *sets], device=device, resume=resume, overwrite=overwrite,
    )  # fmt: skip
