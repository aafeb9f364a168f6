"""Tells transformers' Auto classes of our models; done once, by `import nota_seg`."""

from transformers.models.auto.configuration_auto import AutoConfig
from transformers.models.auto.modeling_auto import (
    AutoBackbone,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
)

from nota_seg.models.configuration import NotaSegConfig
from nota_seg.models.external import beit
from nota_seg.models.modeling import (
    NotaSegBackbone,
    NotaSegForImageClassification,
    NotaSegForSemanticSegmentation,
)


def register() -> None:
    """Idempotent."""
    AutoConfig.register(beit.BeitUperNetConfig.model_type, beit.BeitUperNetConfig, exist_ok=True)
    AutoBackbone.register(beit.BeitUperNetConfig, beit.BeitBackbone, exist_ok=True)
    AutoModelForImageClassification.register(beit.BeitUperNetConfig, beit.BeitForImageClassification, exist_ok=True)
    AutoModelForSemanticSegmentation.register(beit.BeitUperNetConfig, beit.BeitForSemanticSegmentation, exist_ok=True)
    AutoConfig.register(NotaSegConfig.model_type, NotaSegConfig, exist_ok=True)
    AutoBackbone.register(NotaSegConfig, NotaSegBackbone, exist_ok=True)
    AutoModelForImageClassification.register(NotaSegConfig, NotaSegForImageClassification, exist_ok=True)
    AutoModelForSemanticSegmentation.register(NotaSegConfig, NotaSegForSemanticSegmentation, exist_ok=True)
