"""Both phases as a user runs them: what they leave, exact resuming after a kill, faults on the way."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from conftest import command, finetune_words, pretrain_words, run_cli, sets
from safetensors.torch import load_file

from nota_seg.cli import main

Words = Callable[..., list[str]]
PHASES = [("shapes", pretrain_words), ("scenes", finetune_words)]
phases = pytest.mark.parametrize(("data", "words"), PHASES, ids=["pretrain", "finetune"])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "last" / "model.safetensors")


def assert_same_run(a: Path, b: Path) -> None:
    """Bit for bit: weights, and every number that was logged but the speed."""
    for name in ("last", "best"):
        one, other = (load_file(f / name / "model.safetensors") for f in (a, b))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[k], other[k]) for k in one), name
    logs = []
    for folder in (a, b):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        logs.append([{k: v for k, v in line.items() if k != "pictures_per_second"} for line in lines])
    # The mean loss of a log line spans the steps since the last line, so a continued run may begin it later.
    validations = [[line for line in log if line["split"] == "val"] for log in logs]
    assert validations[0] == validations[1]


def newest_checkpoint(folder: Path) -> int:
    return max((int(p.name.split("-")[1]) for p in folder.glob("checkpoint-*")), default=0)


@phases
def test_a_run_folder_has_everything(
    data: str, words: Words, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoModelForSemanticSegmentation

    folder = tmp_path / "run"
    assert main(words(request.getfixturevalue(data), folder)) == 0
    result = json.loads(capsys.readouterr().out)
    score = "top1" if data == "shapes" else "miou"
    assert 0 <= result[score] <= result["best"] <= 1
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["train"]["max_steps"] == 6 and config["model"]["dims"] == [8, 16, 24, 32]
    facts = json.loads((folder / "run.json").read_text())
    assert {"command", "versions", "git", "seed", "device", "processes", "precision"} <= facts.keys()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "val"] == [3, 6]
    assert [line["step"] for line in lines if line["split"] == "train"] == [2, 4, 6]
    assert sorted(p.name for p in folder.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    auto = AutoModelForImageClassification if data == "shapes" else AutoModelForSemanticSegmentation
    for name in ("last", "best"):
        assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= {
            p.name for p in (folder / name).iterdir()
        }
        model = auto.from_pretrained(folder / name)
        assert model.config.id2label[0]
        AutoImageProcessor.from_pretrained(folder / name)
    if data == "scenes":
        assert (folder / "predictions" / "step-6.png").exists()


@pytest.mark.slow
@phases
def test_killed_at_any_moment_and_resumed_is_bit_for_bit_the_same(
    data: str, words: Words, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = request.getfixturevalue(data)
    # Everything that carries state: average, accumulation, clipping, drop path, dropout.
    extra = ("train.ema=0.9", "train.accumulate=2", "train.clip_norm=1", "model.drop_path_rate=0.2")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_cli(*words(source, whole, steps=30, set_=extra)).returncode == 0
    more: tuple[str, ...] = ()
    for seen in (4, 12):
        process = subprocess.Popen(
            command(*words(source, killed, *more, steps=30, set_=extra)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 240
        while newest_checkpoint(killed) < seen and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"
        more = ("--resume",)
    done = run_cli(*words(source, killed, "--resume", steps=30, set_=(*extra, "train.workers=1")))
    assert done.returncode == 0, done.stderr
    assert "from step" in done.stderr
    assert_same_run(whole, killed)
    assert not list(killed.glob(".*partial*"))
    assert len(json.loads((killed / "run.json").read_text())["sessions"]) == 3


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_resume(scenes: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    set_ = ("train.checkpoint_every=1000", "train.eval_every=1000", "train.log_every=1")
    assert main(finetune_words(scenes, whole, steps=40, set_=set_)) == 0
    process = subprocess.Popen(
        command(*finetune_words(scenes, stopped, steps=40, set_=set_)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (stopped / "metrics.jsonl").exists() or not (stopped / "metrics.jsonl").read_text():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    last = errors.strip().splitlines()[-1]
    assert last.startswith("error: stopped after step") and last.endswith("--resume") and "finetune" in last
    assert "Traceback" not in errors
    assert main(finetune_words(scenes, stopped, "--resume", steps=40, set_=set_)) == 0
    assert_same_run(whole, stopped)


@pytest.mark.slow
def test_a_full_disk_loses_nothing_that_was_written(scenes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = finetune_words(scenes, folder, steps=4)
    assert main(finetune_words(scenes, folder, steps=4)) == 0
    before = weights(folder)
    # No file may grow past 20 kB: the same error as a full disk, without a disk to fill.
    limited = subprocess.run(
        command(*words, "--overwrite"),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert limited.returncode == 1
    assert "disk is full" in limited.stderr.strip().splitlines()[-1], limited.stderr[-2000:]
    assert "Traceback" not in limited.stderr
    assert not list(folder.glob("checkpoint-*")) and not list(folder.glob(".*partial*"))
    assert main([*words, "--resume"]) == 0
    after = weights(folder)
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_existing_runs_are_safe(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert main(finetune_words(scenes, folder, steps=2)) == 0
    before = (folder / "last" / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert main(finetune_words(scenes, folder, steps=2)) == 2
    assert "--resume continues it" in capsys.readouterr().err
    assert main(finetune_words(scenes, folder, "--resume", "--seed", "5", steps=2)) == 2
    assert "train.seed was 0" in capsys.readouterr().err
    assert main(finetune_words(scenes, folder, "--resume", steps=2)) == 0  # done already: judged again, unchanged
    assert (folder / "last" / "model.safetensors").read_bytes() == before
    assert main(finetune_words(scenes, folder, "--overwrite", "--seed", "5", steps=2)) == 0
    assert (folder / "last" / "model.safetensors").read_bytes() != before


def test_from_pretraining_to_fine_tuning(shapes: Path, scenes: Path, tmp_path: Path) -> None:
    encoder, model = tmp_path / "encoder", tmp_path / "model"
    assert main(pretrain_words(shapes, encoder, "--model", "segformer-b0-pool", steps=2, set_=("save_pth=true",))) == 0
    # The architecture comes with the weights: no --model, no sizes.
    words = ["finetune", "--data-dir", str(scenes), "--save-path", str(model), "--pretrain", str(encoder / "best")]
    words += ["--max-steps", "1", "--batch-size", "2", "--crop-size", "32", "--lr", "1e-12"]
    assert main([*words, "--set", "train.workers=0", "--set", "train.tracker=none"]) == 0
    one, other = load_file(encoder / "best" / "model.safetensors"), weights(model)
    shared = [k for k in one if k.startswith("encoder.")]
    assert shared and all(torch.allclose(one[k], other[k], atol=1e-6) for k in shared)
    assert json.loads((model / "last" / "config.json").read_text())["zoo_name"] == "segformer-b0-pool"
    # The older form of the same weights.
    old = torch.load(encoder / "best.pth", weights_only=True)["model"]
    assert all(torch.equal(old[k], one[k]) for k in one)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--pretrain", "nowhere"), "nowhere"),
        (("--pretrain", "README.md"), "README.md"),
        (("--crop-size", "0"), "--crop-size"),
        (("--crop-size", "-3x5"), "--crop-size"),
        (("--lr", "-1"), "optim.lr"),
        (("--set", "loss.class_weights=[1,2]"), "class_weights"),
        (("--set", "train.precision=fp16"), "fp16 needs a GPU"),
        (("--model", "segformer-b9"), "did you mean"),
        (("--set", "model.mixer=pol"), "did you mean 'pool'"),
        (("--set", "model.heads=[3,1,1,1]"), "3 heads do not divide 8"),
        (("--device", "7"), "--device"),
        (("--resume",), "no run in"),
    ],
)
def test_mistakes_end_with_2_and_leave_nothing(
    wrong: tuple[str, ...], message: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(finetune_words(scenes, folder, *wrong)) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert not folder.exists()


def test_class_weights_ema_and_tensorboard(scenes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    set_ = ("loss.class_weights=inverse", "train.ema=0.5", "train.tracker=tensorboard", "train.precision=bf16")
    assert main(finetune_words(scenes, folder, steps=2, set_=set_)) == 0
    assert list((folder / "logs").rglob("events*")) or list(folder.rglob("events.out*"))


def distributed(processes: int, words: list[str], **environment: str) -> subprocess.Popen[str]:
    import os
    import sys

    root = Path(__file__).resolve().parent.parent
    return subprocess.Popen(
        ["bash", str(root / "dist_train.sh"), str(processes), *words],
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_train_as_one(shapes: Path, tmp_path: Path) -> None:
    """2 x 2 pictures a step are the 1 x 4 pictures of one process: the same run up to summation order. What is drawn
    on the device (mixing, erasing, drop path) is drawn for each process and switched off."""
    exact = (
        "model.drop_path_rate=0", "augment.mixup=0", "augment.cutmix=0", "augment.random_erasing=0", "optim.lr=0.1",
        "optim.warmup_steps=0",
    )  # fmt: skip
    alone, both = tmp_path / "alone", tmp_path / "both"
    assert main(pretrain_words(shapes, alone, set_=exact)) == 0
    process = distributed(2, pretrain_words(shapes, both, "--batch-size", "2", set_=exact))
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    assert json.loads(out)["images"] == 12  # one result, over all pictures
    assert json.loads((both / "run.json").read_text())["processes"] == 2
    logs = [[json.loads(x) for x in (f / "metrics.jsonl").read_text().splitlines()] for f in (alone, both)]
    losses = [[x["loss"] for x in log] for log in logs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    one, two = weights(alone), weights(both)
    assert all(torch.allclose(one[k], two[k], atol=2e-3) for k in one)


@pytest.mark.slow
def test_two_processes_fine_tune(scenes: Path, tmp_path: Path) -> None:
    process = distributed(2, finetune_words(scenes, tmp_path / "run", "--batch-size", "1", steps=2))
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    assert json.loads(out)["images"] == 4 and (tmp_path / "run" / "predictions" / "step-2.png").exists()


@pytest.mark.slow
def test_two_machines_pretrain(shapes: Path, tmp_path: Path) -> None:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    words = pretrain_words(shapes, tmp_path / "run", "--batch-size", "2", steps=2)[1:]  # pretrain is the default verb
    machines = [
        distributed(1, words, NNODES="2", NODE_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        for rank in (0, 1)
    ]
    ends = [machine.communicate(timeout=300) for machine in machines]
    assert [m.returncode for m in machines] == [0, 0], ends[0][1][-3000:]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["processes"] == 2
    assert (tmp_path / "run" / "best" / "model.safetensors").exists()


def test_dist_train_explains_itself() -> None:
    process = distributed(2, [])
    process.kill()
    process.communicate()
    root = Path(__file__).resolve().parent.parent
    wrong = subprocess.run(["bash", str(root / "dist_train.sh"), "pretrain"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "usage" in wrong.stderr


def test_no_arguments_are_lost_by_sets() -> None:
    assert sets("a=1")[-2:] == ["--set", "a=1"]
