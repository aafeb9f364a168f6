import pytest
import torch
from timm import layers
from torch import nn

from nota_seg.models.common import DropPath, LayerScale, make_divisible


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("drop_prob", [0.0, 0.3, 1.0])
def test_drop_path_is_timms(drop_prob: float, training: bool) -> None:
    x = torch.randn(64, 3, 2, 5)
    results = []
    for module in (DropPath(drop_prob), layers.DropPath(drop_prob)):
        torch.manual_seed(0)
        results.append(module.train(training)(x))
    assert torch.equal(*results)
    dropped = results[0].flatten(1).eq(0).all(dim=1).float().mean()
    assert dropped == pytest.approx(drop_prob if training else 0, abs=0.2)


def test_layer_scale_is_timms() -> None:
    ours, theirs = LayerScale(7, 0.1), layers.LayerScale(7, init_values=0.1)
    x = torch.randn(2, 3, 4, 7)
    assert torch.equal(ours(x), theirs(x))
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    assert isinstance(ours.gamma, nn.Parameter)


@pytest.mark.parametrize("divisor", [8, 32])
def test_make_divisible_is_timms(divisor: int) -> None:
    for channels in (1, 15.9, 16, 35, 36, 100, 255.5, 416 * 0.75):
        assert make_divisible(channels, divisor) == layers.make_divisible(channels, divisor)
