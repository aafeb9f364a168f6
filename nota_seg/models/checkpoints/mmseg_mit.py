"""SegFormer's MiT as mmseg re-implemented it: torch's own attention, convolutions as feed-forward.

Its decoder has a norm and a ReLU after every stage's projection and is another than the published one, so that it finds
no place here.
"""

from __future__ import annotations

from nota_seg.models.checkpoints.format import Format, Rule, State, substitute
from nota_seg.models.checkpoints.heads import head_rules
from nota_seg.models.checkpoints.nvlabs import SRA

STAGE = r"(?:backbone\.)?layers\.(\d)\."
BLOCK = STAGE + r"1\.(\d+)\."
OUR_STAGE = r"encoder.stages.\1."
OUR_BLOCK = r"encoder.stages.\1.blocks.\2."
LAYERS = {"0": "fc1", "1": "dwconv", "4": "fc2"}  # of the feed-forward: beside GELU and dropout
RULES: list[Rule] = [
    (STAGE + r"0\.projection\.(\w+)", OUR_STAGE + r"stem.proj.\2"),
    (STAGE + r"0\.norm\.(\w+)", OUR_STAGE + r"stem.norm.\2"),
    (STAGE + r"2\.(\w+)", OUR_STAGE + r"norm.\2"),
    (BLOCK + r"norm([12])\.(\w+)", OUR_BLOCK + r"skip\3.norm.\4"),
    (BLOCK + r"attn\.attn\.in_proj_(\w+)", OUR_BLOCK + r"mixer.qkv.\3"),
    (BLOCK + r"attn\.attn\.out_proj\.(\w+)", OUR_BLOCK + r"mixer.proj.\3"),
    (BLOCK + r"attn\.sr\.(\w+)", OUR_BLOCK + r"mixer.reduce.\3"),
    (BLOCK + r"attn\.norm\.(\w+)", OUR_BLOCK + r"mixer.norm.\3"),
    (
        BLOCK + r"ffn\.layers\.([014])\.(\w+)",
        lambda m: f"encoder.stages.{m[1]}.blocks.{m[2]}.feedforward.{LAYERS[m[3]]}.{m[4]}",
    ),
]


def matches(state: State) -> bool:
    plain = {k.removeprefix("backbone.") for k in state}
    return {"layers.0.0.projection.weight", "layers.0.1.0.attn.attn.in_proj_weight"} <= plain


def rename(state: State) -> State:
    result: State = {}
    for key, value in substitute(state, [*RULES, *head_rules(state)]).items():
        if ".mixer.qkv." in key:
            dim = len(value) // 3
            result[key.replace(".qkv.", ".q.")] = value[:dim]
            result[key.replace(".qkv.", ".kv.")] = value[dim:]
        else:
            result[key] = value
    return result


MMSEG_MIT = Format("mmseg SegFormer", matches, rename, SRA)
