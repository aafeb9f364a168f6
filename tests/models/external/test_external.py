"""Models of other libraries: the contract of ours, over a few of each library."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import finetune_words
from safetensors.torch import load_file
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoModelForSemanticSegmentation

import nota_seg
from nota_seg.cli import main
from nota_seg.export import Logits
from nota_seg.flops import cost
from nota_seg.models.external.base import padded, unpadded
from util.errors import InputError

smp = pytest.importorskip("segmentation_models_pytorch")

# Narrow where the library lets us: the contract does not depend on width.
MODELS: dict[str, dict[str, Any]] = {
    "smp:unet/resnet18": {"decoder_channels": [32, 24, 16, 8, 8]},
    "smp:fpn/mobilenet_v2": {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32},
    "smp:segformer/mit_b0": {"decoder_segmentation_channels": 16},
    "smp:upernet/tu-convnext_atto": {"decoder_channels": 16},
    "smp:deeplabv3plus/tu-mobilenetv3_small_100": {"decoder_channels": 16},
    "smp:dpt/tu-vit_tiny_patch16_224": {"decoder_fusion_channels": 16, "decoder_intermediate_channels": [16] * 4},
    "timm:resnet18/fpn": {"decoder": {"dim": 16}},
    "timm:mobilenetv3_small_100/all_mlp": {"decoder": {"dim": 16}},
    "timm:convnext_atto/uper": {"decoder": {"dim": 16}},
    "timm:vit_tiny_patch16_224/mlp": {"decoder": {"dim": 16}},
    "timm:swin_tiny_patch4_window7_224/mlp": {"decoder": {"dim": 16}, "embed_dim": 24, "depths": [1, 1, 1, 1]},
}
ANY = [name for name in MODELS if name not in ("smp:upernet/tu-convnext_atto", "smp:dpt/tu-vit_tiny_patch16_224")]
models = pytest.mark.parametrize("name", MODELS)
SIZES = [(64, 64), (65, 97), (9, 7)]


def tiny(name: str, **more: Any) -> Any:
    torch.manual_seed(0)
    model = nota_seg.create_model(name, num_labels=5, **MODELS[name], **more)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


@models
def test_any_size_forward_and_labels(name: str) -> None:
    model = tiny(name)
    for size in SIZES:
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            logits = model(x).logits
            alone = model(x[:1]).logits
            up = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
            labels = model.predict_labels(x)
            small = model.predict_labels(x, size=(11, 13))
        scale = logits.abs().max()
        assert logits.shape[:2] == (2, 5) and torch.isfinite(logits).all()
        assert (alone - logits[:1]).abs().max() <= 1e-4 * scale, "a picture must not depend on its neighbours"
        top2 = up.topk(2, dim=1).values
        clear = top2[:, 0] - top2[:, 1] > 1e-5 * scale
        assert labels.shape == (2, *size) and labels.dtype == torch.int64 and small.shape == (2, 11, 13)
        assert torch.equal(labels[clear], up.argmax(1)[clear])


def test_smp_gives_what_the_library_gives() -> None:
    """At a size that needs no padding the logits are the library's; at another they are its logits cut back."""
    name = "smp:fpn/mobilenet_v2"
    model = tiny(name)
    theirs = smp.FPN("mobilenet_v2", encoder_weights=None, classes=5, **MODELS[name]).eval()
    model.encoder.load_state_dict(theirs.encoder.state_dict())
    model.decoder.body.load_state_dict(theirs.decoder.state_dict())
    model.decoder.head.load_state_dict(theirs.segmentation_head.state_dict())
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        assert torch.allclose(model(x).logits, theirs(x), atol=1e-6)
        y = x[..., :70, :61]
        assert torch.allclose(model(y).logits, theirs(F.pad(y, (0, 3, 0, 26)))[..., :70, :61], atol=1e-6)


def test_padding_is_undone_exactly() -> None:
    x = torch.randn(1, 3, 65, 97)
    big = padded(x, 32)
    assert big.shape[2:] == (96, 128) and torch.equal(big[..., :65, :97], x) and not big[..., 65:, :].any()
    assert padded(x[..., :64, :64], 32).data_ptr() == x.data_ptr()
    # A ramp of logits at stride 4: after upsampling and cutting each pixel has its own place's value.
    ramp = (torch.arange(32) * 4 + 1.5).expand(1, 1, 24, 32)
    cut = unpadded(ramp, (96, 128), (65, 97))
    assert cut.shape[2:] == (65, 97)
    assert torch.allclose(cut[0, 0, 5, 2:], torch.arange(97.0)[2:], atol=1e-4)


@models
def test_backward_reaches_every_parameter(name: str) -> None:
    model = tiny(name).train()
    model(torch.randn(2, 3, 65, 97), labels=torch.randint(0, 5, (2, 65, 97))).loss.backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key
        else:  # only what no logit depends on
            assert "dpt" in name and key.startswith(("encoder.model.norm.", "encoder.model.head.")), key


@models
def test_saved_and_loaded_by_auto_class(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    model.save_pretrained(tmp_path)
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).eval()
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    x = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        logits = model(x).logits
        # Index tables that no file holds must be there too: a wrong one shows here.
        assert (again(x).logits - logits).abs().max() <= 1e-5 * logits.abs().max()
    assert again.config.settings() == model.config.settings() and again.config.zoo_name == model.config.zoo_name
    mean = timm.get_pretrained_cfg("vit_tiny_patch16_224").mean if "vit_tiny" in name else (0.485, 0.456, 0.406)
    assert list(AutoImageProcessor.from_pretrained(tmp_path).image_mean) == list(mean)


@models
def test_every_operator_is_counted_by_part(name: str) -> None:
    result = cost(tiny(name), (65, 97))
    assert result["uncounted"] == {} and 0 < result["macs"] == sum(result["by_part"].values())
    assert result["by_part"]["encoder"] > 0 and result["by_part"]["decoder"] > 0
    assert set(result["by_part"]) <= {"encoder", "decoder", "rest"} and result["model"].split("/")[0] in name


@pytest.mark.parametrize("name", ANY)
def test_exports_and_fuses(name: str) -> None:
    model = tiny(name)
    x = torch.randn(1, 3, 64, 96)

    with torch.no_grad():
        logits = model(x).logits
        program = torch.export.export(Logits(model), (x,))
        assert (program.module()(x) - logits).abs().max() <= 1e-4 * logits.abs().max()
        assert (model.fuse()(x).logits - logits).abs().max() <= 1e-4 * logits.abs().max()


@pytest.mark.parametrize("name", ANY)
def test_trains_in_bf16(name: str) -> None:
    model = tiny(name).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(2, 3, 64, 64), labels=torch.randint(0, 5, (2, 64, 64))).loss
    loss.backward()
    assert torch.isfinite(loss)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", sorted(smp.MODEL_ARCHITECTURES_MAPPING))
def test_every_architecture_of_smp_builds_and_counts(architecture: str) -> None:
    name = next(n for n in nota_seg.list_models("smp") if n.startswith(f"smp:{architecture}/"))
    model = nota_seg.create_model(name, num_labels=3).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 40, 70)).logits.shape == (1, 3, 40, 70)
    assert cost(model, (64, 64))["uncounted"] == {}


@pytest.mark.parametrize(
    ("name", "indices", "multiple"),
    [
        ("resnet18", [1, 2, 3, 4], 1),  # stride 2 is left out
        ("convnext_atto", [0, 1, 2, 3], 32),  # rounds down: would not see the last rows
        ("vit_tiny_patch16_224", [2, 5, 8, 11], 16),  # spread over the depth
    ],
)
def test_levels_and_multiples(name: str, indices: list[int], multiple: int) -> None:
    config = nota_seg.create_model(f"timm:{name}/mlp", num_labels=2).config
    assert (config.out_indices, config.multiple) == (indices, multiple)


def test_a_transformer_of_one_size_gets_the_picture_resized() -> None:
    model = nota_seg.create_model("timm:levit_128s/mlp", num_labels=3, decoder={"dim": 16}).eval()
    assert model.config.input_size == [224, 224]
    x = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        whole = model(F.interpolate(x, size=(224, 224), mode="bilinear", align_corners=False)).logits
        assert torch.allclose(model(x).logits, whole, atol=1e-5)
        assert model.predict_labels(x).shape == (1, 65, 97)


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("smp:unett/resnet18", {}, "did you mean 'unet'"),
        ("smp:unet/resnet19", {}, "did you mean 'resnet"),
        ("smp:unet", {}, "name an encoder too, for instance smp:unet/resnet34"),
        ("smp:unet/resnet18", {"decoder_chanels": [1]}, "did you mean 'decoder_channels'"),
        ("smp:unet/resnet18", {"decoder_channels": [8]}, "cannot build unet/resnet18"),
        ("smp:unet/tu-resnet19", {}, "did you mean 'resnet"),
        ("smp:dpt/resnet18", {}, "cannot build dpt/resnet18"),
        ("timm:resnet19/fpn", {}, "did you mean 'resnet"),
        ("timm:resnet18/fpm", {}, "did you mean 'fpn'"),
        ("timm:resnet18", {}, "name a decoder too, for instance timm:resnet18/fpn"),
        ("timm:resnet18.a9_in1k/fpn", {}, "has no weights 'a9_in1k': did you mean"),
        ("timm:resnet18/fpn", {"dimm": 3}, "cannot build resnet18 as an encoder"),
        ("timm:resnet18/fpn", {"decoder": {"dimm": 3}}, "no option 'dimm': did you mean 'dim'"),
        ("timm:coat_tiny/fpn", {}, "shares weights between layers"),
        ("smb:unet/resnet18", {}, "or smp:... or timm:..."),
    ],
)
def test_mistakes_name_the_fix(name: str, overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        nota_seg.create_model(name, num_labels=3, **overrides)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    assert main(["flops", "--model", "smp:unet/resnet18"]) == 2
    assert "pip install 'nota-seg[smp]'" in capsys.readouterr().err
    assert nota_seg.create_model("timm:resnet18/fpn", num_labels=2, decoder={"dim": 8}) is not None


@pytest.mark.parametrize("name", ["smp:fpn/mobilenet_v2", "timm:resnet18/fpn"])
def test_published_weights_that_cannot_be_had(name: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def no_network(*args: Any, **kwargs: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("socket.socket.connect", no_network)
    model = tiny(name, pretrained=True)
    lines = [line for line in capsys.readouterr().err.splitlines() if "starts from random weights" in line]
    assert len(lines) == 1 and "no published weights for" in lines[0]
    assert "pretrained" not in model.config.to_dict().get("options", {})
    with torch.no_grad():
        assert torch.isfinite(model(torch.randn(1, 3, 64, 64)).logits).all()


def test_an_smp_state_dict_loads(tmp_path: Path) -> None:
    name = "smp:fpn/mobilenet_v2"
    torch.manual_seed(1)
    theirs = smp.FPN("mobilenet_v2", encoder_weights=None, classes=5, **MODELS[name]).eval()
    torch.save(theirs.state_dict(), tmp_path / "fpn.pth")
    model = tiny(name)
    report = nota_seg.load_checkpoint(model, tmp_path / "fpn.pth")
    assert not report.unused and not report.reinitialised and report.per_stage == {"encoder": 100, "decoder": 100}
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(model(x).logits, theirs(x), atol=1e-6)
    with pytest.raises(InputError, match="encoder weights of smp:unet/resnet18 are not in it"):
        nota_seg.load_checkpoint(tiny("smp:unet/resnet18"), tmp_path / "fpn.pth")


@pytest.mark.parametrize("encoder", ["convnext_atto", "resnet18", "vit_tiny_patch16_224"])
def test_a_timm_file_loads(encoder: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = timm.create_model(encoder)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    model = tiny(f"timm:{encoder}/{'mlp' if 'vit' in encoder else 'uper' if 'conv' in encoder else 'fpn'}")
    report = nota_seg.load_checkpoint(model, tmp_path / "weights.pth")
    assert report.per_stage["encoder"] == 100 and report.per_stage["decoder"] == 0
    source = {k.replace(".", "_"): v for k, v in theirs.state_dict().items()}
    for key, value in model.encoder.net.state_dict().items():
        assert torch.equal(value, source[key.removeprefix("model.").replace(".", "_")]), key


def test_pretrained_fine_tuned_evaluated_and_predicted(
    shapes: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A timm encoder: classification, then segmentation from it without naming the model, then the other verbs."""
    common = ["--set", "train.workers=0", "--set", "train.tracker=none", "--max-steps", "2"]
    first, second = tmp_path / "first", tmp_path / "second"
    words = ["pretrain", "--data-path", str(shapes), "--output-dir", str(first), "--model", "timm:resnet18/fpn"]
    assert main([*words, "--batch-size", "4", "--input-size", "32", "--set", "model.decoder.dim=16", *common]) == 0
    encoder = AutoModelForImageClassification.from_pretrained(first / "best")
    words = ["finetune", "--data-dir", str(scenes), "--save-path", str(second), "--pretrain", str(first / "best")]
    words += ["--batch-size", "2", "--crop-size", "32", "--lr", "1e-12", "--set", "data.base_size=[64,48]", *common]
    assert main(words) == 0
    saved = json.loads((second / "last" / "config.json").read_text())
    assert saved["zoo_name"] == "timm:resnet18/fpn" and saved["decoder"] == {"name": "fpn", "dim": 16}
    after = load_file(second / "last" / "model.safetensors")
    shared = [k for k, _ in encoder.named_parameters() if k.startswith("encoder.")]
    assert shared and all(torch.allclose(encoder.state_dict()[k], after[k], atol=1e-6) for k in shared)
    capsys.readouterr()
    assert main(["eval", "--data-dir", str(scenes), "--pretrain", str(second), "--workers", "0"]) == 0
    assert main(["flops", "--pretrain", str(second), "--size", "64", "--json"]) == 0
    capsys.readouterr()
    picture = next((scenes / "images" / "validation").glob("*"))
    assert main(["predict", str(picture), "--pretrain", str(second), "--output-dir", str(tmp_path / "out")]) == 0


def test_smp_fine_tunes_and_resumes_exactly(scenes: Path, tmp_path: Path) -> None:
    def words(folder: str, steps: int, *more: str) -> list[str]:
        found = finetune_words(scenes, tmp_path / folder, "--model", "smp:fpn/mobilenet_v2", *more, steps=steps)
        ours = ("model.dims", "model.heads", "model.depths", "model.decoder.dim")  # of the tiny SegFormer
        drop = {i for i, w in enumerate(found) if w.startswith(ours)}
        drop |= {i - 1 for i in drop}
        return [w for i, w in enumerate(found) if i not in drop]

    whole = words("whole", 4)
    assert main(whole) == 0
    # The same run, stopped after its checkpoint of step 2: what came later is taken away.
    assert main(words("cut", 4)) == 0
    shutil.rmtree(tmp_path / "cut" / "checkpoint-4")
    assert main(words("cut", 4, "--resume")) == 0
    one, other = (load_file(tmp_path / f / "last" / "model.safetensors") for f in ("whole", "cut"))
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_the_two_forms_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert "smp:unet/resnet18" in nota_seg.list_models("smp") and "timm:resnet18/uper" in nota_seg.list_models("timm")
    with pytest.raises(InputError, match="did you mean 'timm'"):
        nota_seg.list_models("tim")
    with pytest.raises(InputError, match="no classification of it"):
        nota_seg.create_model("smp:unet/resnet18", task="classification")


def test_nothing_of_smp_is_imported_for_our_models() -> None:
    code = "import nota_seg, sys; nota_seg.create_model('segformer-b0'); "
    code += "sys.exit('segmentation_models_pytorch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
