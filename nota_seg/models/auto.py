"""Tells transformers' Auto classes of our models; done once, by `import nota_seg`."""


def register() -> None:
    """Idempotent.

    Whatever module of transformers brought the Auto classes along may be half imported when this runs: nothing here
    may import its models. Those of BEiT, which stand on one of them, are registered by their configuration.
    """
    from transformers.models.auto.configuration_auto import AutoConfig
    from transformers.models.auto.modeling_auto import (
        AutoBackbone,
        AutoModelForImageClassification,
        AutoModelForSemanticSegmentation,
    )

    from nota_seg.models import modeling
    from nota_seg.models.configuration import NotaSegConfig
    from nota_seg.models.external import CONFIGS, smp, timm_encoder

    for config in (NotaSegConfig, *CONFIGS.values()):
        AutoConfig.register(config.model_type, config, exist_ok=True)  # type: ignore[attr-defined]
    for kind, ours, timms in (
        (AutoBackbone, modeling.NotaSegBackbone, timm_encoder.TimmBackbone),
        (
            AutoModelForImageClassification,
            modeling.NotaSegForImageClassification,
            timm_encoder.TimmForImageClassification,
        ),
        (
            AutoModelForSemanticSegmentation,
            modeling.NotaSegForSemanticSegmentation,
            timm_encoder.TimmForSemanticSegmentation,
        ),
    ):
        kind.register(NotaSegConfig, ours, exist_ok=True)
        kind.register(timm_encoder.TimmConfig, timms, exist_ok=True)
    AutoModelForSemanticSegmentation.register(smp.SmpConfig, smp.SmpForSemanticSegmentation, exist_ok=True)
