"""BEiT models by name."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from nota_seg.models.external.beit_config import PATCH, BeitUperNetConfig
from nota_seg.models.modeling import NotaSegPreTrainedModel
from nota_seg.models.registry import DECODERS
from util.errors import InputError, did_you_mean

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


def is_beit(name: str) -> bool:
    return name.startswith("beit-")


def crop_overrides(name: str, crop: tuple[int, int], overrides: dict[str, Any]) -> dict[str, Any]:
    """Overrides with the crop that a run trains on as the one of the position tables, unless they name another."""
    if not is_beit(name):
        return overrides
    whole = [max(2, round(side / PATCH)) * PATCH for side in crop]  # the tables resize to what is between
    return {"crop_size": whole, **overrides}


def base_of(name: str) -> tuple[str, str | None]:
    """A name as its base and the decoder that replaces UPerNet: `beit-b-upernet-mlp`."""
    base = next((b for b in BEIT if name == b or name.startswith(b + "-")), None)
    if base is None:
        raise InputError(f"unknown model {name!r}: {did_you_mean(name, BEIT)}")
    decoder = name[len(base) + 1 :]
    if decoder and decoder not in DECODERS:
        raise InputError(f"unknown decoder {decoder!r} in model {name!r}: {did_you_mean(decoder, DECODERS)}")
    return base, decoder or None


def create_config(name: str, num_labels: int, overrides: Mapping[str, Any]) -> BeitUperNetConfig:
    """The configuration of a model name; a decoder keeps the options that are not named again."""
    base, decoder = base_of(name)
    known = [*list(signature(BeitUperNetConfig.__init__).parameters)[1:-1], "id2label", "label2id"]
    for key in overrides:
        if key not in known:
            raise InputError(f"a BEiT model has no key {key!r}: {did_you_mean(key, known)}")
    values = {**BEIT[base], **({"decoder": {"name": decoder}} if decoder else {})}
    given = overrides.get("decoder")
    if isinstance(given, str):
        given = {"name": given}
    if given is not None:
        before = values["decoder"]
        same = given.get("name", before["name"]) == before["name"]
        values["decoder"] = {**before, **given} if same else dict(given)
    others = {k: v for k, v in overrides.items() if k != "decoder"}
    return BeitUperNetConfig(**{"num_labels": num_labels, **values, **others, "zoo_name": name})


def models() -> dict[str, type[NotaSegPreTrainedModel]]:
    """The model of each task."""
    from nota_seg.models.external import beit

    return {
        "segmentation": beit.BeitForSemanticSegmentation,
        "classification": beit.BeitForImageClassification,
        "backbone": beit.BeitBackbone,
    }


def settings_of(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Model name and overrides that make the architecture of a saved configuration again, for crops of any size."""
    keys = (
        "dim", "depth", "heads", "mlp_ratio", "layer_scale", "drop_path_rate", "out_indices", "absolute_positions",
        "decoder", "auxiliary_dim", "auxiliary_weight", "layer_norm_eps", "image_mean", "image_std",
    )  # fmt: skip
    return {"name": saved["zoo_name"], **{key: saved[key] for key in keys}}
