"""Files and folders that are written whole or not at all: a temporary sibling first, then a rename."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY = ".partial-"  # every unfinished file or folder carries this in its name, so that a later run can sweep it


def _temporary_for(path: Path) -> Path:
    return path.with_name(f".{path.name}{TEMPORARY}{uuid.uuid4().hex[:8]}")


def _sync(path: Path) -> None:
    """Flush to the disk, so that the rename that follows cannot survive a power cut without the content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Writers in C++ and Rust report a full disk in words of their own: inside the block it is an OSError as usual."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        text = str(error)
        for number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            if f"os error {number}" in text or os.strerror(number) in text:
                raise OSError(number, os.strerror(number), str(path)) from error
        if "PytorchStreamWriter" in text or "unexpected pos" in text:  # torch.save gives no reason
            raise OSError(errno.ENOSPC, "writing failed, " + os.strerror(errno.ENOSPC), str(path)) from error
        raise


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path to write to; it takes the name `path` only when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_for(path)
    try:
        with _disk_errors(path):
            yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes `path` when the block ends without an error.

    If `path` exists, its files are replaced one by one, each by an atomic rename: a reader never finds it missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_for(path)
    temporary.mkdir()
    try:
        with _disk_errors(path):
            yield temporary
        files = [f for f in temporary.rglob("*") if f.is_file()]
        for file in files:
            _sync(file)
        if path.exists():
            for file in files:
                target = path / file.relative_to(temporary)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
        else:
            os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep_partial(folder: str | Path) -> None:
    """Remove what a killed process left unfinished directly under `folder`."""
    for entry in Path(folder).glob(f".*{TEMPORARY}*"):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON whole. NaN is refused: `null` is what a missing number is called in a file that others read."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
