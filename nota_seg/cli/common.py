"""Options that several verbs share, and what they do."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from util.errors import InputError

Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override any configuration key, e.g. train.workers=2. Repeatable."
    ),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file of configuration keys.")]
Device = Annotated[
    str | None,
    typer.Option("--device", "--gpu", help="`cpu`, or GPU numbers: 0 or 0,1,2,3 (several: one process each)."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder, exactly.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in the output folder.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Of everything random.")]
Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="Only algorithms that give the same bits every time; slower on a GPU.")
]
Seeds = Annotated[
    int | None,
    typer.Option("--seeds", min=1, help="Run that many seeds, in seed-0/, seed-1/, ...; mean and deviation."),
]
MaxSteps = Annotated[int | None, typer.Option("--max-steps", min=1, help="Optimiser steps; counts instead of epochs.")]


class View(StrEnum):
    """What test-time augmentation adds; each doubles the views, `intensity` makes three of each."""

    HFLIP = "hflip"
    VFLIP = "vflip"
    ROT90 = "rot90"
    INTENSITY = "intensity"


class Clean(StrEnum):
    NONE = "none"
    MODE3 = "mode3"


class Form(StrEnum):
    RLE = "rle"
    POLYGON = "polygon"


Tta = Annotated[
    list[View] | None,
    typer.Option("--tta", help="Test-time views; probabilities are averaged. intensity: 0.9, 1, 1.1. Repeatable."),
]
Mode = Annotated[str | None, typer.Option(help="whole or slide.  [default: whole; of BEiT slide]")]
Crop = Annotated[str | None, typer.Option(help="Window of slide: 512 or HxW.  [default: 512; of BEiT its own]")]
Stride = Annotated[str | None, typer.Option(help="Of the window.  [default: two thirds of it]")]
Crf = Annotated[bool, typer.Option("--crf", help="Refine with a dense conditional random field (seconds a picture).")]
Cleaning = Annotated[Clean, typer.Option("--clean", help="mode3: each pixel becomes the most frequent id of its 3x3.")]
Forms = Annotated[Form, typer.Option("--form", help="Of annotations; both are exact in the mask.")]
Pictures = Annotated[
    Path | None, typer.Option("--images", help="Folder that file_name is relative to.  [default: found near the JSON]")
]
Side = Annotated[int, typer.Option("--size", min=1, help="Side of a submission's label map, pixels.")]
RandomSeed = Annotated[int, typer.Option("--seed", help="Of everything random.")]


def views(tta: list[View] | None) -> dict[str, Any]:
    """What `Protocol` calls the views asked for."""
    chosen = set(tta or [])
    found: dict[str, Any] = {"flip": View.HFLIP in chosen, "vflip": View.VFLIP in chosen, "rot90": View.ROT90 in chosen}
    return {**found, "intensities": (0.9, 1.0, 1.1) if View.INTENSITY in chosen else (1.0,)}


def looks(
    scales: str, tta: list[View] | None, mode: str | None, crop_size: str | None, stride: str | None
) -> dict[str, Any]:
    """What was chosen of the protocol; None where it was not, see `inference.protocol_for`."""
    return {
        "mode": mode,
        "crop_size": parse_size(crop_size, "--crop-size"),
        "stride": parse_size(stride, "--stride"),
        "scales": parse_numbers(scales, "--scales"),
        **views(tta),
    }


def parse_size(text: str | None, option: str) -> tuple[int, int] | None:
    """`512` or `512x1024` as (height, width)."""
    if text is None:
        return None
    parts = text.lower().split("x")
    try:
        numbers = [int(p) for p in parts]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 2
    if len(numbers) != 2 or min(numbers) < 1:
        raise InputError(f"{option} {text!r}: give pixels as 512 or as HEIGHTxWIDTH, at least 1")
    return numbers[0], numbers[1]


def parse_numbers(text: str, option: str) -> tuple[float, ...]:
    """`0.5,1,1.5` as numbers."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} {text!r}: give numbers with commas between them, as 0.5,1,1.5") from None


def choose_devices(device: str | None) -> bool:
    """Make the chosen devices the visible ones; must run before torch is imported. Returns whether to stay on the CPU.

    Several GPUs start this command once for each of them and do not return.
    """
    if device is None:
        return False
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return True
    numbers = device.removeprefix("cuda:").split(",")
    if device != "cuda" and not all(n.strip().isdigit() for n in numbers):
        raise InputError(f"--device {device!r}: give cpu, cuda, or GPU numbers such as 0 or 0,1,2,3")
    if device != "cuda" and "LOCAL_RANK" not in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(n.strip() for n in numbers)
        if len(numbers) > 1:
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={len(numbers)}"]
            os.execv(sys.executable, [*launch, "-m", "nota_seg.cli", *sys.argv[1:]])
    import torch

    if not torch.cuda.is_available():
        raise InputError(f"--device {device}: no GPU is visible here; leave it out, or --device cpu")
    if device != "cuda" and torch.cuda.device_count() < len(numbers):
        raise InputError(f"--device {device}: there are only {torch.cuda.device_count()} of these GPUs")
    return False


def torch_device(device: str | None) -> Any:
    """The one device that a verb without training works on: the chosen or the best there is."""
    cpu = choose_devices(device)
    import torch

    return torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")


def is_main_process() -> bool:
    """Whether this process prints results; `dist_train.sh` starts several."""
    return os.environ.get("RANK", "0") == "0"


def train(
    config_class: Any,
    task: Callable[..., dict[str, Any]],
    output: tuple[str, Path],
    options: dict[str, Any],
    *,
    sets: list[str] | None,
    file: Path | None,
    cpu: bool,
    resume: bool,
    overwrite: bool,
    seeds: int | None = None,
    of_seed: Callable[[int], dict[str, Any]] | None = None,
) -> None:
    """Run one phase of training, `task`, and print its result.

    `output` is the folder with the name of its option; `seeds` and `of_seed` are as in `run_seeds`.
    """
    from nota_seg.training.runs import resolve
    from nota_seg.training.seeds import run_seeds
    from util.run_folder import RunFolder

    quiet_libraries()
    if seeds is not None:
        summary = run_seeds(
            config_class, task, output[1], seeds,
            options=options, sets=sets or [], file=file, cpu=cpu, resume=resume, overwrite=overwrite,
            of_seed=of_seed, is_main=is_main_process(),
        )  # fmt: skip
        leave_group()
        if is_main_process():
            print_json({**summary, output[0]: str(output[1])})
        if summary["failed"]:
            raise typer.Exit(1)
        return
    folder = RunFolder(output[1])
    config = resolve(
        config_class, folder, options=options, sets=sets or [], file=file, resume=resume, overwrite=overwrite
    )
    result = task(config, folder, resume=resume, overwrite=overwrite, cpu=cpu)
    leave_group()
    if is_main_process():
        print_json({**result, output[0]: str(output[1])})


def leave_group() -> None:
    """After the last training of this process."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def quiet_libraries() -> None:
    """transformers' own progress bars and load tables say nothing that our lines do not."""
    if "transformers" not in sys.modules:  # whoever needs it imports it later, and not every verb does
        os.environ["TRANSFORMERS_VERBOSITY"] = "error"
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        return
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
