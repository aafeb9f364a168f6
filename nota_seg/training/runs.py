"""What `pretrain` and `finetune` do alike around the loop: configuration, folder, processes, the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from nota_seg.config import FREE_ON_RESUME, Config, build, differences, dump, load_yaml
from nota_seg.training.loop import Task, make_accelerator, train
from nota_seg.training.optim import rehearse
from util.errors import InputError
from util.run_folder import RunFolder
from util.seed import derive, seed_everything


def resolve(
    cls: type[Config],
    folder: RunFolder,
    *,
    options: Mapping[str, Any],
    sets: Iterable[str],
    file: str | Path | None,
    resume: bool,
    overwrite: bool,
) -> Config:
    """The configuration of a new run, or of the one that is continued: there only what moves no weight may change."""
    folder.check(resume=resume, overwrite=overwrite)
    if not resume:
        return build(cls, file=file, options=options, sets=sets)
    saved = load_yaml(folder.config_file)
    config = build(cls, base=saved, file=file, options=options, sets=sets)
    for key, (before, after) in differences(saved, dump(config)).items():
        if key not in FREE_ON_RESUME:
            raise InputError(f"--resume: {key} was {before!r} in {folder.path} and is now {after!r}; leave it out")
    return config


def run(
    config: Config,
    folder: RunFolder,
    make_task: Callable[[Accelerator], Task],
    *,
    phase: str,
    resume: bool,
    overwrite: bool,
    cpu: bool = False,
) -> dict[str, Any]:
    """Make the folder, build the task with its weights drawn from the seed, train it."""
    accelerator = make_accelerator(config.train, folder.path, cpu=cpu)
    rehearse(config.optim)
    seed_everything(derive(config.train.seed, "weights"))
    task = make_task(accelerator)  # before anything is written: wrong input must leave no folder behind
    if accelerator.is_main_process:
        folder.start(resume=resume, overwrite=overwrite)
        folder.write_config(dump(config))
        folder.write_run(
            phase=phase,
            seed=config.train.seed,
            device=str(accelerator.device),
            processes=accelerator.num_processes,
            precision=accelerator.mixed_precision,
        )
    accelerator.wait_for_everyone()
    return train(task, config, folder, accelerator, resume=resume)
