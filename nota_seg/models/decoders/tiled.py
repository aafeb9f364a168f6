"""The end of the all-MLP head tile by tile: project, resize, sum, normalise, ReLU, dropout, classify.

At 1/4 of the picture with 256 or 768 channels each of these steps would write a tensor larger than all of a stage's.
Here a tile goes through all of them in the cache, and only logits are written. For the gradient the tiles are made
again rather than kept: that is cheaper than the memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nota_seg.models.layers import product
from nota_seg.models.resize import Tile, tiles

TILE = (32, 32)  # positions; with 256 channels 1 MB


class Norm(NamedTuple):
    """Batch statistics or running ones, and the affine part; all (D)."""

    mean: Tensor
    rstd: Tensor
    weight: Tensor
    bias: Tensor

    def normalised(self, x: Tensor) -> Tensor:
        """(..., D), in place."""
        return x.sub_(self.mean).mul_(self.rstd)


def classify(
    first_BhwC: Tensor,
    weight_DC: Tensor,
    bias_D: Tensor,
    others_BhwD: list[Tensor],
    norm: nn.BatchNorm2d | nn.Identity,
    dropout: nn.Module,
    classifier: nn.Conv2d,
) -> Tensor:
    """classifier(dropout(relu(norm(linear(first) + sum of the others resized to its size)))).

    Args:
        first_BhwC: The finest map, not yet projected.
        weight_DC: Its projection.
        bias_D: Of the sum.
        others_BhwD: The coarser maps, projected.
        norm: Updates its running statistics as ever when it is in training; an identity where it is folded.
        dropout: Of whole channels.
        classifier: 1x1.

    Returns:
        (B, K, h, w).
    """
    if isinstance(norm, nn.Identity):
        norm = nn.BatchNorm2d(len(bias_D), eps=0).eval()
    batch, (B, h, w) = norm.training or norm.running_mean is None, first_BhwC.shape[:3]
    mask_BD = dropout(first_BhwC.new_ones(B, weight_DC.shape[0], 1, 1)).flatten(1) if dropout.training else None
    logits_BhwK, mean, var = _Head.apply(
        first_BhwC, weight_DC, bias_D, norm.weight, norm.bias, classifier.weight.flatten(1), classifier.bias,
        mask_BD, None if batch else norm.running_mean, None if batch else norm.running_var, norm.eps, *others_BhwD,
    )  # fmt: skip
    if norm.training and norm.running_mean is not None:
        with torch.no_grad():
            norm.num_batches_tracked += 1
            share = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean, share)
            norm.running_var.lerp_(var * (B * h * w / max(1, B * h * w - 1)), share)
    return logits_BhwK.permute(0, 3, 1, 2)


Piece = tuple[int, Tile]  # picture, tile of the coarser maps


class _Sums:
    """Tiles of linear(first) + the others resized."""

    def __init__(self, first: Tensor, weight: Tensor, bias: Tensor, others: tuple[Tensor, ...]) -> None:
        self.first, self.weight, self.bias, self.others = first, weight, bias, others
        sizes = [(x.shape[1], x.shape[2]) for x in others or (first,)]  # without others: where the tiles lie
        self.tiles = tiles(sizes, (first.shape[1], first.shape[2]), TILE, first.dtype)

    def __iter__(self) -> Iterator[Piece]:
        return itertools.product(range(len(self.first)), self.tiles)

    def input(self, b: int, tile: Tile) -> Tensor:
        """(T, C) of the finest map."""
        return self.first[b][tile.target].flatten(0, 1)

    def make(self, b: int, tile: Tile) -> Tensor:
        """(T, D)."""
        out = product(self.input(b, tile), self.weight, self.bias)
        if self.others:
            out += tile.take(*(other[b] for other in self.others)).flatten(0, 1)
        return out


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, first: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor,
        class_weight: Tensor, class_bias: Tensor, mask: Tensor | None, mean: Tensor | None, var: Tensor | None,
        eps: float, *others: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        sums = _Sums(first, weight, bias, others)
        ctx.batch_statistics = mean is None
        if mean is None or var is None:
            mean, var = _statistics(sums)
        norm = Norm(mean, (var + eps).rsqrt(), norm_weight, norm_bias)
        logits = first.new_empty(*first.shape[:3], class_weight.shape[0])
        scale = norm.rstd * norm_weight
        shift = norm_bias - mean * scale
        for b, tile in sums:
            x = sums.make(b, tile)
            x = torch.addcmul(shift, x, scale, out=x).relu_()
            if mask is not None:
                x.mul_(mask[b])
            out = logits[b][tile.target]
            out.copy_(product(x, class_weight, class_bias).view_as(out))
        ctx.save_for_backward(first, weight, bias, class_weight, mask, *norm, *others)
        ctx.mark_non_differentiable(mean, var)
        return logits, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        first, weight, bias, class_weight, mask, *rest = ctx.saved_tensors
        norm, others = Norm(*rest[:4]), tuple(rest[4:])
        sums = _Sums(first, weight, bias, others)
        count = first.shape[0] * first.shape[1] * first.shape[2]

        def hidden(b: int, tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
            """What was normalised, what came out of the ReLU, and the gradient before the ReLU; all (T, D)."""
            x = norm.normalised(sums.make(b, tile))
            out = torch.addcmul(norm.bias, x, norm.weight).relu_()
            back = product(grad[b][tile.target].flatten(0, 1), class_weight.t())
            if mask is not None:
                back.mul_(mask[b])
            return x, out, torch.ops.aten.threshold_backward(back, out, 0)

        grad_class_weight, grad_norm_weight, grad_norm_bias = map(
            torch.zeros_like, (class_weight, norm.weight, norm.bias)
        )
        for b, tile in sums:
            x, out, back = hidden(b, tile)
            if mask is not None:
                out.mul_(mask[b])
            grad_class_weight += product(grad[b][tile.target].flatten(0, 1).t(), out.t())
            grad_norm_bias += back.sum(0)
            grad_norm_weight += back.mul_(x).sum(0)
        # Through the batch statistics: subtract the mean gradient, and what lies along the normalised input.
        mean_back, mean_along = grad_norm_bias / count, grad_norm_weight / count
        scale = norm.weight * norm.rstd
        grad_first = torch.empty_like(first)
        grad_others = [torch.zeros_like(other) for other in others]

        grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        for b, tile in sums:
            x, _out, back = hidden(b, tile)
            if ctx.batch_statistics:
                back.sub_(mean_back).sub_(x.mul_(mean_along))
            back.mul_(scale)
            grad_weight += product(sums.input(b, tile).t(), back.t()).t()
            grad_bias += back.sum(0)
            grad_input = grad_first[b][tile.target]
            grad_input.copy_(product(back, weight.t()).view_as(grad_input))
            if others:
                tile.put_back(back.view(*grad_input.shape[:2], -1), *(grad_other[b] for grad_other in grad_others))
        return (
            grad_first, grad_weight, grad_bias, grad_norm_weight, grad_norm_bias,
            grad_class_weight, grad.sum((0, 1, 2)), None, None, None, None, *grad_others,
        )  # fmt: skip


def _statistics(sums: _Sums) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance over all positions, joined tile by tile so that no large squares cancel."""
    joined = _Moments(0, torch.zeros_like(sums.bias), torch.zeros_like(sums.bias))
    for b, tile in sums:
        x = sums.make(b, tile)
        own = x.mean(0)
        joined = joined.join(_Moments(len(x), own, x.sub_(own).square_().sum(0)))
    return joined.mean, joined.squares / joined.n


class _Moments(NamedTuple):
    n: int
    mean: Tensor  # (D)
    squares: Tensor  # (D), summed, of what differs from the mean

    def join(self, other: _Moments) -> _Moments:
        n = self.n + other.n
        delta = other.mean - self.mean
        squares = self.squares + other.squares + delta.square() * (self.n * other.n / n)
        return _Moments(n, self.mean + delta * (other.n / n), squares)
