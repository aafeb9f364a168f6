"""Who may import whom: the arrows of the house, read from the source."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import finetune_words

import nota_seg
from nota_seg.flops import cost

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(f for package in ("nota_seg", "imagenet_pretrain", "util") for f in (ROOT / package).rglob("*.py"))

# Layers of nota_seg from the ground up; a module may import its own layer and those below.
LAYERS = [
    ("nota_seg.models",),
    ("nota_seg.config", "nota_seg.metrics", "nota_seg.picture_counts", "nota_seg.catalogue", "nota_seg.scaffold"),
    ("nota_seg.data", "nota_seg.training", "nota_seg.inference", "nota_seg.views"),
    ("nota_seg.evaluate", "nota_seg.flops", "nota_seg.piecewise"),
    (
        "nota_seg.predict",
        "nota_seg.finetune",
        "nota_seg.distill",
        "nota_seg.ensemble",
        "nota_seg.pseudo_label",
        "nota_seg.export",
        "nota_seg.serve",
    ),
    ("nota_seg.report", "nota_seg.latency"),
    ("nota_seg.ablate", "nota_seg.demo", "nota_seg.pseudo_loop", "nota_seg.search"),
    ("nota_seg.cli",),
]


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def layer(name: str) -> int | None:
    return next((i for i, packages in enumerate(LAYERS) if any(within(name, p) for p in packages)), None)


@pytest.mark.parametrize("file", FILES, ids=lambda f: module_name(f))
def test_arrows(file: Path) -> None:
    own = module_name(file)
    for name in imports(file):
        if within(own, "util"):
            assert not within(name, "nota_seg") and not within(name, "imagenet_pretrain"), f"{own} imports {name}"
        elif within(own, "imagenet_pretrain") and within(name, "nota_seg") and name != "nota_seg":
            allowed = ("nota_seg.models", "nota_seg.training", "nota_seg.config")
            assert any(within(name, a) for a in allowed), f"{own} imports {name}"
        elif within(own, "nota_seg"):
            if within(name, "imagenet_pretrain"):
                assert within(own, "nota_seg.cli"), f"{own} imports {name}: only the command line may"
            if own == "nota_seg.models.zoo" and within(name, "nota_seg.config"):
                continue  # `create_from_settings` reads --set, inside the function
            mine, theirs = layer(own), layer(name)
            if mine is not None and theirs is not None:
                assert theirs <= mine, f"{own} (layer {mine}) imports {name} (layer {theirs})"


def test_every_module_has_a_layer() -> None:
    missing = [m for m in map(module_name, FILES) if within(m, "nota_seg") and m != "nota_seg" and layer(m) is None]
    assert missing == []


def test_models_know_no_device_cli_or_tracker() -> None:
    for file in FILES:
        if within(module_name(file), "nota_seg.models"):
            assert not imports(file) & {"accelerate", "typer", "wandb", "tensorboard", "argparse"}
            assert ".cuda(" not in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("pattern", ["pickle.load", "eval(", "exec("])
def test_nothing_runs_its_input(pattern: str) -> None:
    for file in FILES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
            assert not ast.unparse(call).startswith(pattern), f"{file}:{call.lineno}"
            if ast.unparse(call.func) == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords), file


def output_and_libraries(code: str, names: tuple[str, ...]) -> tuple[str, list[str]]:
    """What the code prints in a process of its own, and which of the libraries it brought."""
    ask = f"import sys; print(*(name for name in {names} if name in sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{ask}"], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr.splitlines()[-1].split()


def verb(words: list[str]) -> str:
    return f"from nota_seg.cli import app; app({words}, standalone_mode=False)"


def test_evaluation_does_without_transformers_and_augmentation(scenes: Path, tmp_path: Path) -> None:
    """They would take longer to import than a hundred pictures to look at."""
    nota_seg.create_model("segformer-b0", depths=[1, 1, 1, 1], num_labels=8).save_pretrained(tmp_path / "model")
    words = ["eval", "--data-dir", str(scenes), "--pretrain", str(tmp_path / "model"), "--device", "cpu", "--json", "-"]
    output, brought = output_and_libraries(verb(words), ("transformers", "albumentations", "accelerate"))
    assert json.loads(output)["images"] == 4 and brought == []


def test_counting_a_run_does_without_transformers(tmp_path: Path) -> None:
    model = nota_seg.create_model("segformer-b0", depths=[1, 1, 1, 1], num_labels=8)
    model.save_pretrained(tmp_path)
    words = ["flops", "--pretrain", str(tmp_path), "--size", "64x96", "--json"]
    output, brought = output_and_libraries(verb(words), ("transformers", "timm"))
    assert json.loads(output) == json.loads(json.dumps(cost(model, (64, 96)))) and brought == []


def test_loading_a_model_brings_no_library_that_it_does_not_use(tmp_path: Path) -> None:
    """They would double the start of every command that runs a model."""
    nota_seg.create_model("segformer-b0", depths=[1, 1, 1, 1], num_labels=3).save_pretrained(tmp_path)
    code = f"from nota_seg.models.loading import load_model; load_model({str(tmp_path)!r})"
    assert output_and_libraries(code, ("timm", "sklearn", "pandas", "albumentations", "datasets"))[1] == []


def test_a_training_brings_no_library_that_it_does_not_use(scenes: Path, tmp_path: Path) -> None:
    """A third of the start of a command that may run for seconds."""
    code = verb(finetune_words(scenes, tmp_path / "run", steps=2))
    assert output_and_libraries(code, ("albumentations", "sklearn", "pandas", "datasets"))[1] == []
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()


@pytest.mark.parametrize("module", ["util.pasting", "nota_seg.data.extra", "nota_seg.data.paste"])
def test_albumentations_does_not_ask_the_network_for_a_newer_version(module: str) -> None:
    code = f"""
import socket, urllib.request
def refused(*arguments, **more): raise SystemExit("asked the network")
urllib.request.urlopen = urllib.request.OpenerDirector.open = socket.create_connection = refused
import {module}
import albumentations"""
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
