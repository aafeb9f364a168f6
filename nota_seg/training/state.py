"""Everything a run needs to go on exactly: written whole or not at all, the newest two kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from util.errors import InputError
from util.files import whole_folder

KEPT = 2


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    found = [p for p in folder.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")))


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `checkpoint-STEP/state.pt`, then drop all but the newest `KEPT`.

    `state` holds tensors and plain values only, so that it loads with `weights_only=True`. There is no random state in
    it: every step derives its own from the seed and its number.
    """
    path = folder / f"checkpoint-{step}"
    if not path.exists():  # the same step of the same run has the same state
        with whole_folder(path) as temporary:
            torch.save(state, temporary / "state.pt")
    for old in checkpoints(folder)[:-KEPT]:
        # Renamed first: a kill half-way through the removal must not leave a checkpoint that looks whole.
        doomed = old.with_name(f".{old.name}.partial-removed")
        shutil.rmtree(doomed, ignore_errors=True)
        old.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    return path


def load_checkpoint_state(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint's state, on the CPU; None where a run has none yet."""
    found = checkpoints(folder)
    if not found:
        return None
    file = found[-1] / "state.pt"
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{file} cannot be read ({type(error).__name__}); remove {found[-1]} to go on from the one before"
        ) from None
