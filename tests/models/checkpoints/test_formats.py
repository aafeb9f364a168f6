"""Published architectures at full size with random weights, in the names of their own files: the same numbers.

References are timm and transformers, and the vectors of tests/golden. Names that no installed library writes any more
are made from theirs here, independently of the converter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

import nota_seg
from nota_seg.models.checkpoints import TransferReport
from nota_seg.models.stems.patch_merging import PatchMerging
from util.errors import InputError

GOLDEN = Path(__file__).parents[2] / "golden"
State = dict[str, Tensor]
ODD = (97, 133)


def shake(model: nn.Module) -> nn.Module:
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
    return model.eval()


def renamed(state: State, rules: Iterable[tuple[str, Any]]) -> State:
    result = {}
    for key, value in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        result[key] = value
    return result


def convert(state: Any, folder: Path, name: str, task: str, **options: Any) -> tuple[nn.Module, TransferReport]:
    """A model of ours filled from a file that holds `state`; all of it must be found."""
    torch.save(state, folder / "weights.pth")
    model = nota_seg.create_model(name, task, **options)
    report = nota_seg.load_checkpoint(model, folder / "weights.pth")
    assert [k for k in report.reinitialised if not k.endswith("nmf.bases")] == []
    return model.eval(), report


def assert_close(ours: Tensor, reference: Tensor, within: float = 1e-4) -> None:
    """Relative to the reference's scale."""
    assert ours.shape == reference.shape
    assert (ours - reference).abs().max() < within * reference.abs().max()


def same_logits(ours: nn.Module, reference: nn.Module, *sizes: tuple[int, int]) -> None:
    torch.manual_seed(1)
    for size in sizes:
        x = torch.randn(1, 3, *size)
        with torch.no_grad():
            out = reference(x)
            assert_close(ours(x).logits, out if isinstance(out, Tensor) else out.logits)


class Vectors:
    """One file: inputs, outputs, the state under the published names."""

    def __init__(self, name: str) -> None:
        with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
            self.config = json.loads(file.metadata()["config"])
            self.tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        self.state = {k.removeprefix("state."): v for k, v in self.tensors.items() if k.startswith("state.")}


# PVTv2


def official_pvt(state: State) -> State:
    """The authors' names from timm's."""
    return renamed(
        state,
        [
            (r"^patch_embed\.", "patch_embed1."),
            (r"^stages\.(\d)\.downsample\.", lambda m: f"patch_embed{int(m[1]) + 1}."),
            (r"^stages\.(\d)\.norm\.", lambda m: f"norm{int(m[1]) + 1}."),
            (r"^stages\.(\d)\.blocks\.", lambda m: f"block{int(m[1]) + 1}."),
            (r"mlp\.dwconv\.", "mlp.dwconv.dwconv."),
        ],
    )


@pytest.mark.parametrize("names", ["timm", "official"])
@pytest.mark.parametrize("variant", ["b2", "b2_li"])
def test_pvtv2_of_timm_and_its_authors(variant: str, names: str, tmp_path: Path) -> None:
    reference = shake(timm.create_model(f"pvt_v2_{variant}", num_classes=7))
    state = reference.state_dict()
    if names == "official":
        state = official_pvt(state)
    name = "pvtv2-" + variant.replace("_", "-")
    ours, report = convert(state, tmp_path, name, "classification", num_labels=7)
    assert report.unused == [] and set(report.per_stage.values()) == {100.0}
    same_logits(ours, reference, ODD, (224, 224))


@pytest.mark.parametrize("linear", [False, True])
def test_pvtv2_of_transformers(linear: bool, tmp_path: Path) -> None:
    from transformers import PvtV2Config, PvtV2ForImageClassification

    sizes = dict(hidden_sizes=[64, 128, 320, 512], depths=[3, 4, 6, 3])
    reference = shake(PvtV2ForImageClassification(PvtV2Config(linear_attention=linear, num_labels=7, **sizes)))
    name = "pvtv2-b2-li" if linear else "pvtv2-b2"
    ours, report = convert(reference.state_dict(), tmp_path, name, "classification", num_labels=7)
    assert report.unused == []
    same_logits(ours, reference, ODD, (160, 96))


def test_pvtv2_with_semantic_fpn(tmp_path: Path) -> None:
    """mmseg's frame: the state of our own model under its names must come back as it was."""
    source = shake(nota_seg.create_model("pvtv2-b0", num_labels=7))
    backbone = timm.create_model("pvt_v2_b0", num_classes=0)
    encoder = shake(nota_seg.create_model("pvtv2-b0", "backbone"))
    torch.save(shake(backbone).state_dict(), tmp_path / "encoder.pth")
    nota_seg.load_checkpoint(encoder, tmp_path / "encoder.pth")
    state = {f"backbone.{k}": v for k, v in official_pvt(backbone.state_dict()).items()}
    for key, value in source.decoder.state_dict().items():
        key = re.sub(r"^(laterals|smooths)\.(\d)", lambda m: f"neck.{FPN_NAMES[m[1]]}.{m[2]}.conv", key)
        key = re.sub(r"^scale_heads\.(\d)\.convs\.(\d)", lambda m: f"scale_heads.{m[1]}.{2 * int(m[2])}", key)
        key = key.replace(".norm.", ".bn.").replace("classifier", "conv_seg")
        state[key if key.startswith("neck") else f"decode_head.{key}"] = value
    ours, report = convert({"meta": {"epoch": 3}, "state_dict": state}, tmp_path, "pvtv2-b0", "segmentation",
                           num_labels=7)  # fmt: skip
    assert report.unused == []
    source.encoder.load_state_dict(encoder.encoder.state_dict())
    same_logits(ours, source, ODD)


FPN_NAMES = {"laterals": "lateral_convs", "smooths": "fpn_convs"}

# MiT


def mmseg_mit(state: State) -> State:
    """mmseg's names from NVlabs'."""
    state = dict(state)
    for key in [k for k in state if ".attn.q." in k]:
        joined = torch.cat([state.pop(key), state.pop(key.replace(".q.", ".kv."))])
        state[key.replace(".q.", ".attn.in_proj_")] = joined
    for key in [k for k in state if re.search(r"mlp\.fc[12]\.weight", k)]:
        state[key] = state[key][:, :, None, None]
    stage = [(rf"backbone\.{a}(\d)\.", lambda m, b=b: f"backbone.layers.{int(m[1]) - 1}.{b}.") for a, b in
             [("patch_embed", 0), ("block", 1), ("norm", 2)]]  # fmt: skip
    return renamed(
        state,
        [
            *stage,
            (r"\.0\.proj\.", ".0.projection."),
            (r"attn\.proj\.", "attn.attn.out_proj."),
            (r"mlp\.fc1", "ffn.layers.0"),
            (r"mlp\.dwconv\.dwconv", "ffn.layers.1"),
            (r"mlp\.fc2", "ffn.layers.4"),
        ],
    )


def test_mit_of_mmseg(tmp_path: Path) -> None:
    vectors = Vectors("segformer_full")
    state = mmseg_mit(vectors.state)
    assert "backbone.layers.0.1.0.attn.attn.in_proj_weight" in state and "backbone.layers.3.2.bias" in state
    c = vectors.config
    options = dict(dims=c["embed_dims"], heads=c["num_heads"], depths=c["depths"], decoder={"dim": 24}, num_labels=7)
    ours, report = convert({"state_dict": state}, tmp_path, "segformer-b0", "segmentation", **options)
    assert report.format == "mmseg SegFormer"
    with torch.no_grad():
        for i, first in ((0, 0), (1, 5)):
            features = ours.encoder(vectors.tensors[f"input.{i}"])
            for j, feature in enumerate(features):
                assert_close(feature.permute(0, 3, 1, 2), vectors.tensors[f"output.{first + j}"], 1e-5)


# SegNeXt


@pytest.mark.parametrize("plain_dwconv", [False, True], ids=["authors", "mmseg1"])
def test_segnext(plain_dwconv: bool, tmp_path: Path) -> None:
    """Encoder and decoder vectors have the same channels: together they are a whole model in mmseg's frame."""
    mscan, ham = Vectors("mscan_full"), Vectors("light_ham_head")
    state = {f"backbone.{k}": v for k, v in mscan.state.items()}
    if plain_dwconv:
        state = renamed(state, [(r"dwconv\.dwconv", "dwconv")])
    state |= {f"decode_head.{k}": v for k, v in ham.state.items()}
    options = dict(dims=[8, 12, 20, 24], depths=[1, 1, 2, 1], decoder=dict(dim=32, rank=8, out_dim=16, groups=8))
    ours, report = convert({"state_dict": state}, tmp_path, "segnext-t", "segmentation", num_labels=5, **options)
    assert report.unused == [] and report.format == "SegNeXt"
    with torch.no_grad():
        for i, first in ((0, 0), (1, 4)):
            for j, feature in enumerate(ours.encoder(mscan.tensors[f"input.{i}"])):
                assert_close(feature.permute(0, 3, 1, 2), mscan.tensors[f"output.{first + j}"], 1e-5)
        ours.decoder.nmf.bases = ham.tensors["input.bases"]
        assert_close(ours.decoder([ham.tensors[f"input.{i}"] for i in range(4)]), ham.tensors["output.0"], 1e-5)


def test_mscan_alone_with_its_classifier(tmp_path: Path) -> None:
    vectors = Vectors("mscan_full")
    head = {"head.weight": torch.randn(6, 24), "head.bias": torch.randn(6)}
    options = dict(dims=[8, 12, 20, 24], depths=[1, 1, 2, 1])
    ours, report = convert(
        {"state_dict": vectors.state | head}, tmp_path, "segnext-t", "classification", num_labels=6, **options
    )
    assert report.unused == []
    with torch.no_grad():
        logits = F.linear(vectors.tensors["output.3"].mean((2, 3)), head["head.weight"], head["head.bias"])
        assert_close(ours(vectors.tensors["input.0"]).logits, logits, 1e-5)


# Next-ViT


def numbered_through(state: State) -> State:
    """The authors' names from timm's: blocks counted over all stages."""
    depths = [3, 4, 10, 3]
    return renamed(
        state,
        [
            (r"^stages\.(\d)\.blocks\.(\d+)", lambda m: f"features.{sum(depths[: int(m[1])]) + int(m[2])}"),
            (r"mlp\.fc", "mlp.conv"),
            (r"^head\.fc", "proj_head.0"),
        ],
    )


@pytest.mark.parametrize("names", ["timm", "official"])
def test_nextvit(names: str, tmp_path: Path) -> None:
    reference = shake(timm.create_model("nextvit_small", num_classes=7))
    state = reference.state_dict() if names == "timm" else numbered_through(reference.state_dict())
    wrapped = state if names == "timm" else {"model": state}
    ours, report = convert(wrapped, tmp_path, "nextvit-s", "classification", num_labels=7)
    assert report.unused == []
    same_logits(ours, reference, (96, 64), ODD)


def test_nextvit_of_segmentation(tmp_path: Path) -> None:
    """With its norms after every stage, which the model must have as well."""
    vectors = Vectors("nextvit_full")
    state = {"state_dict": {f"backbone.{k}": v for k, v in vectors.state.items()}}
    ncb = {"name": "ncb", "dim": 16, "head_dim": 8}
    ntb = {"name": "ntb", "dim": 40, "head_dim": 8}
    stem = {"name": "next", "widths": [16, 8, 16]}
    stages = [
        dict(depth=1, dim=16, stride=4, stem=stem, blocks=[ncb]),
        dict(depth=2, dim=40, stride=2, stem="next", blocks=[ncb, ntb | {"ratio": 4}]),
        dict(depth=5, dim=40, stride=2, stem="next", blocks=[ncb] * 4 + [ntb | {"ratio": 2}]),
        dict(depth=2, dim=40, stride=2, stem="next", blocks=[ncb, ntb]),
    ]
    normed = [stage | {"norm": "batch"} for stage in stages]
    ours, report = convert(state, tmp_path, "nextvit-s", "backbone", stages=normed)
    assert all("extra_norm_list.3" in k for k in report.unused)
    with torch.no_grad():
        for i, feature in enumerate(ours(vectors.tensors["input"]).feature_maps):
            assert_close(feature, vectors.tensors[f"output.{i}"], 1e-5)
    bare = [stage | {"norm": "none"} for stage in stages]
    with pytest.raises(InputError, match=r"norm after every stage.* model\.norms=batch"):
        nota_seg.load_checkpoint(nota_seg.create_model("nextvit-s", "backbone", stages=bare), tmp_path / "weights.pth")


# Swin


def swin_of_transformers(*, uper: bool = False) -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification, UperNetConfig, UperNetForSemanticSegmentation

    if not uper:
        return shake(SwinForImageClassification(SwinConfig(num_labels=7)))
    backbone = SwinConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    return shake(UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, num_labels=7)))


def authors_swin(state: State) -> State:
    """The authors' names from timm's: merging ends a stage, and computed buffers are saved as well."""
    state = renamed(
        state,
        [(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample"), (r"head\.fc", "head")],
    )
    buffers = {
        "layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49),
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49, dtype=torch.long),
    }
    return state | buffers


@pytest.mark.parametrize("names", ["timm", "official"])
def test_swin_of_timm_and_its_authors(names: str, tmp_path: Path) -> None:
    reference = shake(timm.create_model("swin_tiny_patch4_window7_224", num_classes=7))
    state = reference.state_dict() if names == "timm" else {"model": authors_swin(reference.state_dict())}
    ours, report = convert(state, tmp_path, "swin-t", "classification", num_labels=7)
    assert report.unused == []
    same_logits(ours, reference, (224, 224))


def names_of_4(state: State) -> State:
    """transformers 4.x from 5.x."""
    return renamed(
        state,
        [
            (r"attention\.q_proj", "attention.self.query"),
            (r"attention\.k_proj", "attention.self.key"),
            (r"attention\.v_proj", "attention.self.value"),
            (r"attention\.o_proj", "attention.output.dense"),
            (r"attention\.relative_position_bias\.", "attention.self."),
            (r"mlp\.fc1", "intermediate.dense"),
            (r"mlp\.fc2", "output.dense"),
            (r"^backbone\.swin\.", "backbone."),
        ],
    )


@pytest.mark.parametrize("version", [4, 5])
def test_swin_of_transformers(version: int, tmp_path: Path) -> None:
    reference = swin_of_transformers()
    state = reference.state_dict() if version == 5 else names_of_4(reference.state_dict())
    ours, report = convert(state, tmp_path, "swin-t", "classification", num_labels=7)
    assert report.unused == []
    # Small maps last: the reference, once it did not shift at a map of one window, never shifts again at larger ones.
    same_logits(ours, reference, (243, 301), (256, 320), (224, 333), (224, 224))


def mmseg_swin(state: State, unfold: bool = True) -> State:
    """mmseg's names from transformers': one projection for q, k and v, and merging by unfolding."""
    state = names_of_4(state)
    for key in [k for k in state if "self.query" in k]:
        parts = [state.pop(key.replace("query", part)) for part in ("query", "key", "value")]
        state[key.replace("self.query", "w_msa.qkv")] = torch.cat(parts)
    for key in [k for k in state if "downsample" in k and unfold]:
        *_, n = state[key].shape
        # Number 4 c + 2 row + column there; here pixels (0, 0), (1, 0), (0, 1), (1, 1), each with all channels.
        source = [(2 * column + row) * (n // 4) + c for c in range(n // 4) for row in (0, 1) for column in (0, 1)]
        state[key] = state[key][..., source]
    return renamed(
        {k: v for k, v in state.items() if not k.startswith(("auxiliary", "backbone.layernorm"))},
        [
            (r"embeddings\.patch_embeddings", "patch_embed"),
            (r"embeddings\.norm", "patch_embed.norm"),
            (r"encoder\.layers", "stages"),
            (r"layernorm_before", "norm1"),
            (r"layernorm_after", "norm2"),
            (r"attention\.self\.", "attn.w_msa."),
            (r"attention\.w_msa", "attn.w_msa"),
            (r"attention\.output\.dense", "attn.w_msa.proj"),
            (r"intermediate\.dense", "ffn.layers.0.0"),
            (r"output\.dense", "ffn.layers.1"),
            (r"hidden_states_norms\.stage(\d)", lambda m: f"norm{int(m[1]) - 1}"),
            (r"batch_norm", "bn"),
            (r"decode_head\.classifier", "decode_head.conv_seg"),
        ],
    )


def authors_swin_in_mmseg(state: State) -> State:
    """The authors' own fork of mmseg: its frame, their encoder."""
    rules = [
        (r"patch_embed\.projection", "patch_embed.proj"),
        (r"backbone\.stages", "backbone.layers"),
        (r"w_msa\.", ""),
        (r"ffn\.layers\.0\.0", "mlp.fc1"),
        (r"ffn\.layers\.1", "mlp.fc2"),
    ]
    return renamed(mmseg_swin(state, unfold=False), rules)


FRAMES: dict[str, tuple[str, Callable[[State], State]]] = {
    "transformers 5": ("transformers Swin", dict),
    "transformers 4": ("transformers Swin", names_of_4),
    "mmseg": ("mmseg Swin", mmseg_swin),
    "authors": ("Swin", authors_swin_in_mmseg),
}


@pytest.mark.parametrize("names", FRAMES)
def test_swin_with_upernet(names: str, tmp_path: Path) -> None:
    reference = swin_of_transformers(uper=True)
    known, rename = FRAMES[names]
    ours, report = convert({"state_dict": rename(reference.state_dict())}, tmp_path, "swin-t", "segmentation",
                           num_labels=7)  # fmt: skip
    assert report.format == known
    # The classifier's norm loses to the one before the decoder.
    assert all("auxiliary_head" in k or re.search(r"(swin|backbone)\.layernorm", k) for k in report.unused)
    x = torch.randn(1, 3, 229, 260)
    with torch.no_grad():
        logits = F.interpolate(ours(x).logits, size=x.shape[2:], mode="bilinear", align_corners=False)
        assert_close(logits, reference(x).logits)


def test_merging_by_unfolding_is_merging(tmp_path: Path) -> None:
    """mmseg's own way, written out: unfold, norm, reduce."""
    from nota_seg.models.checkpoints.swin import from_unfold

    ours = shake(PatchMerging(6, 12, 2))
    weight, scale, shift = torch.randn(12, 24), torch.randn(24), torch.randn(24)
    x = torch.randn(2, 8, 10, 6)
    unfolded = F.unfold(x.permute(0, 3, 1, 2), kernel_size=2, stride=2).transpose(1, 2)
    reference = F.linear(F.layer_norm(unfolded, (24,), scale, shift), weight)
    ours.load_state_dict(
        {"norm.weight": from_unfold(scale), "norm.bias": from_unfold(shift), "reduction.weight": from_unfold(weight)}
    )
    with torch.no_grad():
        assert_close(ours(x).flatten(1, 2), reference, 1e-5)


def test_patch_merging_vectors() -> None:
    vectors = Vectors("swin_block_shifted")
    stem = PatchMerging(24, 48, 2)
    stem.load_state_dict({k.removeprefix("downsample."): v for k, v in vectors.state.items() if "downsample" in k})
    with torch.no_grad():
        out = stem(vectors.tensors["output.0"].view(2, 10, 17, 24))
    assert_close(out.flatten(1, 2), vectors.tensors["output.1"], 1e-5)


# Sizes


@pytest.mark.parametrize(
    ("name", "task", "expected"),
    [
        ("pvtv2-b0", "segmentation", 7.545),
        ("pvtv2-b1", "segmentation", 17.763),
        ("pvtv2-b2-li", "segmentation", 26.307),
        ("pvtv2-b2", "segmentation", 29.117),
        ("swin-t", "classification", 28.288),
        ("swin-s", "classification", 49.606),
        ("swin-b", "classification", 87.768),
    ],
)
def test_published_parameters(name: str, task: str, expected: float) -> None:
    with torch.device("meta"):
        model = nota_seg.create_model(name, task, num_labels=150 if task == "segmentation" else 1000)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(expected, abs=0.0006)
