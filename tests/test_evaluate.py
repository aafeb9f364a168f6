import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nota_seg.evaluate import evaluate, format_table
from nota_seg.inference import Protocol
from util.errors import InputError

K = 4


class FakeSource:
    """Pictures whose red value is 60 times the class, in three sizes; the truth is ignored on the top row."""

    class_names = ["sky", "road", "tree", "ship"]
    num_labels = K
    sizes = [(20, 30), (20, 30), (31, 17), (20, 30), (24, 24), (24, 24), (24, 24)]
    splits = {"val": len(sizes), "empty": 0}

    def names(self, split: str) -> list[str]:
        return [f"picture{i}" for i in range(self.splits[split])]

    def read(self, split: str, i: int) -> tuple[np.ndarray, np.ndarray]:
        label = np.random.default_rng(i).integers(0, K - 1, self.sizes[i]).astype(np.uint8)  # never a ship
        image = np.stack([label * 60, label, label], axis=-1).astype(np.uint8)
        label = label.copy()
        label[0] = 255
        return image, label


class ByColour(nn.Module):
    """Reads the class off the red value exactly."""

    def __init__(self, classes: int = K) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_labels=classes, image_mean=(0.0, 0.0, 0.0), image_std=(1.0, 1.0, 1.0))
        self.batches: list[int] = []

    def forward(self, pixel_values: Tensor) -> Any:
        self.batches.append(len(pixel_values))
        centres = torch.arange(self.config.num_labels).view(1, -1, 1, 1) * 60 / 255
        return SimpleNamespace(logits=-((pixel_values[:, :1] - centres) ** 2))


def run(model: nn.Module | None = None, protocol: Protocol | None = None, **kwargs: Any) -> dict[str, Any]:
    source: Any = FakeSource()
    return evaluate(model or ByColour(), source, "val", protocol or Protocol(), device="cpu", **kwargs)


def test_a_perfect_model() -> None:
    result = run()
    assert result["miou"] == result["macc"] == result["aacc"] == result["boundary_iou"] == 1.0
    assert list(result["per_class"]) == FakeSource.class_names
    assert result["per_class"]["ship"] == {"iou": None, "acc": None}
    assert result["images"] == 7
    assert result["protocol"]["mode"] == "whole" and result["protocol"]["split"] == "val"
    json.dumps(result, allow_nan=False)


def test_neighbours_of_equal_size_are_batched_and_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, alone = Wrong(), Wrong()
    batched = run(model, batch_size=2)
    assert model.batches == [2, 1, 1, 2, 1]
    assert batched == run(alone, batch_size=1) and alone.batches == 7 * [1]
    height, width = FakeSource.sizes[0]
    for pixels, batches in ((2 * height * width, [2, 1, 1, 2, 1]), (1, 7 * [1])):
        monkeypatch.setattr("nota_seg.evaluate.TOGETHER", pixels)
        model = Wrong()
        assert run(model) == batched and model.batches == batches


class Wrong(ByColour):
    """Right but for pixels that depend on the picture alone."""

    def forward(self, pixel_values: Tensor) -> Any:
        output = super().forward(pixel_values)
        output.logits[:, :, ::3, ::2] = output.logits[:, :, ::3, ::2].roll(1, dims=1)
        return output


@pytest.mark.parametrize("world", [2, 3, 9])
def test_processes_share_the_split(world: int) -> None:
    alone = run(Wrong())
    parts: list[Tensor] = []

    def collect(vector: Tensor) -> Tensor:
        parts.append(vector)
        return vector

    for rank in range(world):
        run(Wrong(), rank=rank, world=world, reduce=collect)
    total = torch.stack(parts).sum(dim=0)
    assert total.dtype == torch.int64
    assert run(Wrong(), rank=0, world=world, reduce=lambda _: total) == alone


def test_workers_change_nothing() -> None:
    assert run(Wrong(), workers=1, batch_size=3) == run(Wrong())


def test_an_error_in_a_worker_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: FakeSource, split: str, i: int) -> None:
        raise InputError(f"picture {i}: not one")

    monkeypatch.setattr(FakeSource, "read", read)
    with pytest.raises(InputError) as caught:
        run(workers=2)
    assert str(caught.value) == "picture 0: not one"


def test_labels_keep_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def twice(image: np.ndarray, base_size: tuple[int, int]) -> np.ndarray:
        asked.append(base_size)
        return image.repeat(2, axis=0).repeat(2, axis=1)

    monkeypatch.setattr("nota_seg.inference.resize_for_eval", twice)
    seen: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    result = run(
        protocol=Protocol(base_size=(60, 40)),
        on_picture=lambda name, pred, truth: seen.append((name, pred.shape, truth.shape)),
    )
    assert asked == [(60, 40)] * 7
    assert seen == [(f"picture{i}", size, size) for i, size in enumerate(FakeSource.sizes)]
    assert result["aacc"] == 1.0  # a picture doubled and its logits halved again give every pixel back


def test_limit_progress_and_mode() -> None:
    model, steps = ByColour().train(), []
    model.frozen = nn.BatchNorm2d(3).eval()
    result = run(model, limit=3, progress=steps.append, boundary=False)
    assert result["images"] == 3 and sum(steps) == 3
    assert result["boundary_iou"] is None
    assert model.training and not model.frozen.training


@pytest.mark.parametrize(
    ("split", "classes", "kwargs", "message"),
    [
        ("vall", K, {}, "did you mean 'val'"),
        ("empty", K, {}, "no pictures"),
        ("val", 150, {}, "150 classes and the data have 4"),
        ("val", K, {"batch_size": 0}, "batch_size"),
        ("val", K, {"world": 2}, "reduce"),
    ],
)
def test_wrong_input(split: str, classes: int, kwargs: dict[str, Any], message: str) -> None:
    source: Any = FakeSource()
    with pytest.raises(InputError, match=message):
        evaluate(ByColour(classes), source, split, Protocol(), device="cpu", **kwargs)


def test_table() -> None:
    lines = format_table(run()).splitlines()
    assert lines[0].split() == ["class", "IoU", "acc"]
    assert [line.split()[0] for line in lines[2:6]] == FakeSource.class_names
    assert lines[2].split() == ["sky", "100.00", "100.00"] and lines[5].split() == ["ship", "-", "-"]
    assert "boundary IoU 100.00" in lines[-1] and "7 pictures" in lines[-1]
