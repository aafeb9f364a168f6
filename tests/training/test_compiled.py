"""Compiled block by block, a run is what it is without, up to rounding; where it cannot be, one line says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import finetune_words, run_cli
from safetensors.torch import load_file

import nota_seg
from nota_seg.training.compiled import compile_blocks
from util.errors import InputError

CPU = torch.device("cpu")


def curve(folder: Path, key: str) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


@pytest.mark.slow
def test_a_compiled_run_is_the_same(scenes: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "eager", tmp_path / "compiled"]
    for folder, compiled in zip(folders, ("false", "true"), strict=True):
        set_ = (f"train.compile={compiled}", "model.drop_path_rate=0.3", "train.ema=0.5", "train.log_every=1")
        done = run_cli(*finetune_words(scenes, folder, steps=4, set_=set_))
        assert done.returncode == 0, done.stderr
        assert ("first step, with 5 parts to compile: " in done.stderr) == (compiled == "true")
    assert curve(folders[1], "loss") == pytest.approx(curve(folders[0], "loss"), rel=1e-3)
    assert curve(folders[1], "miou") == pytest.approx(curve(folders[0], "miou"), abs=5e-3)  # some pixels are ties
    one, other = (load_file(folder / "last" / "model.safetensors") for folder in folders)
    assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in other.items()}


def test_what_cannot_be_compiled_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="not made of blocks of ours"):
        compile_blocks(nota_seg.create_model("smp:unet/resnet18", num_labels=3), CPU)

    def broken(function: object) -> object:
        raise RuntimeError("no working C++ compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(InputError, match=r"does not work here \(no working C\+\+ compiler\)"):
        compile_blocks(nota_seg.create_model("segformer-b0"), CPU)
