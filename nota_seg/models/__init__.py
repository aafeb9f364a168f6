"""Composable segmentation models: registries of components, configurations, encoder, heads, published weights."""

from nota_seg.models import blocks, decoders, feedforwards, mixers, skips, stems  # noqa: F401  (fills the registries)
