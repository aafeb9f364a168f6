"""The command line is a contract: verbs, options, exit codes, JSON keys, frozen here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from nota_seg.cli import app, main

OPTIONS = {
    "demo": {"--output-dir", "--overwrite"},
    "models": {"--family", "--json", "--markdown"},
    "pretrain": {
        "--data-path", "--output-dir", "--model", "--epochs", "--max-steps", "--batch-size", "--input-size", "--lr",
        "--seed", "--seeds", "--config", "--set", "--device", "--gpu", "--resume", "--overwrite",
    },
    "finetune": {
        "--data-dir", "--save-path", "--output-dir", "--pretrain", "--model", "--epochs", "--max-steps", "--batch-size",
        "--crop-size", "--lr", "--seed", "--seeds", "--config", "--set", "--deterministic", "--debug",
        "--device", "--gpu", "--resume", "--overwrite", "--teacher",
    },
    "pseudo-loop": {
        "--data-dir", "--unlabelled", "--test-json", "--output-dir", "--rounds", "--pretrain", "--model", "--epochs",
        "--max-steps", "--batch-size", "--crop-size", "--lr", "--pixel", "--class", "--image", "--scales", "--tta",
        "--images", "--seed", "--config", "--set", "--deterministic", "--device", "--gpu", "--resume",
    },
    "distill": {
        "--data-dir", "--save-path", "--output-dir", "--teacher", "--temperature", "--weight", "--features",
        "--pretrain", "--model", "--epochs", "--max-steps", "--batch-size", "--crop-size", "--lr", "--seed", "--config",
        "--set", "--device", "--gpu", "--resume", "--overwrite",
    },
    "eval": {
        "--data-dir", "--pretrain", "--split", "--mode", "--crop-size", "--stride", "--scales", "--flip", "--tta",
        "--base-size",
        "--precision", "--batch-size", "--workers", "--limit", "--json", "--deterministic", "--device", "--gpu",
    },
    "predict": {"--pretrain", "--output-dir", "--device", "--gpu", "--overwrite"},
    "flops": {"--model", "--pretrain", "--size", "--num-classes", "--set", "--json"},
    "search": {
        "--base", "--mixers", "--feedforwards", "--skips", "--decoders", "--dims", "--depths", "--max-params",
        "--max-gmacs", "--max-latency", "--rank", "--samples", "--top", "--size", "--num-classes", "--seed",
        "--output-dir", "--json", "--device", "--gpu", "--overwrite",
    },
    "latency": {
        "--model", "--pretrain", "--size", "--batch-size", "--runtime", "--precision", "--threads", "--seconds",
        "--rounds", "--num-classes", "--set", "--json", "--device", "--gpu",
    },
    "export": {
        "--pretrain", "--output-dir", "--format", "--size", "--data-dir", "--calibration", "--limit", "--json",
        "--overwrite",
    },
    "serve": {"--port", "--host", "--device", "--gpu"},
    "convert": {"--model", "--num-classes", "--task", "--to", "--set", "--overwrite"},
    "submit": {
        "--test-json", "--output", "--pretrain", "--labels", "--size", "--scales", "--tta", "--mode",
        "--crop-size", "--stride", "--crf", "--clean", "--images", "--device", "--gpu",
    },
    "ensemble": {
        "--csv", "--output", "--pretrain", "--weight", "--test-json", "--size", "--scales", "--tta", "--mode",
        "--crop-size", "--stride", "--crf", "--clean", "--images", "--device", "--gpu",
    },
    "compare": {
        "--output-dir", "--size", "--samples", "--seed", "--title", "--data-dir", "--pair", "--pictures", "--limit",
        "--export-metrics", "--evaluation", "--device", "--gpu", "--overwrite",
    },
    "ablate": {"--output-dir", "--device", "--gpu", "--resume", "--overwrite"},
    "report": {"--output", "--size", "--overwrite"},
    "push": {"--private", "--message", "--dry-run"},
    "new": set(),
    "data": set(),
}  # fmt: skip

_PASTING = {"--output-dir", "--count", "--start", "--add", "--form", "--images", "--seed"}
DATA_OPTIONS = {
    "verify": {"--data-dir", "--data-path"},
    "download": {"--output-dir", "--url", "--md5"},
    "kfold": {"--output-dir", "--folds", "--scheme", "--images", "--seed"},
    "stats": {"--json"},
    "merge": {"--output", "--images"},
    "subset": {
        "--output", "--fraction", "--count", "--with-class", "--without-class", "--existing", "--images", "--seed",
    },
    "to-coco": {"--output", "--split", "--background", "--form", "--parts"},
    "from-coco": {"--output-dir", "--split", "--images"},
    "copy-paste": {"--patch", "--remove", "--extract", "--jitter"} | _PASTING,
    "oversample": {"--class", "--onto", "--min-area"} | _PASTING,
    "from-submission": {"--test-json", "--output", "--form", "--parts", "--images"},
    "to-submission": {"--output", "--size"},
    "pseudo-label": {
        "--test-json", "--pretrain", "--output-dir", "--weight", "--pixel", "--class", "--image", "--masks", "--form",
        "--scales", "--tta", "--mode", "--crop-size", "--stride", "--images", "--device", "--gpu",
    },
}  # fmt: skip


def test_verbs_and_options_are_frozen() -> None:
    def options(group: Any) -> dict[str, set[str]]:
        return {
            name: {o for p in command.params for o in p.opts if o.startswith("--")} - {"--help"}
            for name, command in group.commands.items()
        }

    group: Any = typer.main.get_command(app)
    assert options(group) == OPTIONS
    assert options(group.commands["data"]) == DATA_OPTIONS


@pytest.mark.parametrize("verb", [*OPTIONS, *(f"data {verb}" for verb in DATA_OPTIONS)])
def test_every_verb_helps_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert "Usage" in text
    assert verb == "data" or "Example" in text


@pytest.mark.parametrize(
    "words",
    [
        ["pretran"],
        ["pretrain"],
        ["pretrain", "--data-path", "x"],
        ["pretrain", "--data-path", "x", "--output-dir", "y", "--batch-size", "0"],
        ["pretrain", "--data_path", "nowhere", "--output_dir", "nowhere-too"],
        ["finetune", "--data_dir", "nowhere", "--save_path", "nowhere-too"],
        ["eval", "--data-dir", "nowhere", "--pretrain", "nowhere"],
        ["predict", "nowhere.jpg", "--pretrain", "nowhere", "--output-dir", "x"],
        ["flops"],
        ["flops", "--model", "segformer-b7"],
        ["flops", "--model", "segformer-b0", "--size", "0"],
        ["flops", "--model", "segformer-b0", "--size", "big"],
        ["models", "--family", "segfromer"],
        ["data", "verify", "nowhere"],
        ["data", "download", "imagenet"],
        ["data", "kfold", "nowhere.json", "--output-dir", "x"],
        ["data", "kfold", "nowhere.json", "--output-dir", "x", "--scheme", "rarest"],
        ["data", "copy-paste", "nowhere.json", "--output-dir", "x"],
        ["data", "copy-paste", "nowhere.json", "--output-dir", "x", "--patch", "a", "--jitter", "1"],
        ["data", "oversample", "nowhere.json", "--class", "a", "--onto", "b", "--output-dir", "x"],
        ["data", "pseudo-label", "--test-json", "nowhere.json", "--pretrain", "x", "--pixel", "2", "--output-dir", "y"],
        ["pseudo-loop", "--data-dir", "nowhere.json", "--unlabelled", "x.json", "--output-dir", "y"],
        ["pseudo-loop", "--data-dir", "a.json", "--unlabelled", "x.json", "--output-dir", "y", "--device", "0,1"],
        ["pseudo-loop", "--data-dir", "a.json", "--unlabelled", "x.json", "--output-dir", "nowhere", "--resume"],
        ["submit", "--test-json", "nowhere.json", "--output", "x.csv"],
        ["submit", "--test-json", "nowhere.json", "--pretrain", "x", "--output", "x.csv"],
        ["submit", "--test-json", "nowhere.json", "--pretrain", "x", "--output", "x.csv", "--clean", "mode4"],
        ["ensemble", "--output", "x.csv"],
        ["ensemble", "--csv", "a.csv", "b.csv", "--output", "x.csv"],
        ["ensemble", "--csv", "a.csv", "--pretrain", "run", "--output", "x.csv"],
        ["ensemble", "--pretrain", "run", "--output", "x.csv"],
        ["latency"],
        ["latency", "--model", "segformer-b7"],
        ["export", "--pretrain", "nowhere", "--output-dir", "x"],
        ["search", "--mixers", "sar"],
        ["serve", "nowhere"],
        ["distill", "--data-dir", "nowhere", "--save-path", "x", "--teacher", "nowhere"],
        ["convert", "nowhere", "x", "--model", "segformer-b0"],
        ["compare", "nowhere"],
        ["ablate", "nowhere.yaml", "--output-dir", "x"],
        ["report", "nowhere"],
        ["push", "nowhere", "me/name", "--dry-run"],
    ],
    ids=" ".join,
)
def test_a_mistake_ends_with_2_and_one_line(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors[-1].startswith("error: ") and "Traceback" not in "".join(errors)
    assert not list(tmp_path.iterdir())


def test_flops_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flops", "--model", "segformer-b0", "--size", "64x96", "--num_classes", "5", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    for key in ("params", "macs", "flops", "macs_reference", "macs_reference_without_attention"):
        assert isinstance(result[key], int) and result[key] > 0
    assert result["flops"] == 2 * result["macs"] and result["uncounted"] == {}
    assert all(isinstance(v, int) for v in result["by_part"].values())
    assert sum(result["by_part"].values()) == result["macs"]


def test_flops_text_and_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flops", "--model", "segformer-b0", "--size", "64", "--set", "model.mixer=pool", "--json"]) == 0
    pooled = json.loads(capsys.readouterr().out)["params"]
    assert main(["flops", "--model", "segformer-b0-pool", "--size", "64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["params"] == pooled
    assert main(["flops", "--model", "segformer-b0", "--size", "64"]) == 0
    assert "params" in capsys.readouterr().out.lower()


def test_help_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from nota_seg.cli import main; main(['--help']); "
        "sys.exit(bool({'torch', 'transformers', 'pydantic', 'cv2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_it_works_from_any_folder(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("nota-seg")
    done = subprocess.run([script, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "finetune" in done.stdout


@pytest.mark.parametrize("status", [0, 2])
def test_the_end_of_a_command_is_not_lost(status: int) -> None:
    """The process leaves early, but after all that was registered for its end, with everything written."""
    script = f"""
import atexit, sys, threading, time
import nota_seg.cli as cli
def main():
    atexit.register(print, "registered")
    threading.Thread(target=lambda: (time.sleep(0.2), sys.stdout.write("thread "))).start()
    return {status}
cli.main = main
cli.entry()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (status, "thread registered\n", "")
    crashed = script.replace(f"return {status}", "raise RuntimeError('a mistake of ours')")
    done = subprocess.run([sys.executable, "-c", crashed], capture_output=True, text=True)
    assert done.returncode == 1 and "a mistake of ours" in done.stderr and "registered" in done.stdout
