import pytest
import torch
import torch.nn.functional as F

from nota_seg.models.labels import labels_from_logits


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1, 150, 16, 16), (64, 64)),
        ((2, 5, 9, 13), (35, 51)),
        ((1, 7, 40, 33), (17, 12)),
        ((1, 3, 1, 1), (5, 7)),
        ((2, 4, 6, 5), (6, 5)),
        ((1, 1, 3, 4), (12, 16)),
        ((1, 600, 20, 20), (700, 3)),
    ],
)
def test_equals_upsampling_and_argmax(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    full = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    labels = labels_from_logits(logits, size)
    assert labels.shape == (shape[0], *size) and labels.dtype == torch.int64 and labels.is_contiguous()
    # The chosen class has the largest value up to float32 rounding, everywhere; elsewhere than at ties it is the same.
    chosen = full.gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(chosen, full.amax(dim=1), atol=1e-5, rtol=0)
    assert (labels == full.argmax(dim=1)).float().mean() > 0.999


@pytest.mark.parametrize("classes", [3, 100])  # one of either way to compare
def test_of_equals_the_first_wins(classes: int) -> None:
    logits = torch.zeros(1, classes, 4, 4)
    logits[0, [1, 2], :2] = 1.0
    labels = labels_from_logits(logits, (4, 4))
    assert (labels[0, :2] == 1).all() and (labels[0, 2:] == 0).all()
