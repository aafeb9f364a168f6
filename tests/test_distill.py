"""Distillation: what is minimised, who may teach, and that no teacher nor projection gets into what is saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import finetune_words, run_cli
from safetensors.torch import load_file
from torch import nn

import nota_seg
from nota_seg.cli import main
from nota_seg.data.sources import open_source
from nota_seg.distill import Teacher, attach_projections, class_order, divergence, nearest, resemblance
from nota_seg.models.loading import load_model
from util.errors import InputError

SMALL: dict[str, Any] = {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "heads": [1, 1, 2, 2]}


@pytest.fixture(scope="module")
def names(scenes: Path) -> list[str]:
    return open_source(scenes).class_names


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> Path:
    """A saved model of ours with the scenes' classes."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("teacher") / "ours"
    wide = {**SMALL, "dims": [16, 24, 32, 48]}
    labels = dict(enumerate(names))
    model = nota_seg.create_model("segformer-b0", **wide, id2label=labels, label2id={v: k for k, v in labels.items()})
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> Path:
    """A saved model of transformers, its classes in another order and one more."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(4)
    labels = dict(enumerate(["something else", *names[::-1]]))
    config = SegformerConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16,
        id2label=labels, label2id={v: k for k, v in labels.items()},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("teacher") / "theirs"
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    return folder


def test_divergence_is_the_papers_formula() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)
    labels = torch.zeros(2, 6, 10, dtype=torch.uint8)
    p, q = (F.softmax(x / 3, dim=1) for x in (student, teacher))
    expected = 9 * (q * (q / p).log()).sum(1).mean()
    assert torch.allclose(divergence(student, teacher, labels, 3.0), expected, atol=1e-6)
    assert divergence(student, student + 5, labels, 1.0).abs() < 1e-6  # a constant changes no probability


def test_ignored_pixels_teach_nothing() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 4, 4, 4, requires_grad=True), torch.randn(1, 4, 2, 2)
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    labels[:, :4] = 255
    divergence(student, teacher, labels, 1.0).backward()
    assert student.grad is not None
    assert student.grad[:, :, :2].abs().max() == 0 and (student.grad[:, :, 2:].abs().sum(1) > 0).all()
    assert divergence(student, teacher, torch.full_like(labels, 255), 1.0) == 0


def test_resemblance_is_nothing_for_equals_and_reaches_the_projection() -> None:
    maps = [torch.randn(1, 6, 8, 8), torch.randn(1, 6, 4, 4)]
    same = nn.ModuleList(nn.Conv2d(6, 6, 1, bias=False) for _ in maps)
    for layer in same:
        layer.weight.data = torch.eye(6)[:, :, None, None] * 3  # the scale does not matter
    assert resemblance(same, maps, maps).abs() < 1e-6
    other = resemblance(same, maps, [-m for m in maps])
    assert other.item() == pytest.approx(2, abs=1e-5)
    other.backward()
    assert all(layer.weight.grad is not None for layer in same)
    assert [nearest(size, maps) for size in ((8, 8), (9, 9), (5, 5), (2, 2))] == [0, 0, 1, 1]


def test_classes_are_matched_by_name() -> None:
    assert class_order(["a", "b"], ["a", "b"], "t") is None
    order = class_order(["x", "B", "a"], ["a", "b"], "t")
    assert order is not None and order.tolist() == [2, 1]
    assert class_order(["LABEL_0", "LABEL_1"], ["a", "b"], "t") is None
    for names in (["a", "c"], ["a"], ["class 0", "class 1", "class 2"]):
        with pytest.raises(InputError, match="it lacks"):
            class_order(names, ["a", "b"], "t")


def test_a_teacher_of_transformers_answers_in_our_order(theirs: Path, names: list[str]) -> None:
    teacher = Teacher(str(theirs), names)
    model, found = load_model(theirs)
    pixels = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    logits, maps = teacher.train()(pixels, maps=True)
    direct = model(pixel_values=(pixels / 255 - 0.5) / 0.5).logits
    for i, name in enumerate(names):
        assert torch.allclose(logits[:, i], direct[:, found.index(name)], atol=1e-5)
    assert [m.shape[1:] for m in maps] == [(8, 16, 24), (16, 8, 12), (24, 4, 6), (32, 2, 3)]
    assert not logits.requires_grad and not any(m.training for m in teacher.modules())


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> Path:
    """A model that segmentation-models-pytorch saved itself, which keeps no class names."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("teacher") / "unet"
    smp.Unet("resnet18", encoder_weights=None, classes=len(names), decoder_channels=[16] * 5).save_pretrained(folder)
    return folder


def test_a_teacher_of_smp_gives_its_logits_and_the_maps_of_its_encoder(unet: Path, names: list[str]) -> None:
    import segmentation_models_pytorch as smp

    teacher = Teacher(str(unet), names)
    mean, std = (torch.tensor(v)[:, None, None] for v in (teacher.mean, teacher.std))
    for size, sides in (((64, 96), [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]), ((40, 70), [(20, 35), (10, 18)])):
        pixels = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
        logits, maps = teacher(pixels, maps=True)
        assert [tuple(m.shape[2:]) for m in maps][: len(sides)] == sides  # of what was padded, the picture's share
        assert [m.shape[1] for m in maps] == [64, 64, 128, 256, 512] and tuple(logits.shape[2:]) == size
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        direct = smp.from_pretrained(unet).eval()((pixels / 255 - mean) / std)
    assert torch.allclose(teacher(pixels)[0], direct, atol=1e-5)


def test_projections_are_in_the_state_and_not_in_the_folder(ours: Path, names: list[str], tmp_path: Path) -> None:
    student = nota_seg.create_model("segformer-b0", num_labels=len(names), **SMALL)
    before = set(student.state_dict())
    attach_projections(student, Teacher(str(ours), names))
    assert [p.weight.shape[:2] for p in student.decoder.distillation] == [(16, 8), (24, 16), (32, 24), (48, 32)]
    assert set(student.state_dict()) - before == {
        f"decoder.distillation.{i}.{kind}" for i in range(4) for kind in ("weight", "bias")
    }
    student.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) <= before
    again, _ = load_model(tmp_path)  # which refuses keys too few and too many
    assert set(again.state_dict()) == before


@pytest.mark.parametrize("which", ["ours", "theirs", "unet"])
def test_trained_killed_and_continued_exactly(
    which: str, scenes: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    teacher = request.getfixturevalue(which)
    more = ("--teacher", str(teacher), "--device", "cpu")
    sets = ("distill.features=0.5", "distill.temperature=4", "train.ema=0.5")

    def words(folder: Path, steps: int, *rest: str) -> list[str]:
        return finetune_words(scenes, folder, *more, *rest, steps=steps, set_=sets)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(words(whole, 4)) == 0
    assert main(words(parts, 4)) == 0
    for name in ("checkpoint-4", "last", "best"):  # as if it had been killed after step 2
        shutil.rmtree(parts / name, ignore_errors=True)
    assert main(words(parts, 4, "--resume")) == 0
    a, b = (load_file(f / "last" / "model.safetensors") for f in (whole, parts))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert not any("distillation" in k or "teacher" in k for k in a)
    state = torch.load(whole / "checkpoint-4" / "state.pt", weights_only=True)
    assert "decoder.distillation.0.weight" in state["model"] and not any("teacher" in k for k in state["model"])
    plain = tmp_path / "plain"
    assert main(finetune_words(scenes, plain, "--device", "cpu", steps=4, set_=("train.ema=0.5",))) == 0
    c = load_file(plain / "last" / "model.safetensors")
    assert c.keys() == a.keys() and not all(torch.equal(a[k], c[k]) for k in a)


@pytest.mark.slow
def test_the_verb_and_a_student_that_follows_its_teacher(scenes: Path, names: list[str], tmp_path: Path) -> None:
    """Without labels: what is learnt is the teacher's."""
    teacher = tmp_path / "teacher"
    assert main(finetune_words(scenes, teacher, "--device", "cpu", "--lr", "3e-3", steps=60)) == 0
    words = finetune_words(scenes, tmp_path / "student", "--lr", "3e-3", steps=60, set_=("distill.labels=0",))
    done = run_cli("distill", *words[1:], "--teacher", str(teacher), "--temperature", "2", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(x) for x in (tmp_path / "student" / "metrics.jsonl").read_text().splitlines()]
    losses = [x["loss"] for x in lines if x["split"] == "train"]
    assert min(losses[-5:]) < 0.5 * losses[0]


def test_mistakes(scenes: Path, ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    three = nota_seg.create_model("segformer-b0", num_labels=3, **SMALL)
    three.save_pretrained(tmp_path / "three")
    for teacher, message in ((tmp_path / "three", "has 3 classes"), (tmp_path / "nowhere", "no model at")):
        words = finetune_words(scenes, tmp_path / "run", "--device", "cpu", "--teacher", str(teacher))
        assert main(words) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "run").exists()
