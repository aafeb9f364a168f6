"""The command line is a contract: verbs, options, exit codes, JSON keys, frozen here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from nota_seg.cli import app, main

OPTIONS = {
    "demo": {"--output-dir", "--overwrite"},
    "models": {"--family", "--json", "--markdown"},
    "pretrain": {
        "--data-path", "--output-dir", "--model", "--epochs", "--max-steps", "--batch-size", "--input-size", "--lr",
        "--seed", "--config", "--set", "--device", "--gpu", "--resume", "--overwrite",
    },
    "finetune": {
        "--data-dir", "--save-path", "--output-dir", "--pretrain", "--model", "--epochs", "--max-steps", "--batch-size",
        "--crop-size", "--lr", "--seed", "--config", "--set", "--device", "--gpu", "--resume", "--overwrite",
    },
    "eval": {
        "--data-dir", "--pretrain", "--split", "--mode", "--crop-size", "--stride", "--scales", "--flip", "--base-size",
        "--precision", "--batch-size", "--workers", "--limit", "--json", "--device", "--gpu",
    },
    "predict": {"--pretrain", "--output-dir", "--device", "--gpu", "--overwrite"},
    "flops": {"--model", "--pretrain", "--size", "--num-classes", "--set", "--json"},
    "convert": {"--model", "--num-classes", "--task", "--to", "--set", "--overwrite"},
    "new": set(),
    "data": set(),
}  # fmt: skip


def test_verbs_and_options_are_frozen() -> None:
    group = typer.main.get_command(app)
    found = {
        name: {o for p in command.params for o in p.opts if o.startswith("--")} - {"--help"}
        for name, command in group.commands.items()  # type: ignore[attr-defined]
    }
    assert found == OPTIONS
    assert set(group.commands["data"].commands) == {"verify", "download"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", [*OPTIONS, "data verify", "data download"])
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
        ["convert", "nowhere", "x", "--model", "segformer-b0"],
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
