"""The table of the SegFormer study: what it printed of each variant, to compare with what is counted here.

One picture of 512x512 (W-MSA: 448), 150 classes. The study's first column of MACs leaves out products of activations
(attention, factorisation) and resizing; the second has everything that fvcore counts.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Printed:
    """One row of the study.

    Attributes:
        variant: In the study's words.
        name: The model here.
        params: Millions.
        layers: GMACs of convolutions, linears and norms.
        gmacs: GMACs with attention products and resizing.
        size: Side of the picture in pixels.
        note: Why the figures differ, where they do by more than 0.5%.
    """

    variant: str
    name: str | None
    params: float
    layers: float
    gmacs: float
    size: int = 512
    note: str = ""


STUDY = (
    Printed("SegFormer-B2", "segformer-b2", 27.462, 58.576, 62.66),
    Printed("B2 + LSRA", "segformer-b2-lsra", 24.653, 56.943, 57.88),
    Printed("B0 + LSRA", "segformer-b0-lsra", 3.480, 7.201, 7.465),
    Printed("B2 + LSRA + DEST Mix-FFN", "segformer-b2-lsra-dest", 24.719, 57.186, 58.01),
    Printed("B2 + LSRA + DEST Mix-FFN + recursive skip", "segformer-b2-lsra-dest-rskip", 24.736, 57.247, 58.08),
    Printed("LSRA, depths 1,1,2,1, all-MLP head 768", "nota-lsra", 10.245, 46.766, 47.13),
    Printed("B2 + efficient attention", "segformer-b2-efficient", 19.518, 56.876, 57.31),
    Printed(
        "LSREA + DEST + recursive skip + Hamburger, depths 1,1,2,1",
        "nota-lsrea",
        8.204,
        13.453,
        15.74,
        note="The printed figures do not follow from the components named: with breads and align of 512 channels these "
        "have 6.94 M parameters, and the pruned row below, which fits, leaves no room for 1.27 M and 3.8 G more",
    ),
    Printed("the same, pruned, depths 1,2,2,1", "nota-lsrea-pruned", 6.326, 7.017, 9.30),
    Printed("final: LSRA without projection + DEST + pruned Hamburger", "nota-lite", 7.355, 7.169, 9.68),
    Printed(
        "Next-ViT-style hybrid, depths 1,2,3,2",
        None,
        8.559,
        9.307,
        12.58,
        note="Only its depths were published, neither channels nor decoder: there is nothing to build it from",
    ),
    Printed("MSCAN 3,3,12,3 + Hamburger", "segnext-b", 27.631, 32.191, 34.42,
            note="The study evaluated with 6 steps of the factorisation; SegNeXt, and this row, with 7 (+0.34 G)"),
    Printed("MSCAN 3,4,6,3 + all-MLP head 768", "nota-mscan", 22.806, 62.956, 63.09),
    Printed(
        "W-MSA encoder (448 only)",
        "segformer-b2-window",
        27.265,
        46.280,
        46.49,
        size=448,
        note="The printed figures are about those of a model that still carries and runs the spatial-reduction "
        "convolutions (4.29 M, 0.84 G), which window attention has no use for",
    ),
)  # fmt: skip
