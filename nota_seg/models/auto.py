"""Tells transformers' Auto classes of our models; done once, by `import nota_seg`."""

from transformers.models.auto.configuration_auto import AutoConfig
from transformers.models.auto.modeling_auto import (
    AutoBackbone,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
)

from nota_seg.models.configuration import NotaSegConfig
from nota_seg.models.external import SmpConfig, SmpForSemanticSegmentation
from nota_seg.models.external.timm_encoder import (
    TimmBackbone,
    TimmConfig,
    TimmForImageClassification,
    TimmForSemanticSegmentation,
)
from nota_seg.models.modeling import (
    NotaSegBackbone,
    NotaSegForImageClassification,
    NotaSegForSemanticSegmentation,
)


def register() -> None:
    """Idempotent."""
    import nota_seg.models.external.beit  # noqa: F401  (registers its own: transformers' Beit may be what brings us here)

    AutoConfig.register(NotaSegConfig.model_type, NotaSegConfig, exist_ok=True)
    AutoBackbone.register(NotaSegConfig, NotaSegBackbone, exist_ok=True)
    AutoModelForImageClassification.register(NotaSegConfig, NotaSegForImageClassification, exist_ok=True)
    AutoModelForSemanticSegmentation.register(NotaSegConfig, NotaSegForSemanticSegmentation, exist_ok=True)
    for config in (SmpConfig, TimmConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoBackbone.register(TimmConfig, TimmBackbone, exist_ok=True)
    AutoModelForImageClassification.register(TimmConfig, TimmForImageClassification, exist_ok=True)
    AutoModelForSemanticSegmentation.register(TimmConfig, TimmForSemanticSegmentation, exist_ok=True)
    AutoModelForSemanticSegmentation.register(SmpConfig, SmpForSemanticSegmentation, exist_ok=True)
