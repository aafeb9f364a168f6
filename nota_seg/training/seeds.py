"""One run for each of several seeds, in sub-folders, with the mean and the spread of their scores."""

from __future__ import annotations

import errno
import json
import math
import shutil
import statistics
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from nota_seg.config import Config, build
from nota_seg.training.loop import Interrupted
from nota_seg.training.runs import resolve
from util.errors import InputError
from util.files import write_json
from util.run_folder import RunFolder

SUMMARY = "seeds.json"


def run_seeds(
    cls: type[Config],
    task: Callable[..., dict[str, Any]],
    path: Path,
    count: int,
    *,
    options: Mapping[str, Any],
    sets: Iterable[str],
    file: str | Path | None,
    cpu: bool,
    resume: bool,
    overwrite: bool,
    of_seed: Callable[[int], Mapping[str, Any]] | None = None,
    is_main: bool = True,
) -> dict[str, Any]:
    """Run `task` for `count` seeds, the configured one and those after it, in `path`/seed-N.

    A seed that fails is reported and passed over. `seeds.json` is written after every seed; with `resume` those that
    are in it are not run again, and a larger `count` adds seeds.

    Args:
        cls: Configuration of the phase.
        task: `pretrain` or `finetune`.
        path: Parent of the runs.
        count: Seeds.
        options: As in `config.build`.
        sets: As in `config.build`.
        file: As in `config.build`.
        cpu: Stay on the CPU.
        resume: Go on with the runs in `path`.
        overwrite: Replace them.
        of_seed: Options of one seed, over `options`.
        is_main: Whether this process writes.

    Returns:
        What `seeds.json` holds: `seeds` (a dict each, with its `seed`, `folder` and result, or its `error`), `mean` and
        `std` (sample standard deviation, None for one seed) of every number over the seeds that finished, `failed`.

    Raises:
        InputError: As a single run would.
        Interrupted: As a single run would; the seeds that are done are kept.
    """
    sets = list(sets)
    before = _check(path, resume=resume, overwrite=overwrite)
    first = build(cls, file=file, options=options, sets=sets).train.seed
    seeds = range(first, first + count)
    # All before the first starts: a mistake must cost nothing, and no process may look while another writes.
    plans: list[tuple[int, RunFolder, Any, bool, bool]] = []
    for seed in seeds:
        folder = RunFolder(path / f"seed-{seed}")
        begun = folder.config_file.exists() and (folder.path / "run.json").exists()
        go_on, anew = resume and begun, overwrite and begun
        own = {**options, **(of_seed(seed) if of_seed is not None else {})}
        config = resolve(
            cls, folder, options=own, sets=[*sets, f"train.seed={seed}"], file=file, resume=go_on, overwrite=anew
        )
        plans.append((seed, folder, config, go_on, anew))
    if overwrite and is_main:
        for old in set(path.glob("seed-*")) - {folder.path for _, folder, *_ in plans}:
            if (old / "run.json").exists():
                shutil.rmtree(old)

    rows: list[dict[str, Any]] = []
    for seed, folder, config, go_on, anew in plans:
        row = before.get(seed)
        if row is None:
            _say(f"seed {seed} ({len(rows) + 1} of {count}) in {folder.path}", is_main)
            row = {"seed": seed, "folder": folder.path.name}
            try:
                row |= task(config, folder, resume=go_on, overwrite=anew, cpu=cpu)
            except (InputError, Interrupted):
                raise
            except Exception as error:
                if not _passable(error):
                    raise
                if not isinstance(error, FloatingPointError):
                    traceback.print_exception(error)
                row["error"] = " ".join(f"{type(error).__name__}: {error}".split())
                _say(f"seed {seed} failed and is passed over: {row['error']}", is_main)
        rows.append(row)
        summary = summarise(rows)
        if is_main:
            write_json(path / SUMMARY, summary)
    for key in ("best", "miou", "top1"):
        values = [row[key] for row in rows if key in row]
        if values and len(values) > 1:
            shown = ", ".join(f"{v:.4f}" for v in values)
            mean, std = summary["mean"][key], summary["std"][key]
            _say(f"{key} over {len(values)} seeds: {mean:.4f} ± {std:.4f} ({shown})", is_main)
    return summary


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation of every number that all finished seeds have."""
    done = [row for row in rows if "error" not in row]
    keys = [k for k, v in done[0].items() if _is_number(v) and k != "seed"] if done else []
    values = {k: [row[k] for row in done] for k in keys if all(_is_number(row.get(k)) for row in done)}
    return {
        "seeds": rows,
        "mean": {k: statistics.fmean(v) for k, v in values.items()},
        "std": {k: statistics.stdev(v) if len(v) > 1 else None for k, v in values.items()},
        "failed": [row["seed"] for row in rows if "error" in row],
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check(path: Path, *, resume: bool, overwrite: bool) -> dict[int, dict[str, Any]]:
    """Refuse what is no folder of seeds; the finished seeds of one that is continued."""
    ours = (path / SUMMARY).exists() or any(p.parent.name.startswith("seed-") for p in path.glob("seed-*/run.json"))
    if not ours:
        RunFolder(path).check(resume=resume, overwrite=overwrite)
        if (path / "run.json").exists():
            raise InputError(f"{path} holds a single run: name another folder for --seeds")
        return {}
    if resume and overwrite:
        raise InputError("--resume continues a run and --overwrite starts it anew: give one of them")
    if not resume and not overwrite:
        raise InputError(f"{path} exists and is not empty: --resume continues its seeds, --overwrite starts anew")
    if overwrite or not (path / SUMMARY).exists():
        return {}
    rows = json.loads((path / SUMMARY).read_text(encoding="utf-8"))["seeds"]
    return {row["seed"]: row for row in rows if "error" not in row}


def _passable(error: Exception) -> bool:
    """Whether the next seed has a chance: not on a full disk, nor where other processes wait for this one."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return False
    if isinstance(error, FloatingPointError):
        return True  # every process sees the same loss
    import torch

    return not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1


def _say(text: str, is_main: bool) -> None:
    if is_main:
        print(text, file=sys.stderr, flush=True)
