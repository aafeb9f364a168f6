"""The model's own default loss; the choice of others is the trainer's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def upsampled_cross_entropy(
    logits: Tensor, labels: Tensor, *, ignore_index: int = 255, weight: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy at the size of the labels.

    Args:
        logits: (B, K, h, w), upsampled bilinearly (align_corners False) to the labels' size.
        labels: (B, H, W), any integer type.
        ignore_index: Label without loss. A batch of nothing else has the loss 0, not NaN.
        weight: (K) weight of each class; the mean is weighted, as in torch.
    """
    labels = labels.long()
    dtype = torch.promote_types(logits.dtype, torch.float32)  # sums over a picture need more than half precision
    logits = F.interpolate(logits.to(dtype), size=labels.shape[1:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(logits, labels, weight=weight, ignore_index=ignore_index, reduction="sum")
    valid = labels != ignore_index
    count = valid.sum() if weight is None else weight[labels[valid]].sum()
    return total / count.clamp(min=1e-12 if weight is not None else 1)
