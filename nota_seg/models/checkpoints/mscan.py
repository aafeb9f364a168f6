"""SegNeXt and its encoder MSCAN, alone (with a classifier) or in mmseg's frame with the light Hamburger head."""

from __future__ import annotations

from nota_seg.models.checkpoints.format import Format, Rule, State, components, shifted, substitute
from nota_seg.models.checkpoints.heads import head_rules

PREFIX = r"(?:backbone\.)?"
BLOCK = PREFIX + r"block(\d)\.(\d+)\."
GATE = BLOCK + r"attn\.spatial_gating_unit\."
RULES: list[Rule] = [
    (PREFIX + r"patch_embed(1)\.proj\.(\d)\.(\w+)", shifted(r"stem.layers.\2.\3")),
    (PREFIX + r"patch_embed(\d)\.proj\.(\w+)", shifted(r"stem.layers.0.\2")),
    (PREFIX + r"patch_embed(\d)\.norm\.(\w+)", shifted(r"stem.layers.1.\2")),
    (PREFIX + r"norm(\d)\.(\w+)", shifted(r"norm.\2")),
    (BLOCK + r"norm([12])\.(\w+)", shifted(r"blocks.\2.skip\3.norm.\4")),
    (BLOCK + r"layer_scale_([12])", shifted(r"blocks.\2.skip\3.scale.gamma")),
    (BLOCK + r"attn\.(proj_[12])\.(\w+)", shifted(r"blocks.\2.mixer.\3.\4")),
    (GATE + r"conv0\.(\w+)", shifted(r"blocks.\2.mixer.msca.local.\3")),
    (GATE + r"conv([012])_1\.(\w+)", shifted(r"blocks.\2.mixer.msca.strips.\3.0.\4")),
    (GATE + r"conv([012])_2\.(\w+)", shifted(r"blocks.\2.mixer.msca.strips.\3.1.\4")),
    (GATE + r"conv3\.(\w+)", shifted(r"blocks.\2.mixer.msca.mix.\3")),
    (BLOCK + r"mlp\.(fc[12])\.(\w+)", shifted(r"blocks.\2.feedforward.\3.\4")),
    (BLOCK + r"mlp\.(?:dwconv\.)?dwconv\.(\w+)", shifted(r"blocks.\2.feedforward.dwconv.\3")),
    (r"head\.(\w+)", r"classifier.\1"),
]


def matches(state: State) -> bool:
    return any(k.removeprefix("backbone.") == "block1.0.attn.spatial_gating_unit.conv0.weight" for k in state)


def rename(state: State) -> State:
    return substitute(state, [*RULES, *head_rules(state)])


MSCAN = Format("SegNeXt", matches, rename, components(stem="conv", mixer="msca", feedforward="mscan", skip="lscale"))
