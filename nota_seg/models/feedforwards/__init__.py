"""Feed-forwards: `forward(x_BHWC) -> x_BHWC`, without norm and residual. A new one is a file here and a line below."""

from nota_seg.models.feedforwards import (
    mix,  # noqa: F401
    mlp,  # noqa: F401
)
