"""Feed-forwards: `forward(x_BHWC) -> x_BHWC`, without norm and residual. A new one is a file here and a line below."""

from nota_seg.models.feedforwards import (
    dest,  # noqa: F401
    mix,  # noqa: F401
    mlp,  # noqa: F401
    mscan,  # noqa: F401
    pvt,  # noqa: F401
)
