import cv2
import numpy as np
import pytest
import torch

from nota_seg.metrics import BoundaryIoU, ConfusionMatrix, boundary_bands, scores
from util.errors import InputError


def random_maps(seed: int, shape: tuple[int, ...] = (2, 40, 57), classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocky truth with ignored pixels, and a prediction that is mostly right."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, classes, (shape[0], shape[1] // 8 + 1, shape[2] // 8 + 1), generator=g)
    label = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, : shape[1], : shape[2]].clone()
    pred = torch.where(torch.rand(shape, generator=g) < 0.9, label, torch.randint(0, classes, shape, generator=g))
    label[:, 3:9, 5:30] = 255
    return pred, label.to(torch.uint8)


def test_counts_by_hand() -> None:
    cm = ConfusionMatrix(3)
    cm.update(torch.tensor([[0, 1], [1, 2]]), torch.tensor([[0, 0], [1, 255]]))
    assert cm.matrix.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert cm.matrix.dtype == torch.int64
    result = scores(cm.matrix)
    assert result["iou"] == [0.5, 0.5, None]  # the third class is ignored in the truth: not there at all
    assert result["acc"] == [0.5, 1.0, None]
    assert result["miou"] == 0.5 and result["macc"] == 0.75 and result["aacc"] == pytest.approx(2 / 3)


def test_predicted_but_absent_counts_as_zero() -> None:
    cm = ConfusionMatrix(3)
    cm.update(torch.tensor([0, 2]), torch.tensor([0, 0]))
    result = scores(cm.matrix)
    assert result["iou"] == [0.5, None, 0.0] and result["acc"] == [0.5, None, None]
    assert result["miou"] == 0.25


def test_nothing_counted() -> None:
    cm = ConfusionMatrix(2)
    cm.update(torch.zeros(4), torch.full((4,), 255))
    assert scores(cm.matrix) == {"miou": None, "macc": None, "aacc": None, "iou": [None] * 2, "acc": [None] * 2}


def test_merging_parts_is_exact() -> None:
    whole, parts = ConfusionMatrix(4), [ConfusionMatrix(4), ConfusionMatrix(4)]
    for seed in range(4):
        maps = random_maps(seed)
        whole.update(*maps)
        parts[seed % 2].update(*maps)
    parts[0].merge(parts[1])
    assert torch.equal(parts[0].matrix, whole.matrix)


@pytest.mark.parametrize(("pred", "label", "who"), [([0, 3], [0, 1], "prediction"), ([0, 1], [0, 7], "label")])
def test_values_that_are_no_class(pred: list[int], label: list[int], who: str) -> None:
    cm = ConfusionMatrix(3)
    with pytest.raises(InputError, match=who):
        cm.update(torch.tensor(pred), torch.tensor(label))
    assert not cm.matrix.any()


def test_shapes_must_agree() -> None:
    with pytest.raises(InputError, match="shape"):
        ConfusionMatrix(3).update(torch.zeros(2, 2), torch.zeros(4))


def mask_to_boundary(mask: np.ndarray, d: int) -> np.ndarray:
    """A mask's band the slow way: erode a zero-padded mask d times."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=d)[1:-1, 1:-1]
    return (mask.astype(np.uint8) - eroded).astype(bool)


@pytest.mark.parametrize("ratio", [0.001, 0.02, 0.06, 0.9])
def test_boundary_iou_equals_erosion_of_each_class(ratio: float) -> None:
    K = 4
    pred, label = random_maps(7)
    metric = BoundaryIoU(K + 1, ratio)  # one class that never occurs
    metric.update(pred, label)
    d = max(1, round(ratio * float(np.hypot(*label.shape[1:]))))
    inter, union = np.zeros(K + 1, int), np.zeros(K + 1, int)
    for p, t in zip(pred.numpy(), label.numpy(), strict=True):
        p = np.where(t == 255, 255, p)
        for k in range(K + 1):
            a, b = mask_to_boundary(p == k, d), mask_to_boundary(t == k, d)
            inter[k] += (a & b).sum()
            union[k] += (a | b).sum()
    assert metric.intersection.tolist() == inter.tolist()
    assert metric.union.tolist() == union.tolist()
    assert metric.per_class()[K] is None
    assert metric.score() == pytest.approx(np.mean(inter[:K] / union[:K]))


def test_boundary_iou_of_the_truth_is_one() -> None:
    label = random_maps(3)[1]
    metric = BoundaryIoU(4)
    metric.update(label.long(), label)
    assert metric.score() == 1.0


def test_boundary_iou_merges_and_takes_one_picture() -> None:
    pred, label = random_maps(5)
    whole, first, second = BoundaryIoU(4), BoundaryIoU(4), BoundaryIoU(4)
    whole.update(pred, label)
    first.update(pred[0], label[0])
    second.update(pred[1], label[1])
    first.merge(second)
    assert torch.equal(first.intersection, whole.intersection) and torch.equal(first.union, whole.union)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_bands_on_a_gpu_are_the_same() -> None:
    pred, _ = random_maps(1)
    assert torch.equal(boundary_bands(pred.cuda(), 3).cpu(), boundary_bands(pred, 3))
