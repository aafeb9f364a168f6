"""Losses of segmentation by name, and their weighted sum; those of smp, torch, or by the papers named below.

All take logits at the size of the labels. Ignored pixels are taken out before a loss sees them, or (where a loss looks
at neighbours) have no share in any sum: their gradient is zero. A batch of nothing else has the loss 0.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nota_seg.config import LossPart
from nota_seg.models.losses import upsampled_cross_entropy
from util.errors import InputError, did_you_mean

IGNORE = 255
Pixels = Callable[[Tensor, Tensor], Tensor]  # (1, K, N) logits and (1, N) labels of the labelled pixels
LOSSES: dict[str, type[Loss]] = {}


class Loss(nn.Module):
    """One part of the sum. A subclass takes its own arguments after the first two, all of them with defaults.

    Args:
        num_labels: Classes K.
        class_weights: (K) or None.
    """

    weighs_classes = True  # whether it has a use for class weights

    def __init__(self, num_labels: int, class_weights: Tensor | None) -> None:
        super().__init__()
        self.num_labels, self.class_weights = num_labels, class_weights

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """
        Args:
            logits: (B, K, H, W) float32.
            labels: (B, H, W) int64 with at least one that is not ignored.
        """
        raise NotImplementedError

    def weights_on(self, device: torch.device) -> Tensor | None:
        return None if self.class_weights is None else self.class_weights.to(device)


def register(name: str) -> Callable[[type[Loss]], type[Loss]]:
    def add(cls: type[Loss]) -> type[Loss]:
        LOSSES[name] = cls
        return cls

    return add


def labelled(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(1, K, N) logits and (1, N) labels of the pixels that are not ignored."""
    valid = labels != IGNORE
    return logits.permute(0, 2, 3, 1)[valid].t()[None], labels[valid][None]


def smp_losses(name: str) -> Any:
    """The losses of segmentation-models-pytorch, or an error that says how to have them."""
    try:
        from segmentation_models_pytorch import losses
    except ImportError:
        raise InputError(
            f"loss {name!r} needs segmentation-models-pytorch: pip install 'nota-seg[smp]', or use ce, ohem, boundary, "
            "ssim"
        ) from None
    return losses


@register("ce")
class CrossEntropy(Loss):
    """Cross-entropy; the weighted mean over pixels, as in torch. Without smoothing it is the model's own tiled one."""

    def __init__(self, num_labels: int, class_weights: Tensor | None, label_smoothing: float = 0.0) -> None:
        super().__init__(num_labels, class_weights)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        weight = self.weights_on(logits.device)
        if not self.label_smoothing:
            return upsampled_cross_entropy(logits, labels, weight=weight)
        total = F.cross_entropy(
            logits, labels, weight=weight, ignore_index=IGNORE, reduction="sum", label_smoothing=self.label_smoothing
        )
        valid = labels[labels != IGNORE]
        return total / (len(valid) if weight is None else weight[valid].sum().clamp(min=1e-12))


@register("ohem")
class OnlineHardExamples(Loss):
    """Cross-entropy of the hard pixels alone (arXiv 1604.03540, by pixel as in arXiv 1605.06885).

    Args:
        threshold: Pixels whose class has less probability than this are hard ...
        min_kept: ... and so many of a picture's, the hardest, in any case; a share of its labelled pixels below 1.
    """

    def __init__(
        self, num_labels: int, class_weights: Tensor | None, threshold: float = 0.7, min_kept: float = 100_000
    ) -> None:
        super().__init__(num_labels, class_weights)
        if not 0 < threshold <= 1 or min_kept < 0:
            raise ValueError(f"threshold is in (0, 1] and min_kept not negative, got {threshold} and {min_kept}")
        self.threshold, self.min_kept = threshold, min_kept

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        z, y = labelled(logits, labels)
        plain = F.cross_entropy(z, y, reduction="none")[0]
        wanted = self.min_kept * (len(plain) if self.min_kept < 1 else len(labels))
        kept = min(len(plain), max(1, int(wanted)))
        with torch.no_grad():  # the loss of a pixel at the threshold; lower if too few are above it
            least = torch.minimum(
                plain.kthvalue(len(plain) - kept + 1).values, plain.new_tensor(-math.log(self.threshold))
            )
            hard = plain >= least
        weight = self.weights_on(logits.device)
        if weight is None:
            return plain[hard].mean()
        each = weight[y[0][hard]]
        return (each * plain[hard]).sum() / each.sum().clamp(min=1e-12)


class _OfSmp(Loss):
    """A loss of segmentation-models-pytorch on the labelled pixels of the batch."""

    name: str

    def __init__(self, num_labels: int, class_weights: Tensor | None, **options: Any) -> None:
        super().__init__(num_labels, class_weights)
        kind = getattr(smp_losses(self.name), self.name)
        if self.weighs_classes and class_weights is not None:
            options["class_weights"] = class_weights.tolist()
        self.inner: Pixels = kind("multiclass", **options)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.inner(*labelled(logits, labels))


@register("focal")
class Focal(_OfSmp):
    """Focal loss (arXiv 1708.02002), one class against the others: the mean over classes and pixels.

    Args:
        gamma: Power of 1 - probability.
        alpha: Weight of the class, 1 - alpha of the others; None weighs both alike.
        normalized: Divide by the sum of the focal weights.
    """

    name = "FocalLoss"

    def __init__(
        self,
        num_labels: int,
        class_weights: Tensor | None,
        gamma: float = 2.0,
        alpha: float | None = None,
        normalized: bool = False,
    ) -> None:
        super().__init__(num_labels, class_weights, gamma=gamma, alpha=alpha, normalized=normalized)


@register("dice")
class Dice(_OfSmp):
    """1 - Dice over the batch (arXiv 1606.04797), mean over all classes; a class that is not there counts 0."""

    name = "DiceLoss"

    def __init__(
        self, num_labels: int, class_weights: Tensor | None, smooth: float = 0.0, log_loss: bool = False
    ) -> None:
        super().__init__(num_labels, class_weights, smooth=smooth, log_loss=log_loss)


@register("jaccard")
class Jaccard(_OfSmp):
    """1 - intersection over union over the batch, mean over all classes; a class that is not there counts 0."""

    name = "JaccardLoss"

    def __init__(
        self, num_labels: int, class_weights: Tensor | None, smooth: float = 0.0, log_loss: bool = False
    ) -> None:
        super().__init__(num_labels, class_weights, smooth=smooth, log_loss=log_loss)


@register("tversky")
class Tversky(_OfSmp):
    """1 - Tversky index over the batch (arXiv 1706.05721), mean over all classes.

    Args:
        alpha: Weight of false positives.
        beta: Weight of false negatives.
        smooth: Added to both sides of the fraction.
    """

    name = "TverskyLoss"

    def __init__(
        self,
        num_labels: int,
        class_weights: Tensor | None,
        alpha: float = 0.3,
        beta: float = 0.7,
        smooth: float = 0.0,
    ) -> None:
        super().__init__(num_labels, class_weights, alpha=alpha, beta=beta, smooth=smooth)


@register("focal_tversky")
class FocalTversky(Loss):
    """(1 - Tversky index)^(1 / gamma) of each class (arXiv 1810.07842), mean over all classes.

    smp raises the mean to the power; the paper each class.
    """

    def __init__(
        self,
        num_labels: int,
        class_weights: Tensor | None,
        alpha: float = 0.3,
        beta: float = 0.7,
        gamma: float = 4 / 3,
        smooth: float = 0.0,
    ) -> None:
        super().__init__(num_labels, class_weights)
        weights = None if class_weights is None else class_weights.tolist()

        base: Any = smp_losses("focal_tversky").TverskyLoss

        class PerClass(base):
            def aggregate_loss(self, loss: Tensor) -> Tensor:
                # The power's slope is infinite at 0, where a class is perfect or not there.
                powered = loss.clamp(min=1e-6) ** (1 / gamma)
                return super().aggregate_loss(torch.where(loss > 1e-6, powered, torch.zeros_like(loss)))

        self.inner: Pixels = PerClass("multiclass", alpha=alpha, beta=beta, smooth=smooth, class_weights=weights)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.inner(*labelled(logits, labels))


@register("lovasz")
class Lovasz(Loss):
    """Lovasz-Softmax (arXiv 1705.08790) over the classes that are there.

    Args:
        per_image: The mean over pictures of each one's loss, instead of the batch's.
    """

    weighs_classes = False

    def __init__(self, num_labels: int, class_weights: Tensor | None, per_image: bool = False) -> None:
        super().__init__(num_labels, class_weights)
        self.per_image = per_image
        self.inner = smp_losses("lovasz").LovaszLoss("multiclass", per_image=per_image, ignore_index=IGNORE)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        some = (labels != IGNORE).flatten(1).any(dim=1)  # a picture without labels has no loss of its own
        return self.inner(logits[some], labels[some])


@register("boundary")
class Boundary(Loss):
    """Boundary loss (arXiv 1812.07032): the probability of a class times the signed distance to its boundary.

    Negative inside, so that the loss of a perfect prediction is below 0. The paper adds it to a regional loss with a
    small weight. Distances are relative to the longer side; the mean is over the classes that are in a picture, and
    pixels whose class nobody knows are no boundary.
    """

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        weight = self.weights_on(logits.device)
        probabilities = logits.softmax(dim=1)
        total, count = logits.new_zeros(()), logits.new_zeros(())
        for p_KHW, label_HW in zip(probabilities, labels, strict=True):
            classes, distances = signed_distances(label_HW.cpu().numpy())
            pixels = (label_HW != IGNORE).sum()
            if not len(classes):
                continue
            index = torch.from_numpy(classes).to(logits.device)
            phi = torch.from_numpy(distances).to(logits.device)
            per_class = (p_KHW[index] * phi).sum(dim=(1, 2)) / pixels
            share = torch.ones_like(per_class) if weight is None else weight[index]
            total, count = total + (share * per_class).sum(), count + share.sum()
        return total / count.clamp(min=1e-12) + 0 * logits.sum()  # differentiable where nothing has a boundary


def signed_distances(label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes (C) that have a boundary in a label map, and (C, H, W) float32 signed distances to it over the longer
    side: negative inside, 0 where the label is ignored."""
    known = label != IGNORE
    classes, maps = [], []
    for c in np.unique(label[known]):
        inside = label == c
        others = known & ~inside
        if not others.any():
            continue
        outward, inward = _distance(inside), _distance(others)
        # A pixel beside the boundary is half a pixel from it, on either side.
        signed = np.where(inside, 0.5 - inward, outward - 0.5) * known
        classes.append(c)
        maps.append(signed / max(label.shape))
    if not classes:
        return np.zeros(0, np.int64), np.zeros((0, *label.shape), np.float32)
    return np.asarray(classes, dtype=np.int64), np.stack(maps).astype(np.float32)


def _distance(mask: np.ndarray) -> np.ndarray:
    """Pixels to the nearest one of a mask, float32."""
    far = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # Its last bit depends on where the arrays lie in memory. Squared distances are whole numbers.
    return np.sqrt(np.rint(far**2))


@register("ssim")
class StructuralSimilarity(Loss):
    """1 - SSIM (Wang et al. 2004, doi 10.1109/TIP.2003.819861) of probabilities and masks, as BASNet
    (arXiv 2101.04704) does, over the classes that are in the batch.

    Windows see labelled pixels alone: their weights are divided by the share of the window that is labelled.

    Args:
        window: Side of the Gaussian window in pixels, odd.
        sigma: Of it.
    """

    def __init__(self, num_labels: int, class_weights: Tensor | None, window: int = 11, sigma: float = 1.5) -> None:
        super().__init__(num_labels, class_weights)
        if window < 1 or window % 2 == 0 or sigma <= 0:
            raise ValueError(f"window is odd and sigma positive, got {window} and {sigma}")
        line = torch.exp(-0.5 * ((torch.arange(window) - window // 2) / sigma) ** 2)
        self.line = line / line.sum()

    def _blurred(self, x: Tensor) -> Tensor:
        line, side = self.line.to(x), len(self.line)
        x = F.conv2d(x.flatten(0, 1)[:, None], line.view(1, 1, side, 1), padding=(side // 2, 0))
        return F.conv2d(x, line.view(1, 1, 1, side), padding=(0, side // 2))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        valid = (labels != IGNORE)[:, None]
        classes = labels[valid[:, 0]].unique()
        p = logits.softmax(dim=1)[:, classes] * valid
        y = (labels[:, None] == classes.view(1, -1, 1, 1)).to(p)
        share = self._blurred(valid.to(p)).clamp(min=1e-6).view(len(p), 1, *p.shape[2:])

        def mean(x: Tensor) -> Tensor:
            return self._blurred(x).view_as(x) / share

        mean_p, mean_y = mean(p), mean(y)
        var_p, var_y = mean(p * p) - mean_p**2, mean(y * y) - mean_y**2
        covariance = mean(p * y) - mean_p * mean_y
        c1, c2 = 0.01**2, 0.03**2
        ssim = ((2 * mean_p * mean_y + c1) * (2 * covariance + c2)) / (
            (mean_p**2 + mean_y**2 + c1) * (var_p + var_y + c2)
        )
        per_class = ((1 - ssim) * valid).sum(dim=(0, 2, 3)) / valid.sum()
        weight = self.weights_on(logits.device)
        if weight is None:
            return per_class.mean()
        return (weight[classes] * per_class).sum() / weight[classes].sum().clamp(min=1e-12)


class WeightedSum(nn.Module):
    """The sum of the parts' losses, each times its weight, at the size of the labels.

    Args:
        parts: Names, arguments and weights.
        num_labels: Classes K.
        class_weights: (K), for the parts that have a use for them.

    Raises:
        InputError: An unknown name, an argument that the loss does not take, or a value that it refuses.
    """

    def __init__(self, parts: Sequence[LossPart], num_labels: int, class_weights: Tensor | None = None) -> None:
        super().__init__()
        if not parts:
            raise InputError("loss.parts is empty: name at least one, for instance --set loss=[ce,dice]")
        self.weights = [part.weight for part in parts]
        self.parts = nn.ModuleList(build(part, num_labels, class_weights) for part in parts)
        # The model's own loss upsamples tile by tile, and needs no full-size logits.
        self.tiled = [isinstance(p, CrossEntropy) and not p.label_smoothing for p in self.parts]

    @property
    def is_plain(self) -> bool:
        """Whether it is cross-entropy alone, once."""
        return self.tiled == [True] and self.weights == [1.0]

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """
        Args:
            logits: (B, K, h, w) of any floating type.
            labels: (B, H, W) of any integer type, 255 = ignored.
        """
        labels = labels.long()
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.float()
            if not (labels != IGNORE).any():
                return logits.sum() * 0.0
            full: Tensor | None = None
            total = logits.new_zeros(())
            for weight, part, tiled in zip(self.weights, self.parts, self.tiled, strict=True):
                if not tiled and full is None:
                    full = logits
                    if logits.shape[2:] != labels.shape[1:]:
                        full = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
                total = total + weight * part(logits if tiled else full, labels)
            return total


def build(part: LossPart, num_labels: int, class_weights: Tensor | None) -> Loss:
    """One loss, tried on a made-up picture: a value that it cannot work with is told here."""
    if part.type not in LOSSES:
        raise InputError(f"unknown loss {part.type!r}: {did_you_mean(part.type, LOSSES)}")
    parameters = inspect.signature(LOSSES[part.type].__init__).parameters
    known = [k for k in parameters if k not in ("self", "num_labels", "class_weights")]
    for key in part.args:
        if key not in known:
            raise InputError(f"loss {part.type!r} has no argument {key!r}: {did_you_mean(key, known)}")
    try:
        loss = LOSSES[part.type](num_labels, class_weights, **part.args)
        labels = torch.arange(64).view(1, 8, 8) % num_labels
        labels[0, 0] = IGNORE
        value = loss(torch.linspace(-1, 1, num_labels * 64).view(1, num_labels, 8, 8), labels)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"loss {part.type!r} refuses {part.args}: {type(error).__name__}: {error}") from error
    if value.ndim or not torch.isfinite(value):
        raise InputError(
            f"loss {part.type!r} with {part.args} is {value.tolist()} on a small picture: change its arguments"
        )
    return loss
