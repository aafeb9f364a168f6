"""Ours against transformers' SegFormer and the published reference's vectors: the same weights, the same logits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

import nota_seg

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
SIZES = {
    "segformer-b0": {"hidden_sizes": [32, 64, 160, 256], "depths": [2, 2, 2, 2], "decoder_hidden_size": 256},
    "segformer-b2": {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 4, 6, 3], "decoder_hidden_size": 768},
}


def shake(model: nn.Module) -> None:
    """Random weights and statistics, none at its default."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if value.dtype.is_floating_point:
            noise = torch.randn(value.shape, generator=generator)
            if "running_var" in name:
                value.copy_(noise.abs() + 0.5)
            elif value.ndim == 1:
                value.add_(0.2 * noise)
            else:
                value.copy_(noise / value[0].numel() ** 0.5)


def reference(name: str) -> nn.Module:
    model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=7, **SIZES[name])).eval()
    shake(model)
    for key, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):  # as the weights were trained; transformers has 1e-5 everywhere
            module.eps = 1e-5 if "patch_embeddings" in key or "sequence_reduction" in key else 1e-6
    return model


def names_of_4(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers 5 names to those of 4.x, written independently of the converter."""
    table = {
        "layernorm_before": "layer_norm_1", "layernorm_after": "layer_norm_2",
        "attention.q_proj": "attention.self.query",
        "attention.k_proj": "attention.self.key", "attention.v_proj": "attention.self.value",
        "attention.o_proj": "attention.output.dense", "mlp.fc1": "mlp.dense1", "mlp.fc2": "mlp.dense2",
        "attention.sequence_reduction.sequence_reduction": "attention.self.sr",
        "attention.sequence_reduction.layer_norm": "attention.self.layer_norm",
    }  # fmt: skip
    result = {}
    for key, value in state.items():
        key = re.sub(r"stages\.(\d)\.blocks\.(\d+)", r"encoder.block.\1.\2", key)
        key = re.sub(r"stages\.(\d)\.patch_embeddings", r"encoder.patch_embeddings.\1", key)
        key = re.sub(r"stages\.(\d)\.layer_norm", r"encoder.layer_norm.\1", key)
        key = key.replace("linear_projections", "linear_c")
        for new, old in table.items():
            key = key.replace(new, old)
        result[key] = value
    return result


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("names", ["5.x", "4.x", "4.x .bin"])
def test_same_weights_same_logits(name: str, names: str, tmp_path: Path) -> None:
    theirs = reference(name)
    if names == "5.x":
        theirs.save_pretrained(tmp_path)
        path = tmp_path
    else:
        state = names_of_4(dict(theirs.state_dict()))
        assert "segformer.encoder.block.0.0.attention.self.query.weight" in state
        path = tmp_path / ("pytorch_model.bin" if "bin" in names else "model.safetensors")
        torch.save(state, path) if "bin" in names else save_file({k: v.contiguous() for k, v in state.items()}, path)
    ours = nota_seg.create_model(name, num_labels=7).eval()
    report = nota_seg.load_checkpoint(ours, path)
    assert report.reinitialised == [] and report.unused == []
    assert set(report.per_stage.values()) == {100.0}
    for size in [(64, 64), (128, 96), (97, 131)]:
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            a, b = theirs(x).logits, ours(x).logits
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_vectors_of_the_published_modules(tmp_path: Path) -> None:
    file = GOLDEN / "segformer_full.safetensors"
    with safe_open(file, "pt") as f:
        config = json.loads(f.metadata()["config"])
        tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    state = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
    torch.save({"state_dict": state}, tmp_path / "segformer.pth")
    model = nota_seg.create_model(
        "segformer-b0",
        num_labels=config["num_classes"],
        dims=config["embed_dims"],
        heads=config["num_heads"],
        depths=config["depths"],
        mlp_ratios=config["mlp_ratios"],
        decoder={"dim": config["decoder_embed_dim"]},
    ).eval()
    report = nota_seg.load_checkpoint(model, tmp_path / "segformer.pth")
    assert report.format == "NVlabs SegFormer" and report.reinitialised == []
    assert all("conv_seg" in k for k in report.unused)
    for i, first in ((0, 0), (1, 5)):
        with torch.no_grad():
            features = [x.permute(0, 3, 1, 2) for x in model.encoder(tensors[f"input.{i}"])]
            logits = model(tensors[f"input.{i}"]).logits
        for k, ours in enumerate([*features, logits]):
            theirs = tensors[f"output.{first + k}"]
            assert ours.shape == theirs.shape
            assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max(), f"output {first + k}"


@pytest.mark.parametrize("name", ["segformer-b0", "segformer-b2"])
def test_the_head_in_the_textbook_order_is_equal(name: str) -> None:
    from nota_seg.models.network import textbook

    model = nota_seg.create_model(name, num_labels=20).eval()
    shake(model)
    x = torch.randn(2, 3, 97, 130)
    with torch.no_grad():
        ours = model(x).logits
        with textbook(model):
            theirs = model(x).logits
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    grads = []
    model, x = model.double(), x.double()  # in float32 a ReLU may fall to the other side of zero
    for book in (False, True):
        model.train().zero_grad()
        model.decoder.textbook, model.decoder.dropout.p = book, 0.0
        torch.manual_seed(0)
        model(x, labels=torch.zeros(2, 97, 130).long()).loss.backward()
        grads.append(model.decoder.fuse.weight.grad.clone())
    assert (grads[0] - grads[1]).abs().max() <= 1e-9 * grads[1].abs().max()


def test_the_folded_head_follows_its_weights() -> None:
    model = nota_seg.create_model("segformer-b0", num_labels=3).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model(x).logits
        model.decoder.linears[0].weight.mul_(2)
        changed = model(x).logits
        assert not torch.allclose(before, changed)
        model.decoder.linears[0].weight.div_(2)
        assert torch.allclose(model(x).logits, before, atol=1e-6)
    other = nota_seg.create_model("segformer-b0", num_labels=3).eval()
    model.load_state_dict(other.state_dict())
    with torch.no_grad():
        assert torch.equal(model(x).logits, other(x).logits)
