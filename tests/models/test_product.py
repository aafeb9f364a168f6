"""Every mixer x feed-forward x skip x decoder: trains, saves, loads, exports, is counted.

Each combination is trained as a whole model. The rest, which looks at one block at a time, takes four combinations a
model, one a stage, and so meets every block with every decoder as well.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSemanticSegmentation

import nota_seg
from nota_seg.export import Logits
from nota_seg.models.registry import DECODERS, FEEDFORWARDS, MIXERS, SKIPS
from util.flops import count

pytestmark = pytest.mark.slow

SMALL = {
    "mlp": dict(dim=16),
    "fpn": dict(dim=16, branch_dim=8),
    "hamburger": dict(dim=32, rank=8),
    "lawin": dict(dim=32, embed_dim=16, low_level_dim=8),
    "uper": dict(dim=16),
}
BLOCKS = list(itertools.product(MIXERS.names(), FEEDFORWARDS.names(), SKIPS.names()))
ODD = (53, 75)


def build(decoder: str, mixers: Any, feedforwards: Any, skips: Any) -> nn.Module:
    torch.manual_seed(0)
    return nota_seg.create_model(
        "segformer-b0", num_labels=5, dims=[16, 24, 40, 48], depths=[1, 1, 1, 1], heads=[1, 2, 4, 8], mixers=mixers,
        feedforwards=feedforwards, skips=skips, decoder={"name": decoder, **SMALL.get(decoder, {})},
    )  # fmt: skip


@pytest.mark.parametrize("decoder", DECODERS.names())
@pytest.mark.parametrize("mixer", MIXERS.names())
@pytest.mark.parametrize("feedforward", FEEDFORWARDS.names())
def test_trains(decoder: str, mixer: str, feedforward: str) -> None:
    x, labels = torch.randn(2, 3, *ODD), torch.randint(0, 5, (2, *ODD))
    for skip in SKIPS:
        model = build(decoder, [mixer] * 4, [feedforward] * 4, [skip] * 4).train()
        model(x, labels=labels).loss.backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), (skip, key)


@pytest.mark.parametrize("decoder", DECODERS.names())
@pytest.mark.parametrize("first", range(0, len(BLOCKS), 4))
def test_saves_loads_exports_and_is_counted(decoder: str, first: int, tmp_path: Path) -> None:
    four = [BLOCKS[(first + i) % len(BLOCKS)] for i in range(4)]
    model = build(decoder, *([list(kind) for kind in zip(*four, strict=True)])).eval()
    x = torch.randn(1, 3, *ODD)
    assert count(model, tuple(x.shape)).uncounted == {}
    model.save_pretrained(tmp_path)
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).eval()

    with torch.no_grad():
        logits = model(x).logits
        exported = torch.export.export(Logits(model), (x,)).module()(x)
        for other in (again(x).logits, exported):
            assert (other - logits).abs().max() <= 1e-5 * logits.abs().max()
