"""`nota-seg pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nota_seg.cli.common import ConfigFile, Device, MaxSteps, Overwrite, Resume, Seed, Seeds, Set, choose_devices, train


def pretrain(
    data_path: Annotated[
        str, typer.Option(help="Tiny-ImageNet: publisher's folder or zip, class folders, parquet, hub id.")
    ],
    output_dir: Annotated[Path, typer.Option(help="Folder of the run.")],
    model: Annotated[
        str | None, typer.Option(help="Model name, e.g. segformer-b0-pool.  [default: segformer-b0]")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="[default: 300]")] = None,
    max_steps: MaxSteps = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures per process.  [default: 128]")] = None,
    input_size: Annotated[int | None, typer.Option(min=32, help="Pixels, square.  [default: 224]")] = None,
    lr: Annotated[
        float | None, typer.Option(help="For 512 pictures a step; scaled by their number.  [default: 5e-4]")
    ] = None,
    seed: Seed = None,
    seeds: Seeds = None,
    config: ConfigFile = None,
    set_: Set = None,
    device: Device = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Pre-train an encoder on Tiny-ImageNet.

    Example: `nota-seg pretrain --data-path tiny-imagenet-200 --output-dir result/b0 --model segformer-b0`
    """
    cpu = choose_devices(device)
    from imagenet_pretrain.pretrain import pretrain as run
    from nota_seg.config import PretrainConfig

    options = {
        "data.path": data_path,
        "model.name": model,
        "train.epochs": epochs,
        "train.max_steps": max_steps,
        "train.batch_size": batch_size,
        "data.input_size": input_size,
        "optim.lr": lr,
        "train.seed": seed,
    }
    train(
        PretrainConfig, run, ("output_dir", output_dir), options,
        sets=set_, file=config, cpu=cpu, resume=resume, overwrite=overwrite, seeds=seeds,
    )  # fmt: skip
