"""Token mixers: `forward(x_BHWC) -> x_BHWC`, without norm and residual. A new one is a file here and a line below."""

from nota_seg.models.mixers import (
    pooling,  # noqa: F401
    spatial_reduction,  # noqa: F401
)
