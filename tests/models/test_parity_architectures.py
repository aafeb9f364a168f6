"""Decoders, SegNeXt and Next-ViT against numbers that the published modules computed (tests/golden, float32).

The vectors carry the published names; each test says how they map to ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from nota_seg.models.architecture import StageConfig
from nota_seg.models.blocks.next_convolution import NextConvolutionBlock
from nota_seg.models.blocks.next_transformer import NextTransformerBlock
from nota_seg.models.decoders.fpn import FPN
from nota_seg.models.decoders.hamburger import NMF, Hamburger
from nota_seg.models.decoders.lawin import LawinASPP
from nota_seg.models.decoders.uper import UPerNet
from nota_seg.models.network import textbook
from nota_seg.models.registry import DECODERS
from nota_seg.models.stems.next import PatchEmbedding
from nota_seg.models.zoo import create_config, create_model, list_models
from util.errors import InputError

GOLDEN = Path(__file__).parents[1] / "golden"
STRIDES = [4, 8, 16, 32]


def assert_rounding(actual: Tensor, expected: Tensor) -> None:
    """Equal but for the rounding of float32, which grows with the largest numbers that were added up."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


class Vectors:
    """One file: inputs, outputs, and the state under the published names."""

    def __init__(self, name: str) -> None:
        tensors = load_file(GOLDEN / f"{name}.safetensors")
        self.inputs = self._list(tensors, "input")
        self.outputs = self._list(tensors, "output")
        self.named = tensors
        self.state = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}

    @staticmethod
    def _list(tensors: dict[str, Tensor], what: str) -> list[Tensor]:
        if what in tensors:
            return [tensors[what]]
        numbered = sorted((int(k.split(".")[1]), v) for k, v in tensors.items() if re.fullmatch(rf"{what}\.\d+", k))
        return [v for _, v in numbered]

    def renamed(self, rules: Iterable[tuple[str, str]], drop: str | None = None) -> dict[str, Tensor]:
        """The state with regular expressions applied to its keys, in order; keys that match `drop` are left out."""
        result = {}
        for key, value in self.state.items():
            if drop and re.search(drop, key):
                continue
            for pattern, replacement in rules:
                key = re.sub(pattern, replacement, key)
            result[key] = value
        return result


def assert_close(ours: Tensor, reference: Tensor) -> None:
    """Within 1e-5 of the reference's scale."""
    assert ours.shape == reference.shape
    error = ((ours - reference).abs().max() / reference.abs().max()).item()
    print(f"error {error:.1e} of the output's scale")
    assert error < 1e-5


def load(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Every key must find its place."""
    module.load_state_dict({k: v.reshape(module.state_dict()[k].shape) for k, v in state.items()}, strict=True)
    module.eval()


# Decoders


def ham_head(vectors: Vectors) -> Hamburger:
    head = Hamburger([8, 12, 20, 24], STRIDES, 5, dim=32, rank=8, out_dim=16, groups=8)
    rules = [
        (r"hamburger\.ham_in\.conv", "ham_in"),
        (r"^hamburger\.", ""),
        (r"\.gn\.", ".norm."),
        ("conv_seg", "classifier"),
    ]
    load(head, vectors.renamed(rules) | {"nmf.bases": head.nmf.bases})
    return head


def test_hamburger() -> None:
    vectors = Vectors("light_ham_head")
    head = ham_head(vectors)
    head.nmf.bases = vectors.named["input.bases_raw"]  # one start a picture, as the published module drew it
    assert_close(head.nmf(vectors.outputs[2]), vectors.outputs[3])
    assert_close(head(vectors.inputs[:4]), vectors.outputs[0])
    with textbook(head):
        assert_close(head(vectors.inputs[:4]), vectors.outputs[0])
    head.nmf.steps_eval = 6
    assert_close(head(vectors.inputs[:4]), vectors.outputs[1])


def test_lawin() -> None:
    vectors = Vectors("lawin_head")
    head = LawinASPP([8, 16, 20, 32], STRIDES, 5, dim=32, embed_dim=24, heads=[4, 2, 2])
    state = vectors.renamed(
        [
            (r"linear_c1\.proj", "low_level"),
            (r"linear_c(\d)\.proj", lambda m: f"linears.{int(m[1]) - 2}"),  # type: ignore[list-item]
            ("linear_fuse", "fuse"),
            (r"image_pool\.1", "image_pool"),
            (r"^cat\.", "join."),
            (r"\.bn\.", ".norm."),
            (r"lawin_8\.", "attentions.0."),
            (r"lawin_4\.", "attentions.1."),
            (r"lawin_2\.", "attentions.2."),
            (r"ds_8\.norm", "attentions.0.context_norm"),
            (r"ds_4\.norm", "attentions.1.context_norm"),
            (r"ds_2\.norm", "attentions.2.context_norm"),
            (r"theta\.conv", "q"),
            (r"phi\.conv", "k"),
            (r"\.g\.conv", ".v"),
            (r"conv_out\.conv", "proj"),
            (r"conv_out\.norm", "norm"),
            ("conv_seg", "classifier"),
        ]
    )
    for i in range(3):
        for what in ("weight", "bias"):
            prefix = f"attentions.{i}.position_mixing."
            parts = [state.pop(f"{prefix}{h}.{what}") for h in range((4, 2, 2)[i])]
            state[prefix + what] = torch.stack(parts) if what == "weight" else torch.cat(parts)
    load(head, state)
    assert_close(head(vectors.inputs), vectors.outputs[0])
    with textbook(head):
        assert_close(head(vectors.inputs), vectors.outputs[0])


def test_uper() -> None:
    vectors = Vectors("uper_head")
    head = UPerNet([8, 12, 16, 20], STRIDES, 5, dim=12)
    rules = [
        (r"psp_modules\.(\d)\.1", r"pooling.branches.\1"),
        (r"^bottleneck", "pooling.bottleneck"),
        ("lateral_convs", "laterals"),
        ("fpn_convs", "smooths"),
        ("fpn_bottleneck", "fuse"),
        (r"\.bn\.", ".norm."),
        ("conv_seg", "classifier"),
    ]
    load(head, vectors.renamed(rules))
    assert_close(head(vectors.inputs), vectors.outputs[0])


def test_fpn_neck() -> None:
    vectors = Vectors("fpn_neck")
    head = FPN([8, 12, 16, 20], STRIDES, 5, dim=10).eval()
    state = vectors.renamed([(r"lateral_convs\.(\d)\.conv", r"laterals.\1"), (r"fpn_convs\.(\d)\.conv", r"smooths.\1")])
    missing, unexpected = head.load_state_dict(state, strict=False)
    assert not unexpected and all(k.startswith(("scale_heads", "classifier")) for k in missing)
    for ours, reference in zip(head.pyramid(vectors.inputs), vectors.outputs, strict=True):
        assert_close(ours, reference)


def test_fpn_head() -> None:
    """The semantic branch alone: the published head takes what the neck gives."""
    vectors = Vectors("fpn_head")
    head = FPN([8, 12, 16, 20], STRIDES, 5, dim=12, branch_dim=12)
    for i, channels in enumerate((8, 12, 16, 20)):  # the vectors skip the neck, so the levels differ in width
        first = head.scale_heads[i].convs[0]
        first.conv = nn.Conv2d(channels, 12, kernel_size=3, padding=1, bias=False)
    head.pyramid = lambda features: features  # type: ignore[method-assign]
    rules = [
        (r"scale_heads\.(\d)\.(\d)", lambda m: f"scale_heads.{m[1]}.convs.{int(m[2]) // 2}"),
        (r"\.bn\.", ".norm."),
        ("conv_seg", "classifier"),
    ]
    missing, unexpected = head.load_state_dict(vectors.renamed(rules), strict=False)  # type: ignore[arg-type]
    assert not unexpected and all(k.startswith(("laterals", "smooths")) for k in missing)
    assert_close(head.eval()(vectors.inputs), vectors.outputs[0])


SMALL = {
    "hamburger": dict(dim=32, rank=8),
    "lawin": dict(dim=32, embed_dim=16, low_level_dim=8),
    "uper": dict(dim=16),
    "fpn": dict(dim=16, branch_dim=8),
}


def pyramid(height: int, width: int, batch: int = 2) -> list[Tensor]:
    """Feature maps of an input of that size; sizes as strided convolutions give them."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(-(-height // s), -(-width // s)) for s in STRIDES]
    return [torch.randn(batch, c, h, w, generator=generator) for c, (h, w) in zip((8, 16, 20, 32), sizes, strict=True)]


@pytest.mark.parametrize("size", [(64, 64), (53, 75), (33, 97), (1, 1)])
@pytest.mark.parametrize("name", SMALL)
def test_decoders_at_any_size(name: str, size: tuple[int, int]) -> None:
    head = DECODERS.build({"name": name, **SMALL[name]}, channels=[8, 16, 20, 32], strides=STRIDES, num_labels=5)
    features = pyramid(*size)
    logits = head(features)
    assert logits.shape == (2, 5, *features[STRIDES.index(head.stride)].shape[2:])
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    head.eval()
    with torch.no_grad():
        assert torch.equal(head(features), head(features))


@pytest.mark.parametrize("name", SMALL)
def test_decoders_export(name: str) -> None:
    head = DECODERS.build({"name": name, **SMALL[name]}, channels=[8, 16, 20, 32], strides=STRIDES, num_labels=5).eval()
    features = pyramid(53, 75)
    with torch.no_grad():
        exported = torch.export.export(head, (features,)).module()(features)
    torch.testing.assert_close(exported, head(features))


def test_lawin_starts_without_attention() -> None:
    model = create_model("segformer-b0-lawin", decoder=SMALL["lawin"], dims=[8, 16, 24, 32], heads=[1, 1, 2, 2])
    assert all((a.norm.weight == 0).all() for a in model.decoder.attentions)
    assert all(a.position_mixing.weight.std() > 0 for a in model.decoder.attentions)


def test_a_batch_of_one_in_training_is_a_clear_error() -> None:
    head = UPerNet([8, 16, 20, 32], STRIDES, 5, dim=8)
    with pytest.raises(InputError, match="batch size of at least 2"):
        head(pyramid(64, 64, batch=1))


def test_nmf_same_bases_in_evaluation_others_in_training() -> None:
    x = torch.rand(2, 16, 6, 7)
    torch.manual_seed(1)
    first = NMF(16, 4, 6, 7).eval()
    torch.manual_seed(2)
    second = NMF(16, 4, 6, 7).eval()
    assert torch.equal(first(x), first(x)) and torch.equal(first(x), second(x))
    assert torch.equal(first(x)[:1], first(x[:1])) or torch.allclose(first(x)[:1], first(x[:1]), rtol=1e-5)
    first.train()
    assert not torch.equal(first(x), first(x))
    assert "bases" in first.state_dict()


def test_nmf_bases_survive_saving_and_missing_weights(tmp_path: Path) -> None:
    """Injected bases are saved; a classification model that becomes a segmentation model gets the fixed ones."""
    options = dict(dims=[8, 16, 24, 32], heads=[1, 1, 2, 2], depths=[1, 1, 1, 1], decoder=dict(dim=16, rank=4))
    model = create_model("segformer-b0-hamburger", **options)
    model.decoder.nmf.bases.fill_(0.5)
    model.save_pretrained(tmp_path / "saved")
    again = type(model).from_pretrained(tmp_path / "saved")
    assert (again.decoder.nmf.bases == 0.5).all()
    create_model("segformer-b0-hamburger", "classification", **options).save_pretrained(tmp_path / "phase1")
    grown = type(model).from_pretrained(tmp_path / "phase1")
    assert torch.equal(grown.decoder.nmf.bases, create_model("segformer-b0-hamburger", **options).decoder.nmf.bases)


@pytest.mark.parametrize("form", ["light", "pruned"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_hamburger_is_finite_in_low_precision(dtype: torch.dtype, form: str) -> None:
    """Large maps: the sums over positions pass 65504, the largest float16, by far."""
    head = Hamburger([8, 16, 20, 32], STRIDES, 5, dim=32, rank=8, form=form)
    features = [30 * x for x in pyramid(512, 512, batch=1)]
    for training in (True, False):
        head.train(training)
        with torch.autocast("cpu", dtype):
            logits = head(features)
        assert logits.isfinite().all()
        logits.float().square().mean().backward()
        assert all(p.grad.isfinite().all() for p in head.parameters())
    exact = head(features)
    half = head.to(dtype)([x.to(dtype) for x in features])
    assert half.dtype == dtype and half.isfinite().all()
    assert (half.float() - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("options", [dict(form="round"), dict(rank=0), dict(form="pruned", out_dim=7)])
def test_hamburger_wrong_options(options: dict) -> None:
    with pytest.raises(InputError, match="hamburger"):
        Hamburger([8, 16], [4, 8], 5, **options)


def test_lawin_wrong_options() -> None:
    with pytest.raises(InputError, match="heads do not divide"):
        LawinASPP([8, 16], [4, 8], 5, dim=30, heads=[64, 16, 4])


# Sizes: parameters in millions with 150 classes


def millions(model: nn.Module) -> float:
    return round(sum(p.numel() for p in model.parameters()) / 1e6, 3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("segformer-b2-lawin", 30.253),
        ("segnext-t", 4.263),
        ("segnext-s", 13.933),
        ("segnext-b", 27.636),
        ("nota-lite", 7.355),
    ],
)
def test_params(name: str, expected: float) -> None:
    with torch.device("meta"):
        assert millions(create_model(name)) == expected


def test_decoder_names_parse() -> None:
    for name in SMALL:
        assert create_config(f"segformer-b0-{name}").decoder == {"name": name}


# Next-ViT: blocks, encoder


def next_rules() -> list[tuple[str, str]]:
    return [
        (r"e_mhsa\.", "attention."),
        (r"group_conv3x3", "conv"),
        (r"mhca\.projection", "mhca.proj"),
        (r"mlp\.conv", "mlp.fc"),
        (r"patch_embed\.", "patch."),
        (r"projection\.(conv|norm)", r"project.\1"),
    ]


def channels_last(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.permute(0, 2, 3, 1).contiguous()


def test_next_convolution_block() -> None:
    vectors = Vectors("nextvit_ncb")
    block = nn.Sequential(PatchEmbedding(8, 16, stride=2), NextConvolutionBlock(16, 16, 0.0, 1e-5, head_dim=8))
    rules = [*next_rules(), (r"^patch\.", "0."), (r"^(?!0\.)", "1.")]
    load(block, vectors.renamed(rules))
    out = block[1](channels_last(block[0](vectors.inputs[0])))
    assert_close(out.permute(0, 3, 1, 2), vectors.outputs[0])


def test_next_transformer_block() -> None:
    vectors = Vectors("nextvit_ntb")
    block = NextTransformerBlock(16, 40, 0.0, 1e-5, ratio=2, head_dim=8)
    # The published block halves the map in its patch embedding; ours does so in the stage's stem alone.
    block.patch.stride = 2
    load(block, vectors.renamed(next_rules()))
    assert_close(block(channels_last(vectors.inputs[0])).permute(0, 3, 1, 2), vectors.outputs[0])


def tiny_nextvit(norm: str) -> nn.Module:
    ncb = {"name": "ncb", "dim": 16, "head_dim": 8}

    def ntb(ratio: int) -> dict:
        return {"name": "ntb", "dim": 40, "head_dim": 8, "ratio": ratio}

    stem = {"name": "next", "widths": [16, 8, 16]}
    stages = [
        dict(depth=1, dim=16, stride=4, stem=stem, blocks=[ncb], norm=norm),
        dict(depth=2, dim=40, stride=2, stem="next", blocks=[ncb, ntb(4)], norm=norm),
        dict(depth=5, dim=40, stride=2, stem="next", blocks=[ncb, ncb, ncb, ncb, ntb(2)], norm=norm),
        dict(depth=2, dim=40, stride=2, stem="next", blocks=[ncb, ntb(1)], norm="batch"),
    ]
    return create_model("nextvit-s", "backbone", stages=stages, layer_norm_eps=1e-5, drop_path_rate=0)


FIRST_BLOCKS = (0, 1, 3, 8)  # of each stage of the vectors, in the published numbering over all stages


def next_state(vectors: Vectors) -> dict[str, Tensor]:
    def place(match: re.Match) -> str:
        number = int(match[1])
        stage = max(i for i, first in enumerate(FIRST_BLOCKS) if first <= number)
        if number == FIRST_BLOCKS[stage] and match[2].startswith("patch."):
            return f"encoder.stages.{stage}.stem.{match[2]}"
        return f"encoder.stages.{stage}.blocks.{number - FIRST_BLOCKS[stage]}.{match[2]}"

    return vectors.renamed(
        [
            *next_rules(),
            (r"^stem\.(\d)\.conv", r"encoder.stages.0.stem.convs.\1.0"),
            (r"^stem\.(\d)\.norm", r"encoder.stages.0.stem.convs.\1.1"),
            (r"^features\.(\d+)\.(.*)", place),  # type: ignore[list-item]
            (r"^extra_norm_list\.(\d)", r"encoder.stages.\1.norm"),
            (r"^norm\.", "encoder.stages.3.norm."),
        ],
        drop=r"extra_norm_list\.3",
    )


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_nextvit(norm: str) -> None:
    vectors = Vectors("nextvit_full")
    model = tiny_nextvit(norm)
    state = next_state(vectors)
    if norm == "none":
        # Published segmentation without the extra norms has none after the last stage either.
        state = {k: v for k, v in state.items() if not re.search(r"stages\.\d\.norm", k)}
        model.encoder.stages[3].norm = nn.Identity()
    load(model, state)
    maps = model(vectors.inputs[0]).feature_maps
    for ours, reference in zip(maps, vectors.outputs[:4] if norm == "batch" else vectors.outputs[4:], strict=True):
        assert_close(ours, reference)


def test_nextvit_against_timm() -> None:
    """The whole of Next-ViT-S as timm has it, random weights and statistics."""
    import timm

    torch.manual_seed(0)
    reference = timm.create_model("nextvit_small", num_classes=7)
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.8, 1.2)
    ours = create_model("nextvit-s", "classification", num_labels=7)
    state = {}
    for key, value in reference.state_dict().items():
        for pattern, replacement in [
            *next_rules(),
            (r"^stem\.(\d)\.conv", r"encoder.stages.0.stem.convs.\1.0"),
            (r"^stem\.(\d)\.norm", r"encoder.stages.0.stem.convs.\1.1"),
            (r"^stages\.(\d)\.blocks\.0\.patch\.", r"encoder.stages.\1.stem.patch."),
            (r"^stages\.", "encoder.stages."),
            (r"^norm\.", "encoder.stages.3.norm."),
            (r"^head\.fc", "classifier"),
        ]:
            key = re.sub(pattern, replacement, key)
        state[key] = value
    load(ours, state)
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        assert_close(ours(x).logits, reference.eval()(x))


@pytest.mark.parametrize("size", [(64, 64), (53, 75), (1, 1)])
@pytest.mark.parametrize("decoder", ["fpn", "uper"])
def test_nextvit_at_any_size(decoder: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    config = tiny_nextvit("none").config
    options = dict(stages=config.stages, decoder=SMALL[decoder])
    model = create_model(f"nextvit-s-{decoder}", num_labels=5, **options)
    x = torch.randn(2, 3, *size)
    model.train()(x, labels=torch.zeros(2, *size, dtype=torch.long)).loss.backward()
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(x).logits, model(x).logits)
        assert model(x).logits.shape == (2, 5, -(-size[0] // 4), -(-size[1] // 4))
        if size == (53, 75):
            exported = torch.export.export(model, (x,)).module()(x).logits
            assert_rounding(exported, model(x).logits)


def test_nextvit_saves_and_loads(tmp_path: Path) -> None:
    model = tiny_nextvit("batch").eval()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    x = torch.randn(1, 3, 48, 64)
    assert torch.equal(model(x).feature_maps[-1], again(x).feature_maps[-1])
    assert model.config.components()["block"] == ["ncb", "ncb+ntb", "ncb+ntb", "ncb+ntb"]


def test_blocks_in_a_stage_wrong() -> None:
    stage = dict(depth=3, dim=64, stride=2, stem="next")
    with pytest.raises(InputError, match="divides its depth 3"):
        StageConfig.of(stage | dict(blocks=["ncb", "ncb"]))
    with pytest.raises(InputError, match=r"64 channels .* one of 32"):
        StageConfig.of(stage | dict(blocks=[{"name": "ncb", "dim": 32}]))
    with pytest.raises(InputError, match="did you mean 'ncb'"):
        StageConfig.of(stage | dict(blocks=["ncbb"]))
    with pytest.raises(InputError, match="fixed kinds"):
        create_config("nextvit-s-pool")
    with pytest.raises(InputError, match="norm is one of"):
        StageConfig.of(stage | dict(norm="bn"))


def test_nextvit_params() -> None:
    with torch.device("meta"):
        assert millions(create_model("nextvit-s", "classification", num_labels=1000)) == 31.763


# SegNeXt and the study's own model


def test_segnext_encoder() -> None:
    vectors = Vectors("mscan_full")
    model = create_model("segnext-t", "backbone", dims=[8, 12, 20, 24], depths=[1, 1, 2, 1], drop_path_rate=0)
    assert set(model.config.strides) == {4, 8, 16, 32}
    load(model, mscan_state(vectors, model))
    for x, references in zip(vectors.inputs, (vectors.outputs[:4], vectors.outputs[4:]), strict=True):
        for ours, reference in zip(model(x).feature_maps, references, strict=True):
            assert_close(ours, reference)


def mscan_state(vectors: Vectors, model: nn.Module) -> dict[str, Tensor]:
    """The components inside a block have tests of their own: here their tensors are told apart by their order."""

    def stage(match: re.Match) -> str:
        return f"encoder.stages.{int(match[1]) - 1}."

    state = vectors.renamed(
        [
            (r"^patch_embed1\.proj\.(\d)", r"encoder.stages.0.stem.layers.\1"),
            (r"^patch_embed(\d)\.proj", lambda m: stage(m) + "stem.layers.0"),  # type: ignore[list-item]
            (r"^patch_embed(\d)\.norm", lambda m: stage(m) + "stem.layers.1"),  # type: ignore[list-item]
            (r"^norm(\d)", lambda m: stage(m) + "norm"),  # type: ignore[list-item]
            (r"^block(\d)\.(\d)", lambda m: stage(m) + f"blocks.{m[2]}"),  # type: ignore[list-item]
            (r"\.layer_scale_(\d)$", r".skip\1.scale.gamma"),
            (r"(blocks\.\d)\.norm(\d)", r"\1.skip\2.norm"),
            (r"\.attn\.", ".mixer."),
            (r"spatial_gating_unit\.", "msca."),
            (r"msca\.conv0\.", "msca.local."),
            (r"msca\.conv3\.", "msca.mix."),
            (r"msca\.conv(\d)_(\d)\.", lambda m: f"msca.strips.{m[1]}.{int(m[2]) - 1}."),  # type: ignore[list-item]
            (r"dwconv\.dwconv", "dwconv"),
            (r"\.mlp\.", ".feedforward."),
        ]
    )
    return state


@pytest.mark.parametrize("size", [(64, 64), (53, 75), (1, 1)])
@pytest.mark.parametrize("name", ["segnext-t", "nota-lite"])
def test_hamburger_models_at_any_size(name: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = create_model(
        name, num_labels=5, dims=[8, 16, 24, 32], depths=[1, 1, 1, 1], heads=[1, 2, 2, 2], decoder=SMALL["hamburger"]
    )
    x = torch.randn(2, 3, *size)
    if size != (1, 1):  # a last map of a single pixel is fine, a batch normalisation of a single value is not
        model(x, labels=torch.zeros(2, *size, dtype=torch.long)).loss.backward()
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(x).logits, model(x).logits)
        if size == (53, 75):
            exported = torch.export.export(model, (x,)).module()(x).logits
            assert_rounding(exported, model(x).logits)


def test_families_in_list_models() -> None:
    names = list_models()
    assert {"segnext-t", "segnext-l", "nextvit-s", "nota-lite", "segformer-b0-lawin"} <= set(names)
    with torch.device("meta"):
        for family in ("segnext", "nextvit", "nota"):
            create_model(list_models(family)[0])
