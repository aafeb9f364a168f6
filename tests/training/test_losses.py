"""Losses by name: values by hand, ignored pixels, sums, half precision, mistakes."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import finetune_words
from torch import Tensor

from nota_seg.cli import main
from nota_seg.config import FinetuneConfig, FinetuneLoss, LossPart, build, dump
from nota_seg.models.losses import upsampled_cross_entropy
from nota_seg.training.losses import LOSSES, WeightedSum, signed_distances
from util.errors import InputError

pytest.importorskip("segmentation_models_pytorch")
K = 4
every = pytest.mark.parametrize("name", LOSSES)
OPTIONS: dict[str, dict[str, Any]] = {"ohem": {"min_kept": 0.3}, "ssim": {"window": 5}}


def criterion(*parts: Any, weights: Tensor | None = None) -> WeightedSum:
    return WeightedSum([p if isinstance(p, LossPart) else LossPart.model_validate(p) for p in parts], K, weights)


def one(name: str, **args: Any) -> WeightedSum:
    return criterion(LossPart(type=name, args={**OPTIONS.get(name, {}), **args}))


def scene(seed: int = 0, size: int = 16) -> tuple[Tensor, Tensor]:
    """Logits at the labels' size, and blobs with a part ignored."""
    torch.manual_seed(seed)
    coarse = torch.randint(0, K, (2, 4, 4))
    labels = coarse.repeat_interleave(size // 4, 1).repeat_interleave(size // 4, 2)
    labels[:, : size // 3, size // 2 :] = 255
    return torch.randn(2, K, size, size, requires_grad=True), labels


@every
def test_ignored_pixels_have_no_gradient_and_no_say(name: str) -> None:
    logits, labels = scene()
    loss = one(name)
    value = loss(logits, labels)
    value.backward()
    ignored = (labels == 255)[:, None].expand_as(logits)
    assert logits.grad is not None and not logits.grad[ignored].any()
    if name != "ohem":  # which leaves easy pixels out
        assert (logits.grad.abs().sum(1)[labels != 255] > 0).float().mean() > 0.95
    other = logits.detach().clone()
    other[ignored] = 37.0
    assert torch.allclose(loss(other, labels), value, atol=1e-6)


@every
def test_a_batch_of_nothing_but_ignored_pixels(name: str) -> None:
    logits, labels = scene()
    loss = one(name)
    value = loss(logits, torch.full_like(labels, 255))
    value.backward()
    assert value.item() == 0 and not logits.grad.any()
    labels[0] = 255  # one picture of nothing else
    logits.grad = None
    value = loss(logits, labels)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(logits.grad).all() and not logits.grad[0].any()
    assert logits.grad[1].any()


@every
def test_the_right_answer_is_better(name: str) -> None:
    _, labels = scene()
    right = 40.0 * F.one_hot(labels.where(labels != 255, 0), K).permute(0, 3, 1, 2).float() - 20
    loss = one(name)
    good, unsure, wrong = loss(right, labels), loss(torch.zeros_like(right), labels), loss(right.roll(1, 1), labels)
    assert good < unsure and good < wrong
    if name != "ssim":  # of nothing and of the wrong structure neither resembles the mask
        assert unsure < wrong
    if name != "boundary":  # negative inside
        assert good.item() == pytest.approx(0, abs=1e-3)


@every
@pytest.mark.parametrize("perfect", [False, True])
def test_half_precision_and_coarse_logits(name: str, perfect: bool) -> None:
    _, labels = scene()
    coarse = torch.randn(2, K, 4, 4)
    if perfect:
        coarse = 50.0 * F.one_hot(labels[:, ::4, ::4].where(labels[:, ::4, ::4] != 255, 0), K).permute(0, 3, 1, 2)
    half = coarse.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = one(name)(half, labels.to(torch.uint8))
    value.backward()
    assert value.dtype == torch.float32 and torch.isfinite(value) and torch.isfinite(half.grad).all()
    full = F.interpolate(half.detach().float(), size=(16, 16), mode="bilinear", align_corners=False)
    assert value.item() == pytest.approx(one(name)(full, labels).item(), abs=1e-4)


def test_a_sum_is_weighted_and_the_default_is_the_models_own() -> None:
    logits, labels = scene()
    total = criterion({"type": "ce", "weight": 0.75}, {"type": "dice", "weight": 0.25})(logits, labels)
    assert total.item() == pytest.approx(
        0.75 * one("ce")(logits, labels).item() + 0.25 * one("dice")(logits, labels).item()
    )
    default = WeightedSum(FinetuneLoss().parts, K)
    assert default.is_plain and not criterion({"type": "ce", "weight": 0.5}).is_plain
    assert not criterion("ce", "dice").is_plain and not one("ce", label_smoothing=0.1).is_plain
    coarse = torch.randn(2, K, 4, 4)
    assert default(coarse, labels).item() == pytest.approx(upsampled_cross_entropy(coarse, labels).item())


def test_class_weights_reach_the_losses_that_have_a_use_for_them() -> None:
    logits, labels = scene()
    weights = torch.tensor([0.1, 3.0, 0.5, 0.4])
    for name, kind in LOSSES.items():
        part = LossPart(type=name, args=OPTIONS.get(name, {}))
        plain, weighted = criterion(part)(logits, labels), criterion(part, weights=weights)(logits, labels)
        assert (abs(plain - weighted) > 1e-5) == kind.weighs_classes, name
    expected = F.cross_entropy(logits, labels, weight=weights, ignore_index=255, label_smoothing=0.1)
    smoothed = criterion({"type": "ce", "args": {"label_smoothing": 0.1}}, weights=weights)(logits, labels)
    assert smoothed.item() == pytest.approx(expected.item(), rel=1e-5)


def test_dice_tversky_and_focal_by_hand() -> None:
    logits, labels = scene()
    valid = labels != 255
    p = logits.detach().softmax(1).permute(0, 2, 3, 1)[valid]
    y = F.one_hot(labels[valid], K).float()
    hit, wrong, missed = (p * y).sum(0), (p * (1 - y)).sum(0), ((1 - p) * y).sum(0)
    there = (y.sum(0) > 0).float()
    dice = 1 - 2 * hit / (2 * hit + wrong + missed)
    tversky = 1 - hit / (hit + 0.3 * wrong + 0.7 * missed)
    assert one("dice")(logits, labels).item() == pytest.approx((dice * there).mean().item(), rel=1e-4)
    assert one("tversky")(logits, labels).item() == pytest.approx((tversky * there).mean().item(), rel=1e-4)
    by_class = (tversky**0.75 * there).mean().item()
    assert one("focal_tversky")(logits, labels).item() == pytest.approx(by_class, rel=1e-4)
    z = logits.detach().permute(0, 2, 3, 1)[valid]
    bce = F.binary_cross_entropy_with_logits(z, y, reduction="none")
    assert one("focal", gamma=1.5)(logits, labels).item() == pytest.approx(
        (bce * (1 - torch.exp(-bce)) ** 1.5).mean().item(), rel=1e-4
    )


def test_ohem_takes_the_hard_pixels() -> None:
    logits = torch.zeros(1, 2, 1, 10)
    logits[0, 0, 0] = torch.tensor([9.0, 9, 9, 9, 9, 9, 9, 9, 0.1, -3])  # two pixels below 0.7
    labels = torch.zeros(1, 1, 10, dtype=torch.long)
    each = F.cross_entropy(logits, labels, reduction="none")[0, 0]
    loss = WeightedSum([LossPart(type="ohem", args={"min_kept": 1})], 2)
    assert loss(logits, labels).item() == pytest.approx(each[8:].mean().item())
    loss = WeightedSum([LossPart(type="ohem", args={"min_kept": 0.5})], 2)
    assert loss(logits, labels).item() == pytest.approx(each.mean().item())  # filled up; the equal ones come together
    labels[0, 0, 9] = 255
    loss = WeightedSum([LossPart(type="ohem", args={"min_kept": 1})], 2)
    assert loss(logits, labels).item() == pytest.approx(each[8].item())


def test_distances_are_signed_symmetric_and_know_no_boundary_to_the_ignored() -> None:
    label = np.zeros((6, 12), np.uint8)
    label[:, 6:] = 2
    label[:, 10:] = 255
    classes, phi = signed_distances(label)
    assert classes.tolist() == [0, 2] and phi.shape == (2, 6, 12)
    expected = np.array([-5.5, -4.5, -3.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 0, 0]) / 12
    assert np.allclose(phi[0], expected, atol=1e-4) and np.allclose(phi[1], -expected, atol=1e-4)
    assert not len(signed_distances(np.zeros((4, 4), np.uint8))[0])  # one class everywhere has no boundary


def test_ssim_is_that_of_the_paper() -> None:
    """Against the definition with explicit windows."""
    torch.manual_seed(0)
    logits, labels = torch.randn(1, 2, 9, 9), torch.randint(0, 2, (1, 9, 9))
    p, y = logits.softmax(1)[0].double(), F.one_hot(labels[0], 2).permute(2, 0, 1).double()
    line = torch.exp(-0.5 * ((torch.arange(5) - 2) / 1.5) ** 2).double()
    whole = torch.zeros(2, 9, 9, dtype=torch.float64)
    for k in range(2):
        for i in range(9):
            for j in range(9):
                rows = [r for r in range(i - 2, i + 3) if 0 <= r < 9]
                columns = [c for c in range(j - 2, j + 3) if 0 <= c < 9]
                w = torch.outer(line[[r - i + 2 for r in rows]], line[[c - j + 2 for c in columns]])
                w = w / w.sum()
                a, b = p[k][rows][:, columns], y[k][rows][:, columns]
                ma, mb = (w * a).sum(), (w * b).sum()
                va, vb, cov = (w * a * a).sum() - ma**2, (w * b * b).sum() - mb**2, (w * a * b).sum() - ma * mb
                whole[k, i, j] = ((2 * ma * mb + 1e-4) * (2 * cov + 9e-4)) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    # At the border the windows end with the picture.
    inner = WeightedSum([LossPart(type="ssim", args={"window": 5})], 2)(logits, labels).item()
    assert inner == pytest.approx(1 - whole.mean().item(), abs=1e-4)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ("[dise]", "unknown loss 'dise': did you mean 'dice'"),
        ("[{type: focal, args: {gama: 2}}]", "no argument 'gama': did you mean 'gamma'"),
        ("[{type: focal, args: {gamma: two}}]", "loss 'focal' refuses"),
        ("[{type: ssim, args: {window: 4}}]", "window is odd"),
        ("[{type: dice, wieght: 2}]", "wieght"),
        ("[{args: {}}]", "loss.parts"),
        ("[]", "loss.parts is empty"),
    ],
)
def test_mistakes_end_with_2(parts: str, words: str, scenes: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(finetune_words(scenes, tmp_path / "run", set_=(f"loss={parts}",))) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and words in last and not (tmp_path / "run").exists()


def test_without_smp_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    for name in ("dice", "lovasz", "focal_tversky"):
        with pytest.raises(InputError, match=r"pip install 'nota-seg\[smp\]'"):
            one(name)
    logits, labels = scene()
    assert math.isfinite(criterion("ce", "ohem", "boundary", "ssim")(logits, labels).item())


def test_short_forms_in_yaml_and_set(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("loss:\n  - ce\n  - {type: dice, weight: 0.25}\n")
    config = build(FinetuneConfig, file=file, sets=["loss.class_weights=inverse"])
    assert [(p.type, p.weight) for p in config.loss.parts] == [("ce", 1.0), ("dice", 0.25)]
    assert config.loss.class_weights == "inverse"
    assert build(FinetuneConfig, base=dump(config)) == config
    for short in ("loss=dice", "loss=[dice]", "loss.parts=dice", "loss={type: dice}", "loss.parts=[{type: dice}]"):
        assert [p.type for p in build(FinetuneConfig, file=file, sets=[short]).loss.parts] == ["dice"]
    file.write_text("loss: {class_weights: smoothed, parts: [lovasz]}\n")
    assert build(FinetuneConfig, file=file).loss.parts[0].type == "lovasz"


def test_a_run_with_a_sum_of_losses(scenes: Path, tmp_path: Path) -> None:
    set_ = ("loss=[{type: ce, weight: 0.75}, {type: dice, weight: 0.25}, boundary]", "loss.class_weights=smoothed")
    assert main(finetune_words(scenes, tmp_path / "run", steps=2, set_=set_)) == 0
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert [p["weight"] for p in saved["loss"]["parts"]] == [0.75, 0.25, 1.0]
    plain = main(finetune_words(scenes, tmp_path / "plain", steps=2))
    lines = [json.loads((tmp_path / f / "metrics.jsonl").read_text().splitlines()[0])["loss"] for f in ("run", "plain")]
    assert plain == 0 and lines[0] != lines[1]
