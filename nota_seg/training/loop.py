"""The one loop of both phases, on accelerate: one process or many, CPU or GPU, any precision.

It knows steps, checkpoints and trackers; what a batch means, how it is judged and what is worth keeping is the task's.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import cv2
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from nota_seg.config import OptimSection, TrainSection, dump
from nota_seg.training.compiled import compile_blocks, uncompiled
from nota_seg.training.optim import build_optimizer, build_schedule, warmup_steps
from nota_seg.training.sampling import StepSampler, steps_per_epoch
from nota_seg.training.state import load_checkpoint_state, save_checkpoint
from util.errors import InputError
from util.files import whole_file, whole_folder
from util.progress import Progress
from util.run_folder import RunFolder
from util.seed import derive, deterministic, seed_everything


class Interrupted(Exception):  # noqa: N818  (nothing went wrong)
    """The user or the system asked the run to stop; it saved its state first. The message says how to go on."""


class Task(Protocol):
    """What the loop trains. `pretrain` and `finetune` each are one."""

    model: nn.Module  # a PreTrainedModel
    train_data: Dataset  # indexed with (picture, seed)
    repeats: int  # draws of a picture in an epoch
    score: str  # key of `evaluate`'s result that is highest at the best step

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Mean loss of a batch that is already on the device."""

    def evaluate(self, model: nn.Module, accelerator: Accelerator, step: int) -> dict[str, Any]:
        """Scores of the validation set, the same in every process. Plain numbers are logged."""

    def keep(self, result: dict[str, Any]) -> None:
        """Write what is worth keeping of the last evaluation: it was the best so far. In the main process only."""


class RunConfig(Protocol):
    train: TrainSection
    optim: OptimSection


def make_accelerator(train: TrainSection, folder: Path, *, cpu: bool = False) -> Accelerator:
    """The accelerator of a run: precision resolved, tracker chosen."""
    on_gpu = torch.cuda.is_available() and not cpu
    precision = train.precision
    if precision == "auto":
        precision = "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "no"
    if precision == "fp16" and not on_gpu:
        raise InputError("train.precision=fp16 needs a GPU (its loss scaling does); use bf16 or no on a CPU")
    # accelerate keeps its first state for the life of the process; a second run in it may want another precision.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    tracker = None if train.tracker == "none" else train.tracker
    return Accelerator(mixed_precision=precision, cpu=not on_gpu, log_with=tracker, project_dir=str(folder))


def train(task: Task, config: Any, folder: RunFolder, accelerator: Accelerator, *, resume: bool) -> dict[str, Any]:
    """Train, evaluate, keep the best; return the last evaluation with `best` added.

    Raises:
        Interrupted: After SIGINT or SIGTERM, with the state saved.
    """
    settings: TrainSection = config.train
    is_main = accelerator.is_main_process
    world, rank = accelerator.num_processes, accelerator.process_index
    if settings.deterministic:
        deterministic()
    torch.autograd.set_detect_anomaly(settings.anomalies, check_nan=True)

    # Lengths, all in optimiser steps.
    pictures = len(task.train_data)  # type: ignore[arg-type]
    per_step = settings.batch_size * settings.accumulate * world
    per_epoch = steps_per_epoch(pictures, per_step)
    total = settings.max_steps or per_epoch * (settings.epochs or 1)
    eval_every = settings.eval_every or per_epoch
    checkpoint_every = settings.checkpoint_every or per_epoch

    # Model, optimiser, schedule, average.
    lr = config.optim.lr * (per_step / config.optim.lr_per_pictures if config.optim.lr_per_pictures else 1.0)
    model: Any = task.model.to(accelerator.device)
    if world > 1 and accelerator.device.type == "cuda":  # the decoder's statistics are of the whole step, as published
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    ema = ModelEmaV3(model, decay=settings.ema, foreach=True) if settings.ema else None
    raw_optimizer = build_optimizer(model, config.optim, lr)
    schedule = build_schedule(raw_optimizer, config.optim, total, per_epoch)
    compiled = compile_blocks(model, accelerator.device) if settings.compile else 0
    judging = uncompiled if compiled else nullcontext
    prepared, optimizer = accelerator.prepare(model, raw_optimizer)
    judged = ema.module if ema is not None else model

    # Where an earlier session stopped.
    start, best = 0, -math.inf
    state = load_checkpoint_state(folder.path) if resume else None
    if state is not None:
        start, best = state["step"], state["best"]
        model.load_state_dict(state["model"])
        raw_optimizer.load_state_dict(state["optimizer"])
        if ema is not None:
            ema.module.load_state_dict(state["ema"])
        if accelerator.scaler is not None and state["scaler"]:
            accelerator.scaler.load_state_dict(state["scaler"])
    if is_main:
        folder.rewind_metrics(start)

    def save() -> None:
        if is_main:
            save_checkpoint(
                folder.path,
                step + 1,
                {
                    "step": step + 1,
                    "best": best,
                    "model": model.state_dict(),
                    "optimizer": raw_optimizer.state_dict(),
                    "ema": ema.module.state_dict() if ema is not None else {},
                    "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else {},
                },
            )
            save_model(judged, folder.path / "last", pth=getattr(config, "save_pth", False))
        accelerator.wait_for_everyone()

    sampler = StepSampler(
        pictures,
        settings.batch_size,
        accumulate=settings.accumulate,
        start=start,
        stop=total,
        seed=settings.seed,
        rank=rank,
        world=world,
        repeats=task.repeats,
    )
    batches = iter(loader(task.train_data, sampler, settings.workers, accelerator.device))
    if settings.tracker != "none":
        accelerator.init_trackers(
            "logs" if settings.tracker == "tensorboard" else "nota-seg", config=flat(dump(config))
        )
    progress = Progress(total, "training", done=start, enabled=is_main)
    progress.say(
        f"{total} steps ({total / per_epoch:.1f} epochs) of {per_step} pictures, peak learning rate {lr:.3g}, warm-up "
        f"{warmup_steps(config.optim, total, per_epoch)} steps, {accelerator.device}, precision "
        f"{accelerator.mixed_precision}" + (f", from step {start}" if start else "")
    )

    result: dict[str, Any] = state["result"] if state and "result" in state else {}
    losses = torch.zeros((), device=accelerator.device)
    counted, since = 0, time.monotonic()
    with stop_on_signal() as stopped, progress:
        for step in range(start, total):
            prepared.train()
            schedule.step_update(step)
            for micro in range(settings.accumulate):
                batch = to_device(next(batches), accelerator.device)
                seed_everything(derive(settings.seed, "step", step, micro, rank))
                last = micro == settings.accumulate - 1
                with nullcontext() if last else accelerator.no_sync(prepared):
                    loss = task.loss(prepared, batch) / settings.accumulate
                    accelerator.backward(loss)
                losses += loss.detach()
            if settings.clip_norm is not None:
                accelerator.clip_grad_norm_(model.parameters(), settings.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            if ema is not None:
                ema.update(model)
            progress()
            counted += 1
            if compiled and step == start:
                progress.say(f"first step, with {compiled} parts to compile: {time.monotonic() - since:.0f} s")

            done = step + 1
            if done % settings.log_every == 0 or done == total:
                mean_loss = accelerator.reduce(losses, "mean").item() / counted
                speed = counted * per_step / (time.monotonic() - since)
                if not math.isfinite(mean_loss):
                    raise FloatingPointError(
                        f"the loss is {mean_loss} before step {done}: lower --lr, or set train.clip_norm=1; "
                        f"the newest checkpoint in {folder.path} is from before"
                    )
                rates = {f"lr {g['name']}": g["lr"] for g in raw_optimizer.param_groups if "without" not in g["name"]}
                line = {"loss": mean_loss, "pictures_per_second": round(speed, 2), **rates}
                if is_main:
                    folder.log(step=done, epoch=round(done / per_epoch, 4), split="train", **line)
                accelerator.log({f"train/{k}": v for k, v in line.items()}, step=done)
                progress.note(f"loss {mean_loss:.4f}, {speed:.1f} pictures/s")
                losses.zero_()
                counted, since = 0, time.monotonic()

            paused = time.monotonic()
            if done % eval_every == 0 or done == total:
                with judging():
                    result = task.evaluate(judged, accelerator, done)
                numbers = {k: v for k, v in result.items() if isinstance(v, int | float)}
                if is_main:
                    folder.log(step=done, epoch=round(done / per_epoch, 4), split="val", **numbers)
                accelerator.log({f"val/{k}": v for k, v in numbers.items()}, step=done)
                shown = (f"{k} {v:.4f}" for k, v in numbers.items() if isinstance(v, float))
                progress.say(f"step {done}: " + ", ".join(shown))
                if result[task.score] is not None and result[task.score] > best:
                    best = result[task.score]
                    if is_main:
                        save_model(judged, folder.path / "best", pth=getattr(config, "save_pth", False))
                        task.keep({**result, "step": done})

            stop = agree(stopped(), accelerator)
            if done % checkpoint_every == 0 or done == total or stop:
                save()
            since += time.monotonic() - paused  # speed is of training alone
            if stop and done < total:
                raise Interrupted(
                    f"stopped after step {done} of {total}, nothing is lost; go on with: {resume_command()}"
                )
    for tracker in accelerator.trackers:  # not `end_training`: the next seed needs the processes' group
        tracker.finish()
    if not result:  # everything was done before: judge what there is
        with judging():
            result = task.evaluate(judged, accelerator, total)
    return {**result, "best": best if math.isfinite(best) else None, "steps": total}


def loader(data: Dataset, sampler: StepSampler, workers: int, device: torch.device) -> DataLoader:
    """One loader for the whole run, so that no epoch waits for workers to start."""
    return DataLoader(
        data,
        batch_sampler=sampler,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=quiet_worker,
        prefetch_factor=4 if workers else None,
    )


def quiet_worker(worker: int) -> None:
    """One thread a worker; Ctrl-C is for the training process, which needs its workers until the step is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {k: v.to(device, non_blocking=True) for k, v in batch.items()}


def save_model(model: Any, path: Path, *, pth: bool = False) -> None:
    """A `save_pretrained` folder, whole or not at all; with `pth` also the older {"model": state_dict} file."""
    with whole_folder(path) as temporary:
        model.save_pretrained(temporary)
    if pth:
        with whole_file(path.with_suffix(".pth")) as file:
            torch.save({"model": model.state_dict()}, file)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested configuration as dotted keys with values that every tracker takes."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value if isinstance(value, int | float | str | bool) else json.dumps(value)
    return result


def agree(stop: bool, accelerator: Accelerator) -> bool:
    """Whether any process was asked to stop: all must leave the loop at the same step."""
    if accelerator.num_processes == 1:
        return stop
    flag = torch.tensor(float(stop), device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum").item())


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Inside the block the first SIGINT or SIGTERM only sets a flag; a second one acts as usual."""
    received: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def handler(number: int, frame: FrameType | None) -> None:
        received.append(number)
        print("stopping after this step, to save the state; once more stops at once", file=sys.stderr, flush=True)
        for one, old in before.items():
            signal.signal(one, old)

    for one in (signal.SIGINT, signal.SIGTERM):
        before[one] = signal.signal(one, handler)
    try:
        yield lambda: bool(received)
    finally:
        for one, old in before.items():
            signal.signal(one, old)


def resume_command() -> str:
    """The command of this process, made to continue: without --overwrite, with --resume."""
    program = "nota-seg" if Path(sys.argv[0]).name in ("nota-seg", "__main__.py") else sys.argv[0]
    words = [word for word in sys.argv[1:] if word != "--overwrite"]
    return " ".join([program, *words, *([] if "--resume" in words else ["--resume"])])
