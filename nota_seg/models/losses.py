"""The model's own default loss; the choice of others is the trainer's.

Logits of all classes at the size of the labels would be the largest tensor of a training step, several times over. They
are made in parts, and with each part at once the gradient, so that nothing full-size is kept or made again: tiles on
the CPU, which stay in its cache, and pictures on a GPU, which would wait for the launches of many tiles.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nota_seg.models.resize import tiles

TILE = (32, 64)  # positions of a tile; with 150 classes 1.2 MB
PIECE = 1 << 26  # logits of the pictures that are taken together: 256 MB


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
    classes = labels.masked_fill(~valid, 0)
    weights = valid.to(dtype) if weight is None else valid * weight.to(dtype)[classes]
    if torch.compiler.is_compiling():
        logits = F.interpolate(logits.to(dtype), size=labels.shape[1:], mode="bilinear", align_corners=False)
        total = F.cross_entropy(logits, labels, weight=weight, ignore_index=ignore_index, reduction="sum")
    else:
        with torch.autocast(logits.device.type, enabled=False):
            total = _SummedCrossEntropy.apply(logits.to(dtype), classes, weights)
    return total / weights.sum().clamp(min=1e-12 if weight is not None else 1)


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
        way = by_tiles if logits.device.type == "cpu" else by_pictures
        total, grad_BKhw = way(logits, labels_BHW, weights_BHW, ctx.needs_input_grad[0])
        if grad_BKhw is not None:
            ctx.save_for_backward(grad_BKhw)
        return total.to(logits.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (grad_BKhw,) = ctx.saved_tensors
        return grad_BKhw * grad, None, None


def by_tiles(
    logits: Tensor, labels_BHW: Tensor, weights_BHW: Tensor, differentiate: bool
) -> tuple[Tensor, Tensor | None]:
    """The sum in float64, and if asked for its gradient (B, K, h, w); of tensors on the CPU."""
    if labels_BHW.numel() and not 0 <= int(labels_BHW.min()) <= int(labels_BHW.max()) < logits.shape[1]:
        raise IndexError(f"labels go up to {int(labels_BHW.max())}, the model has {logits.shape[1]} classes")
    logits_BhwK = logits.permute(0, 2, 3, 1).contiguous()
    grad_BhwK = torch.zeros_like(logits_BhwK) if differentiate else None
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
    return total, grad_BhwK.permute(0, 3, 1, 2) if grad_BhwK is not None else None


def by_pictures(
    logits: Tensor, labels_BHW: Tensor, weights_BHW: Tensor, differentiate: bool
) -> tuple[Tensor, Tensor | None]:
    """The same, of tensors anywhere: pictures that together have `PIECE` logits, or one."""
    size = labels_BHW.shape[1:]
    together = max(1, PIECE // max(1, logits.shape[1] * size.numel()))
    grad_BKhw = torch.empty_like(logits, memory_format=torch.contiguous_format) if differentiate else None

    total = logits.new_zeros(())
    for some in (slice(start, start + together) for start in range(0, len(logits), together)):
        label, weight = labels_BHW[some, None], weights_BHW[some, None]
        with torch.set_grad_enabled(differentiate):
            part = logits[some].detach().contiguous().requires_grad_(differentiate)
            full = F.interpolate(part, size=size, mode="bilinear", align_corners=False)
        z = F.log_softmax(full.detach(), dim=1)
        total -= (weight * z.gather(1, label)).sum()
        if grad_BKhw is not None:  # softmax - one-hot, weighted
            z.exp_().mul_(weight)
            z.scatter_(1, label, z.gather(1, label) - weight)
            (grad_BKhw[some],) = torch.autograd.grad(full, part, z)
    return total, grad_BKhw
