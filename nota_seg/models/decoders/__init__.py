"""Decoders: `forward(list of x_BCHW) -> logits_BKHW`. A new one is a file here and a line below."""

from nota_seg.models.decoders import (
    all_mlp,  # noqa: F401
    fpn,  # noqa: F401
    hamburger,  # noqa: F401
    lawin,  # noqa: F401
    uper,  # noqa: F401
)
