"""The three models that stand on the encoder, as transformers' own: backbone, classification, semantic segmentation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutput, SemanticSegmenterOutput

from nota_seg.models.configuration import NotaSegConfig
from nota_seg.models.fuse import fold_batch_norms
from nota_seg.models.losses import upsampled_cross_entropy
from nota_seg.models.network import Encoder, Segmenter
from util.errors import InputError
from util.files import write_json


class NotaSegPreTrainedModel(PreTrainedModel):
    """Initialisation, loading and saving, shared by the three models."""

    config_class: type[PretrainedConfig] = NotaSegConfig
    config: Any
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["Block"]
    _supports_sdpa = True
    _fused = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Linear: truncated normal; convolution: normal with variance 2 / fan_out (fan_out divided by the groups)."""
        # transformers.initialization would skip what a checkpoint has already filled; the flag does the same here.
        if hasattr(module, "init_own_weights"):
            # A component with parameters of its own kind (a scale, a bias table) says itself how they start. It must
            # own them directly: transformers passes modules by that have no parameter or buffer of their own.
            module.init_own_weights()
        elif isinstance(module, nn.Linear):
            if not getattr(module.weight, "_is_hf_initialized", False):
                nn.init.trunc_normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            if not getattr(module.weight, "_is_hf_initialized", False):
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm):
            if module.weight is not None and not getattr(module.weight, "_is_hf_initialized", False):
                nn.init.ones_(module.weight)
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and not getattr(
                module.running_mean, "_is_hf_initialized", False
            ):
                module.reset_running_stats()
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter) and not getattr(bias, "_is_hf_initialized", False):
            nn.init.zeros_(bias)

    @property
    def layers(self) -> int:
        """Blocks of the encoder."""
        self.layer_of("")
        return sum(s.depth for s in self.config.stage_configs)

    def layer_of(self, name: str) -> int:
        """Number of the layer of a parameter, for learning rates that fall towards the input: 0 the first stem, then
        the blocks of all stages (a later stem and a stage's norm go with the block before), then all else."""
        if not isinstance(self.config, NotaSegConfig):
            raise InputError(f"optim.layer_decay: the layers of {type(self).__name__} are not numbered; leave it out")
        depths = [s.depth for s in self.config.stage_configs]
        words = name.split(".")
        if words[:2] != ["encoder", "stages"]:
            return sum(depths) + 1
        before = sum(depths[: int(words[2])])
        if words[3] == "blocks":
            return before + int(words[4]) + 1
        return before if words[3] == "stem" else before + depths[int(words[2])]

    def fuse(self) -> NotaSegPreTrainedModel:
        """Fold batch norms into the convolutions before them, for inference: equal up to rounding, in place.

        The way back is to load the weights anew: a fused model neither trains nor is saved.
        """
        fold_batch_norms(self.eval())
        self._fused = True
        return self

    def train(self, mode: bool = True) -> NotaSegPreTrainedModel:
        if mode and self._fused:
            raise InputError("a fused model has no batch norms left to train: load the weights anew")
        return super().train(mode)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:  # type: ignore[override]
        """As in transformers, and an image processor beside the weights: a model without one is half a model."""
        if self._fused:
            raise InputError("a fused model does not fit its configuration any more: save it before model.fuse()")
        super().save_pretrained(save_directory, **kwargs)
        write_json(Path(save_directory) / "preprocessor_config.json", image_processor(self.config))


def image_processor(config: NotaSegConfig) -> dict[str, Any]:
    """What transformers' SegformerImageProcessor is told to prepare pictures as the model was trained on them.

    As data: to import that class takes a second, at the end of every training.
    """
    size = config.image_size
    return {
        "image_processor_type": "SegformerImageProcessor",
        "do_resize": size is not None,
        "size": None if size is None else {"longest_edge": size[0], "shortest_edge": size[1]},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
        "do_reduce_labels": False,
    }


class NotaSegBackbone(NotaSegPreTrainedModel):
    """The encoder alone; `feature_maps` has one (B, C, H/stride, W/stride) map a stage."""

    def __init__(self, config: NotaSegConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.post_init()

    @property
    def channels(self) -> list[int]:
        return self.config.channels

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BackboneOutput:
        features = self.encoder(pixel_values)
        return BackboneOutput(feature_maps=tuple(x.permute(0, 3, 1, 2) for x in features))


class NotaSegForImageClassification(NotaSegPreTrainedModel):
    """Mean over the last map, then a Linear: what the encoder is pre-trained with."""

    def __init__(self, config: NotaSegConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config, last_only=True)
        self.classifier = nn.Linear(config.channels[-1], config.num_labels)
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> ImageClassifierOutput:
        """
        Args:
            pixel_values: (B, 3, H, W), normalised.
            labels: (B) class indices, or (B, K) probabilities as mixup makes them.
        """
        logits = self.classifier(self.encoder(pixel_values)[-1].mean(dim=(1, 2)))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


class NotaSegForSemanticSegmentation(Segmenter, NotaSegPreTrainedModel):
    """Encoder and decoder; logits (B, K, H/s, W/s) with s the decoder's stride (4 for the all-MLP head)."""

    def __init__(self, config: NotaSegConfig) -> None:
        super().__init__(config)
        self.assemble(config, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> SemanticSegmenterOutput:
        """
        Args:
            pixel_values: (B, 3, H, W), normalised.
            labels: (B, H', W') class indices; the loss is taken at their size, where they are not the ignored label.
        """
        logits = self.logits_of(pixel_values)
        loss = None
        if labels is not None:
            loss = upsampled_cross_entropy(logits, labels, ignore_index=self.config.semantic_loss_ignore_index)
        return SemanticSegmenterOutput(loss=loss, logits=logits)
