"""SegFormer as NVlabs published it: the MiT encoder alone, or the whole model in mmseg's names."""

from __future__ import annotations

import re

from nota_seg.models.checkpoints.format import SEGFORMER_COMPONENTS, Format, State, substitute

PREFIX = r"(?:backbone\.)?"


def _stage(rest: str) -> object:
    """Stages count from 1 there."""
    return lambda m: f"encoder.stages.{int(m[1]) - 1}." + m.expand(rest)


def _head(m: re.Match[str]) -> str:
    return f"decoder.linears.{int(m[1]) - 1}.{m[2]}"


BLOCK = PREFIX + r"block(\d)\.(\d+)\."
RULES = [
    (PREFIX + r"patch_embed(\d)\.(proj|norm)\.(\w+)", _stage(r"stem.\2.\3")),
    (PREFIX + r"norm(\d)\.(\w+)", _stage(r"norm.\2")),
    (BLOCK + r"norm([12])\.(\w+)", _stage(r"blocks.\2.skip\3.norm.\4")),
    (BLOCK + r"attn\.(q|kv|proj|norm)\.(\w+)", _stage(r"blocks.\2.mixer.\3.\4")),
    (BLOCK + r"attn\.sr\.(\w+)", _stage(r"blocks.\2.mixer.reduce.\3")),
    (BLOCK + r"mlp\.(fc[12])\.(\w+)", _stage(r"blocks.\2.feedforward.\3.\4")),
    (BLOCK + r"mlp\.dwconv\.dwconv\.(\w+)", _stage(r"blocks.\2.feedforward.dwconv.\3")),
    (r"decode_head\.linear_c(\d)\.proj\.(\w+)", _head),
    (r"decode_head\.linear_fuse\.conv\.(\w+)", r"decoder.fuse.\1"),
    (r"decode_head\.linear_fuse\.bn\.(\w+)", r"decoder.norm.\1"),
    (r"decode_head\.linear_pred\.(\w+)", r"decoder.classifier.\1"),
    (r"head\.(\w+)", r"classifier.\1"),
]


def matches(keys: set[str]) -> bool:
    plain = {k.removeprefix("backbone.") for k in keys}
    return {"patch_embed1.proj.weight", "block1.0.attn.q.weight", "block1.0.mlp.dwconv.dwconv.weight"} <= plain


def rename(state: State) -> State:
    return substitute(state, list(RULES))  # type: ignore[arg-type]


NVLABS = Format("NVlabs SegFormer", matches, rename, SEGFORMER_COMPONENTS)
