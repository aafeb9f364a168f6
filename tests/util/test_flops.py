"""The counter against hands and against the published table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nota_seg
import util.flops
from nota_seg.catalogue import model_table
from nota_seg.flops import cost, format_cost
from util.flops import UncountedError, count, outlined


class Fn(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("module", "macs"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), 3 * 8 * 9 * 64),
        (nn.Conv2d(3, 6, 3, padding=1, groups=3), 6 * 9 * 64),
        (nn.ConvTranspose2d(3, 5, 2, stride=2), 3 * 5 * 4 * 64),
        (nn.Conv2d(3, 8, 3, padding="same"), 3 * 8 * 9 * 64),
        (nn.Conv2d(3, 8, 3, stride=2, padding=1, dilation=2), 3 * 8 * 9 * 9),
        (
            nn.Sequential(nn.ConvTranspose2d(3, 6, 3, 2, 1, output_padding=1, groups=3), nn.Conv2d(6, 2, (3, 1))),
            6 * 9 * 64 + 6 * 2 * 3 * 14 * 16,
        ),
        (nn.Conv2d(3, 8, 1).half(), 3 * 8 * 64),
        (nn.Linear(8, 4), 3 * 8 * 8 * 4),
        (Fn(lambda x: x @ x.transpose(2, 3)), 3 * 8 * 8 * 8),
        (Fn(lambda x: torch.einsum("bchw,bcvw->bchv", x, x)), 3 * 8 * 8 * 8),
        (Fn(lambda x: torch.einsum("bchw,bcwv->bchv", x, x[:, :1])), 3 * 8 * 8 * 8),
        (Fn(lambda x: torch.einsum("bchw->bhwc", x)), 0),
        (Fn(lambda x: F.scaled_dot_product_attention(x, x[:, :, :4], x[:, :, :4, :2])), 3 * 8 * 4 * (8 + 2)),
        (Fn(lambda x: F.gelu(x) * 2 + x.sigmoid()), 0),
    ],
    ids=[
        "conv",
        "depth-wise",
        "transposed",
        "same",
        "dilated",
        "after a transposed one",
        "half",
        "linear",
        "matmul",
        "einsum",
        "broadcast",
        "permuted",
        "attention",
        "elementwise",
    ],
)
def test_by_hand(module: nn.Module, macs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert count(module, (1, 3, 8, 8)).macs == macs
    monkeypatch.setattr(util.flops, "LARGE", 0)
    with only_shapes(module):
        assert count(module, (1, 3, 8, 8)).macs == macs


@contextmanager
def only_shapes(module: nn.Module) -> Iterator[None]:
    """Fails where the module is run with numbers."""

    def check(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not inputs[0].is_meta:
            pytest.fail("it was computed")

    with module.register_forward_pre_hook(check):
        yield


def test_what_looks_at_values_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(util.flops, "LARGE", 0)
    assert count(Fn(lambda x: x @ x.transpose(2, 3) if x.sum().item() == 0 else x), (1, 3, 8, 8)).macs == 3 * 8 * 8 * 8
    kept = torch.zeros(1, 3, 8, 8)  # neither a parameter nor a buffer: it has its numbers wherever the rest goes
    assert count(Fn(lambda x: x @ kept), (1, 3, 8, 8)).macs == 3 * 8 * 8 * 8


def test_large_inputs_are_not_computed_and_cost_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nota_seg.create_model("segformer-b0-hamburger", num_labels=3).eval()
    x = torch.randn(1, 3, 64, 64)
    before = model(x).logits
    monkeypatch.setattr(util.flops, "LARGE", 10**9)
    computed = cost(model, (320, 320))
    monkeypatch.undo()
    with only_shapes(model):
        assert cost(model, (320, 320)) == computed
    assert torch.equal(model(x).logits, before)  # nothing of the other device is left in it
    with torch.device("meta"):
        outline = nota_seg.create_model("segformer-b0-hamburger", num_labels=3)
    assert cost(outline, (320, 320)) == computed
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("aten::_convolution", "Meta")  # torch is as it was


def test_attention_of_a_picture_that_no_machine_could_hold() -> None:
    model = nota_seg.create_model("segformer-b0-dest_attn")
    one, large = cost(model, (512, 512)), cost(model, (2048, 2048))
    attention = [c["macs_reference"] - c["macs_reference_without_attention"] for c in (one, large)]
    assert attention[1] == pytest.approx(256 * attention[0])


def test_an_unknown_operator_fails_the_count() -> None:
    module = Fn(lambda x: torch.linalg.matrix_exp(x))
    with pytest.raises(UncountedError, match=r"linalg_matrix_exp \(1 times\)"):
        count(module, (1, 3, 8, 8))
    assert count(module, (1, 3, 8, 8), strict=False).uncounted == {"aten::linalg_matrix_exp": 1}


def test_a_model_that_is_made_to_be_counted() -> None:
    made: list[str] = []

    def create(function: object) -> nn.Module:
        module = nn.Sequential(nn.Conv2d(3, 8, 1), Fn(function))
        made.append(module[0].weight.device.type)
        return module

    def macs(module: nn.Module) -> int:
        return count(module, (1, 3, 8, 8)).macs

    assert outlined(macs, lambda: create(F.gelu)) == 3 * 8 * 64 and made == ["meta"]
    looks = lambda x: x if x.sum().item() > 1e9 else F.gelu(x)  # noqa: E731
    assert outlined(macs, lambda: create(looks)) == 3 * 8 * 64 and made == ["meta", "meta", "cpu"]
    with pytest.raises(UncountedError):
        outlined(macs, lambda: create(torch.linalg.matrix_exp))
    assert made == ["meta", "meta", "cpu", "meta"]


def test_state_and_mode_are_left_alone() -> None:
    model = nota_seg.create_model("segformer-b0", num_labels=3).train()
    model.decoder.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    cost(model, (64, 64))
    assert model.training and not model.decoder.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "reference", "layers_alone"),
    [("segformer-b0", 8.48, None), ("segformer-b1", 16.00, None), ("segformer-b2", 62.61, 58.576)],
)
def test_the_published_table(name: str, reference: float, layers_alone: float | None) -> None:
    result = cost(nota_seg.create_model(name))
    assert result["macs_reference"] / 1e9 == pytest.approx(reference, rel=0.01)
    if layers_alone is not None:
        assert result["macs_reference_without_attention"] / 1e9 == pytest.approx(layers_alone, rel=0.005)
        assert result["macs"] / 1e9 == pytest.approx(24.0, rel=0.005)
    assert result["flops"] == 2 * result["macs"] and sum(result["by_part"].values()) == result["macs"]
    assert f"{result['params'] / 1e6:.3f}" in format_cost(result)


def test_the_table_multiplies_blocks_exactly() -> None:
    for row in model_table(["segformer-b1", "segformer-b0-pool-fpn"]):
        result = cost(nota_seg.create_model(row["name"]))
        assert row["params"] == result["params"]
        assert row["gmacs"] == round(result["macs"] / 1e9, 3)
        assert row["gmacs_reference"] == round(result["macs_reference"] / 1e9, 3)
