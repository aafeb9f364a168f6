"""`--seeds`: as many runs as seeds, one that fails loses none of the others, a killed one is gone on with."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import finetune_words, pretrain_words

from nota_seg.cli import main
from nota_seg.finetune import SegmentationTask
from nota_seg.picture_counts import PictureCounts
from nota_seg.report.runs import load_run


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "seeds.json").read_text())


def test_seeds_differ_and_are_summed_up(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert main(finetune_words(scenes, folder, "--seeds", "2", "--seed", "4")) == 0
    printed, written = json.loads(capsys.readouterr().out), read(folder)
    assert printed["mean"] == written["mean"] and printed["save_path"] == str(folder)
    assert [row["folder"] for row in written["seeds"]] == ["seed-4", "seed-5"]
    scores = [row["best"] for row in written["seeds"]]
    assert scores[0] != scores[1]
    assert written["mean"]["best"] == pytest.approx(statistics.mean(scores))
    assert written["std"]["best"] == pytest.approx(statistics.stdev(scores))
    for seed, score in zip((4, 5), scores, strict=True):
        assert json.loads((folder / f"seed-{seed}" / "run.json").read_text())["seed"] == seed
        kept = json.loads((folder / f"seed-{seed}" / "eval.json").read_text())
        assert kept["miou"] == score
        assert PictureCounts.load(folder / f"seed-{seed}" / "eval.npz").miou() == pytest.approx(score)

    # A further seed is added to those that are there, which are not touched.
    before = (folder / "seed-4" / "metrics.jsonl").stat().st_mtime_ns
    assert main(finetune_words(scenes, folder, "--seeds", "3", "--seed", "4", "--resume")) == 0
    assert len(read(folder)["seeds"]) == 3 and read(folder)["seeds"][:2] == written["seeds"]
    assert (folder / "seed-4" / "metrics.jsonl").stat().st_mtime_ns == before
    assert main(finetune_words(scenes, folder, "--seeds", "3", "--seed", "4")) == 2  # nothing is overwritten
    assert main(finetune_words(scenes, folder, "--seeds", "3", "--seed", "4", "--resume", "--lr", "0.1")) == 2
    assert main(finetune_words(scenes, folder, "--seeds", "1", "--overwrite")) == 0
    assert sorted(p.name for p in folder.iterdir()) == ["seed-0", "seeds.json"]


def test_one_that_fails_loses_none(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, loss = tmp_path / "run", SegmentationTask.loss

    def broken(self: SegmentationTask, *arguments: Any) -> Any:
        return loss(self, *arguments) * (float("nan") if self.config.train.seed == 1 else 1)

    monkeypatch.setattr(SegmentationTask, "loss", broken)
    assert main(finetune_words(scenes, folder, "--seeds", "3")) == 1
    found = read(folder)
    assert found["failed"] == [1] and "loss is nan" in found["seeds"][1]["error"]
    assert "best" in found["seeds"][0] and "best" in found["seeds"][2] and found["std"]["best"] is not None
    assert "passed over" in capsys.readouterr().err

    monkeypatch.setattr(SegmentationTask, "loss", loss)
    assert main(finetune_words(scenes, folder, "--seeds", "3", "--resume")) == 0
    assert read(folder)["failed"] == [] and read(folder)["seeds"][0] == found["seeds"][0]


def test_pretraining_has_them_too(shapes: Path, tmp_path: Path) -> None:
    assert main(pretrain_words(shapes, tmp_path / "run", "--seeds", "2")) == 0
    assert read(tmp_path / "run")["std"]["top1"] is not None
    assert json.loads((tmp_path / "run" / "seed-1" / "eval.json").read_text())["top1"] is not None


def test_a_single_run_is_no_folder_of_seeds(scenes: Path, tmp_path: Path) -> None:
    assert main(finetune_words(scenes, tmp_path / "run", steps=2)) == 0
    for more in ((), ("--resume",), ("--overwrite",)):
        assert main(finetune_words(scenes, tmp_path / "run", "--seeds", "2", *more)) == 2
    assert (tmp_path / "run" / "best").exists()


@pytest.mark.slow
def test_two_processes_run_their_seeds_together(scenes: Path, tmp_path: Path) -> None:
    words = finetune_words(scenes, tmp_path / "run", "--seeds", "2", "--device", "cpu")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "nota_seg.cli"]
    done = subprocess.run([*launch, *words], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for row in read(tmp_path / "run")["seeds"]:
        counts = PictureCounts.load(tmp_path / "run" / row["folder"] / "eval.npz")
        assert len(counts.names) == 4 and counts.names == sorted(counts.names)
        assert counts.miou() == pytest.approx(row["best"])


def test_each_seed_from_its_own_encoder(
    scenes: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoders, folder = tmp_path / "encoders", tmp_path / "run"
    assert main(pretrain_words(shapes, encoders, "--model", "segformer-b0-pool", "--seeds", "2")) == 0
    words = finetune_words(scenes, folder, "--pretrain", str(encoders))
    assert main(words) == 2 and "name one of them, or give --seeds" in capsys.readouterr().err
    assert main([*words, "--seeds", "3"]) == 2 and "has no seed 2: it has 0, 1" in capsys.readouterr().err
    assert not folder.exists()
    assert main([*words, "--seeds", "2"]) == 0
    configs = [yaml.safe_load((folder / f"seed-{seed}" / "config.yaml").read_text()) for seed in (0, 1)]
    assert [c["pretrain"] for c in configs] == [str(encoders / f"seed-{seed}" / "best") for seed in (0, 1)]
    assert {c["model"]["name"] for c in configs} == {"segformer-b0-pool"}
    run = load_run(folder, "own")
    top1 = [100 * row["best"] for row in read(encoders)["seeds"]]
    assert run.encoder_top1 == pytest.approx(statistics.mean(top1))
    assert main([*words, "--seeds", "2", "--resume"]) == 0
