"""Next-ViT: the authors' names, for classification or in mmseg's frame, and timm's."""

from __future__ import annotations

import re

from nota_seg.models.checkpoints.format import Format, Rule, State, components, substitute
from nota_seg.models.checkpoints.heads import head_rules

PREFIX = r"(?:backbone\.)?"
BLOCK = PREFIX + r"stages\.(\d)\.blocks\.(\d+)\."
OURS = r"encoder.stages.\1.blocks.\2."
RULES: list[Rule] = [
    (PREFIX + r"stem\.(\d)\.conv\.(\w+)", r"encoder.stages.0.stem.convs.\1.0.\2"),
    (PREFIX + r"stem\.(\d)\.norm\.(\w+)", r"encoder.stages.0.stem.convs.\1.1.\2"),
    (PREFIX + r"stages\.(\d)\.blocks\.0\.patch_embed\.(.*)", r"encoder.stages.\1.stem.patch.\2"),
    (BLOCK + r"patch_embed\.(.*)", OURS + r"patch.\3"),
    (BLOCK + r"projection\.(.*)", OURS + r"project.\3"),
    (BLOCK + r"e_mhsa\.(.*)", OURS + r"attention.\3"),
    (BLOCK + r"mhca\.group_conv3x3\.(\w+)", OURS + r"mhca.conv.\3"),
    (BLOCK + r"mhca\.projection\.(\w+)", OURS + r"mhca.proj.\3"),
    (BLOCK + r"mlp\.(?:conv|fc)([12])\.(\w+)", OURS + r"mlp.fc\3.\4"),
    (BLOCK + r"(mhca\.norm|norm[12]?)\.(\w+)", OURS + r"\3.\4"),
    (PREFIX + r"norm\.(\w+)", r"encoder.stages.3.norm.\1"),
    (PREFIX + r"extra_norm_list\.([012])\.(\w+)", r"encoder.stages.\1.norm.\2"),  # the fourth is never used
    (r"proj_head\.0\.(\w+)", r"classifier.\1"),
    (r"head\.fc\.(\w+)", r"classifier.\1"),
]


def matches(state: State) -> bool:
    first = ("features.0.mhca.group_conv3x3.weight", "stages.0.blocks.0.mhca.group_conv3x3.weight")
    return any(k.removeprefix("backbone.") in first for k in state)


def by_stage(state: State) -> State:
    """The authors number the blocks through: `features.7.` as `stages.1.blocks.4.`, as timm has it.

    The first stage has convolution blocks alone and the second begins where the channels change; the second ends with
    its only transformer block, and so does the last.
    """
    pattern = re.compile(r"(?:backbone\.)?features\.(\d+)\.(.*)")
    found = {key: m for key in state if (m := pattern.fullmatch(key))}
    transformers = sorted({int(m[1]) for m in found.values() if m[2] == "e_mhsa.q.weight"})
    changes = sorted({int(m[1]) for m in found.values() if m[2] == "patch_embed.conv.weight"} - {0})
    if len(transformers) < 3 or not changes:
        return state
    first = [0, changes[0], transformers[0] + 1, transformers[-2] + 1]
    result: State = {}
    for key, value in state.items():
        if key in found:
            number = int(found[key][1])
            stage = max(i for i, n in enumerate(first) if n <= number)
            key = f"stages.{stage}.blocks.{number - first[stage]}.{found[key][2]}"
        result[key] = value
    return result


def rename(state: State) -> State:
    return substitute(by_stage(state), [*RULES, *head_rules(state)])


NEXTVIT = Format("Next-ViT", matches, rename, components(stem="next"))
