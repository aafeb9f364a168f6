"""Stems: `forward(x_BHWC) -> x_BHWC` at 1/stride of the size. A new one is a file here and a line below."""

from nota_seg.models.stems import (
    conv,  # noqa: F401
    next,  # noqa: F401
    overlap,  # noqa: F401
    patch,  # noqa: F401
    patch_merging,  # noqa: F401
)
