"""Norms of a (B, H, W, C) map, by the names that stages and skips know them by."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from util.errors import InputError, did_you_mean


class BatchNormLast(nn.BatchNorm2d):
    """BatchNorm of (B, H, W, C)."""

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return super().forward(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


NORMS: Mapping[str, Callable[[int, float], nn.Module]] = {
    "layer": lambda dim, eps: nn.LayerNorm(dim, eps=eps),
    "batch": lambda dim, eps: BatchNormLast(dim, eps=eps),
    "none": lambda dim, eps: nn.Identity(),
}


def build_norm(owner: str, name: str, dim: int, eps: float) -> nn.Module:
    """The norm of a name; an unknown name suggests the nearest one.

    Args:
        owner: Who asks, for the error message: "skip 'add'".
        name: A key of `NORMS`.
        dim: Channels.
        eps: Added to the variance.
    """
    if name not in NORMS:
        raise InputError(f"{owner}: unknown norm {name!r}: {did_you_mean(name, NORMS)}")
    return NORMS[name](dim, eps)
