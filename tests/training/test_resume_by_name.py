"""Exact resuming with optimisers, schedules and losses by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import finetune_words, run_cli
from safetensors.torch import load_file

from nota_seg.cli import main


@pytest.mark.slow
@pytest.mark.parametrize(
    "set_",
    [
        ("optim.name=sgd", "optim.args={momentum: 0.9, nesterov: true}", "optim.schedule=onecycle"),
        ("optim.name=lion", "optim.schedule=cosine_restarts", "optim.schedule_args={T_0: 3, T_up: 1, gamma: 0.5}"),
        ("optim.name=adan", "optim.schedule=step", "optim.schedule_args={step_size: 2}", "loss=[ohem, ssim]"),
        ("optim.name=muon", "optim.schedule=multistep", "optim.schedule_args={milestones: [3]}", "loss=boundary"),
    ],
    ids=lambda s: s[0].partition("=")[2],
)
def test_resumed_is_bit_for_bit_the_same(set_: tuple[str, ...], scenes: Path, tmp_path: Path) -> None:
    set_ = (*set_, "optim.lr=1e-3", "optim.warmup_steps=1")
    runs = [tmp_path / "whole", tmp_path / "cut"]
    for run in runs:
        assert run_cli(*finetune_words(scenes, run, steps=4, set_=set_)).returncode == 0
    shutil.rmtree(runs[1] / "checkpoint-4")
    shutil.rmtree(runs[1] / "last")
    assert run_cli(*finetune_words(scenes, runs[1], "--resume", steps=4, set_=set_)).returncode == 0
    one, other = (load_file(run / "last" / "model.safetensors") for run in runs)
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_a_wrong_optimiser_leaves_nothing(scenes: Path, tmp_path: Path) -> None:
    assert main(finetune_words(scenes, tmp_path / "run", set_=("optim.name=adamv",))) == 2
    assert not (tmp_path / "run").exists()
