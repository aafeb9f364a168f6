"""Swin: the authors' names and timm's, mmseg's, transformers' of 4.x and 5.x; classification, and with UPerNet."""

from __future__ import annotations

import re

from torch import Tensor

from nota_seg.models.checkpoints.format import Format, Rule, State, components, join, substitute
from nota_seg.models.checkpoints.heads import head_rules

SWIN = components(stem="patch merge", mixer="window", feedforward="mlp", skip="add")
BUFFERS = ("relative_position_index", "attn_mask")  # computed, not learned
PREFIX = r"(?:backbone\.)?"
BLOCK = PREFIX + r"(?:layers|stages)\.(\d)\.blocks\.(\d+)\."
OURS = r"encoder.stages.\1.blocks.\2."
RULES: list[Rule] = [
    (PREFIX + r"patch_embed\.proj(?:ection)?\.(\w+)", r"encoder.stages.0.stem.proj.\1"),
    (PREFIX + r"patch_embed\.norm\.(\w+)", r"encoder.stages.0.stem.norm.\1"),
    (BLOCK + r"norm([12])\.(\w+)", OURS + r"skip\3.norm.\4"),
    (BLOCK + r"attn\.(?:w_msa\.)?relative_position_bias_table", OURS + r"mixer.position_bias"),
    (BLOCK + r"attn\.(?:w_msa\.)?(qkv|proj)\.(\w+)", OURS + r"mixer.\3.\4"),
    (BLOCK + r"mlp\.(fc[12])\.(\w+)", OURS + r"feedforward.\3.\4"),
    (BLOCK + r"ffn\.layers\.0\.0\.(\w+)", OURS + r"feedforward.fc1.\3"),
    (BLOCK + r"ffn\.layers\.1\.(\w+)", OURS + r"feedforward.fc2.\3"),
    (PREFIX + r"norm([0-3])\.(\w+)", r"encoder.stages.\1.norm.\2"),
    (PREFIX + r"norm\.(\w+)", r"encoder.stages.3.norm.\1"),
    (r"head\.(?:fc\.)?(\w+)", r"classifier.\1"),
]
HF = r"(?:backbone\.)?(?:swin\.)?"
HF_BLOCK = HF + r"encoder\.layers\.(\d)\.blocks\.(\d+)\."
HF_RULES: list[Rule] = [
    (HF + r"embeddings\.patch_embeddings\.projection\.(\w+)", r"encoder.stages.0.stem.proj.\1"),
    (HF + r"embeddings\.norm\.(\w+)", r"encoder.stages.0.stem.norm.\1"),
    (HF_BLOCK + r"layernorm_before\.(\w+)", OURS + r"skip1.norm.\3"),
    (HF_BLOCK + r"layernorm_after\.(\w+)", OURS + r"skip2.norm.\3"),
    (
        HF_BLOCK + r"attention\.(?:self|relative_position_bias)\.relative_position_bias_table",
        OURS + r"mixer.position_bias",
    ),
    (HF_BLOCK + r"attention\.(?:self\.)?(q|k|v)(?:uery|ey|alue|_proj)\.(\w+)", OURS + r"mixer.\3.\4"),
    (HF_BLOCK + r"attention\.(?:output\.dense|o_proj)\.(\w+)", OURS + r"mixer.proj.\3"),
    (HF_BLOCK + r"(?:intermediate\.dense|mlp\.fc1)\.(\w+)", OURS + r"feedforward.fc1.\3"),
    (HF_BLOCK + r"(?:output\.dense|mlp\.fc2)\.(\w+)", OURS + r"feedforward.fc2.\3"),
    (HF + r"hidden_states_norms\.stage(\d)\.(\w+)", lambda m: f"encoder.stages.{int(m[1]) - 1}.norm.{m[2]}"),
    (HF + r"layernorm\.(\w+)", r"encoder.stages.3.norm.\1"),
]
MERGING = re.compile(r"(?:.*\.)?(?:layers|stages)\.(\d)\.downsample\.(norm|reduction)\.(\w+)")


def is_mmseg(state: State) -> bool:
    return any(k.removeprefix("backbone.") == "stages.0.blocks.0.attn.w_msa.qkv.weight" for k in state)


def is_plain(state: State) -> bool:
    return any(k.removeprefix("backbone.") == "layers.0.blocks.0.attn.qkv.weight" for k in state)


def is_hf(state: State) -> bool:
    ends = ("embeddings.patch_embeddings.projection.weight", "encoder.layers.0.blocks.0.layernorm_before.weight")
    return all(any(re.fullmatch(HF + re.escape(end), k) for k in state) for end in ends)


def merging(state: State) -> State:
    """`downsample` as the next stage's stem. It is the end of a stage there; timm has it at the beginning of one."""
    found = {key: m for key in state if (m := MERGING.fullmatch(key))}
    offset = 1 if any(m[1] == "0" for m in found.values()) else 0
    named = {key: f"encoder.stages.{int(m[1]) + offset}.stem.{m[2]}.{m[3]}" for key, m in found.items()}
    return {named.get(key, key): value for key, value in state.items() if not key.endswith(BUFFERS)}


def from_unfold(value: Tensor) -> Tensor:
    """mmseg merges by unfolding: channels before pixels, these along the rows; ours: pixels first, down the columns."""
    pixels = value.reshape(*value.shape[:-1], -1, 2, 2)  # (..., C, row, column)
    return pixels.movedim(-3, -1).transpose(-3, -2).reshape(value.shape)


def rename_plain(state: State) -> State:
    return substitute(merging(state), [*RULES, *head_rules(state)])


def rename_mmseg(state: State) -> State:
    state = {k: from_unfold(v) if MERGING.fullmatch(k) else v for k, v in state.items()}
    return rename_plain(state)


def rename_hf(state: State) -> State:
    return join(substitute(merging(state), [*HF_RULES, *head_rules(state)]), ("q", "k", "v"), "qkv")


SWIN_PLAIN = Format("Swin", is_plain, rename_plain, SWIN)
SWIN_MMSEG = Format("mmseg Swin", is_mmseg, rename_mmseg, SWIN)
SWIN_TRANSFORMERS = Format("transformers Swin", is_hf, rename_hf, SWIN)
