"""SegFormer's MiT as NVlabs published it, alone or in mmseg's frame; PVTv2 and its linear variant share its names."""

from __future__ import annotations

from nota_seg.models.checkpoints.format import Format, Rule, State, components, shifted, substitute
from nota_seg.models.checkpoints.heads import head_rules

PREFIX = r"(?:backbone\.)?"
BLOCK = PREFIX + r"block(\d)\.(\d+)\."
RULES: list[Rule] = [
    (PREFIX + r"patch_embed(\d)\.(proj|norm)\.(\w+)", shifted(r"stem.\2.\3")),
    (PREFIX + r"norm(\d)\.(\w+)", shifted(r"norm.\2")),
    (BLOCK + r"norm([12])\.(\w+)", shifted(r"blocks.\2.skip\3.norm.\4")),
    (BLOCK + r"attn\.(q|kv|proj|norm)\.(\w+)", shifted(r"blocks.\2.mixer.\3.\4")),
    (BLOCK + r"attn\.sr\.(\w+)", shifted(r"blocks.\2.mixer.reduce.\3")),
    (BLOCK + r"mlp\.(fc[12])\.(\w+)", shifted(r"blocks.\2.feedforward.\3.\4")),
    (BLOCK + r"mlp\.dwconv\.dwconv\.(\w+)", shifted(r"blocks.\2.feedforward.dwconv.\3")),
    (r"head\.(\w+)", r"classifier.\1"),
]
POOLED_TOKENS: list[Rule] = [(r"(encoder\..*\.mixer)\.(reduce|norm)\.(\w+)", r"\1.tokens.\2.\3")]
SRA = components(stem="overlap", mixer="sra", feedforward="mix", skip="add")
LINEAR_SRA = components(stem="overlap", mixer="lsra", feedforward="pvt", skip="add")


def matches(state: State) -> bool:
    plain = {k.removeprefix("backbone.") for k in state}
    return {"patch_embed1.proj.weight", "block1.0.attn.q.weight", "block1.0.mlp.dwconv.dwconv.weight"} <= plain


def is_linear(state: State, end: str) -> bool:
    """Whether the reduction of keys and values, at the keys with this end, pools before a 1x1 convolution."""
    return any(value.shape[2:] == (1, 1) for key, value in state.items() if key.endswith(end))


def rename(state: State) -> State:
    return substitute(state, [*RULES, *head_rules(state)])


def rename_linear(state: State) -> State:
    return substitute(rename(state), POOLED_TOKENS)


NVLABS = Format("NVlabs SegFormer", matches, rename, SRA)
PVTV2_LINEAR = Format(
    "PVTv2 Li", lambda state: matches(state) and is_linear(state, "attn.sr.weight"), rename_linear, LINEAR_SRA
)
