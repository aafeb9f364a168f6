"""BEiT with UPerNet (arXiv 2106.08254, appendix; UPerNet: arXiv 1807.10221): transformers' encoder, our decoders.

The encoder is a plain transformer on patches of 16. A neck makes a pyramid of the maps after four of its blocks, and
any registered decoder reads that. An FCN head on the map at 1/16 helps the training and is left out otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoBackbone,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    BeitConfig,
    BeitModel,
)
from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutput, SemanticSegmenterOutput

from nota_seg.models.decoders.parts import ConvNormReLU
from nota_seg.models.external.beit_config import PATCH, STRIDES, BeitUperNetConfig
from nota_seg.models.external.beit_positions import RelativePositionBias, resize_positions
from nota_seg.models.labels import labels_from_logits
from nota_seg.models.losses import upsampled_cross_entropy
from nota_seg.models.modeling import NotaSegPreTrainedModel
from nota_seg.models.registry import DECODERS


class BeitEncoder(BeitModel):
    """transformers' Beit as a pyramid-less encoder: (B, 3, H, W) to a (B, C, H/16, W/16) map for each block asked for.

    Differs in its positions alone: tables of windows that need not be square.
    """

    def __init__(self, config: BeitUperNetConfig) -> None:
        super().__init__(
            BeitConfig(
                hidden_size=config.dim,
                num_hidden_layers=config.depth,
                num_attention_heads=config.heads,
                intermediate_size=int(config.dim * config.mlp_ratio),
                layer_scale_init_value=config.layer_scale,
                drop_path_rate=config.drop_path_rate,
                layer_norm_eps=config.layer_norm_eps,
                image_size=tuple(config.crop_size),
                patch_size=PATCH,
                num_channels=config.in_channels,
                use_absolute_position_embeddings=config.absolute_positions,
                initializer_range=config.initializer_range,
            ),
            add_pooling_layer=False,
        )
        self.window = config.window
        for layer in self.layers:
            layer.relative_position_bias = RelativePositionBias(self.window, config.heads)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RelativePositionBias):
            module.init_own_weights()

    def forward(self, pixel_values: Tensor, out_indices: Sequence[int]) -> list[Tensor]:  # type: ignore[override]
        """
        Args:
            pixel_values: (B, 3, H, W), sides multiples of 16.
            out_indices: Blocks, counted from 0; without a norm, as published.
        """
        B, _, height, width = pixel_values.shape
        h, w = int(height) // PATCH, int(width) // PATCH
        x_BNC = self.embeddings.patch_embeddings(pixel_values)
        x_BNC = torch.cat([self.embeddings.cls_token.expand(B, -1, -1), x_BNC], dim=1)
        if self.embeddings.position_embeddings is not None:
            x_BNC = x_BNC + resize_positions(self.embeddings.position_embeddings, self.window, (h, w))
        maps = []
        for i, layer in enumerate(self.layers):
            x_BNC = layer(x_BNC, None, False, (h * PATCH, w * PATCH))
            if i in out_indices:
                maps.append(x_BNC[:, 1:].transpose(1, 2).reshape(B, -1, h, w))
        return maps


class FeaturePyramid(nn.Module):
    """Four maps of one size as a pyramid: enlarged 4 times and twice by transposed convolutions, as it is, halved."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up4 = nn.Sequential(
            nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2),
            nn.BatchNorm2d(dim),
            nn.GELU(),
            nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2),
        )
        self.up2 = nn.Sequential(nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [self.up4(maps[0]), self.up2(maps[1]), maps[2], F.max_pool2d(maps[3], kernel_size=2)]


class FCNHead(nn.Module):
    """One 3x3 convolution with norm and ReLU, dropout of channels, classifier (arXiv 1411.4038, as mmseg has it)."""

    def __init__(self, in_channels: int, dim: int, num_labels: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.conv = ConvNormReLU(in_channels, dim, kernel=3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(dim, num_labels, kernel_size=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.conv(x_BCHW)))


@dataclass
class AuxiliaryOutput(SemanticSegmenterOutput):
    """With the logits of the auxiliary head, in training."""

    auxiliary_logits: Tensor | None = None


class BeitPreTrained(NotaSegPreTrainedModel):
    """What the BEiT models share."""

    config_class = BeitUperNetConfig
    config: BeitUperNetConfig
    supports_gradient_checkpointing = True

    @property
    def layers(self) -> int:
        """Blocks of the encoder."""
        return self.config.depth

    def layer_of(self, name: str) -> int:
        """Number of the layer of a parameter: 0 the embeddings, then the blocks, then all that stands on them."""
        if name.startswith("encoder.embeddings."):
            return 0
        block = re.match(r"encoder\.layers\.(\d+)\.", name)
        return int(block[1]) + 1 if block else self.layers + 1


class BeitForSemanticSegmentation(BeitPreTrained):
    """Encoder, neck, decoder; logits (B, K, H/4, W/4) with UPerNet."""

    def __init__(self, config: BeitUperNetConfig) -> None:
        super().__init__(config)
        self.encoder = BeitEncoder(config)
        self.neck = FeaturePyramid(config.dim)
        self.decoder = DECODERS.build(
            config.decoder, channels=[config.dim] * 4, strides=STRIDES, num_labels=config.num_labels
        )
        self.auxiliary = (
            FCNHead(config.dim, config.auxiliary_dim, config.num_labels) if config.auxiliary_weight > 0 else None
        )
        self.post_init()

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, output_hidden_states: bool = False, **kwargs: Any
    ) -> AuxiliaryOutput:
        """
        Args:
            pixel_values: (B, 3, H, W), normalised. Sides that are no multiples of 16 are padded with zeros, the mean
                colour, at the right and the bottom; the padding's logits are cut off.
            labels: (B, H', W') class indices; the loss is taken at their size, where they are not the ignored label.
            output_hidden_states: Also the neck's maps, as `hidden_states`.
        """
        maps = self.neck(self.encoder(padded(pixel_values), self.config.out_indices))
        stride: int = self.decoder.stride  # type: ignore[assignment]
        rows, columns = (-(-int(side) // stride) for side in pixel_values.shape[2:])
        logits = self.decoder(maps)[..., :rows, :columns]
        auxiliary = None
        if self.training and self.auxiliary is not None:
            rows, columns = (-(-int(side) // PATCH) for side in pixel_values.shape[2:])
            auxiliary = self.auxiliary(maps[2])[..., :rows, :columns]
        loss = None
        if labels is not None:
            ignored = self.config.semantic_loss_ignore_index
            loss = upsampled_cross_entropy(logits, labels, ignore_index=ignored)
            if auxiliary is not None:
                extra = upsampled_cross_entropy(auxiliary, labels, ignore_index=ignored)
                loss = loss + self.config.auxiliary_weight * extra
        hidden = tuple(maps) if output_hidden_states else None
        return AuxiliaryOutput(loss=loss, logits=logits, hidden_states=hidden, auxiliary_logits=auxiliary)

    @torch.no_grad()
    def predict_labels(self, pixel_values: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Label map (B, H, W), int64, at `size` (height, width; the input's by default)."""
        return labels_from_logits(self(pixel_values).logits, size or tuple(pixel_values.shape[2:]))


class BeitForImageClassification(BeitPreTrained):
    """Mean over the patches of the last block, norm, Linear, as BEiT is fine-tuned on ImageNet."""

    def __init__(self, config: BeitUperNetConfig) -> None:
        super().__init__(config)
        self.encoder = BeitEncoder(config)
        self.norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.classifier = nn.Linear(config.dim, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> ImageClassifierOutput:
        """
        Args:
            pixel_values: (B, 3, H, W), normalised.
            labels: (B) class indices, or (B, K) probabilities as mixup makes them.
        """
        (last,) = self.encoder(padded(pixel_values), [self.config.depth - 1])
        logits = self.classifier(self.norm(last.mean(dim=(2, 3))))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


class BeitBackbone(BeitPreTrained):
    """Encoder and neck: one (B, C, H/stride, W/stride) map for each stride from 4 to 32."""

    def __init__(self, config: BeitUperNetConfig) -> None:
        super().__init__(config)
        self.encoder = BeitEncoder(config)
        self.neck = FeaturePyramid(config.dim)
        self.post_init()

    @property
    def channels(self) -> list[int]:
        return [self.config.dim] * 4

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BackboneOutput:
        maps = self.encoder(padded(pixel_values), self.config.out_indices)
        return BackboneOutput(feature_maps=tuple(self.neck(maps)))


def padded(x_BCHW: Tensor) -> Tensor:
    """To whole patches, at least two a side: the neck halves the map."""
    height, width = (max(2, -(-int(side) // PATCH)) * PATCH for side in x_BCHW.shape[2:])
    if (height, width) == tuple(x_BCHW.shape[2:]):
        return x_BCHW
    return F.pad(x_BCHW, (0, width - x_BCHW.shape[3], 0, height - x_BCHW.shape[2]))


AutoBackbone.register(BeitUperNetConfig, BeitBackbone, exist_ok=True)
AutoModelForImageClassification.register(BeitUperNetConfig, BeitForImageClassification, exist_ok=True)
AutoModelForSemanticSegmentation.register(BeitUperNetConfig, BeitForSemanticSegmentation, exist_ok=True)
