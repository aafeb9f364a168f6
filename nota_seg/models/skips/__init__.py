"""Skips: `forward(x_BHWC, branch) -> x_BHWC`; a skip owns its norms. A new one is a file here and a line below."""

from nota_seg.models.skips import (
    additive,  # noqa: F401
    layer_scale,  # noqa: F401
    recursive,  # noqa: F401
)
