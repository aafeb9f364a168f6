"""SegFormer as transformers saves it: the names of 4.x and those of 5.x, classification and segmentation."""

from __future__ import annotations

from nota_seg.models.checkpoints.format import Format, Rule, State, join, substitute
from nota_seg.models.checkpoints.nvlabs import SRA

ENCODER_4 = r"(?:segformer\.)?encoder\."
BLOCK_4 = ENCODER_4 + r"block\.(\d+)\.(\d+)\."
STAGE_5 = r"(?:segformer\.)?stages\.(\d+)\."
BLOCK_5 = STAGE_5 + r"blocks\.(\d+)\."
STAGE = r"encoder.stages.\1."
BLOCK = r"encoder.stages.\1.blocks.\2."

HEAD_RULES: list[Rule] = [
    (r"decode_head\.(?:linear_c|linear_projections)\.(\d+)\.proj\.(\w+)", r"decoder.linears.\1.\2"),
    (r"decode_head\.linear_fuse\.(\w+)", r"decoder.fuse.\1"),
    (r"decode_head\.batch_norm\.(\w+)", r"decoder.norm.\1"),
    (r"decode_head\.classifier\.(\w+)", r"decoder.classifier.\1"),
]
RULES_4: list[Rule] = [
    (ENCODER_4 + r"patch_embeddings\.(\d+)\.proj\.(\w+)", STAGE + r"stem.proj.\2"),
    (ENCODER_4 + r"patch_embeddings\.(\d+)\.layer_norm\.(\w+)", STAGE + r"stem.norm.\2"),
    (ENCODER_4 + r"layer_norm\.(\d+)\.(\w+)", STAGE + r"norm.\2"),
    (BLOCK_4 + r"layer_norm_([12])\.(\w+)", BLOCK + r"skip\3.norm.\4"),
    (BLOCK_4 + r"attention\.self\.query\.(\w+)", BLOCK + r"mixer.q.\3"),
    (BLOCK_4 + r"attention\.self\.key\.(\w+)", BLOCK + r"mixer.k.\3"),
    (BLOCK_4 + r"attention\.self\.value\.(\w+)", BLOCK + r"mixer.v.\3"),
    (BLOCK_4 + r"attention\.self\.sr\.(\w+)", BLOCK + r"mixer.reduce.\3"),
    (BLOCK_4 + r"attention\.self\.layer_norm\.(\w+)", BLOCK + r"mixer.norm.\3"),
    (BLOCK_4 + r"attention\.output\.dense\.(\w+)", BLOCK + r"mixer.proj.\3"),
    (BLOCK_4 + r"mlp\.dense([12])\.(\w+)", BLOCK + r"feedforward.fc\3.\4"),
    (BLOCK_4 + r"mlp\.dwconv\.dwconv\.(\w+)", BLOCK + r"feedforward.dwconv.\3"),
    *HEAD_RULES,
]
RULES_5: list[Rule] = [
    (STAGE_5 + r"patch_embeddings\.proj\.(\w+)", STAGE + r"stem.proj.\2"),
    (STAGE_5 + r"patch_embeddings\.layer_norm\.(\w+)", STAGE + r"stem.norm.\2"),
    (STAGE_5 + r"layer_norm\.(\w+)", STAGE + r"norm.\2"),
    (BLOCK_5 + r"layernorm_before\.(\w+)", BLOCK + r"skip1.norm.\3"),
    (BLOCK_5 + r"layernorm_after\.(\w+)", BLOCK + r"skip2.norm.\3"),
    (BLOCK_5 + r"attention\.([qkv])_proj\.(\w+)", BLOCK + r"mixer.\3.\4"),
    (BLOCK_5 + r"attention\.o_proj\.(\w+)", BLOCK + r"mixer.proj.\3"),
    (BLOCK_5 + r"attention\.sequence_reduction\.sequence_reduction\.(\w+)", BLOCK + r"mixer.reduce.\3"),
    (BLOCK_5 + r"attention\.sequence_reduction\.layer_norm\.(\w+)", BLOCK + r"mixer.norm.\3"),
    (BLOCK_5 + r"mlp\.fc([12])\.(\w+)", BLOCK + r"feedforward.fc\3.\4"),
    (BLOCK_5 + r"mlp\.dwconv\.dwconv\.(\w+)", BLOCK + r"feedforward.dwconv.\3"),
    *HEAD_RULES,
]


def rename_4(state: State) -> State:
    return join(substitute(state, RULES_4), ("k", "v"), "kv")


def rename_5(state: State) -> State:
    return join(substitute(state, RULES_5), ("k", "v"), "kv")


TRANSFORMERS_4 = Format(
    "transformers 4.x SegFormer",
    lambda state: any(k.removeprefix("segformer.").startswith("encoder.patch_embeddings.0.proj") for k in state),
    rename_4,
    SRA,
)
TRANSFORMERS_5 = Format(
    "transformers 5.x SegFormer",
    lambda state: any(k.removeprefix("segformer.").startswith("stages.0.patch_embeddings.proj") for k in state),
    rename_5,
    SRA,
)
