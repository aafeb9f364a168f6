"""One contract for every registered component: what all of them must do, whoever wrote them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSemanticSegmentation

import nota_seg
from nota_seg.export import Logits
from nota_seg.flops import cost
from nota_seg.models.loading import load_for_inference
from nota_seg.models.network import SegmentationNetwork
from nota_seg.models.registry import DECODERS, FEEDFORWARDS, MIXERS, SKIPS, STEMS
from util.errors import InputError

TINY = {"dims": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "heads": [1, 2, 4, 4], "num_labels": 5}
KINDS = {"mixer": MIXERS, "feedforward": FEEDFORWARDS, "skip": SKIPS, "stem": STEMS, "decoder": DECODERS}
COMPONENTS = [(kind, name) for kind, registry in KINDS.items() for name in registry]
components = pytest.mark.parametrize(("kind", "name"), COMPONENTS, ids=lambda x: x)


def tiny(kind: str, name: str) -> nn.Module:
    torch.manual_seed(0)
    model = nota_seg.create_model("segformer-b0", **TINY, **{kind: name})
    for module in model.modules():  # statistics that are not at their defaults
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


@components
@pytest.mark.parametrize("size", [(64, 64), (65, 97), (33, 40), (9, 7)])
def test_any_size_forward_and_labels(kind: str, name: str, size: tuple[int, int]) -> None:
    model = tiny(kind, name)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        logits = model(x).logits
        assert logits.shape[:2] == (2, 5)
        assert all(abs(n - s / model.decoder.stride) <= 1 for n, s in zip(logits.shape[2:], size, strict=True))
        assert torch.equal(model(x).logits, logits), "two evaluations of the same picture must agree"
        alone = model(x[:1]).logits
        scale = logits.abs().max()
        assert (alone - logits[:1]).abs().max() <= 1e-5 * scale, "a picture must not depend on its neighbours"
        up = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        labels = model.predict_labels(x)
    top2 = up.topk(2, dim=1).values
    clear = top2[:, 0] - top2[:, 1] > 1e-5 * scale
    assert labels.shape == (2, *size) and labels.dtype == torch.int64
    assert torch.equal(labels[clear], up.argmax(1)[clear])


@components
def test_backward_reaches_every_parameter(kind: str, name: str) -> None:
    model = tiny(kind, name).train()
    model(torch.randn(2, 3, 65, 97), labels=torch.randint(0, 5, (2, 65, 97))).loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key


@components
def test_saved_and_loaded_by_auto_class(kind: str, name: str, tmp_path: Path) -> None:
    model = tiny(kind, name)
    model.save_pretrained(tmp_path)
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).eval()
    x = torch.randn(1, 3, 65, 97)
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    with torch.no_grad():
        logits = model(x).logits
        # Loaded weights may lie elsewhere in memory, and a kernel's last bit depends on their alignment.
        assert (again(x).logits - logits).abs().max() <= 1e-5 * logits.abs().max()
    assert again.config.to_dict()["stages"] == model.config.to_dict()["stages"]
    network, names = load_for_inference(tmp_path)
    assert type(network) is SegmentationNetwork and not network.training and len(names) == logits.shape[1]
    with torch.no_grad():
        assert (network(x).logits - logits).abs().max() <= 1e-5 * logits.abs().max()
        assert network.predict_labels(x).shape == (1, 65, 97)


@components
def test_exports(kind: str, name: str) -> None:
    model = tiny(kind, name)
    x = torch.randn(1, 3, 65, 97)

    with torch.no_grad():
        program = torch.export.export(Logits(model), (x,))
        logits = model(x).logits
        assert (program.module()(x) - logits).abs().max() <= 1e-5 * logits.abs().max()


@components
def test_every_operator_is_counted(kind: str, name: str) -> None:
    result = cost(tiny(kind, name), (65, 97))
    assert result["uncounted"] == {} and 0 < result["macs"] == sum(result["by_part"].values())
    assert cost(tiny(kind, name).to("meta"), (65, 97)) == result  # by its shapes alone, as large pictures are counted


@components
def test_trains_in_bf16(kind: str, name: str) -> None:
    model = tiny(kind, name).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(2, 3, 64, 64), labels=torch.randint(0, 5, (2, 64, 64))).loss
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.fixture
def shift() -> Iterator[None]:
    """A new mixer is one file and one line: here the line is the decorator."""

    @MIXERS.register("shift")
    class Shift(nn.Module):
        def __init__(self, dim: int, heads: int, step: int = 1) -> None:
            super().__init__()
            self.step = step

        def forward(self, x_BHWC: Tensor) -> Tensor:
            return x_BHWC.roll(self.step, dims=1) - x_BHWC

    yield
    del MIXERS._classes["shift"]


def test_a_new_mixer_works_everywhere_at_once(shift: None, tmp_path: Path) -> None:
    assert "segformer-b0-shift" in nota_seg.list_models()
    test_any_size_forward_and_labels("mixer", "shift", (65, 97))
    test_backward_reaches_every_parameter("mixer", "shift")
    test_saved_and_loaded_by_auto_class("mixer", "shift", tmp_path)
    test_exports("mixer", "shift")
    test_every_operator_is_counted("mixer", "shift")
    model = nota_seg.create_model(
        "segformer-b1-shift-fpn", mixers=["sra", {"name": "shift", "step": 2}, "shift", "pool"]
    )
    assert model.encoder.stages[1].blocks[0].mixer.step == 2
    with pytest.raises(InputError, match="no option 'stp': did you mean 'step'"):
        nota_seg.create_model("segformer-b0", mixer={"name": "shift", "stp": 2})


def test_a_name_taken_twice_raises() -> None:
    with pytest.raises(ValueError, match="registered twice"):
        MIXERS.register("pool")(nn.Identity)
