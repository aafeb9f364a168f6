"""Encoder, and the three models that stand on it: backbone, image classification, semantic segmentation.

Inside the encoder a feature map is (B, H, W, C) and contiguous; `permute(0, 3, 1, 2)` is then a channels-last view for
convolutions. Outside it is (B, C, H, W), as everywhere in the field.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutput, SemanticSegmenterOutput

from nota_seg.models.block import Block
from nota_seg.models.configuration import NotaSegConfig, StageConfig
from nota_seg.models.fuse import fold_batch_norms
from nota_seg.models.labels import labels_from_logits
from nota_seg.models.losses import upsampled_cross_entropy
from nota_seg.models.norms import NORMS
from nota_seg.models.registry import BLOCKS, DECODERS, STEMS
from util.errors import InputError


class Stage(nn.Module):
    """A stem, `depth` blocks and a norm, at one resolution."""

    def __init__(self, stage: StageConfig, in_channels: int, drop_paths: list[float], eps: float) -> None:
        super().__init__()
        own = stage.block_specs
        dim = own[0]["dim"] if own else stage.dim
        self.stem = STEMS.build(stage.stem, in_channels=in_channels, dim=dim, stride=stage.stride)
        self.blocks = nn.ModuleList()
        for i, drop_path in enumerate(drop_paths):
            if own:
                before, dim = dim, own[i].pop("dim")
                block = BLOCKS.build(own[i], in_dim=before, dim=dim, drop_path=drop_path, eps=eps)
            else:
                block = Block(stage, drop_path, eps, index=i)
            self.blocks.append(block)
        self.norm = NORMS[stage.norm](stage.dim, eps)
        self.norm_next = stage.norm_next

    def forward(self, x_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        """The stage's feature map, and what the next stage goes on from."""
        x_BHWC = self.stem(x_BHWC)
        for block in self.blocks:
            x_BHWC = block(x_BHWC)
        normed_BHWC = self.norm(x_BHWC)
        return normed_BHWC, normed_BHWC if self.norm_next else x_BHWC


class Encoder(nn.Module):
    """The hierarchical encoder: (B, 3, H, W) to one (B, H/stride, W/stride, C) map a stage.

    Args:
        config: Of the model.
        last_only: Only the last map is used: norms that no later stage goes on from are left out.
    """

    def __init__(self, config: NotaSegConfig, last_only: bool = False) -> None:
        super().__init__()
        stages = config.stage_configs
        if last_only:
            stages = [s if s.norm_next else replace(s, norm="none") for s in stages[:-1]] + stages[-1:]
        depth = sum(s.depth for s in stages)
        # Plain arithmetic: a tensor would fail where models are built without storage.
        rates = iter(config.drop_path_rate * i / max(1, depth - 1) for i in range(depth))
        channels = [config.in_channels, *config.channels]
        self.stages = nn.ModuleList(
            Stage(stage, channels[i], [next(rates) for _ in range(stage.depth)], config.layer_norm_eps)
            for i, stage in enumerate(stages)
        )

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        x_BHWC = pixel_values.permute(0, 2, 3, 1).contiguous()
        features = []
        for stage in self.stages:
            feature_BHWC, x_BHWC = stage(x_BHWC)
            features.append(feature_BHWC)
        return features


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
        image_processor(self.config).save_pretrained(save_directory)


def image_processor(config: NotaSegConfig) -> Any:
    """The transformers image processor that prepares pictures as the model was trained on them."""
    from transformers import SegformerImageProcessor

    size = config.image_size
    return SegformerImageProcessor(
        do_resize=size is not None,
        size={"longest_edge": size[0], "shortest_edge": size[1]} if size is not None else None,
        image_mean=config.image_mean,
        image_std=config.image_std,
        do_reduce_labels=False,
    )


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


class NotaSegForSemanticSegmentation(NotaSegPreTrainedModel):
    """Encoder and decoder; logits (B, K, H/s, W/s) with s the decoder's stride (4 for the all-MLP head)."""

    def __init__(self, config: NotaSegConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = DECODERS.build(
            config.decoder, channels=config.channels, strides=config.strides, num_labels=config.num_labels
        )
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> SemanticSegmenterOutput:
        """
        Args:
            pixel_values: (B, 3, H, W), normalised.
            labels: (B, H', W') class indices; the loss is taken at their size, where they are not the ignored label.
        """
        features = self.encoder(pixel_values)
        logits = self.decoder([x.permute(0, 3, 1, 2) for x in features])
        loss = None
        if labels is not None:
            loss = upsampled_cross_entropy(logits, labels, ignore_index=self.config.semantic_loss_ignore_index)
        return SemanticSegmenterOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def predict_labels(self, pixel_values: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Label map (B, H, W), int64, at `size` (height, width; the input's by default).

        Equal to bilinear upsampling (align_corners False) of the logits and argmax, in pieces that stay in cache.
        """
        logits = self(pixel_values).logits
        return labels_from_logits(logits, size or tuple(pixel_values.shape[2:]))


def has_textbook(model: nn.Module) -> bool:
    """Whether any component has a cheaper form than its paper's."""
    return any(isinstance(getattr(m, "textbook", None), bool) for m in model.modules())


@contextmanager
def textbook(model: nn.Module) -> Iterator[None]:
    """Inside the block every component that has a cheaper equal form computes in the order of its paper."""
    parts = [m for m in model.modules() if isinstance(getattr(m, "textbook", None), bool)]
    before = [m.textbook for m in parts]
    for m in parts:
        m.textbook = True
    try:
        yield
    finally:
        for m, value in zip(parts, before, strict=True):
            m.textbook = value
