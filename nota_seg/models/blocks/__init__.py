"""Blocks of their own kinds, for stages that are no row of equal mixer and feed-forward: `forward(x_BHWC) -> x_BHWC`.

A new one is a file here and a line below. Most architectures need none: see `nota_seg.models.block`.
"""

from nota_seg.models.blocks import (
    next_convolution,  # noqa: F401
    next_transformer,  # noqa: F401
)
