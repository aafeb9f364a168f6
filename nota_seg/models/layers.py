"""Linear layers and 1x1 convolutions on oneDNN, where torch would take MKL or paths that are slower still: the same
product, and on processors that MKL does not know well less than half the time (docs/performance.md).

What cannot go there (another device or type, autocast, a compiler or exporter that looks on) is torch's own as ever.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from util.memory import keep_freed_memory

keep_freed_memory()  # the pieces of maps that all fast paths work on
try:
    _pointwise = torch.ops.mkldnn._linear_pointwise  # what torch's own compiler emits for a linear layer
except (AttributeError, RuntimeError):  # a torch built without oneDNN
    _pointwise = None


def eager_on_cpu(x: Tensor) -> bool:
    """Whether an operation on `x` runs at once, on the CPU, in float32: where our own ways to compute are worth it."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
    )


def untouched(*modules: nn.Module) -> bool:
    """Whether their parameters say all that they do: nobody put a layer of his own there, nor hooked one."""
    return all(
        type(m) in (Linear, nn.Conv2d, nn.BatchNorm2d, nn.Dropout2d, nn.Identity)
        and not (m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks)
        for m in modules
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias, without a gradient; (..., K) and (N, K) to (..., N)."""
    if _pointwise is None or x.dtype != torch.float32 or x.numel() == 0:
        return F.linear(x, weight, bias)
    return _pointwise(_dense(x), _dense(weight), bias, "none", [], "")


def _dense(x: Tensor) -> Tensor:
    """As it is or transposed; from a slice, which oneDNN multiplies a hundred times slower, a copy."""
    return x if x.is_contiguous() or (x.ndim == 2 and x.t().is_contiguous()) else x.contiguous()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows, grads = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        # Under create_graph these are differentiated again, which the bare product cannot be.
        multiply = F.linear if torch.is_grad_enabled() else product
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = multiply(grads, weight.t()).view(x.shape)
        if ctx.needs_input_grad[1]:
            # Fast only with the narrower side first.
            narrow = rows.shape[1] <= grads.shape[1]
            grad_weight = multiply(rows.t(), grads.t()).t() if narrow else multiply(grads.t(), rows.t())
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = grads.sum(0)
        return grad_x, grad_weight, grad_bias


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, by the quickest way there is here.

    Args:
        x: (..., K).
        weight: (N, K).
        bias: (N).
    """
    if not eager_on_cpu(x) or weight.dtype != x.dtype:
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return _Linear.apply(x, weight, bias)
    return product(x, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear` that computes with `linear`: the same parameters, the same numbers up to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def pointwise(x_BCHW: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1x1 convolution; without gradients, of a map that lies channels-last, as the product that it is.

    torch's own takes a slow path there when it has one thread. Training keeps it: batch norms after it are slower
    channels-last than all that is gained.

    Args:
        x_BCHW: The map.
        weight: (D, C, 1, 1).
        bias: (D).
    """
    x_BHWC = x_BCHW.permute(0, 2, 3, 1)
    if torch.is_grad_enabled() or not eager_on_cpu(x_BCHW) or not x_BHWC.is_contiguous():
        return F.conv2d(x_BCHW, weight, bias)
    return linear(x_BHWC, weight.flatten(1), bias).permute(0, 3, 1, 2)


class Pointwise(nn.Conv2d):
    """`nn.Conv2d` of kernel size 1 that computes with `pointwise`: the same parameters, the same numbers.

    Args:
        in_channels: Channels in.
        channels: Channels out.
        bias: With a bias.
    """

    def __init__(self, in_channels: int, channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, channels, kernel_size=1, bias=bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return pointwise(x_BCHW, self.weight, self.bias)
