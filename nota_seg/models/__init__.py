"""Composable segmentation models: registries of components, configurations, encoder, heads, published weights."""

from nota_seg.models import blocks, decoders, feedforwards, mixers, skips, stems  # noqa: F401  (fills the registries)
from nota_seg.models.configuration import NotaSegConfig, StageConfig
from nota_seg.models.zoo import create_config, create_model, list_models

__all__ = ["NotaSegConfig", "StageConfig", "create_config", "create_model", "list_models"]
