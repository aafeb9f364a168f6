"""BEiT models by name, without the models; the first configuration tells transformers' Auto classes of them.

Before that transformers may be half imported, and its Beit, which the models stand on, out of reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

from nota_seg.models.external.base import SHARED_KEYS, ExternalConfig
from nota_seg.models.external.beit_positions import Window
from nota_seg.models.modeling import NotaSegPreTrainedModel
from nota_seg.models.registry import DECODERS, Spec
from util.errors import InputError, did_you_mean

PATCH = 16
STRIDES = [4, 8, 16, 32]  # of the neck's maps
# arXiv 2106.08254 and its configurations for ADE20K; the tiny one is for tests and trials.
BEIT: dict[str, dict[str, Any]] = {
    "beit-t-upernet": dict(
        dim=48, depth=4, heads=3, out_indices=[0, 1, 2, 3], crop_size=[128, 128], auxiliary_dim=32,
        decoder={"name": "uper", "dim": 32}, image_size=[512, 128],
    ),
    "beit-b-upernet": dict(decoder={"name": "uper", "dim": 768}),
    "beit-l-upernet": dict(
        dim=1024, depth=24, heads=16, layer_scale=1e-6, drop_path_rate=0.2, out_indices=[7, 11, 15, 23],
        decoder={"name": "uper", "dim": 1024},
    ),
}  # fmt: skip


class BeitUperNetConfig(ExternalConfig):
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
        image_size: As in `NotaSegConfig`, and so are `kwargs`.
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
        image_size: Sequence[int] | None = (2560, 640),
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
        super().__init__(image_size=image_size, **kwargs)
        import nota_seg.models.external.beit  # noqa: F401  (tells the Auto classes of its models)

    @classmethod
    def named(cls, name: str, options: dict[str, Any], shared: dict[str, Any]) -> BeitUperNetConfig:
        """From `beit-b-upernet`, or `beit-b-upernet-mlp` with a decoder that replaces UPerNet; checked.

        A decoder keeps the options that are not named again.
        """
        base = next((b for b in BEIT if name == b or name.startswith(b + "-")), None)
        if base is None:
            raise InputError(f"unknown model {name!r}: {did_you_mean(name, BEIT)}")
        decoder = name[len(base) + 1 :]
        if decoder and decoder not in DECODERS:
            raise InputError(f"unknown decoder {decoder!r} in model {name!r}: {did_you_mean(decoder, DECODERS)}")
        own = list(signature(cls.__init__).parameters)[1:-1]  # without self and kwargs
        for key in options:
            if key not in own:
                raise InputError(f"a BEiT model has no key {key!r}: {did_you_mean(key, [*own, *SHARED_KEYS])}")
        values = {**BEIT[base], **({"decoder": {"name": decoder}} if decoder else {})}
        given = options.get("decoder", {})
        given = {"name": given} if isinstance(given, str) else given
        same = given.get("name", values["decoder"]["name"]) == values["decoder"]["name"]
        chosen = {"decoder": {**values["decoder"], **given} if same else dict(given)}
        return cls(**{**values, **shared, **options, **chosen, "zoo_name": name})

    @classmethod
    def for_crops(cls, crop: tuple[int, int], overrides: dict[str, Any]) -> dict[str, Any]:
        whole = [max(2, round(side / PATCH)) * PATCH for side in crop]  # the tables resize to what is between
        return {"crop_size": whole, **overrides}

    @classmethod
    def models(cls) -> dict[str, type[NotaSegPreTrainedModel]]:
        from nota_seg.models.external import beit

        return {
            "segmentation": beit.BeitForSemanticSegmentation,
            "classification": beit.BeitForImageClassification,
            "backbone": beit.BeitBackbone,
        }

    def settings(self) -> dict[str, Any]:
        """For crops of any size."""
        keys = (
            "dim", "depth", "heads", "mlp_ratio", "layer_scale", "drop_path_rate", "out_indices", "absolute_positions",
            "decoder", "auxiliary_dim", "auxiliary_weight", "layer_norm_eps", "image_mean", "image_std",
        )  # fmt: skip
        return {key: getattr(self, key) for key in keys}

    @property
    def window(self) -> Window:
        """(rows, columns) of patches in a crop."""
        return self.crop_size[0] // PATCH, self.crop_size[1] // PATCH

    def components(self) -> dict[str, list[str]]:
        """The names of encoder and decoder."""
        return {"encoder": ["beit"], "decoder": [self.decoder["name"]]}
