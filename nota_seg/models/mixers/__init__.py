"""Token mixers: `forward(x_BHWC) -> x_BHWC`, without norm and residual. A new one is a file here and a line below."""

from nota_seg.models.mixers import (
    dest_attention,  # noqa: F401
    efficient,  # noqa: F401
    linear_spatial_reduction,  # noqa: F401
    mlp_mixer,  # noqa: F401
    msca,  # noqa: F401
    pooling,  # noqa: F401
    spatial_reduction,  # noqa: F401
    window,  # noqa: F401
)
