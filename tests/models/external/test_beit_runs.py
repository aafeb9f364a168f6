"""BEiT through the verbs, as any other model: a run of seconds on drawn scenes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import run_cli

import nota_seg
from nota_seg.cli import main
from nota_seg.models.loading import load_model

SETS = (
    "model.dim=24", "model.decoder.dim=16", "model.auxiliary_dim=8", "train.workers=0", "train.tracker=none",
    "train.log_every=2", "data.base_size=[64,48]", "train.eval_every=3", "train.checkpoint_every=3",
)  # fmt: skip


def words(scenes: Path, folder: Path, *more: str, model: bool = True) -> list[str]:
    sets = [w for item in (SETS if model else SETS[3:]) for w in ("--set", item)]
    named = ["--model", "beit-t-upernet"] if model else []
    return [
        "finetune", "--data-dir", str(scenes), "--save-path", str(folder), *named, "--batch-size", "2",
        "--crop-size", "48x64", *sets, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "beit"
    done = run_cli(*words(scenes, folder, "--max-steps", "6"))
    assert done.returncode == 0, done.stderr
    return folder


def test_finetune_follows_the_recipe(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert config["optim"]["layer_decay"] == 0.9 and config["eval"]["mode"] == "slide"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    train = [line for line in lines if line["split"] == "train"][-1]
    assert train["lr layer 0"] == pytest.approx(0.9**5 * train["lr decoder"])
    model, names = load_model(run)
    assert (
        model.config.crop_size == [48, 64] and model.config.window == (3, 4) and len(names) == model.config.num_labels
    )


def test_continued_exactly(run: Path, scenes: Path, tmp_path: Path) -> None:
    half = words(scenes, tmp_path / "half", "--max-steps", "6", "--set", "train.checkpoint_every=2")
    code = (
        "import sys\nimport nota_seg.training.loop as loop\nsave = loop.save_checkpoint\n"
        "def stop(folder, step, state):\n    save(folder, step, state)\n    sys.exit(9) if step == 2 else None\n"
        "loop.save_checkpoint = stop\nfrom nota_seg.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    assert subprocess.run([sys.executable, "-c", code, *half], capture_output=True).returncode == 9
    done = run_cli(*half, "--resume")
    assert done.returncode == 0, done.stderr
    a, b = (load_model(f / "last")[0].state_dict() for f in (run, tmp_path / "half"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_from_a_run_at_another_crop(run: Path, scenes: Path, tmp_path: Path) -> None:
    """--pretrain brings the architecture, and the tables are resized to the new crop."""
    words_ = words(scenes, tmp_path / "next", "--pretrain", str(run / "best"), "--max-steps", "1", model=False)
    words_[words_.index("48x64")] = "64"
    done = run_cli(*words_)
    assert done.returncode == 0, done.stderr
    assert "4 resized" in done.stderr
    config = load_model(tmp_path / "next")[0].config
    assert config.dim == 24 and config.crop_size == [64, 64]


def test_eval_predict_flops(run: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "scores.json"
    flags = ["--scales", "0.5,1,1.75", "--flip", "--workers", "0"]
    assert main(["eval", "--data-dir", str(scenes), "--pretrain", str(run), *flags, "--json", str(file)]) == 0
    protocol = json.loads(file.read_text(encoding="utf-8"))["protocol"]
    assert protocol["mode"] == "slide" and protocol["crop_size"] == [48, 64] and protocol["stride"] == [32, 42]
    assert main(["eval", "--data-dir", str(scenes), "--pretrain", str(run), "--mode", "whole", "--workers", "0"]) == 0
    pictures = sorted((scenes / "images" / "validation").iterdir())[:1]
    assert main(["predict", str(pictures[0]), "--pretrain", str(run), "--output-dir", str(tmp_path / "labels")]) == 0
    capsys.readouterr()
    assert main(["flops", "--pretrain", str(run), "--size", "48x64", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["uncounted"] == {} and set(result["by_part"]) >= {"encoder", "neck", "decoder"}
    assert result["macs_reference"] > result["macs_reference_without_attention"]


def test_models_and_pretraining(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {"beit-t-upernet", "beit-b-upernet", "beit-l-upernet"} <= set(nota_seg.list_models())
    sets = [w for item in SETS[:2] + SETS[3:6] + ("model.crop_size=32",) for w in ("--set", item)]
    done = run_cli(
        "pretrain", "--data-path", str(shapes), "--output-dir", str(tmp_path / "pre"), "--model", "beit-t-upernet",
        "--batch-size", "4", "--input-size", "32", "--max-steps", "2", *sets,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = nota_seg.create_model("beit-t-upernet", dim=24, decoder={"dim": 16})
    report = nota_seg.load_checkpoint(model, tmp_path / "pre" / "best")
    assert not any(k.startswith("encoder.") for k in report.reinitialised) and len(report.resized) == 4
