"""The sum of the pieces is the count of the whole: for every registered component and every base, at several sizes."""

from __future__ import annotations

import time
from typing import Any

import pytest

from nota_seg.flops import cost
from nota_seg.models.registry import DECODERS, FEEDFORWARDS, MIXERS, SKIPS, STEMS
from nota_seg.models.zoo import bases, create_config, create_model
from nota_seg.piecewise import PieceCounter

TINY: dict[str, Any] = {"dims": [16, 32, 48, 64], "depths": [1, 2, 2, 1], "heads": [1, 2, 4, 4], "num_labels": 5}
KINDS = {"mixer": MIXERS, "feedforward": FEEDFORWARDS, "skip": SKIPS, "stem": STEMS, "decoder": DECODERS}
COUNTER = PieceCounter()  # one for all: a key that forgets something would answer with another piece


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, r in KINDS.items() for n in r], ids=lambda x: x)
@pytest.mark.parametrize("size", [(64, 64), (65, 97), (160, 224)])
def test_every_component(kind: str, name: str, size: tuple[int, int]) -> None:
    whole = cost(create_model("segformer-b0", **TINY, **{kind: name}), size)
    assert COUNTER.cost(create_config("segformer-b0", **TINY, **{kind: name}), size) == (whole["params"], whole["macs"])


@pytest.mark.slow
@pytest.mark.parametrize("name", list(bases()))
def test_every_base(name: str) -> None:
    whole = cost(create_model(name), (96, 128))
    assert PieceCounter().cost(create_config(name), (96, 128)) == (whole["params"], whole["macs"])


def test_stages_of_their_own_kinds_and_options() -> None:
    overrides: dict[str, Any] = {
        **TINY, "mixers": ["pool", {"name": "sra", "ratio": 2}, {"name": "window", "size": 4}, "lsra"],
        "feedforwards": ["mlp", "mix", "dest", "mix"], "mlp_ratios": [2, 4, 3, 1],
        "decoder": {"name": "mlp", "dim": 24},
    }  # fmt: skip
    for size in ((64, 64), (40, 104)):
        whole = cost(create_model("segformer-b0", **overrides), size)
        assert COUNTER.cost(create_config("segformer-b0", **overrides), size) == (whole["params"], whole["macs"])


def test_known_pieces_are_not_counted_again() -> None:
    counter = PieceCounter()
    config = create_config("segformer-b0", **TINY)
    first = counter.cost(config, (64, 64))
    pieces, start = len(counter), time.perf_counter()
    for _ in range(200):
        assert counter.cost(config, (64, 64)) == first
    assert len(counter) == pieces and time.perf_counter() - start < 200 * 0.02  # 3000 a minute on the slowest machine
