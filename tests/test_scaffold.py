"""`nota-seg new` in a copy of the checkout: what it writes is clean, works and passes the contract at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nota_seg.scaffold import REGISTRIES, scaffold
from util.errors import InputError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for folder in ("nota_seg", "util", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def run(checkout: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=checkout, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_kind_works_at_once(checkout: Path) -> None:
    for kind in REGISTRIES:
        assert f"my_{kind}.py" in run(checkout, "nota_seg.cli", "new", kind, f"my_{kind}")
    run(checkout, "ruff", "check", "nota_seg", "tests")
    run(checkout, "ruff", "format", "--check", "nota_seg", "tests")
    tests = [f"tests/models/{kind}s/test_my_{kind}.py" for kind in REGISTRIES]
    out = run(checkout, "pytest", "-q", "-p", "no:cacheprovider", "-k", "my_", "tests/models/test_contract.py", *tests)
    assert "failed" not in out and int(out.split(" passed")[0].split()[-1]) >= 9 * len(REGISTRIES)


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("mixr", "shift", "did you mean 'mixer'"),
        ("mixer", "my-shift", "lower-case"),
        ("mixer", "class", "is no name"),
        ("mixer", "fpn", "is a decoder already"),
    ],
)
def test_wrong_names(kind: str, name: str, words: str, checkout: Path) -> None:
    with pytest.raises(InputError, match=words):
        scaffold(kind, name, checkout)


def test_nothing_is_overwritten(checkout: Path) -> None:
    file = checkout / "nota_seg" / "models" / "mixers" / "shift.py"
    file.write_text("mine")
    with pytest.raises(InputError, match="there already"):
        scaffold("mixer", "shift", checkout)
    assert file.read_text() == "mine"
    with pytest.raises(InputError, match="no checkout"):
        scaffold("mixer", "shift", checkout / "util")
