import itertools
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nota_seg
from nota_seg.inference import (
    Protocol,
    normalise,
    predict_labels,
    predict_probabilities,
    slide_logits,
    statistics_of,
    to_pixels,
)
from nota_seg.views import Change, View, starts
from util.errors import InputError


class Foreign(nn.Module):
    """A model of another library: logits at a quarter, no `predict_labels`, no statistics; not symmetric."""

    def __init__(self, stride: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 7, stride=stride, padding=3)
        self.config = SimpleNamespace(num_labels=5)
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, pixel_values: Tensor) -> Any:
        self.sizes.append(tuple(pixel_values.shape[2:]))
        return SimpleNamespace(logits=self.conv(pixel_values))


@pytest.fixture
def model() -> Foreign:
    torch.manual_seed(0)
    return Foreign().eval()


@pytest.fixture
def pixels() -> Tensor:
    return torch.randint(0, 256, (2, 3, 40, 52), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def up(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def normal(model: nn.Module, pixels: Tensor) -> Tensor:
    return normalise(pixels, *statistics_of(model))


def test_normalise(pixels: Tensor) -> None:
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.1, 0.2, 0.3])
    rows = pixels.contiguous(memory_format=torch.channels_last)
    for x in (pixels, rows, rows[:, :, 3:, :31], rows[:1], pixels[:, :, ::2], rows.transpose(2, 3)):
        before, expected = x.clone(), (x.float() / 255 - mean[:, None, None]) / std[:, None, None]
        result = normalise(x, mean.tolist(), std.tolist())
        torch.testing.assert_close(result, expected)
        assert result.stride() == x.float().stride() and torch.equal(x, before)
    with pytest.raises(InputError, match="uint8"):
        normalise(pixels.float(), (0, 0, 0), (1, 1, 1))


@torch.no_grad()
def test_whole_is_softmax_of_the_upsampled_logits(model: Foreign, pixels: Tensor) -> None:
    size = (33, 71)
    expected = up(model(normal(model, pixels)).logits, size).softmax(dim=1)
    p = predict_probabilities(model, pixels, size, Protocol())
    torch.testing.assert_close(p, expected)
    labels = predict_labels(model, pixels, size, Protocol())
    assert labels.dtype == torch.int64 and torch.equal(labels, expected.argmax(dim=1))


@torch.no_grad()
def test_views_by_hand(model: Foreign, pixels: Tensor) -> None:
    size = (40, 52)
    protocol = Protocol(scales=(0.5, 1.0, 1.75), flip=True)
    x = normal(model, pixels)
    views = []
    for h, w in ((20, 26), (40, 52), (70, 91)):
        v = up(x, (h, w))
        views.append(up(model(v).logits, size).softmax(dim=1))
        views.append(up(model(v.flip(3)).logits, size).softmax(dim=1).flip(3))
    expected = torch.stack(views).mean(dim=0)
    p = predict_probabilities(model, pixels, size, protocol)
    torch.testing.assert_close(p, expected)
    assert torch.equal(predict_labels(model, pixels, size, protocol), p.argmax(dim=1))


@torch.no_grad()
def test_turned_views_by_hand(model: Foreign, pixels: Tensor) -> None:
    """Every turn and mirror image, each put back to its place; brightness in bytes, before the statistics."""
    size = (40, 52)
    protocol = Protocol(flip=True, vflip=True, rot90=True, intensities=(0.9, 1.3))
    assert protocol.views == 16
    views = []
    for factor in (0.9, 1.3):
        x = normal(model, (pixels.float() * factor).round().clamp(0, 255).to(torch.uint8))
        for turns in range(4):
            for mirrored in (False, True):
                v = x.flip(3) if mirrored else x
                logits = model(v.rot90(turns, (2, 3))).logits.rot90(-turns, (2, 3))
                views.append(up(logits.flip(3) if mirrored else logits, size).softmax(dim=1))
    p = predict_probabilities(model, pixels, size, protocol)
    torch.testing.assert_close(p, torch.stack(views).mean(dim=0))
    one = Protocol(intensities=(1.3,))
    labels = predict_probabilities(model, pixels, size, one).argmax(dim=1)
    assert torch.equal(predict_labels(model, pixels, size, one), labels)
    for wrong in ((), (0.0,), (float("inf"),)):
        with pytest.raises(InputError, match="intensities"):
            Protocol(intensities=wrong)


def test_flip_makes_the_result_symmetric(model: Foreign, pixels: Tensor) -> None:
    protocol = Protocol(flip=True)
    p = predict_probabilities(model, pixels, (40, 52), protocol)
    mirrored = predict_probabilities(model, pixels.flip(3), (40, 52), protocol)
    torch.testing.assert_close(p, mirrored.flip(3))


@torch.no_grad()
def test_windows_by_hand(model: Foreign, pixels: Tensor) -> None:
    x = normal(model, pixels)
    total, count = torch.zeros(2, 5, 40, 52), torch.zeros(40, 52)
    for y in (0, 12, 16):  # 24 high, step 12; the last is moved back from 24 to 16
        for z in (0, 20):  # 32 wide, step 20; ends at 52 exactly
            total[:, :, y : y + 24, z : z + 32] += up(model(x[:, :, y : y + 24, z : z + 32]).logits, (24, 32))
            count[y : y + 24, z : z + 32] += 1
    expected = total / count
    torch.testing.assert_close(slide_logits(model, x, (24, 32), (12, 20)), expected)
    protocol = Protocol("slide", crop_size=(24, 32), stride=(12, 20))
    size = (61, 45)
    p = predict_probabilities(model, pixels, size, protocol)
    torch.testing.assert_close(p, up(expected, size).softmax(dim=1))
    assert torch.equal(predict_labels(model, pixels, size, protocol), p.argmax(dim=1))


def test_one_window_is_the_whole(model: Foreign, pixels: Tensor) -> None:
    window = Protocol("slide", crop_size=(40, 52), stride=(20, 20))
    whole = predict_probabilities(model, pixels, (40, 52), Protocol())
    torch.testing.assert_close(predict_probabilities(model, pixels, (40, 52), window), whole)


@torch.no_grad()
def test_a_small_picture_is_padded_to_the_window(model: Foreign, pixels: Tensor) -> None:
    x = normal(model, pixels)
    model.sizes.clear()
    logits = slide_logits(model, x, (64, 32), (32, 32))
    assert set(model.sizes) == {(64, 32)} and logits.shape == (2, 5, 40, 52)
    left = up(model(F.pad(x, (0, 0, 0, 24))[..., :32]).logits, (64, 32))
    torch.testing.assert_close(logits[..., :20], left[:, :, :40, :20])


@torch.no_grad()
def test_logits_of_the_model_are_not_overwritten(pixels: Tensor) -> None:
    class Kept(Foreign):
        def forward(self, pixel_values: Tensor) -> Any:
            self.kept = self.conv(pixel_values)
            return SimpleNamespace(logits=self.kept)

    torch.manual_seed(0)
    model = Kept(stride=1)
    predict_probabilities(model, pixels, (40, 52), Protocol())
    torch.testing.assert_close(model.kept, model.conv(normal(model, pixels)))


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_our_models(precision: str, mode: str) -> None:
    torch.manual_seed(0)
    model = nota_seg.create_model("segformer-b0", num_labels=5, dims=[8, 16, 24, 32], heads=1, depths=1).eval()
    window = {"crop_size": (32, 32), "stride": (24, 24)} if mode == "slide" else {}
    protocol = Protocol(mode, precision=precision, **window)  # type: ignore[arg-type]
    pixels = torch.randint(0, 256, (1, 3, 45, 67), dtype=torch.uint8)
    labels = predict_labels(model, pixels, (50, 70), protocol)
    assert labels.shape == (1, 50, 70)
    p = predict_probabilities(model, pixels, (50, 70), protocol)
    assert p.dtype == torch.float32
    assert (p.argmax(dim=1) == labels).float().mean() > 0.99


@pytest.mark.parametrize(
    ("bad", "culprit"),
    [
        ({"mode": "slides"}, "slide"),
        ({"mode": "slide"}, "crop_size"),
        ({"mode": "slide", "crop_size": (32, 0)}, "crop_size"),
        ({"mode": "slide", "crop_size": 32}, "crop_size"),
        ({"mode": "slide", "crop_size": (32, 32), "stride": (33, 32)}, "stride"),
        ({"mode": "slide", "crop_size": (32, 32), "stride": (0, 32)}, "stride"),
        ({"crop_size": (32, 32)}, "crop_size"),
        ({"scales": ()}, "scales"),
        ({"scales": (1.0, 0.0)}, "scales"),
        ({"scales": (1.0, float("nan"))}, "scales"),
        ({"base_size": (512,)}, "base_size"),
        ({"precision": "int8"}, "precision"),
    ],
)
def test_wrong_protocols(bad: dict[str, Any], culprit: str) -> None:
    with pytest.raises(InputError, match=culprit):
        Protocol(**bad)


def test_protocol_as_dict() -> None:
    protocol = Protocol("slide", crop_size=[64, 96], scales=[1, 2], base_size=(2048, 512))  # type: ignore[arg-type]
    assert protocol.as_dict() == {
        "mode": "slide",
        "crop_size": [64, 96],
        "stride": [42, 64],
        "scales": [1.0, 2.0],
        "flip": False,
        "vflip": False,
        "rot90": False,
        "intensities": [1.0],
        "base_size": [2048, 512],
        "precision": "no",
    }


def direct(model: nn.Module, pixels: Tensor, size: tuple[int, int], protocol: Protocol) -> Tensor:
    """Sliding, every view that a protocol has, with everything at full size in memory."""
    assert protocol.crop_size is not None and protocol.stride is not None
    (ch, cw), (sh, sw) = protocol.crop_size, protocol.stride
    axes = [[3][:mirrored] + [2][:down] for mirrored in range(1 + protocol.flip) for down in range(1 + protocol.vflip)]
    turns = range(1 + protocol.rot90)
    views = []
    for factor, scale, flipped, turned in itertools.product(protocol.intensities, protocol.scales, axes, turns):
        brightened = (pixels.float() * factor).round().clamp(0, 255).to(torch.uint8)
        x = normal(model, brightened)
        v = up(x, (int(x.shape[2] * scale + 0.5), int(x.shape[3] * scale + 0.5))).flip(flipped).rot90(turned, (2, 3))
        h, w = v.shape[2:]
        v = F.pad(v, (0, max(0, cw - w), 0, max(0, ch - h)))
        total, count = torch.zeros(len(x), 5, *v.shape[2:]), torch.zeros(v.shape[2:])
        for top in range(0, v.shape[2] - ch + sh, sh):
            for left in range(0, v.shape[3] - cw + sw, sw):
                y, z = min(top, v.shape[2] - ch), min(left, v.shape[3] - cw)
                total[:, :, y : y + ch, z : z + cw] += up(model(v[:, :, y : y + ch, z : z + cw]).logits, (ch, cw))
                count[y : y + ch, z : z + cw] += 1
        logits = (total / count)[:, :, :h, :w].rot90(-turned, (2, 3)).flip(flipped)
        views.append(up(logits, size).softmax(dim=1))
    assert len(views) == protocol.views
    return torch.stack(views).mean(dim=0)


@torch.no_grad()
@pytest.mark.parametrize("band", [900, 1 << 24])
@pytest.mark.parametrize("size", [(61, 75), (40, 52)])
def test_every_kind_of_view_together_is_the_direct_computation(
    model: Foreign, pixels: Tensor, size: tuple[int, int], band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nota_seg.views.BAND", band)
    monkeypatch.setattr("nota_seg.views.PIECE", 1)
    protocol = Protocol(
        "slide", (32, 24), (20, 10), scales=(0.5, 1.0, 1.75), flip=True, vflip=True, rot90=True, intensities=(0.9, 1.3)
    )  # fmt: skip
    expected = direct(model, pixels, size, protocol)
    torch.testing.assert_close(predict_probabilities(model, pixels, size, protocol), expected)
    assert torch.equal(predict_labels(model, pixels, size, protocol), expected.argmax(dim=1))


@torch.no_grad()
@pytest.mark.parametrize("band", [1, 900, 1 << 24])
@pytest.mark.parametrize("size", [(61, 75), (80, 104), (40, 52)])
def test_bands_of_any_height_are_the_direct_computation(
    model: Foreign, pixels: Tensor, size: tuple[int, int], band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nota_seg.views.BAND", band)
    monkeypatch.setattr("nota_seg.views.PIECE", 1)
    protocol = Protocol("slide", (32, 24), (20, 10), scales=(0.5, 0.75, 1.0, 1.75), flip=True)
    expected = direct(model, pixels, size, protocol)
    model.sizes.clear()
    torch.testing.assert_close(predict_probabilities(model, pixels, size, protocol), expected)
    windows = {0.5: 1 * 2, 0.75: 1 * 3, 1.0: 2 * 4, 1.75: 3 * 8}
    assert len(model.sizes) == 2 * sum(windows.values()), "each window is computed once"
    assert torch.equal(predict_labels(model, pixels, size, protocol), expected.argmax(dim=1))
    whole = Protocol(scales=(0.5, 1.75), flip=True)
    p = predict_probabilities(model, pixels, size, whole)
    monkeypatch.setattr("nota_seg.views.BAND", 1 << 24)
    torch.testing.assert_close(p, predict_probabilities(model, pixels, size, whole))


@torch.no_grad()
@pytest.mark.parametrize("flags", itertools.product((False, True), repeat=3))
def test_windows_of_a_changed_picture_lie_where_the_model_sees_them(flags: tuple[bool, ...]) -> None:
    """A model of coordinates: what comes back must be what it saw there."""
    change = Change(*flags)
    picture = torch.arange(2 * 40 * 52.0).view(1, 2, 40, 52)
    crop, stride = (32, 24), (20, 10)
    view = View(lambda x: x, picture, 1.0, (40, 52), change, crop, stride)
    seen = change.do(picture)
    top, left = next(starts(seen.shape[2], 32, 20)), list(starts(seen.shape[3], 24, 10))[-1]
    y, x, size = change.place(top, left, crop, (40, 52))
    back = change.undo(F.pad(seen, (0, 0, 0, 0))[:, :, top : top + 32, left : left + 24])
    assert torch.equal(back, picture[:, :, y : y + size[0], x : x + size[1]])
    assert torch.equal(torch.cat([view.rows(i, i + 5) for i in range(0, 40, 5)], dim=2), picture)


@torch.no_grad()
def test_memory_is_that_of_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of all classes at the size of the picture or of an enlarged view is ever made."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max(largest, out.numel() if isinstance(out, Tensor) else 0)
            return out

    class Many(nn.Module):
        config = SimpleNamespace(num_labels=150)

        def forward(self, x: Tensor) -> Any:
            return SimpleNamespace(logits=x[:, :1, ::8, ::8].expand(-1, 150, -1, -1))

    monkeypatch.setattr("nota_seg.views.BAND", 1 << 20)
    pixels = torch.randint(0, 256, (1, 3, 400, 400), dtype=torch.uint8)
    with Watch():
        predict_labels(Many(), pixels, (400, 400), Protocol("slide", (64, 64), (48, 48), scales=(1.0, 1.75), flip=True))
    assert largest <= max(1 << 20, 2 * pixels.numel())


@pytest.mark.skipif(not os.environ.get("NOTA_SEG_DATA"), reason="NOTA_SEG_DATA names no folder with data")
@torch.no_grad()
def test_real_pictures_with_beit(monkeypatch: pytest.MonkeyPatch) -> None:
    from nota_seg.data.sources import open_source

    monkeypatch.setattr("nota_seg.views.BAND", 1 << 17)
    torch.manual_seed(0)
    model = nota_seg.create_model("beit-t-upernet", num_labels=5).eval()
    source = open_source(str(Path(os.environ["NOTA_SEG_DATA"]) / "ADEChallengeData2016"))
    protocol = Protocol("slide", (128, 128), (85, 85), scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True)
    for i in range(2):
        image, _ = source.read("val", i)
        pixels = to_pixels(image, (512, 200))[None]
        size = (image.shape[0], image.shape[1])
        expected = direct(model, pixels, size, protocol)
        p = predict_probabilities(model, pixels, size, protocol)
        assert (p - expected).abs().max() <= 1e-5
        assert (predict_labels(model, pixels, size, protocol) == expected.argmax(1)).float().mean() > 0.9999
