"""Self-training: what is held out stays out, a loop that was stopped goes on as if it had not been, nothing is lost."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import command, draw_waste, sets
from safetensors.torch import load_file

import nota_seg.pseudo_loop
from nota_seg.cli import main
from nota_seg.data.sources import open_source
from nota_seg.metrics import ConfusionMatrix, scores
from util.coco import CocoFile
from util.submissions import Submission


@pytest.fixture(scope="module")
def folds(waste: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folded") / "folds"
    assert main(["data", "kfold", str(waste), "--folds", "3", "--output-dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def unlabelled(folds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three new pictures, and two that have labels, under other names: one of them is held out."""
    listed = draw_waste(tmp_path_factory.mktemp("unlabelled"), 3, seed=77)
    content = json.loads(listed.read_text())
    for number, split in enumerate(("train", "val")):
        file = CocoFile.read(folds / f"kfold_0_{split}.json")
        image = file.images[0]
        shutil.copyfile(file.picture(image), listed.parent / f"copy_{number}.png")
        content["images"].append({**image, "id": 1000 + number, "file_name": f"copy_{number}.png"})
    listed.write_text(json.dumps({"images": content["images"]}))
    return listed


def words(folds: Path, unlabelled: Path, folder: Path, *more: str, rounds: int = 2) -> list[str]:
    return [
        "pseudo-loop", "--data-dir", str(folds / "kfold_0_train.json"), "--unlabelled", str(unlabelled), "--output-dir",
        str(folder), "--rounds", str(rounds), "--batch-size", "2", "--crop-size", "32", "--max-steps", "3", "--pixel",
        "0.2", *sets("data.base_size=[64,48]"), *more,
    ]  # fmt: skip


def contents(file: Path) -> list[bytes]:
    coco = CocoFile.read(file)
    return [coco.picture(image).read_bytes() for image in coco.images]


def state_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "loop.json").read_text())


def test_what_is_held_out_stays_out(
    folds: Path, unlabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = tmp_path / "loop"
    assert main(words(folds, unlabelled, loop)) == 0
    table, state = capsys.readouterr().out, state_of(loop)
    assert [one["train_pictures"] for one in state["rounds"]] == [8, 11, 11] and state["left_out"] == 2
    assert [line.split()[0] for line in table.splitlines()] == [
        "round",
        "0",
        "1",
        "2",
        "best:",
        str(loop / "loop.json"),
    ]
    held_out = set(contents(folds / "kfold_0_val.json"))
    assert len(held_out) == 4
    for number in (1, 2):
        data = loop / f"round-{number}" / "data"
        assert not held_out & set(contents(data / "train.json"))
        assert not held_out & set(contents(loop / f"round-{number}" / "pseudo" / "pseudo.json"))
        assert set(contents(data / "val.json")) == held_out
        before, after = CocoFile.read(folds / "kfold_0_train.json"), CocoFile.read(data / "train.json")
        for old, new in zip(before.images, after.images, strict=False):  # labels by hand are as they were
            assert np.array_equal(before.paint(old), after.paint(new))

    # The score is that of the saved weights on the held-out pictures.
    one = state["rounds"][2]
    capsys.readouterr()
    call = ["eval", "--data-dir", str(folds / "kfold_0_train.json"), "--pretrain", str(loop / one["model"])]
    assert main([*call, "--json", "-", "--workers", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["miou"] == one["miou"]

    # Round 2 was labelled by round 1's model: it says what `data pseudo-label` says with it.
    call = ["data", "pseudo-label", "--test-json", str(loop / "data" / "unlabelled.json"), "--pixel", "0.2"]
    assert main([*call, "--pretrain", str(loop / "round-1" / "run"), "--output-dir", str(tmp_path / "p")]) == 0
    by_hand, in_loop = (CocoFile.read(f / "pseudo.json") for f in (tmp_path / "p", loop / "round-2" / "pseudo"))
    assert by_hand.annotations == in_loop.annotations and by_hand.images == in_loop.images

    assert main(words(folds, unlabelled, loop)) == 2  # nothing is overwritten
    assert state_of(loop) == state


def same_loop(a: Path, b: Path) -> None:
    for one, other in zip(state_of(a)["rounds"], state_of(b)["rounds"], strict=True):
        assert one == other
        weights = [load_file(f / one["model"] / "model.safetensors") for f in (a, b)]
        assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


@pytest.mark.parametrize("where", ["pseudo_label", "merge", "finetune", "evaluate"])
def test_stopped_anywhere_it_goes_on(
    where: str, folds: Path, unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main(words(folds, unlabelled, whole, rounds=1)) == 0
    real, calls = getattr(nota_seg.pseudo_loop, where), []

    def stopping(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        result = real(*args, **kwargs)
        if len(calls) == (1 if where in ("pseudo_label", "merge") else 2):  # in round 1, its work just done
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patched:
        patched.setattr(nota_seg.pseudo_loop, where, stopping)
        assert main(words(folds, unlabelled, stopped, rounds=1)) != 0
    assert len(state_of(stopped)["rounds"]) == 1
    assert main(words(folds, unlabelled, stopped, "--lr", "0.5", "--resume")) == 2
    assert main(words(folds, unlabelled, stopped, "--resume", rounds=1)) == 0
    same_loop(whole, stopped)


def test_more_rounds_later(folds: Path, unlabelled: Path, tmp_path: Path) -> None:
    whole, longer = tmp_path / "whole", tmp_path / "longer"
    assert main(words(folds, unlabelled, whole, rounds=2)) == 0
    assert main(words(folds, unlabelled, longer, rounds=0)) == 0
    assert main(words(folds, unlabelled, longer, "--resume", rounds=2)) == 0
    same_loop(whole, longer)


@pytest.mark.slow
def test_killed_at_any_moment(folds: Path, unlabelled: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = ("--max-steps", "12", *sets("train.checkpoint_every=2"))
    assert main(words(folds, unlabelled, whole, *more, rounds=1)) == 0
    resume: tuple[str, ...] = ()
    for seen in ("round-0/run/checkpoint-4", "round-1/pseudo", "round-1/run/checkpoint-6"):
        call = command(*words(folds, unlabelled, killed, *more, *resume, rounds=1))
        process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 240
        while not (killed / seen).is_dir() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the loop was over before it could be killed"
        resume = ("--resume",)
    assert main(words(folds, unlabelled, killed, *more, *resume, rounds=1)) == 0
    same_loop(whole, killed)
    assert not list(killed.rglob(".*partial*"))


def test_a_folder_of_pictures(folds: Path, unlabelled: Path, tmp_path: Path) -> None:
    assert main(words(folds, unlabelled.parent, tmp_path / "loop", rounds=0)) == 0
    state = state_of(tmp_path / "loop")
    listed = CocoFile.read(tmp_path / "loop" / "data" / "unlabelled.json")
    assert len(listed.images) == 3 and state["left_out"] == 2
    assert all(listed.read_picture(image).size for image in listed.images)


def test_mistakes(
    folds: Path, unlabelled: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*call: str) -> str:
        capsys.readouterr()
        assert main(list(call)) == 2 and not (tmp_path / "loop").exists()
        text = capsys.readouterr().err.strip()
        assert "\n" not in text
        return text

    loop = tmp_path / "loop"
    assert "to-coco" in error(*words(folds, unlabelled, loop, "--data-dir", str(scenes)))
    assert "all of its 4 pictures have labels" in error(*words(folds, folds / "kfold_0_val.json", loop))
    assert "did you mean 'black'" in error(*words(folds, unlabelled, loop, "--class", "blak=0.5"))
    other = json.loads(unlabelled.read_text()) | {"annotations": [], "categories": [{"id": 1, "name": "other"}]}
    (unlabelled.parent / "other.json").write_text(json.dumps(other))
    assert "categories differ" in error(*words(folds, unlabelled.parent / "other.json", loop))

    # A held-out picture that is trained on too, under another name.
    train = CocoFile.read(folds / "kfold_0_train.json")
    leak = CocoFile.read(folds / "kfold_0_val.json")
    data = tmp_path / "data"
    data.mkdir()
    for number, image in enumerate(train.images):
        shutil.copyfile(train.picture(image), data / f"{number}.png")
        image["file_name"] = f"{number}.png"
    shutil.copyfile(leak.picture(leak.images[0]), data / "leak.png")
    image = {**leak.images[0], "id": 999, "file_name": "leak.png"}
    leaky = CocoFile(train.path, [*train.images, image], {**train.annotations_by_image, 999: []}, train.categories)
    leaky.write(data / "x_train.json", data)
    leak.write(data / "x_val.json")
    assert "in the held-out one" in error(*words(folds, unlabelled, loop, "--data-dir", str(data / "x_train.json")))


@pytest.mark.slow
def test_from_annotations_to_an_ensembled_submission(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Folds, training, pseudo-labels, training again, soft voting, CSV: by the command line, in minutes on a CPU, and
    the result is right."""
    labelled, test = draw_waste(tmp_path / "a", 30, seed=1), draw_waste(tmp_path / "b", 10, seed=2)
    (tmp_path / "b" / "test.json").write_text(json.dumps({"images": json.loads(test.read_text())["images"][::-1]}))
    listed = str(tmp_path / "b" / "test.json")
    recipe = [
        "--batch-size", "4", "--crop-size", "48", "--max-steps", "300", "--lr", "3e-3",
        *sets("data.base_size=[64,48]", "data.color_jitter=null", "data.max_class_share=1.0", "data.scale=[0.8,1.25]",
              "optim.decoder_lr_scale=1", "train.eval_every=100"),
    ]  # fmt: skip

    def run(*call: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in call]) == 0, call
        return capsys.readouterr().out

    run("data", "kfold", labelled, "--folds", 2, "--output-dir", tmp_path / "folds")
    runs = []
    for fold in (0, 1):
        data, loop = tmp_path / "folds" / f"kfold_{fold}_train.json", tmp_path / f"loop-{fold}"
        run("pseudo-loop", "--data-dir", data, "--test-json", listed, "--rounds", 1, "--output-dir", loop, *recipe)
        rounds = state_of(loop)["rounds"]
        assert [one["train_pictures"] for one in rounds] == [15, 24]  # an empty picture is in both sets
        assert all(one["miou"] > 0.5 for one in rounds), [one["miou"] for one in rounds]
        runs += ["--pretrain", loop / "round-1" / "run"]
    run("ensemble", *runs, "--test-json", listed, "--tta", "hflip", "--size", 64, "--output", tmp_path / "soft.csv")

    voted, truth = Submission(tmp_path / "soft.csv"), open_source(test)
    images = {Path(i["file_name"]).with_suffix("").as_posix(): i for i in CocoFile.read(listed, annotated=False).images}
    assert voted.image_ids == [image["file_name"] for image in images.values()]
    matrix = ConfusionMatrix(4, "cpu")
    for split in truth.splits:
        for index, name in enumerate(truth.names(split)):
            label = torch.from_numpy(truth.read_label(split, index))
            predicted = torch.from_numpy(voted.label(images[name]["file_name"]).astype(np.uint8))[None, None]
            predicted = torch.nn.functional.interpolate(predicted, size=label.shape, mode="nearest")
            matrix.update(predicted[0, 0].long(), label)
    assert scores(matrix.matrix)["miou"] > 0.5  # the background alone has 0.23
