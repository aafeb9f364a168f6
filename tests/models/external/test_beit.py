"""BEiT + UPerNet against the vectors of the published modules and against a forward pass written from its description.

The reference below works on mmseg's names with torch's functions alone, for the one window that its tables are for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSemanticSegmentation, BeitConfig
from transformers import BeitForSemanticSegmentation as TransformersBeit

import nota_seg
from nota_seg.cli import main
from nota_seg.distill import Teacher
from nota_seg.export import Logits, export
from nota_seg.flops import cost
from nota_seg.models.checkpoints.beit import to_mmseg
from nota_seg.models.external.beit_positions import (
    RelativePositionBias,
    relative_position_index,
    resize_positions,
    resize_table,
)
from util.errors import InputError

GOLDEN = Path(__file__).parents[2] / "golden"
State = dict[str, Tensor]
SMALL: dict[str, Any] = dict(
    dim=24, depth=4, heads=3, out_indices=[0, 1, 2, 3], decoder={"name": "uper", "dim": 16}, auxiliary_dim=8
)


def conv_norm(state: State, key: str, x: Tensor, padding: int = 0) -> Tensor:
    x = F.conv2d(x, state[f"{key}.conv.weight"], padding=padding)
    names = ("running_mean", "running_var", "weight", "bias")
    return F.relu(F.batch_norm(x, *(state[f"{key}.bn.{n}"] for n in names), eps=1e-5))


def up(x: Tensor, size: Any) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def reference(state: State, x: Tensor, *, heads: int, out: list[int]) -> tuple[Tensor, Tensor]:
    """Logits and auxiliary logits from mmseg's state dict, at the size its tables are for."""
    b = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    x = F.conv2d(x, b["patch_embed.projection.weight"], b["patch_embed.projection.bias"], stride=16)
    h, w = x.shape[2:]
    dim = x.shape[1]
    x = torch.cat([b["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    maps = []
    for i in range(1 + max(out)):
        p = {k.removeprefix(f"layers.{i}."): v for k, v in b.items() if k.startswith(f"layers.{i}.")}
        y = F.layer_norm(x, (dim,), p["ln1.weight"], p["ln1.bias"], 1e-6)
        bias = torch.cat([p["attn.q_bias"], torch.zeros(dim), p["attn.v_bias"]])
        q, k, v = F.linear(y, p["attn.qkv.weight"], bias).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) * (dim // heads) ** -0.5
        table = p["attn.relative_position_bias_table"]
        n = h * w + 1
        rows = torch.full((n, n), len(table) - 3)
        rows[1:, 0] = len(table) - 2
        rows[0, 0] = len(table) - 1
        at = torch.arange(h * w)
        dy, dx = at[:, None] // w - at // w, at[:, None] % w - at % w
        rows[1:, 1:] = (dy + h - 1) * (2 * w - 1) + dx + w - 1
        scores = scores + table[rows].permute(2, 0, 1)
        y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + p["gamma_1"] * F.linear(y, p["attn.proj.weight"], p["attn.proj.bias"])
        y = F.layer_norm(x, (dim,), p["ln2.weight"], p["ln2.bias"], 1e-6)
        y = F.gelu(F.linear(y, p["ffn.layers.0.0.weight"], p["ffn.layers.0.0.bias"]))
        x = x + p["gamma_2"] * F.linear(y, p["ffn.layers.1.weight"], p["ffn.layers.1.bias"])
        if i in out:
            maps.append(x[:, 1:].transpose(1, 2).reshape(len(x), dim, h, w))
    s = state
    y = F.conv_transpose2d(maps[0], s["neck.upsample_4x.0.weight"], s["neck.upsample_4x.0.bias"], stride=2)
    y = F.batch_norm(y, *(s[f"neck.upsample_4x.1.{n}"] for n in ("running_mean", "running_var", "weight", "bias")))
    y = F.conv_transpose2d(F.gelu(y), s["neck.upsample_4x.3.weight"], s["neck.upsample_4x.3.bias"], stride=2)
    z = F.conv_transpose2d(maps[1], s["neck.upsample_2x.0.weight"], s["neck.upsample_2x.0.bias"], stride=2)
    levels = [y, z, maps[2], F.max_pool2d(maps[3], 2)]
    hidden = conv_norm(s, "auxiliary_head.convs.0", levels[2], 1)
    auxiliary = F.conv2d(hidden, s["auxiliary_head.conv_seg.weight"], s["auxiliary_head.conv_seg.bias"])
    pooled = [levels[3]]
    for i, side in enumerate((1, 2, 3, 6)):
        y = conv_norm(s, f"decode_head.psp_modules.{i}.1", F.adaptive_avg_pool2d(levels[3], side))
        pooled.append(up(y, levels[3].shape[2:]))
    tops = [conv_norm(s, f"decode_head.lateral_convs.{i}", levels[i]) for i in range(3)]
    tops.append(conv_norm(s, "decode_head.bottleneck", torch.cat(pooled, 1), 1))
    for i in (3, 2, 1):
        tops[i - 1] = tops[i - 1] + up(tops[i], tops[i - 1].shape[2:])
    outs = [conv_norm(s, f"decode_head.fpn_convs.{i}", tops[i], 1) for i in range(3)] + [tops[3]]
    fused = torch.cat([up(o, outs[0].shape[2:]) for o in outs], 1)
    fused = conv_norm(s, "decode_head.fpn_bottleneck", fused, 1)
    return F.conv2d(fused, s["decode_head.conv_seg.weight"], s["decode_head.conv_seg.bias"]), auxiliary


def shaken(model: Any) -> Any:
    """Random weights and statistics, none at its default."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if value.dtype.is_floating_point:
            noise = torch.randn(value.shape, generator=generator)
            if "running_var" in name:
                value.copy_(noise.abs() + 0.5)
            elif value.ndim == 1:
                value.copy_(value + 0.2 * noise)
            elif name.endswith("bias_table"):
                value.copy_(noise)
            else:
                value.copy_(noise / value[0].numel() ** 0.5)
    return model.eval()


def mmseg_state(name: str, crop: tuple[int, int], classes: int = 5, **options: Any) -> State:
    """Random weights in mmseg's names and shapes, made without our converter: shapes are those of the description."""
    model = shaken(nota_seg.create_model(name, num_labels=classes, crop_size=list(crop), **options))
    return to_mmseg(model)


UNILM = [
    ("layers.", "blocks."), ("ln1", "norm1"), ("ln2", "norm2"), ("ffn.blocks.0.0", "mlp.fc1"),
    ("ffn.blocks.1", "mlp.fc2"), ("patch_embed.projection", "patch_embed.proj"), ("neck.upsample_4x", "backbone.fpn1"),
    ("neck.upsample_2x", "backbone.fpn2"),
]  # fmt: skip


def unilm(state: State) -> State:
    result = {}
    for key, value in state.items():
        name = key
        for old, new in UNILM:
            if not name.startswith(("decode_head", "auxiliary_head")):
                name = name.replace(old, new)
        result[name] = value
    return result


def close(ours: Tensor, theirs: Tensor, within: float) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= within * theirs.abs().max()


def converted(folder: Path, state: Any, name: str, *words: str) -> Any:
    torch.save(state, folder / "weights.pth")
    assert main(["convert", str(folder / "weights.pth"), str(folder / "ours"), "--model", name, *words]) == 0
    return AutoModelForSemanticSegmentation.from_pretrained(folder / "ours").eval()


# --- The published modules


def vectors(name: str) -> tuple[State, dict[str, Any]]:
    path = GOLDEN / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        return load_file(path), json.loads(file.metadata()["config"])


def test_encoder_and_neck_are_the_published_ones(tmp_path: Path) -> None:
    tensors, _ = vectors("beit_full")
    state = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
    torch.save({"state_dict": state}, tmp_path / "beit.pth")
    model = nota_seg.create_model(
        "beit-b-upernet", "backbone", dim=32, depth=4, heads=4, mlp_ratio=2, out_indices=[0, 1, 2, 3], crop_size=64
    ).eval()
    report = nota_seg.load_checkpoint(model, tmp_path / "beit.pth")
    assert report.reinitialised == []
    assert set(report.unused) == {f"backbone.layers.{i}.attn.relative_position_index" for i in range(4)}
    with torch.no_grad():
        maps = model.encoder(tensors["input"], [0, 1, 2, 3])
        levels = model(tensors["input"]).feature_maps
    for i, map_ in enumerate([*maps, *levels]):
        close(map_, tensors[f"output.{i}"], 1e-5)
    index = state["backbone.layers.0.attn.relative_position_index"]
    assert torch.equal(relative_position_index((4, 4)), index)


@pytest.mark.parametrize(("window", "output"), [(32, "output.0"), (40, "output.1")])
def test_tables_are_resized_as_published(window: int, output: str) -> None:
    tensors, _ = vectors("beit_relpos_resize")
    ours = resize_table(tensors["input"], (14, 14), (window, window))
    close(ours, tensors[output], 1e-6)
    assert torch.equal(ours[-3:], tensors["input"][-3:])


def test_a_rectangular_table_has_each_axis_resized_by_itself() -> None:
    tensors, _ = vectors("beit_relpos_resize")
    ours = resize_table(tensors["input"], (14, 14), (32, 40))
    assert ours.shape == (63 * 79 + 3, 4)
    grid = ours[:-3].view(63, 79, 4)
    # Along the axis of no offset the other axis does not matter: there the rectangle agrees with both squares.
    tall, wide = tensors["output.0"][:-3].view(63, 63, 4), tensors["output.1"][:-3].view(79, 79, 4)
    close(grid[:, 39], tall[:, 31], 1e-5)
    close(grid[31], wide[39], 1e-5)
    assert resize_table(ours, (32, 40), (32, 40)) is ours
    assert resize_table(torch.ones(9 + 3, 1), (2, 2), (4, 5)).sub(1).abs().max() < 1e-6


def test_absolute_positions_keep_the_class_token() -> None:
    positions = torch.randn(1, 1 + 14 * 14, 8)
    ours = resize_positions(positions, (14, 14), (20, 28))
    grid = positions[:, 1:].reshape(1, 14, 14, 8).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(20, 28), mode="bicubic").permute(0, 2, 3, 1).reshape(1, -1, 8)
    assert torch.equal(ours[:, :1], positions[:, :1])
    torch.testing.assert_close(ours[:, 1:], expected)


@pytest.mark.parametrize("window", [(4, 4), (3, 6), (7, 5)])
def test_the_bias_of_another_window_is_transformers(window: tuple[int, int]) -> None:
    config = BeitConfig(num_attention_heads=3, hidden_size=24, image_size=64)
    from transformers.models.beit.modeling_beit import BeitRelativePositionBias

    theirs, ours = BeitRelativePositionBias(config), RelativePositionBias((4, 4), 3)
    table = torch.randn(52, 3)
    for module in (theirs, ours):
        module.relative_position_bias_table.data = table
    torch.testing.assert_close(ours(window), theirs(window))


# --- Conversion


@pytest.mark.parametrize("crop", [(64, 64), (64, 96), (96, 64)], ids=str)
@pytest.mark.parametrize("style", ["mmseg", "unilm"])
def test_converted_logits_are_the_references(tmp_path: Path, crop: tuple[int, int], style: str) -> None:
    state = mmseg_state("beit-t-upernet", crop, **SMALL)
    file = {"state_dict": state, "meta": {}} if style == "mmseg" else {"model": unilm(state)}
    assert style == "mmseg" or "backbone.blocks.0.mlp.fc2.bias" in file["model"]
    sets = [w for k, v in SMALL.items() for w in ("--set", f"model.{k}={json.dumps(v)}")]
    model = converted(tmp_path, file, "beit-t-upernet", *sets)
    assert model.config.crop_size == list(crop) and model.config.num_labels == 5
    x = torch.randn(2, 3, *crop)
    with torch.no_grad():
        expected, auxiliary = reference(state, x, heads=3, out=[0, 1, 2, 3])
        close(model(x).logits, expected, 1e-4)
        close(model.auxiliary(model.neck(model.encoder(x, [0, 1, 2, 3]))[2]), auxiliary, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("crop", [(512, 512), (640, 640), (512, 640)], ids=str)
def test_full_size_logits_are_the_references(tmp_path: Path, crop: tuple[int, int]) -> None:
    state = mmseg_state("beit-b-upernet", crop, classes=150)
    model = converted(tmp_path, {"state_dict": state}, "beit-b-upernet")
    x = torch.randn(1, 3, *crop)
    with torch.no_grad():
        expected, _ = reference(state, x, heads=12, out=[3, 5, 7, 11])
        close(model(x).logits, expected, 1e-4)


def test_a_rectangle_on_square_tables_is_what_transformers_gives(tmp_path: Path) -> None:
    config = BeitConfig(
        hidden_size=24, num_hidden_layers=4, num_attention_heads=3, intermediate_size=96, image_size=96,
        layer_norm_eps=1e-6, use_relative_position_bias=True, out_indices=[1, 2, 3, 4], num_labels=5,
    )  # fmt: skip
    theirs = shaken(TransformersBeit(config))
    ours = nota_seg.create_model(
        "beit-t-upernet", num_labels=5, **{**SMALL, "decoder": {"name": "uper", "dim": 24}, "auxiliary_dim": 256},
        crop_size=96,
    ).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path)
    report = nota_seg.load_checkpoint(ours, tmp_path / "model.safetensors")
    assert report.reinitialised == [] and report.unused == []
    for size in ((96, 96), (64, 96), (128, 80)):
        x = torch.randn(1, 3, *size)
        with torch.no_grad():
            hidden = theirs.beit(x, output_hidden_states=True).hidden_states[1:]
            grid = (size[0] // 16, size[1] // 16)
            maps = tuple(y[:, 1:].transpose(1, 2).reshape(1, 24, *grid) for y in hidden)
            close(ours(x).logits, theirs.decode_head(theirs.fpn(maps)), 1e-4)


@pytest.mark.parametrize("prefix", ["", "backbone."])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module", None])
def test_pretrained_encoders(tmp_path: Path, prefix: str, shared: bool, wrapper: str | None) -> None:
    """Classification and self-supervised files of unilm at 224: every key is used, resized or reported."""
    whole = mmseg_state("beit-t-upernet", (224, 224), **SMALL)
    state = {k.removeprefix("backbone."): v for k, v in unilm(whole).items() if k.startswith("backbone.")}
    state = {prefix + k: v for k, v in state.items() if not k.startswith("fpn") and "index" not in k}
    tables = {k: state.pop(k) for k in list(state) if k.endswith("bias_table")} if shared else {}
    if shared:
        state[f"{prefix}rel_pos_bias.relative_position_bias_table"] = next(iter(tables.values()))
        state[f"{prefix}mask_token"] = torch.zeros(1, 1, 24)
        state[f"{prefix}norm.weight"] = torch.ones(24)
        state["lm_head.weight"] = torch.zeros(9, 24)
    else:
        state |= {f"{prefix}fc_norm.weight": torch.ones(24), f"{prefix}head.weight": torch.zeros(7, 24)}
    torch.save(state if wrapper is None else {wrapper: state}, tmp_path / "beit.pth")
    model = nota_seg.create_model("beit-t-upernet", num_labels=5, **SMALL, crop_size=[128, 160])
    report = nota_seg.load_checkpoint(model, tmp_path / "beit.pth")
    used = {*report.matched, *report.renamed.values(), *report.resized.values()}
    assert used.isdisjoint(report.unused) and used | set(report.unused) == set(state)
    dropped = {"mask_token", "norm.weight", "lm_head.weight"} if shared else {"fc_norm.weight", "head.weight"}
    assert {k.removeprefix("backbone.") for k in report.unused} == dropped
    target = set(model.state_dict())
    counters = {k for k in target if k.endswith("num_batches_tracked")}
    assert {*report.filled, *report.reinitialised} | counters == target
    assert len(report.resized) == 4 and not any(k.startswith("encoder.") for k in report.reinitialised)
    for i, layer in enumerate(model.encoder.layers):
        key = "layers.0" if shared else f"layers.{i}"
        table = whole[f"backbone.{key}.attn.relative_position_bias_table"]
        expected = resize_table(table, (14, 14), (8, 10))
        assert torch.equal(layer.relative_position_bias.relative_position_bias_table, expected)
    qkv = whole["backbone.layers.1.attn.qkv.weight"]
    assert torch.equal(model.encoder.layers[1].attention.k_proj.weight, qkv[24:48])
    assert "4 resized" in str(report)


def test_pretrained_encoder_for_classification(tmp_path: Path) -> None:
    whole = mmseg_state("beit-t-upernet", (128, 128), **SMALL)
    state = {
        k.removeprefix("backbone."): v for k, v in unilm(whole).items() if k.startswith("backbone.") and "fpn" not in k
    }
    state |= {"fc_norm.weight": torch.rand(24), "fc_norm.bias": torch.rand(24), "head.weight": torch.rand(7, 24),
              "head.bias": torch.rand(7)}  # fmt: skip
    torch.save({"model": state}, tmp_path / "beit.pth")
    model = nota_seg.create_model("beit-t-upernet", "classification", 7, **SMALL, crop_size=128).eval()
    report = nota_seg.load_checkpoint(model, tmp_path / "beit.pth")
    assert report.reinitialised == [] and torch.equal(model.norm.weight, state["fc_norm.weight"])
    assert model(torch.randn(1, 3, 128, 128)).logits.shape == (1, 7)


def test_absolute_positions_come_along(tmp_path: Path) -> None:
    state = mmseg_state("beit-t-upernet", (64, 64), absolute_positions=True, **SMALL)
    assert state["backbone.pos_embed"].shape == (1, 17, 24)
    sets = [w for k, v in SMALL.items() for w in ("--set", f"model.{k}={json.dumps(v)}")]
    model = converted(tmp_path, {"model": unilm(state)}, "beit-t-upernet", *sets)
    assert model.config.absolute_positions
    larger = nota_seg.create_model("beit-t-upernet", num_labels=5, **SMALL, crop_size=[96, 64], absolute_positions=True)
    report = nota_seg.load_checkpoint(larger, tmp_path / "weights.pth")
    assert "encoder.embeddings.position_embeddings" in report.resized
    expected = resize_positions(state["backbone.pos_embed"], (4, 4), (6, 4))
    assert torch.equal(larger.encoder.embeddings.position_embeddings, expected)
    with pytest.raises(InputError, match=r"absolute_positions=true"):
        nota_seg.load_checkpoint(nota_seg.create_model("beit-t-upernet", **SMALL), tmp_path / "weights.pth")


def test_to_mmseg_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = shaken(nota_seg.create_model("beit-t-upernet", num_labels=3, crop_size=[64, 96]))
    model.save_pretrained(tmp_path / "ours")
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "mmseg.pth"), "--to", "mmseg"]) == 0
    file = torch.load(tmp_path / "mmseg.pth", weights_only=True)
    assert file["meta"]["CLASSES"] == ["class 0", "class 1", "class 2"]
    state = file["state_dict"]
    heads = ("backbone.", "neck.", "decode_head.", "auxiliary_head.")
    assert all(k.startswith(heads) for k in state)
    golden = {k.removeprefix("state.") for k in vectors("beit_full")[0] if k.startswith("state.")}
    assert {k for k in state if k.startswith(("backbone.", "neck."))} == golden
    uper = {"decode_head." + k.removeprefix("state.") for k in vectors("uper_head")[0] if k.startswith("state.")}
    assert {k for k in state if k.startswith("decode_head.")} == uper
    assert main(["convert", str(tmp_path / "mmseg.pth"), str(tmp_path / "back"), "--model", "beit-t-upernet"]) == 0
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "back").state_dict()
    assert all(torch.equal(v, again[k]) for k, v in model.state_dict().items())
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "x"), "--to", "mmsegg"]) == 2
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "x")]) == 2
    fpn = nota_seg.create_model("beit-t-upernet-fpn", num_labels=3)
    fpn.save_pretrained(tmp_path / "fpn")
    assert main(["convert", str(tmp_path / "fpn"), str(tmp_path / "x"), "--to", "mmseg"]) == 2
    assert not (tmp_path / "x").exists() and "only UPerNet" in capsys.readouterr().err


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    torch.save(mmseg_state("beit-t-upernet", (64, 64), **SMALL), tmp_path / "small.pth")
    model = nota_seg.create_model("beit-t-upernet")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError, match="4 blocks of 24 channels"):
        nota_seg.load_checkpoint(model, tmp_path / "small.pth")
    shallow = nota_seg.create_model("beit-t-upernet", **{**SMALL, "depth": 5})
    with pytest.raises(InputError, match="not there"):
        nota_seg.load_checkpoint(shallow, tmp_path / "small.pth")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(InputError, match="no BEiT weights"):
        torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
        nota_seg.load_checkpoint(model, tmp_path / "other.pth")
    with pytest.raises(InputError):
        nota_seg.load_checkpoint(nota_seg.create_model("segformer-b0"), tmp_path / "small.pth")


def test_tables_without_an_index_and_no_square(tmp_path: Path) -> None:
    state = {k: v for k, v in mmseg_state("beit-t-upernet", (64, 96), **SMALL).items() if "index" not in k}
    torch.save(state, tmp_path / "rectangle.pth")
    with pytest.raises(InputError, match=r"model.crop_size=\[HEIGHT,WIDTH\]"):
        nota_seg.load_checkpoint(
            nota_seg.create_model("beit-t-upernet", num_labels=5, **SMALL), tmp_path / "rectangle.pth"
        )
    model = nota_seg.create_model("beit-t-upernet", num_labels=5, **SMALL, crop_size=[64, 96])
    assert nota_seg.load_checkpoint(model, tmp_path / "rectangle.pth").resized == {}


# --- The model as any other


@pytest.mark.parametrize("size", [(128, 128), (65, 97), (33, 40), (9, 7)])
def test_any_size(size: tuple[int, int]) -> None:
    model = shaken(nota_seg.create_model("beit-t-upernet", num_labels=5))
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        logits = model(x).logits
        labels = model.predict_labels(x)
        assert logits.shape == (2, 5, -(-size[0] // 4), -(-size[1] // 4))
        close(model(x[:1]).logits, logits[:1], 1e-5)
    assert labels.shape == (2, *size) and labels.dtype == torch.int64
    assert (labels == up(logits, size).argmax(1)).float().mean() > 0.999


def test_loss_and_backward() -> None:
    torch.manual_seed(0)
    model = nota_seg.create_model("beit-t-upernet", num_labels=5).train()
    labels = torch.randint(0, 5, (2, 96, 80))
    out = model(torch.randn(2, 3, 96, 80), labels=labels)
    expected = F.cross_entropy(up(out.logits, (96, 80)), labels)
    expected = expected + 0.4 * F.cross_entropy(up(out.auxiliary_logits, (96, 80)), labels)
    torch.testing.assert_close(out.loss, expected)
    out.loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    assert model.eval()(torch.randn(1, 3, 64, 64)).auxiliary_logits is None
    assert nota_seg.create_model("beit-t-upernet", auxiliary_weight=0).auxiliary is None
    with torch.autocast("cpu", torch.bfloat16):
        model.train()(torch.randn(2, 3, 64, 64), labels=labels[:, :64, :64]).loss.backward()


def test_saved_exported_counted(tmp_path: Path) -> None:
    model = shaken(nota_seg.create_model("beit-t-upernet", num_labels=5))
    model.save_pretrained(tmp_path)
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).eval()
    x = torch.randn(1, 3, 65, 97)

    with torch.no_grad():
        logits = model(x).logits
        close(again(x).logits, logits, 1e-5)
        close(torch.export.export(Logits(model), (x,)).module()(x), logits, 1e-5)
        close(model(x).logits, logits, 0)  # nothing of the export is kept
    assert (tmp_path / "preprocessor_config.json").exists()
    result = cost(model, (128, 128))
    assert result["uncounted"] == {} and sum(result["by_part"].values()) == result["macs"]
    tokens, dim, depth = 65, 48, 4
    assert result["macs_reference"] - result["macs_reference_without_attention"] == depth * 2 * tokens**2 * dim


def test_in_onnx_runtime_and_as_a_teacher_of_maps(tmp_path: Path) -> None:
    model = shaken(nota_seg.create_model("beit-t-upernet", num_labels=5, **SMALL, crop_size=64))
    result = export(model, list("abcde"), tmp_path / "files", formats=["onnx"], size=(64, 64))
    entry = result["formats"]["onnx"]
    assert entry["logits"] <= 1e-4 and entry["labels"] >= 0.9999, entry
    model.save_pretrained(tmp_path / "teacher")
    names = [str(model.config.id2label[i]) for i in range(5)]
    logits, maps = Teacher(str(tmp_path / "teacher"), names)(torch.zeros(1, 3, 64, 96, dtype=torch.uint8), maps=True)
    assert logits.shape == (1, 5, 16, 24)
    assert [m.shape[1:] for m in maps] == [(24, 16, 24), (24, 8, 12), (24, 4, 6), (24, 2, 3)]


@pytest.mark.parametrize(("name", "millions"), [("beit-b-upernet", 163.4), ("beit-l-upernet", 441.3)])
def test_published_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = nota_seg.create_model(name)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nota_seg.create_model("beit-x-upernet"), "did you mean 'beit-"),
        (lambda: nota_seg.create_model("beit-t-upernet-fnp"), "did you mean 'fpn'"),
        (lambda: nota_seg.create_model("beit-t-upernet", crop_size=100), "multiples of 16"),
        (lambda: nota_seg.create_model("beit-t-upernet", cropsize=96), "did you mean 'crop_size'"),
        (lambda: nota_seg.create_model("beit-t-upernet", out_indices=[0, 1, 2, 4]), "from 0 to 3"),
        (lambda: nota_seg.create_model("beit-t-upernet", heads=5), "5 heads do not divide 48"),
        (lambda: nota_seg.create_model("beit-t-upernet", "segment"), "did you mean 'segmentation'"),
    ],
)
def test_mistakes_name_the_fix(make: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()
