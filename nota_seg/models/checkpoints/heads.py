"""Decoders as mmseg saves them (`decode_head.`, `neck.`); transformers' UPerNet differs in two words."""

from __future__ import annotations

from nota_seg.models.checkpoints.format import Rule, State

HEAD = r"decode_head\."
NORM = r"(?:bn|batch_norm)\."
CLASSIFIER = (HEAD + r"(?:conv_seg|classifier)\.(\w+)", r"decoder.classifier.\1")


def conv_norm(source: str, target: str, norm: str = NORM) -> list[Rule]:
    """A convolution and its norm; `source` may have groups, which `target` names."""
    last = f"\\{source.count('(') - source.count('(?:') + 1}"
    return [
        (source + r"\.conv\.(\w+)", f"{target}.conv.{last}"),
        (source + r"\." + norm + r"(\w+)", f"{target}.norm.{last}"),
    ]


UPER: list[Rule] = [
    *conv_norm(HEAD + r"psp_modules\.(\d)\.1", r"decoder.pooling.branches.\1"),
    *conv_norm(HEAD + r"bottleneck", r"decoder.pooling.bottleneck"),
    *conv_norm(HEAD + r"lateral_convs\.(\d)", r"decoder.laterals.\1"),
    *conv_norm(HEAD + r"fpn_convs\.(\d)", r"decoder.smooths.\1"),
    *conv_norm(HEAD + r"fpn_bottleneck", r"decoder.fuse"),
    CLASSIFIER,
]
FPN: list[Rule] = [
    (r"neck\.lateral_convs\.(\d)\.conv\.(\w+)", r"decoder.laterals.\1.\2"),
    (r"neck\.fpn_convs\.(\d)\.conv\.(\w+)", r"decoder.smooths.\1.\2"),
    # Convolutions and upsamplings take turns there.
    (
        HEAD + r"scale_heads\.(\d)\.(\d)\.(conv|bn)\.(\w+)",
        lambda m: f"decoder.scale_heads.{m[1]}.convs.{int(m[2]) // 2}.{'conv' if m[3] == 'conv' else 'norm'}.{m[4]}",
    ),
    CLASSIFIER,
]
HAM: list[Rule] = [
    *conv_norm(HEAD + r"squeeze", "decoder.squeeze", r"gn\."),
    (HEAD + r"hamburger\.ham_in\.conv\.(\w+)", r"decoder.ham_in.\1"),
    *conv_norm(HEAD + r"hamburger\.ham_out", "decoder.ham_out", r"gn\."),
    *conv_norm(HEAD + r"align", "decoder.align", r"gn\."),
    CLASSIFIER,
]
ALL_MLP: list[Rule] = [  # as NVlabs' code calls it; `conv_seg` is beside it, unused
    (HEAD + r"linear_c(\d)\.proj\.(\w+)", lambda m: f"decoder.linears.{int(m[1]) - 1}.{m[2]}"),
    (HEAD + r"linear_fuse\.conv\.(\w+)", r"decoder.fuse.\1"),
    (HEAD + r"linear_fuse\.bn\.(\w+)", r"decoder.norm.\1"),
    (HEAD + r"linear_pred\.(\w+)", r"decoder.classifier.\1"),
]
HEADS = {"linear_pred.": ALL_MLP, "psp_modules.": UPER, "scale_heads.": FPN, "hamburger.": HAM}


def head_rules(state: State) -> list[Rule]:
    """The rules of the decoder that a state dict has; none for one that is not ours."""
    return next((rules for word, rules in HEADS.items() if any(f"decode_head.{word}" in key for key in state)), [])
