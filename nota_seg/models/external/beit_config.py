"""The configuration of BEiT models, without the models; the first one tells transformers' Auto classes of them.

Before that transformers may be half imported, and its Beit, which the models stand on, out of reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

from nota_seg.models.configuration import IMAGENET_MEAN, IMAGENET_STD
from nota_seg.models.external.beit_positions import Window
from nota_seg.models.registry import DECODERS, Spec
from util.errors import InputError

PATCH = 16
STRIDES = [4, 8, 16, 32]  # of the neck's maps


class BeitUperNetConfig(PretrainedConfig):
    """Configuration of BEiT models.

    Args:
        dim: Channels of the encoder.
        depth: Blocks.
        heads: Of the attention.
        mlp_ratio: Feed-forward hidden channels / dim.
        layer_scale: What the scales of both branches of a block start from.
        drop_path_rate: Stochastic depth of the last block; it rises linearly from 0.
        out_indices: The four blocks, counted from 0, whose maps the neck gets.
        crop_size: (height, width) in pixels that the position tables are made for. Other sizes run, with the tables
            resized on the way; weights for another size are resized as published when they are loaded.
        absolute_positions: Also learned absolute position embeddings; the published segmentation models have none.
        decoder: A registered decoder and its options.
        auxiliary_dim: Channels of the auxiliary head.
        auxiliary_weight: Of its loss; 0 for no such head.
        layer_norm_eps: Epsilon of the LayerNorms.
        kwargs: `in_channels` and below as in `NotaSegConfig`.
    """

    model_type = "nota_seg_beit"

    def __init__(
        self,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4,
        layer_scale: float = 0.1,
        drop_path_rate: float = 0.1,
        out_indices: Sequence[int] = (3, 5, 7, 11),
        crop_size: Sequence[int] | int = (640, 640),
        absolute_positions: bool = False,
        decoder: Spec = "uper",
        auxiliary_dim: int = 256,
        auxiliary_weight: float = 0.4,
        layer_norm_eps: float = 1e-6,
        in_channels: int = 3,
        initializer_range: float = 0.02,
        semantic_loss_ignore_index: int = 255,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        image_size: Sequence[int] | None = (2560, 640),
        zoo_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        sides = [crop_size] * 2 if isinstance(crop_size, int) else list(crop_size)
        if len(sides) != 2 or any(not isinstance(s, int) or s < 2 * PATCH or s % PATCH for s in sides):
            raise InputError(
                f"crop_size must be one or two multiples of {PATCH} from {2 * PATCH} on, got {crop_size!r}"
            )
        if dim % heads:
            raise InputError(f"{heads} heads do not divide {dim} channels")
        if not 0 <= drop_path_rate < 1:
            raise InputError(f"drop_path_rate must be in [0, 1), got {drop_path_rate!r}")
        indices = list(out_indices)
        if len(indices) != 4 or indices != sorted(set(indices)) or not 0 <= indices[0] <= indices[-1] < depth:
            raise InputError(f"out_indices must be four rising numbers of blocks from 0 to {depth - 1}, got {indices}")
        if auxiliary_weight < 0:
            raise InputError(f"auxiliary_weight must not be negative, got {auxiliary_weight!r}")
        self.dim, self.depth, self.heads, self.mlp_ratio = dim, depth, heads, mlp_ratio
        self.layer_scale, self.drop_path_rate = layer_scale, drop_path_rate
        self.out_indices = indices
        self.crop_size = sides
        self.absolute_positions = absolute_positions
        self.decoder = DECODERS.normalise(decoder)
        self.auxiliary_dim, self.auxiliary_weight = auxiliary_dim, auxiliary_weight
        self.layer_norm_eps = layer_norm_eps
        self.in_channels = in_channels
        self.initializer_range = initializer_range
        self.semantic_loss_ignore_index = semantic_loss_ignore_index
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.image_size = None if image_size is None else list(image_size)
        self.zoo_name = zoo_name
        super().__init__(**kwargs)
        import nota_seg.models.external.beit  # noqa: F401  (tells the Auto classes of its models)

    @property
    def window(self) -> Window:
        """(rows, columns) of patches in a crop."""
        return self.crop_size[0] // PATCH, self.crop_size[1] // PATCH

    def components(self) -> dict[str, list[str]]:
        """The names of encoder and decoder."""
        return {"encoder": ["beit"], "decoder": [self.decoder["name"]]}
