"""PVTv2 and its linear variant as timm and transformers save them; the authors' own names are those of `nvlabs`."""

from __future__ import annotations

from nota_seg.models.checkpoints.format import Format, Rule, State, join, substitute
from nota_seg.models.checkpoints.nvlabs import LINEAR_SRA, POOLED_TOKENS, SRA, is_linear

STAGE = r"encoder.stages.\1."
BLOCK = r"encoder.stages.\1.blocks.\2."

TIMM_BLOCK = r"stages\.(\d)\.blocks\.(\d+)\."
TIMM_RULES: list[Rule] = [
    (r"patch_embed\.(proj|norm)\.(\w+)", r"encoder.stages.0.stem.\1.\2"),
    (r"stages\.(\d)\.downsample\.(proj|norm)\.(\w+)", STAGE + r"stem.\2.\3"),
    (r"stages\.(\d)\.norm\.(\w+)", STAGE + r"norm.\2"),
    (TIMM_BLOCK + r"norm([12])\.(\w+)", BLOCK + r"skip\3.norm.\4"),
    (TIMM_BLOCK + r"attn\.(q|kv|proj|norm)\.(\w+)", BLOCK + r"mixer.\3.\4"),
    (TIMM_BLOCK + r"attn\.sr\.(\w+)", BLOCK + r"mixer.reduce.\3"),
    (TIMM_BLOCK + r"mlp\.(fc1|dwconv|fc2)\.(\w+)", BLOCK + r"feedforward.\3.\4"),
    (r"head\.(\w+)", r"classifier.\1"),
]
HF_STAGE = r"(?:pvt_v2\.)?encoder\.layers\.(\d)\."
HF_BLOCK = HF_STAGE + r"blocks\.(\d+)\."
HF_RULES: list[Rule] = [
    (HF_STAGE + r"patch_embedding\.proj\.(\w+)", STAGE + r"stem.proj.\2"),
    (HF_STAGE + r"patch_embedding\.layer_norm\.(\w+)", STAGE + r"stem.norm.\2"),
    (HF_STAGE + r"layer_norm\.(\w+)", STAGE + r"norm.\2"),
    (HF_BLOCK + r"layer_norm_([12])\.(\w+)", BLOCK + r"skip\3.norm.\4"),
    (HF_BLOCK + r"attention\.query\.(\w+)", BLOCK + r"mixer.q.\3"),
    (HF_BLOCK + r"attention\.key\.(\w+)", BLOCK + r"mixer.k.\3"),
    (HF_BLOCK + r"attention\.value\.(\w+)", BLOCK + r"mixer.v.\3"),
    (HF_BLOCK + r"attention\.proj\.(\w+)", BLOCK + r"mixer.proj.\3"),
    (HF_BLOCK + r"attention\.spatial_reduction\.(\w+)", BLOCK + r"mixer.reduce.\3"),
    (HF_BLOCK + r"attention\.layer_norm\.(\w+)", BLOCK + r"mixer.norm.\3"),
    (HF_BLOCK + r"mlp\.dense([12])\.(\w+)", BLOCK + r"feedforward.fc\3.\4"),
    (HF_BLOCK + r"mlp\.dwconv\.dwconv\.(\w+)", BLOCK + r"feedforward.dwconv.\3"),
]


def is_timm(state: State) -> bool:
    return {"patch_embed.proj.weight", "stages.0.blocks.0.attn.kv.weight"} <= set(state)


def is_hf(state: State) -> bool:
    return any(k.removeprefix("pvt_v2.") == "encoder.layers.0.patch_embedding.proj.weight" for k in state)


def rename_timm(state: State) -> State:
    return substitute(state, TIMM_RULES)


def rename_hf(state: State) -> State:
    return join(substitute(state, HF_RULES), ("k", "v"), "kv")


TIMM = Format("timm PVTv2", is_timm, rename_timm, SRA)
TIMM_LINEAR = Format(
    "timm PVTv2 Li",
    lambda state: is_timm(state) and is_linear(state, "attn.sr.weight"),
    lambda state: substitute(rename_timm(state), POOLED_TOKENS),
    LINEAR_SRA,
)
TRANSFORMERS = Format("transformers PVTv2", is_hf, rename_hf, SRA)
TRANSFORMERS_LINEAR = Format(
    "transformers PVTv2 Li",
    lambda state: is_hf(state) and is_linear(state, "attention.spatial_reduction.weight"),
    lambda state: substitute(rename_hf(state), POOLED_TOKENS),
    LINEAR_SRA,
)
