"""What is computed in another order for speed is equal to the plain order: values, gradients, statistics."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nota_seg
from nota_seg.models import attention as attention_module
from nota_seg.models import losses
from nota_seg.models.decoders import tiled
from nota_seg.models.decoders.all_mlp import AllMLP
from nota_seg.models.feedforwards import dest, mix, mscan, pvt, rows
from nota_seg.models.layers import Linear, Pointwise, linear, product
from nota_seg.models.losses import upsampled_cross_entropy
from nota_seg.models.resize import tiles
from util.errors import InputError

DOUBLE = torch.float64


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return bool((a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-30))


@pytest.mark.parametrize(("inside", "outside"), [(8, 24), (24, 8), (1, 5), (5, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(inside: int, outside: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = Linear(inside, outside, bias=bias)
    whole = torch.randn(2, 7, 9, 2 * inside, requires_grad=True)
    for x in (whole[..., :inside], whole[:, ::2, 1:, inside:], whole.permute(0, 2, 1, 3)[..., :inside]):
        results = []
        for function in (linear, F.linear):
            weight = layer.weight.detach().t().contiguous().t().requires_grad_()  # laid out transposed
            y = function(x, weight, layer.bias)
            inputs = [whole, weight, *([layer.bias] if bias else [])]
            results.append((y, *torch.autograd.grad((y * y.detach().cos()).sum(), inputs)))
            with torch.no_grad():
                assert close(function(x, weight, layer.bias), y)
        for ours, theirs in zip(*results, strict=True):
            assert ours.shape == theirs.shape and close(ours, theirs)


def test_linear_is_differentiable_twice() -> None:
    x, w = torch.randn(4, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    seconds = []
    for function in (linear, F.linear):
        (first,) = torch.autograd.grad(function(x, w).square().sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), w)[0])
    assert close(*seconds)


@pytest.mark.parametrize(
    ("sizes", "target"),
    [
        ([(8, 8)], (32, 32)),
        ([(5, 7)], (33, 29)),
        ([(9, 6)], (9, 6)),
        ([(1, 1)], (5, 4)),
        ([(20, 30)], (7, 11)),
        ([(17, 15), (9, 8), (1, 4)], (33, 29)),
    ],
)
def test_tiles_resize_and_transpose(sizes: list[tuple[int, int]], target: tuple[int, int]) -> None:
    maps = [torch.randn(*size, 3, dtype=DOUBLE, requires_grad=True) for size in sizes]
    full = sum(F.interpolate(x.permute(2, 0, 1)[None], size=target, mode="bilinear")[0].permute(1, 2, 0) for x in maps)
    grad = torch.randn_like(full)
    expected = torch.autograd.grad(full, maps, grad)
    seen, back = torch.zeros(target), [torch.zeros_like(x) for x in maps]
    with torch.no_grad():
        for tile in tiles(sizes, target, (8, 5), DOUBLE):
            assert close(tile.take(*maps), full[tile.target], 1e-12)
            tile.put_back(grad[tile.target].contiguous(), *back)
            seen[tile.target] += 1
    assert (seen == 1).all() and all(close(a, b, 1e-12) for a, b in zip(back, expected, strict=True))


@pytest.mark.parametrize(("heads", "queries", "keys"), [(1, 600, 7), (3, 512, 40), (2, 511, 9), (2, 1000, 1)])
def test_attention_by_pieces(heads: int, queries: int, keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "PIECE", 130 * keys)
    q = torch.randn(2, queries, heads, 8).transpose(1, 2)
    k, v = torch.randn(2, keys, 2, heads, 8).permute(2, 0, 3, 1, 4).unbind(0)
    expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    calls = []
    monkeypatch.setattr(attention_module, "product", lambda *a: calls.append(1) or product(*a))
    assert close(attention_module.attention(q, k, v), expected, 1e-6)
    assert bool(calls) == (queries >= attention_module.FEW)
    calls.clear()
    q.requires_grad_()
    assert attention_module.attention(q, k, v).requires_grad and not calls


def plain_loss(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    up = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(up, labels, weight=weight, ignore_index=255)


@pytest.fixture(params=["tiles", "pictures", "all pictures at once"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The parts that the loss is computed in."""
    if request.param != "tiles":  # of tensors that are not on the CPU
        monkeypatch.setattr(losses, "by_tiles", losses.by_pictures)
    if request.param == "pictures":
        monkeypatch.setattr(losses, "PIECE", 1)
    return request.param


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [(40, 36), (37, 45), (10, 9)])
def test_loss(weighted: bool, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    logits = (5 * torch.randn(3, 6, 10, 9)).requires_grad_()
    labels = torch.randint(0, 6, (3, *size))
    labels[:, :5] = 255
    weight = torch.rand(6) + 0.1 if weighted else None
    ours, theirs = upsampled_cross_entropy(logits, labels, weight=weight), plain_loss(logits, labels, weight)
    assert close(ours, theirs)
    assert close(torch.autograd.grad(3 * ours, logits)[0], torch.autograd.grad(3 * theirs, logits)[0])
    with torch.no_grad():
        assert torch.equal(upsampled_cross_entropy(logits, labels.to(torch.uint8), weight=weight), ours)
    with torch.autocast("cpu", torch.bfloat16):
        half = logits.detach().bfloat16().requires_grad_()
        loss = upsampled_cross_entropy(half, labels, weight=weight)
        assert loss.dtype == torch.float32 and close(loss, plain_loss(half.float(), labels, weight))
    loss.backward()
    assert half.grad.dtype == torch.bfloat16


@pytest.mark.usefixtures("way")
def test_loss_gradient_in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "TILE", (4, 3))
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 3, 4, dtype=DOUBLE, requires_grad=True)
    labels, weight = torch.randint(0, 3, (2, 9, 11)), torch.rand(3, dtype=DOUBLE)
    labels[0, :4] = 255
    assert torch.autograd.gradcheck(lambda x: upsampled_cross_entropy(x, labels, weight=weight), logits)


def test_loss_of_nothing_and_of_a_wrong_label(way: str) -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = upsampled_cross_entropy(logits, torch.full((1, 8, 8), 255))
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()
    with pytest.raises(IndexError if way == "tiles" else RuntimeError):
        upsampled_cross_entropy(logits, torch.full((1, 8, 8), 3))


@pytest.mark.parametrize("mode", ["train", "frozen norm", "eval", "fused"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_head_by_tiles(mode: str, momentum: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In double precision: in float32 a ReLU may fall to the other side of zero."""
    monkeypatch.setattr(tiled, "TILE", (8, 16))
    torch.manual_seed(0)
    channels = [8, 12, 16, 20]
    head = AllMLP(channels, [4, 8, 16, 32], 5, dim=24).double()
    head.norm.momentum = momentum
    for value in (head.norm.weight, head.norm.bias, head.norm.running_mean, head.norm.running_var):
        value.data.uniform_(0.5, 1.5)
    plain = copy.deepcopy(head)
    for module in (head, plain):
        module.train(mode in ("train", "frozen norm"))
        if mode == "frozen norm":
            module.norm.eval()
        if mode == "fused":
            module.fold_norm()
    sizes = [(37, 41), (19, 21), (10, 11), (5, 6)]
    results = []
    for module, forward in ((head, head._by_tiles), (plain, lambda x: F.relu(plain.norm(plain._fuse_textbook(x))))):
        torch.manual_seed(1)
        features = [
            torch.randn(2, c, *s, dtype=DOUBLE, requires_grad=True) for c, s in zip(channels, sizes, strict=True)
        ]
        logits = forward(features)
        if module is plain:
            logits = plain.classifier(plain.dropout(logits))
        grads = torch.autograd.grad(
            logits.sin().sum(), [*features, *(p for p in module.parameters() if p.requires_grad)]
        )
        results.append((logits, *grads, *(b.double() for b in module.buffers())))
    for ours, theirs in zip(*results, strict=True):
        # A bias before batch statistics has no gradient; both round to almost nothing.
        assert (ours - theirs).abs().max() <= 1e-10 * theirs.abs().max().clamp(min=1)


@pytest.mark.parametrize("kind", [mix.MixFeedForward, pvt.PVTFeedForward, mscan.MSCANFeedForward])
@pytest.mark.parametrize("piece", [1, 600, 5000, 1 << 20])
def test_feedforward_by_rows(kind: type[nn.Module], piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "PIECE", piece)
    torch.manual_seed(0)
    layer = kind(8, 32)
    nn.init.normal_(layer.get_parameter("dwconv.bias"))
    x = torch.randn(3, 9, 7, 8, requires_grad=True)
    results = []
    for by_rows in (True, False):
        for module in (mix, mscan):
            monkeypatch.setattr(module, "eager_on_cpu", lambda x, by_rows=by_rows: by_rows)
        y = layer(x)
        results.append((y, *torch.autograd.grad(y.sin().sum(), [x, *layer.parameters()])))
    assert (type(results[0][0].grad_fn).__name__ == "_ByRowsBackward") and all(
        close(a, b) for a, b in zip(*results, strict=True)
    )


@pytest.mark.parametrize("piece", [1, 600, 1 << 20])
@pytest.mark.parametrize("fused", [False, True])
def test_feedforward_of_dest_by_rows(piece: int, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In evaluation, norms folded in; a border of zeros is of the normed map, not of what the norm makes of zeros."""
    monkeypatch.setattr(rows, "PIECE", piece)
    torch.manual_seed(0)
    layer = dest.DESTFeedForward(8, 32)
    for tensor in (*layer.parameters(), *(b for b in layer.buffers() if b.is_floating_point())):
        nn.init.uniform_(tensor, 0.2, 1.5)
    layer.eval()
    x = torch.randn(3, 9, 7, 8)
    plain = layer(x)  # gradients are on
    assert plain.requires_grad
    if fused:
        layer.fold_norm()
    calls = []
    monkeypatch.setattr(dest, "evaluate_by_rows", lambda *a, **k: calls.append(1) or rows.evaluate_by_rows(*a, **k))
    with torch.inference_mode():
        assert close(layer(x), plain)
        assert calls and layer.train()(x).shape == x.shape and len(calls) == 1  # the batch's statistics: the plain way


@pytest.mark.parametrize("bias", [False, True])
def test_pointwise(bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = Pointwise(6, 10, bias=bias), torch.randn(2, 5, 7, 6).permute(0, 3, 1, 2)
    plain = F.conv2d(x, layer.weight, layer.bias)
    assert layer(x).requires_grad and torch.equal(layer(x), plain)
    with torch.no_grad():
        assert close(layer(x), plain) and layer(x).permute(0, 2, 3, 1).is_contiguous()
        assert close(layer(x.contiguous()), plain)


@pytest.fixture
def torch_threads() -> Iterator[None]:
    """Their number is as before afterwards."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_pieces_side_by_side(torch_threads: None) -> None:
    """Threads change nothing but the order of sums; neither their number nor inference mode is lost on the way."""
    torch.manual_seed(0)
    model = nota_seg.create_model("segformer-b0", depths=[1, 1, 1, 1], num_labels=5)
    x, labels = torch.randn(3, 3, 70, 90), torch.randint(0, 5, (3, 70, 90))
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        torch.manual_seed(1)  # of dropout
        copied = copy.deepcopy(model).train()
        loss = copied(x, labels=labels).loss
        loss.backward()
        with torch.inference_mode():
            logits = copied.eval()(x).logits
        results.append((loss.detach(), logits, *(p.grad for p in copied.parameters()), *copied.buffers()))
        assert copied.predict_labels(x, (70, 90)).shape == labels.shape
        assert torch.get_num_threads() == threads
    scale = max(float(t.abs().max()) for t in results[0][2:])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert (a - b).abs().max() <= 1e-5 * max(scale, float(a.abs().max()))


def test_a_layer_put_in_or_hooked_is_used() -> None:
    """Adapters and hooks stand where the fast paths would take only the parameters."""
    model = nota_seg.create_model("segformer-b0", depths=[1, 1, 1, 1], num_labels=3).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model(x).logits
        calls: list[str] = []
        handles = [
            model.decoder.classifier.register_forward_hook(lambda *_: calls.append("classifier")),
            model.encoder.stages[0].blocks[0].feedforward.fc2.register_forward_hook(lambda *_: calls.append("fc2")),
        ]
        assert close(model(x).logits, before) and sorted(calls) == ["classifier", "fc2"]
        for handle in handles:
            handle.remove()
        model.encoder.stages[1].blocks[0].feedforward.fc1 = nn.Sequential(nn.Linear(64, 256), nn.ReLU())
        assert not close(model(x).logits, before)


@pytest.mark.parametrize(
    "name",
    ["segformer-b0", "segformer-b0-fpn", "segformer-b0-uper", "segformer-b0-dest", "segformer-b0-lawin", "segnext-t"],
)
def test_fused_is_equal_and_stays_out_of_files(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nota_seg.create_model(name, depths=[1, 1, 1, 1], num_labels=5).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.bias, module.running_mean, module.running_var):
                value.data.uniform_(0.5, 2)
    model.save_pretrained(tmp_path / "before")
    x = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        before = model(x).logits
        assert model.fuse() is model
        left = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
        # What stays has no convolution of its own before it: the skips' norms of SegNeXt, Lawin's zero-started ones.
        assert left == {"segformer-b0-lawin": 3, "segnext-t": 8}.get(name, 0)
        assert close(model(x).logits, before)
        again = type(model).from_pretrained(tmp_path / "before").eval()
        assert close(again(x).logits, before)
        assert close(model.fuse()(x).logits, before), "a second time there is nothing left to do"
    with pytest.raises(InputError, match="fused"):
        model.save_pretrained(tmp_path / "after")
    assert not (tmp_path / "after").exists()
    with pytest.raises(InputError, match="fused"):
        model.train()
    with pytest.raises(RuntimeError, match="Missing key"):  # nor can its state pass for an unfused one
        again.load_state_dict(model.state_dict())
