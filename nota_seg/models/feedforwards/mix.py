"""Mix-FFN of SegFormer (arXiv 2105.15203, equation 3): a 3x3 depth-wise convolution between the two layers.

Its hidden maps, four times as wide as the stage, are the largest tensors of the encoder. On the CPU they are made some
rows at a time, with one row more above and below for the convolution, and made again for the gradient, not kept.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nota_seg.models.layers import Linear, eager_on_cpu, product, untouched
from nota_seg.models.registry import FEEDFORWARDS

PIECE = 1 << 19  # hidden values at a time: 2 MB


@FEEDFORWARDS.register("mix")
class MixFeedForward(nn.Module):
    """Linear, depth-wise 3x3, GELU, Linear. The zero padding of the convolution is what tells positions apart.

    Args:
        dim: Channels in and out.
        hidden: Channels between the layers.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, kernel_size=3, padding=1, groups=hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        layers = (self.fc1, self.dwconv, self.fc2)
        if eager_on_cpu(x_BHWC) and untouched(*layers):
            return _ByRows.apply(x_BHWC, *(p for layer in layers for p in (layer.weight, layer.bias)))
        x_BHWC = self.fc1(x_BHWC)
        x_BHWC = self.dwconv(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(F.gelu(x_BHWC))


def _convolve(x_HWD: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    x_1DHW = x_HWD[None].permute(0, 3, 1, 2)
    return F.conv2d(x_1DHW, weight, bias, padding=1, groups=len(weight)).permute(0, 2, 3, 1)[0]


class _ByRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, wd: Tensor, bd: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        ctx.save_for_backward(x, w1, b1, wd, bd, w2)
        H, W = x.shape[1:3]
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        rows = max(1, PIECE // (W * len(w1)))
        for b in range(len(x)):
            for start in range(0, H, rows):
                stop = min(start + rows, H)
                above = min(start, 1)
                hidden = product(x[b, start - above : stop + 1], w1, b1)
                hidden = _convolve(hidden, wd, bd)[above : above + stop - start]
                out[b, start:stop] = product(F.gelu(hidden), w2, b2)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, w1, b1, wd, bd, w2 = ctx.saved_tensors
        grads_x = torch.empty_like(x)
        sums = [torch.zeros_like(p) for p in (w1, b1, wd, bd, w2)]
        for b in range(len(x)):
            before = product(x[b], w1, b1)
            after = _convolve(before, wd, bd)
            rows = grad[b].flatten(0, 1)
            sums[4] += product(rows.t(), F.gelu(after).flatten(0, 1).t())
            back = torch.ops.aten.gelu_backward(product(rows, w2.t()).view_as(after), after)
            back, grad_wd, grad_bd = torch.ops.aten.convolution_backward(
                back[None].permute(0, 3, 1, 2), before[None].permute(0, 3, 1, 2), wd, [len(wd)], [1, 1], [1, 1],
                [1, 1], False, [0, 0], len(wd), [True, True, True],
            )  # fmt: skip
            rows = back.permute(0, 2, 3, 1)[0].reshape(-1, len(w1))
            sums[0] += product(x[b].flatten(0, 1).t(), rows.t()).t()
            sums[1] += rows.sum(0)
            sums[2] += grad_wd
            sums[3] += grad_bd
            grads_x[b] = product(rows, w1.t()).view_as(x[b])
        return grads_x, *sums, grad.sum((0, 1, 2))
