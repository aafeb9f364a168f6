"""Linear, depth-wise 3x3, Linear with activations between: the plan of every Mix-FFN, some rows at a time on the CPU.

The hidden maps, four times as wide as the stage or more, are the largest tensors of the encoder. Here they are made so
many rows at a time as fit the cache, with one row more above and below for the convolution, and made again for the
gradient, not kept.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nota_seg.models.layers import product

PIECE = 1 << 20  # hidden values at a time: 4 MB


class Weights(NamedTuple):
    """Of the three layers: (D, C), (D), (D, 1, 3, 3), (D), (C, D), (C); C channels in and out, D hidden ones."""

    w1: Tensor
    b1: Tensor
    wd: Tensor
    bd: Tensor
    w2: Tensor
    b2: Tensor

    @classmethod
    def of(cls, *layers: nn.Linear | nn.Conv2d) -> Weights:
        """Of first, depth-wise and last layer; the outer ones are linear or, the same, 1x1 convolutions."""
        first, depthwise, last = layers
        return cls(
            first.weight.flatten(1), first.bias, depthwise.weight, depthwise.bias, last.weight.flatten(1), last.bias
        )


def by_rows(x_BHWC: Tensor, weights: Weights, *, relu_first: bool = False) -> Tensor:
    """Linear, ReLU if `relu_first`, depth-wise 3x3, GELU, Linear; differentiable once, in float32 on the CPU.

    Args:
        x_BHWC: The map.
        weights: Of the layers.
        relu_first: Whether a ReLU comes before the convolution.
    """
    return _ByRows.apply(x_BHWC, relu_first, *weights)


def evaluate_by_rows(x: Tensor, weights: Weights, *, relu_first: bool, relu_last: bool) -> Tensor:
    """The same without a gradient; with `relu_last` a ReLU in place of the GELU."""
    w1, b1, wd, bd, w2, b2 = weights
    H, W = x.shape[1:3]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows = max(1, PIECE // (W * len(w1)))

    for some, start in itertools.product(_pictures(x, len(w1)), range(0, H, rows)):
        stop = min(start + rows, H)
        above = min(start, 1)
        hidden = product(x[some, start - above : stop + 1], w1, b1)
        if relu_first:
            hidden = hidden.relu_()
        hidden = _convolve(hidden, wd, bd)[:, above : above + stop - start]
        out[some, start:stop] = product(hidden.relu_() if relu_last else F.gelu(hidden), w2, b2)
    return out


def _convolve(x_BHWD: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    x_BDHW = x_BHWD.permute(0, 3, 1, 2)
    return F.conv2d(x_BDHW, weight, bias, padding=1, groups=len(weight)).permute(0, 2, 3, 1)


def _pictures(x_BHWC: Tensor, hidden: int) -> list[slice]:
    """So many pictures at a time that their hidden maps make a piece, one at least."""
    B, H, W, _ = x_BHWC.shape
    step = max(1, PIECE // (H * W * hidden))
    return [slice(b, b + step) for b in range(0, B, step)]


class _ByRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, relu_first: bool, *weights: Tensor) -> Tensor:
        ctx.relu_first = relu_first
        ctx.save_for_backward(x, *weights[:-1])
        return evaluate_by_rows(x, Weights(*weights), relu_first=relu_first, relu_last=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w1, b1, wd, bd, w2 = ctx.saved_tensors
        grads_x = torch.empty_like(x)

        sums = [torch.zeros_like(p) for p in (w1, b1, wd, bd, w2)]
        for some in _pictures(x, len(w1)):
            before = product(x[some], w1, b1)
            if ctx.relu_first:
                before = before.relu_()
            after = _convolve(before, wd, bd)
            rows = grad[some].flatten(0, 2)
            sums[4] += product(rows.t(), F.gelu(after).flatten(0, 2).t())
            back = torch.ops.aten.gelu_backward(product(rows, w2.t()).view_as(after), after)
            back, grad_wd, grad_bd = torch.ops.aten.convolution_backward(
                back.permute(0, 3, 1, 2), before.permute(0, 3, 1, 2), wd, [len(wd)], [1, 1], [1, 1],
                [1, 1], False, [0, 0], len(wd), [True, True, True],
            )  # fmt: skip
            back = back.permute(0, 2, 3, 1)
            if ctx.relu_first:
                back = torch.ops.aten.threshold_backward(back, before, 0)
            rows = back.reshape(-1, len(w1))
            sums[0] += product(x[some].flatten(0, 2).t(), rows.t()).t()
            sums[1] += rows.sum(0)
            sums[2] += grad_wd
            sums[3] += grad_bd
            grads_x[some] = product(rows, w1.t()).view_as(x[some])
        return grads_x, None, *sums, grad.sum((0, 1, 2))
