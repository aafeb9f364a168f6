"""The model's own default loss; the choice of others is the trainer's.

Logits of all classes at the size of the labels would be the largest tensor of a training step, several times over. On
the CPU they are made tile by tile, and with them at once the gradient, so that nothing full-size is kept or made again.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nota_seg.models.resize import tiles

TILE = (32, 64)  # positions; with 150 classes 1.2 MB


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
    valid = labels != ignore_index
    count = valid.sum() if weight is None else weight[labels[valid]].sum()
    if logits.device.type == "cpu" and not torch.compiler.is_compiling():
        classes = labels.masked_fill(~valid, 0)
        weights = valid.to(dtype) if weight is None else valid * weight.to(dtype)[classes]
        with torch.autocast("cpu", enabled=False):
            total = _SummedCrossEntropy.apply(logits.to(dtype), classes, weights)
    else:
        logits = F.interpolate(logits.to(dtype), size=labels.shape[1:], mode="bilinear", align_corners=False)
        total = F.cross_entropy(logits, labels, weight=weight, ignore_index=ignore_index, reduction="sum")
    return total / count.clamp(min=1e-12 if weight is not None else 1)


class _SummedCrossEntropy(torch.autograd.Function):
    """Sum over positions of weight * cross-entropy of the upsampled logits; differentiable once, in the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels_BHW: Tensor, weights_BHW: Tensor) -> Tensor:
        """
        Args:
            logits: (B, K, h, w), at least float32.
            labels_BHW: Class indices from 0 to K - 1, also where the weight is 0.
            weights_BHW: What each position counts.
        """
        if labels_BHW.numel() and not 0 <= int(labels_BHW.min()) <= int(labels_BHW.max()) < logits.shape[1]:
            raise IndexError(f"labels go up to {int(labels_BHW.max())}, the model has {logits.shape[1]} classes")
        logits_BhwK = logits.permute(0, 2, 3, 1).contiguous()
        grad_BhwK = torch.zeros_like(logits_BhwK) if ctx.needs_input_grad[0] else None
        K = logits_BhwK.shape[3]

        total = logits.new_zeros((), dtype=torch.float64)
        grid = tiles([logits_BhwK.shape[1:3]], labels_BHW.shape[1:], TILE, logits.dtype)
        for b, tile in itertools.product(range(len(logits_BhwK)), grid):
            label = labels_BHW[b][tile.target].reshape(-1, 1)
            weight = weights_BHW[b][tile.target].reshape(-1, 1)
            z_RQK = tile.take(logits_BhwK[b])
            z = z_RQK.view(-1, K)
            z -= z.amax(dim=1, keepdim=True)
            chosen = z.gather(1, label)
            sums = z.exp_().sum(dim=1, keepdim=True)
            total += (weight * (sums.log() - chosen)).sum(dtype=torch.float64)
            if grad_BhwK is not None:  # softmax - one-hot, weighted
                z *= weight / sums
                z.scatter_add_(1, label, -weight)
                tile.put_back(z_RQK, grad_BhwK[b])
        if grad_BhwK is not None:
            ctx.save_for_backward(grad_BhwK)
        return total.to(logits.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (grad_BhwK,) = ctx.saved_tensors
        return (grad_BhwK * grad).permute(0, 3, 1, 2), None, None
