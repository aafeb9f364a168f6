"""A run's folder: what was run, with what, and what came out. Never overwritten by accident."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from util.errors import InputError
from util.files import sweep_partial, write_json, write_text

PACKAGES = (
    "nota-seg",
    "torch",
    "torchvision",
    "transformers",
    "timm",
    "accelerate",
    "albumentations",
    "datasets",
    "numpy",
)
# Everything a run writes: `--overwrite` removes these and nothing else.
CONTENTS = (
    "config.yaml", "run.json", "metrics.jsonl", "last", "best", "last.pth", "best.pth", "predictions", "logs",
    "eval.json", "eval.npz", "flops.json", "README.md",
)  # fmt: skip


class RunFolder:
    """`config.yaml`, `run.json`, `metrics.jsonl` and the rest, under one path."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse, before any work, a path that holds something else, or a run that was not asked to go on."""
        if resume and overwrite:
            raise InputError("--resume continues a run and --overwrite starts it anew: give one of them")
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file: name a folder for the run")
        is_run = (self.path / "run.json").exists()
        if resume and not is_run:
            raise InputError(f"--resume: there is no run in {self.path} (no run.json); start it without --resume")
        if self.path.exists() and any(self.path.iterdir()) and not resume:
            if not overwrite:
                hint = "--resume continues it, --overwrite starts anew" if is_run else "name a new folder"
                raise InputError(f"{self.path} exists and is not empty: {hint}")
            if not is_run:
                raise InputError(f"--overwrite: {self.path} holds something that is not a run; name another folder")

    def start(self, *, resume: bool, overwrite: bool) -> None:
        """Make the folder ready: swept after a kill, emptied of the old run where that was asked for."""
        self.path.mkdir(parents=True, exist_ok=True)
        sweep_partial(self.path)
        if overwrite:
            for entry in [
                *(self.path / name for name in CONTENTS),
                *self.path.glob("checkpoint-*"),
                *self.path.glob("latency-*.json"),
            ]:
                if entry.is_dir():
                    shutil.rmtree(entry)
                else:
                    entry.unlink(missing_ok=True)

    def write_config(self, config: Mapping[str, Any]) -> None:
        write_text(self.config_file, yaml.safe_dump(dict(config), sort_keys=False))

    def write_run(self, **facts: Any) -> None:
        """`run.json`; a continued run appends to the list of its sessions."""
        file = self.path / "run.json"
        sessions = json.loads(file.read_text())["sessions"] if file.exists() else []
        sessions.append({"command": sys.argv, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "pid": os.getpid()})
        write_json(file, {**describe_environment(), **facts, "command": sessions[0]["command"], "sessions": sessions})

    def log(self, **values: Any) -> None:
        """Append one line to `metrics.jsonl`."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All whole lines of `metrics.jsonl`; a line torn by a kill is left out."""
        if not self.metrics_file.exists():
            return []
        lines = []
        for text in self.metrics_file.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                continue
        return lines

    def rewind_metrics(self, step: int) -> None:
        """Drop what was logged after `step`: a continued run logs it again."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        write_text(self.metrics_file, "".join(json.dumps(line) + "\n" for line in kept))


def describe_environment() -> dict[str, Any]:
    """Versions, git revision and machine, for `run.json`."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {"versions": versions, "git": git_revision(), "platform": platform.platform(), "processors": os.cpu_count()}


def git_revision() -> str | None:
    """The revision of the code that runs, `+changes` where the tree differs from it; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    try:
        call = ["git", "-C", str(root), "rev-parse", "HEAD"]
        revision = subprocess.run(call, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        call = ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"]
        changed = subprocess.run(call, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return revision + ("+changes" if changed else "")
