"""`nota-seg finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nota_seg.cli.common import (
    ConfigFile,
    Deterministic,
    Device,
    MaxSteps,
    Overwrite,
    Resume,
    Seed,
    Seeds,
    Set,
    choose_devices,
    is_main_process,
    parse_size,
    print_json,
    quiet_libraries,
    train,
)


def finetune(
    data_dir: Annotated[
        str, typer.Option(help="ADEChallengeData2016, image|mask or images|masks folders, COCO JSON, parquet, hub id.")
    ],
    save_path: Annotated[Path, typer.Option("--save-path", "--output-dir", help="Folder of the run.")],
    pretrain: Annotated[
        str | None,
        typer.Option(help="Weights to start from: a run's best/, a published file, a folder of seeds with --seeds."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model name.  [default: that of --pretrain, else segformer-b0]")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Distil this saved model meanwhile; see also `nota-seg distill`.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="[default: 60]")] = None,
    max_steps: MaxSteps = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures per process.  [default: 16]")] = None,
    crop_size: Annotated[str | None, typer.Option(help="Pixels: 512 or HxW.  [default: 512]")] = None,
    lr: Annotated[
        float | None, typer.Option(help="Of the encoder; the decoder's is 10 times that.  [default: 6e-5]")
    ] = None,
    seed: Seed = None,
    seeds: Seeds = None,
    config: ConfigFile = None,
    set_: Set = None,
    deterministic: Deterministic = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Rehearse: a tenth of the pictures, 20 steps at most, nothing is kept.")
    ] = False,
    device: Device = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune a segmentation model, from a pre-trained encoder or from scratch.

    Example: `nota-seg finetune --data-dir ADEChallengeData2016 --pretrain result/b0/best --save-path result/b0-ade`
    """
    cpu = choose_devices(device)
    from nota_seg.config import FinetuneConfig, build
    from nota_seg.finetune import finetune as run
    from nota_seg.finetune import model_options, rehearse, seed_runs
    from util.errors import InputError

    encoders = seed_runs(pretrain)
    if encoders and seeds is None:
        raise InputError(
            f"--pretrain {pretrain} is a folder of {len(encoders)} seeds: name one of them, or give --seeds"
        )
    weights = next(iter(encoders.values()), pretrain)
    options = {
        "data.path": data_dir,
        "pretrain": weights,
        "distill.teacher": teacher,
        "train.epochs": epochs,
        "train.max_steps": max_steps,
        "train.batch_size": batch_size,
        "data.crop_size": parse_size(crop_size, "--crop-size"),
        "optim.lr": lr,
        "train.seed": seed,
        "train.deterministic": deterministic or None,
        **model_options(model, weights, resume=resume),
    }
    if debug:
        if resume:
            raise InputError("--debug rehearses a run from its start and keeps nothing: leave --resume out")
        quiet_libraries()
        result = rehearse(build(FinetuneConfig, file=config, options=options, sets=set_ or []), cpu=cpu)
        if is_main_process():
            print_json(result)
        return

    def own_encoder(seed: int) -> dict[str, Any]:
        if seed not in encoders:
            raise InputError(f"--pretrain {pretrain} has no seed {seed}: it has {', '.join(map(str, encoders))}")
        return {"pretrain": encoders[seed]}

    train(
        FinetuneConfig, run, ("save_path", save_path), options,
        sets=set_, file=config, cpu=cpu, resume=resume, overwrite=overwrite,
        seeds=seeds, of_seed=own_encoder if encoders else None,
    )  # fmt: skip
