"""Scores of label maps: the confusion matrix and what follows from it, and Boundary IoU.

Everything that is accumulated is a whole number (int64), so the result depends neither on the order of the pictures
nor on how many processes shared them: adding the accumulators is exact.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from util.errors import InputError

IGNORE = 255


class ConfusionMatrix:
    """Counts pixels by (truth, prediction).

    Args:
        num_labels: Classes K.
        device: Where the counts live; predictions and labels are moved there.
    """

    def __init__(self, num_labels: int, device: torch.device | str = "cpu") -> None:
        if num_labels < 1:
            raise InputError(f"num_labels must be at least 1, got {num_labels}")
        self.num_labels = num_labels
        self.matrix = torch.zeros(num_labels, num_labels, dtype=torch.int64, device=device)  # [truth, prediction]

    def update(self, pred: Tensor, label: Tensor, ignore: int = IGNORE) -> None:
        """Add pictures.

        Args:
            pred: Class indices, any shape and integer type.
            label: The truth, of the same shape; pixels with the value `ignore` are not counted.

        Raises:
            InputError: The shapes differ, or a value is no class.
        """
        if pred.shape != label.shape:
            raise InputError(f"prediction {tuple(pred.shape)} and label {tuple(label.shape)} must have the same shape")
        K = self.num_labels
        if not label.numel():
            return
        pred, label = pred.to(self.matrix.device).long(), label.to(self.matrix.device).long()
        valid = label != ignore
        for who, ids in (("label", label), ("prediction", pred)):
            least, most = torch.aminmax(ids * valid)
            if least < 0 or most >= K:
                raise InputError(
                    f"a {who} has values outside 0..{K - 1} (and {ignore}, ignored): check the class count {K}"
                )
        # 0 is what does not count. Products with a mask and 32 bits: `torch.where` takes several times as long.
        pairs = (label.int() * K + pred.int() + 1) * valid
        self.matrix += torch.bincount(pairs.flatten(), minlength=K * K + 1)[1:].view(K, K)

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of another matrix over the same classes."""
        if other.num_labels != self.num_labels:
            raise InputError(f"cannot merge matrices of {self.num_labels} and {other.num_labels} classes")
        self.matrix += other.matrix.to(self.matrix.device)


def _ratios(numerator: Tensor, denominator: Tensor) -> list[float | None]:
    pairs = zip(numerator.tolist(), denominator.tolist(), strict=True)
    return [n / d if d else None for n, d in pairs]


def mean_of_known(values: list[float | None]) -> float | None:
    """Mean without the Nones; None where nothing is left."""
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known else None


def scores(matrix: Tensor) -> dict[str, Any]:
    """Scores of a confusion matrix, as mmseg (nan_to_num unset) and torchmetrics (absent classes left out) take them.

    A class in neither truth nor prediction has no IoU (None) and is left out of the mean. A class that is predicted
    but absent from the truth has the IoU 0, which counts, and no accuracy.

    Args:
        matrix: (K, K) int64, [truth, prediction].

    Returns:
        `miou`, `macc` (mean of class accuracies), `aacc` (share of all pixels that is right), and the lists `iou` and
        `acc` with one value a class; all between 0 and 1, or None where there is nothing to divide by.
    """
    matrix = matrix.cpu()
    hit, truth, predicted = matrix.diagonal(), matrix.sum(dim=1), matrix.sum(dim=0)
    iou = _ratios(hit, truth + predicted - hit)
    acc = _ratios(hit, truth)
    total = int(matrix.sum())
    return {
        "miou": mean_of_known(iou),
        "macc": mean_of_known(acc),
        "aacc": int(hit.sum()) / total if total else None,
        "iou": iou,
        "acc": acc,
    }


def boundary_bands(label_BHW: Tensor, d: int) -> Tensor:
    """Where a pixel's (2d + 1)-square window holds another class or leaves the picture: (B, H, W) bool.

    For each class this is its mask minus the mask eroded d times by a 3x3 square over a zero-padded picture; the
    window form does all classes at once.
    """
    _, H, W = label_BHW.shape
    if label_BHW.device.type == "cpu":
        kernel = np.ones((2 * d + 1, 2 * d + 1), dtype=np.uint8)
        maps = label_BHW.numpy().astype(np.uint16 if label_BHW.numel() and int(label_BHW.max()) > 255 else np.uint8)
        # OpenCV's own border value never wins, so the border is what the last lines make it.
        bands = torch.from_numpy(np.stack([cv2.dilate(m, kernel) != cv2.erode(m, kernel) for m in maps]))
    else:
        x = label_BHW[:, None].float()
        low, high = -x, x
        for size, padding in (((2 * d + 1, 1), (d, 0)), ((1, 2 * d + 1), (0, d))):  # a square is two lines
            low = F.max_pool2d(low, size, stride=1, padding=padding)
            high = F.max_pool2d(high, size, stride=1, padding=padding)
        bands = (high != -low)[:, 0]
    bands[:, :d] = bands[:, max(0, H - d) :] = True
    bands[:, :, :d] = bands[:, :, max(0, W - d) :] = True
    return bands


class BoundaryIoU:
    """IoU of the bands along class contours (arXiv 2103.16562), for semantic label maps.

    The band of a class is the part of its mask within d pixels of the mask's contour, d = round(ratio * diagonal), at
    least 1; the picture's border is contour, as in the authors' code. Where the truth is ignored the prediction is
    ignored too. Intersections and unions are summed over all pictures, then divided, then averaged over classes.

    Args:
        num_labels: Classes K.
        ratio: Width of the band over the diagonal of the picture.
        device: Where the counts live.
    """

    def __init__(self, num_labels: int, ratio: float = 0.02, device: torch.device | str = "cpu") -> None:
        if not ratio > 0:
            raise InputError(f"the boundary's ratio must be positive, got {ratio!r}")
        self.num_labels = num_labels
        self.ratio = ratio
        self.intersection = torch.zeros(num_labels, dtype=torch.int64, device=device)
        self.union = torch.zeros(num_labels, dtype=torch.int64, device=device)

    def update(self, pred: Tensor, label: Tensor, ignore: int = IGNORE) -> None:
        """Add pictures: `pred` and `label` (H, W) or (B, H, W), class indices of any integer type."""
        if pred.shape != label.shape or pred.dim() not in (2, 3):
            raise InputError(
                f"prediction {tuple(pred.shape)} and label {tuple(label.shape)} must be alike, (H, W) or (B, H, W)"
            )
        K, device = self.num_labels, self.union.device
        shape = (-1, *label.shape[-2:])
        label = label.to(device).long().reshape(shape)
        pred = pred.to(device).long().reshape(shape)
        # K stands for "ignored" from here on: one past the classes, whatever number the data use.
        pred = torch.where(label == ignore, K, pred)
        label = torch.where(label == ignore, K, label)
        d = max(1, round(self.ratio * math.hypot(*shape[1:])))
        band_pred, band_label = boundary_bands(pred, d), boundary_bands(label, d)

        def count(classes: Tensor, where: Tensor) -> Tensor:
            return torch.bincount(torch.where(where, classes, K).flatten(), minlength=K + 1)[:K]

        both = count(label, band_pred & band_label & (pred == label))
        self.intersection += both
        self.union += count(pred, band_pred) + count(label, band_label) - both

    def merge(self, other: BoundaryIoU) -> None:
        """Add the counts of another one over the same classes."""
        self.intersection += other.intersection.to(self.intersection.device)
        self.union += other.union.to(self.union.device)

    def per_class(self) -> list[float | None]:
        """Boundary IoU of each class, between 0 and 1; None for a class in neither truth nor prediction."""
        return _ratios(self.intersection, self.union)

    def score(self) -> float | None:
        """Mean over the classes that have one."""
        return mean_of_known(self.per_class())
