"""Batch norms folded into the convolutions before them: in evaluation both are one affine map."""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nota_seg.models.layers import Pointwise


def fold_batch_norms(model: nn.Module) -> None:
    """Fold in place, and leave an identity where a norm was.

    Folded are neighbours in an `nn.Sequential`; a component whose norm stands elsewhere says how in `fold_norm()`.
    Other norms stay, which is as right and only slower.

    Args:
        model: In evaluation mode.
    """
    for module in list(model.modules()):
        if isinstance(module, nn.Sequential):
            for (name, layer), (following, _) in pairwise(list(module.named_children())):
                if type(layer) in (nn.Conv2d, Pointwise):
                    fold(module, name, following)
        elif hasattr(module, "fold_norm"):
            module.fold_norm()


def fold(module: nn.Module, conv: str, norm: str) -> None:
    """Make one convolution of two children, unless the second is no batch norm (any more)."""
    if type(getattr(module, norm)) is nn.BatchNorm2d:
        setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
        setattr(module, norm, nn.Identity())
