"""Rehearsals, determinism, shares of the data; what reaches the network, and which weights are kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import finetune_words
from safetensors.torch import load_file

import nota_seg.finetune
from nota_seg.cli import main
from nota_seg.data.part import Part
from nota_seg.data.sources import open_source


@pytest.fixture
def as_before() -> Iterator[None]:
    """Puts torch's process-wide switches back."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.autograd.set_detect_anomaly(False)


def test_a_part_is_drawn_without_replacement(scenes: Path) -> None:
    whole = open_source(scenes)
    for seed in range(20):
        part = Part(whole, 0.7, seed)
        assert part.splits == {"train": 7, "val": 3} and part.class_names == whole.class_names
        names = part.names("train")
        assert len(set(names)) == 7
        for index, name in enumerate(names):
            there = whole.names("train").index(name)
            assert np.array_equal(part.read("train", index)[0], whole.read("train", there)[0])
            assert np.array_equal(part.read_label("train", index), whole.read_label("train", there))
    assert Part(whole, 0.7, 1).names("train") == Part(whole, 0.7, 1).names("train")
    assert len({tuple(Part(whole, 0.7, seed).names("train")) for seed in range(20)}) > 5
    assert Part(whole, 0.01).splits == {"train": 1, "val": 1}


def test_debug_rehearses_and_keeps_nothing(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], as_before: None
) -> None:
    run = tmp_path / "run"
    assert main(finetune_words(scenes, run, steps=4)) == 0
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    capsys.readouterr()
    assert main(finetune_words(scenes, run, "--debug", steps=100, set_=("data.fraction=1.0",))) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 20 and len(result["debug"]["losses"]) == 20 and result["images"] == 1
    assert result["debug"]["fraction"] == pytest.approx(0.1) and result["debug"]["pictures_per_second"] > 0
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    assert main(finetune_words(scenes, tmp_path / "new", "--debug", steps=2)) == 0
    assert not (tmp_path / "new").exists()
    assert main(finetune_words(scenes, run, "--debug", "--resume")) == 2


def test_debug_names_the_operation_that_fails(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_before: None
) -> None:
    """The forward pass is fine and the gradient is not: only watching every operation finds it."""
    real = nota_seg.finetune.upsampled_cross_entropy

    def loss(logits: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return real(logits, *args, **kwargs) + (logits * 0).abs().sqrt().sum()

    monkeypatch.setattr(nota_seg.finetune, "upsampled_cross_entropy", loss)
    assert main(finetune_words(scenes, tmp_path / "run", "--debug", steps=2)) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "Backward" in error and "nan" in error and "--lr" in error


def test_deterministic_runs_are_equal_bit_for_bit(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], as_before: None
) -> None:
    for name in "ab":
        torch.use_deterministic_algorithms(False)
        assert main(finetune_words(scenes, tmp_path / name, "--deterministic", steps=4)) == 0
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    one, other = (load_file(tmp_path / name / "last" / "model.safetensors") for name in "ab")
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert "deterministic: true" in (tmp_path / "a" / "config.yaml").read_text()
    torch.use_deterministic_algorithms(False)
    words = ["eval", "--data-dir", str(scenes), "--pretrain", str(tmp_path / "a"), "--workers", "0", "--json", "-"]
    capsys.readouterr()
    results = []
    for more in ([], ["--deterministic"]):
        assert main([*words, *more]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert torch.are_deterministic_algorithms_enabled() and results[0] == results[1]


def test_cublas_is_told_before_it_starts() -> None:
    code = (
        "import os; from util.seed import deterministic; deterministic(); print(os.environ['CUBLAS_WORKSPACE_CONFIG'])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "CUBLAS_WORKSPACE_CONFIG"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == ":4096:8"


def test_the_best_weights_are_kept_and_not_the_last(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores 0.1, 0.9, 0.3: best/ must hold the weights of the second evaluation."""
    seen: list[dict[str, torch.Tensor]] = []
    real = nota_seg.finetune.evaluate

    def scripted(model: torch.nn.Module, *args: Any, **kwargs: Any) -> dict[str, Any]:
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return {**real(model, *args, **kwargs), "miou": (0.1, 0.9, 0.3)[len(seen) - 1]}

    monkeypatch.setattr(nota_seg.finetune, "evaluate", scripted)
    run = tmp_path / "run"
    assert main(finetune_words(scenes, run, steps=6, set_=("train.eval_every=2", "optim.lr=0.01"))) == 0
    best, last = (load_file(run / name / "model.safetensors") for name in ("best", "last"))
    assert all(torch.equal(best[k], seen[1][k]) for k in best)
    assert all(torch.equal(last[k], seen[2][k]) for k in last)
    assert any(not torch.equal(best[k], last[k]) for k in best)


def test_pictures_reach_the_network_normalised_once(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training as in evaluation: (value / 255 - mean) / std with statistics of 0..1. Divided by 255 once more they
    would hardly differ from each other; not at all, they would be of the order of 500."""
    from nota_seg.models.architecture import IMAGENET_MEAN, IMAGENET_STD

    inputs: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    real = nota_seg.finetune.build_model

    def watched(*args: Any) -> torch.nn.Module:
        model = real(*args)
        model.register_forward_pre_hook(
            lambda module, given, named: inputs[module.training].append((given or (named["pixel_values"],))[0].clone()),
            with_kwargs=True,
        )
        return model

    monkeypatch.setattr(nota_seg.finetune, "build_model", watched)
    plain = ("data.color_jitter=null", "data.scale=[1.0,1.0]", "data.hflip=0", "train.eval_every=2")
    assert main(finetune_words(scenes, tmp_path / "run", steps=2, set_=plain)) == 0
    source = open_source(scenes)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    for training, split in ((True, "train"), (False, "val")):
        assert inputs[training], split
        bytes_ = torch.cat(
            [(x * std + mean).mul(255).flatten(2).movedim(1, 2).reshape(-1, 3) for x in inputs[training]]
        )
        pictures = [source.read(split, i)[0] for i in range(source.splits[split])]
        truth = np.concatenate([p.reshape(-1, 3) for p in pictures]).astype(np.float64)
        assert bytes_.min() > -0.01 and bytes_.max() < 255.01
        assert np.allclose(bytes_.mean(dim=0).numpy(), truth.mean(axis=0), atol=25)
        assert np.allclose(bytes_.std(dim=0).numpy(), truth.std(axis=0), atol=20)
