"""Nothing is loaded in part without a word: other sizes, other depths, wrappers, and what a hybrid keeps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import nota_seg
from util.errors import InputError

State = dict[str, torch.Tensor]


def snapshot(model: torch.nn.Module) -> State:
    return {k: v.clone() for k, v in model.state_dict().items()}


def nvlabs_mit(name: str) -> State:
    """A model's encoder in NVlabs' names."""
    state: State = {}
    for key, value in nota_seg.create_model(name, "backbone").state_dict().items():
        rules: list[tuple[str, Any]] = [
            (r"^encoder\.stages\.(\d)\.stem\.", lambda m: f"patch_embed{int(m[1]) + 1}."),
            (r"^encoder\.stages\.(\d)\.norm\.", lambda m: f"norm{int(m[1]) + 1}."),
            (r"^encoder\.stages\.(\d)\.blocks\.", lambda m: f"block{int(m[1]) + 1}."),
            (r"mixer\.reduce", "attn.sr"),
            (r"mixer", "attn"),
            (r"feedforward\.dwconv", "mlp.dwconv.dwconv"),
            (r"feedforward", "mlp"),
            (r"skip(\d)\.norm", r"norm\1"),
        ]
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        state[key] = value
    return state


def saved(folder: Path, value: Any) -> Path:
    torch.save(value, folder / "weights.pth")
    return folder / "weights.pth"


@pytest.mark.parametrize(
    ("source", "name", "right"),
    [
        ("segformer-b2", "segformer-b1", "segformer-b2"),  # the same channels, more blocks
        ("segformer-b1", "segformer-b2", "segformer-b1"),  # fewer
        ("segformer-b2", "segformer-b3", "segformer-b2"),
        ("segformer-b2", "segformer-b0", "segformer-b2"),
        ("segformer-b2", "segformer-b1-lsra-fpn", "segformer-b2-lsra-fpn"),
        ("pvtv2-b1", "segformer-b1", "pvtv2-b1"),  # the same blocks, other feed-forwards
    ],
)
def test_another_size_stops_and_names_the_right_model(source: str, name: str, right: str, tmp_path: Path) -> None:
    path = saved(tmp_path, nvlabs_mit(source))
    model = nota_seg.create_model(name)
    before = snapshot(model)
    with pytest.raises(InputError, match=rf"another (size|model): use --model {right}$") as caught:
        nota_seg.load_checkpoint(model, path)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_more_blocks_stop_in_every_family(tmp_path: Path) -> None:
    for source, name in (("segnext-b", "segnext-t"), ("nextvit-b", "nextvit-s"), ("swin-s", "swin-t")):
        path = saved(tmp_path, nota_seg.create_model(source, "backbone").state_dict())
        with pytest.raises(InputError, match=f"use --model {source}$"):
            nota_seg.load_checkpoint(nota_seg.create_model(name), path)


def test_the_name_of_a_hybrid_is_known_from_its_folder(tmp_path: Path) -> None:
    nota_seg.create_model("segformer-b1-pool").save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"another size: use --model segformer-b1-pool$"):
        nota_seg.load_checkpoint(nota_seg.create_model("segformer-b0"), tmp_path)
    with pytest.raises(InputError, match=r"another model: use --model segformer-b1-pool$"):
        nota_seg.load_checkpoint(nota_seg.create_model("swin-t"), tmp_path)


def test_more_blocks_pass_when_told(tmp_path: Path) -> None:
    path = saved(tmp_path, nvlabs_mit("segformer-b2"))
    report = nota_seg.load_checkpoint(nota_seg.create_model("segformer-b1"), path, strict=False)
    assert report.per_stage["stage 1"] == 100 and any(k.startswith("block1.2.") for k in report.unused)


def test_weights_without_a_place_stop(tmp_path: Path) -> None:
    """A part of a component that the model has without that part: other numbers would come out."""
    state = nota_seg.create_model("segformer-b0").state_dict()
    path = saved(tmp_path, nvlabs_mit("segformer-b0"))
    plain = [{"name": "sra", "ratio": r} for r in (8, 4, 1, 1)]  # stage 3 without its reduction
    with pytest.raises(InputError, match=r"no place in the model.*stages\.2\.blocks\.0\.mixer\.(reduce|norm)"):
        nota_seg.load_checkpoint(nota_seg.create_model("segformer-b0", mixers=plain), path)
    del state["encoder.stages.1.norm.weight"]
    with pytest.raises(InputError, match=r"stages\.1\.norm\.weight, is \(64,\) in the model and is not there"):
        nota_seg.load_checkpoint(nota_seg.create_model("segformer-b0"), saved(tmp_path, state))


WRAPPERS = {
    "encoder alone": lambda s: {k.removeprefix("encoder."): v for k, v in s.items() if k.startswith("encoder.")},
    "compiled": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "compiled encoder": lambda s: {k.replace("encoder.", "encoder._orig_mod."): v for k, v in s.items()},
    "parallel and compiled": lambda s: {"model": {f"module._orig_mod.{k}": v for k, v in s.items()}},
    "partly parallel": lambda s: {(f"module.{k}" if "stages.1" in k else k): v for k, v in s.items()},
    "lightning": lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}, "epoch": 3},
    "averaged": lambda s: {"model_ema": {f"module.{k}": v for k, v in s.items()}, "epoch": 3},
    "averaged by timm": lambda s: {"state_dict_ema": s},
    "student": lambda s: {"student": {f"backbone.{k}": v for k, v in s.items()}, "teacher": {}},
    "plain before averaged": lambda s: {"model_ema": {k: v + 1 for k, v in s.items()}, "model": s},
    "nested": lambda s: {"checkpoint": 1, "state_dict": {"model": s}},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_come_off(wrapper: str, tmp_path: Path) -> None:
    source = nota_seg.create_model("segformer-b0", "classification", num_labels=3)
    path = saved(tmp_path, WRAPPERS[wrapper](source.state_dict()))
    model = nota_seg.create_model("segformer-b0")
    report = nota_seg.load_checkpoint(model, path)
    assert all(report.per_stage[f"stage {i}"] == 100 for i in (1, 2, 3, 4))
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.state_dict().items() if "encoder" in k)


def test_wrappers_around_published_names(tmp_path: Path) -> None:
    state = {f"module.backbone.{k}": v for k, v in nvlabs_mit("segformer-b0").items()}
    report = nota_seg.load_checkpoint(nota_seg.create_model("segformer-b0"), saved(tmp_path, {"state_dict": state}))
    assert report.format == "NVlabs SegFormer" and report.per_stage["stage 4"] == 100


def test_a_file_with_two_of_each_stops(tmp_path: Path) -> None:
    state = nota_seg.create_model("segformer-b0").state_dict()
    path = saved(tmp_path, state | {f"module.{k}": v for k, v in state.items()})
    with pytest.raises(InputError, match="twice"):
        nota_seg.load_checkpoint(nota_seg.create_model("segformer-b0"), path)


# Hybrids


def test_mit_into_lsra_by_role(tmp_path: Path) -> None:
    """Patch embeddings, feed-forwards and norms are kept; of the attention the projections; the pooled path is new."""
    state = nvlabs_mit("segformer-b2")
    model = nota_seg.create_model("segformer-b2-lsra")
    report = nota_seg.load_checkpoint(model, saved(tmp_path, state))
    for i in range(1, 5):
        roles = report.per_role[f"stage {i}"]
        assert {role for role, share in roles.items() if share == 100} == {"stem", "feedforward", "skip", "norm"}
        assert 50 < roles["mixer"] < 100
    new = [k for k in report.reinitialised if k.startswith("encoder.")]
    assert new and all(".mixer.tokens." in k for k in new)
    assert all(".attn.sr." in k or ".attn.norm." in k for k in report.unused) and report.unused
    block = model.encoder.stages[1].blocks[2]
    assert torch.equal(block.mixer.q.weight, state["block2.2.attn.q.weight"])
    assert torch.equal(block.mixer.kv.bias, state["block2.2.attn.kv.bias"])
    assert torch.equal(block.feedforward.dwconv.weight, state["block2.2.mlp.dwconv.dwconv.weight"])
    text = str(report)
    assert "stage 1: stem 100%, mixer" in text and "feedforward 100%" in text


def test_mit_into_a_further_hybrid(tmp_path: Path) -> None:
    """DEST's feed-forward has convolutions where MiT has Linears: the same numbers; its batch norms are new."""
    state = nvlabs_mit("segformer-b0")
    model = nota_seg.create_model("segformer-b0-msca-dest-rskip")
    report = nota_seg.load_checkpoint(model, saved(tmp_path, state))
    roles = report.per_role["stage 2"]
    assert roles["stem"] == roles["norm"] == 100 and roles["mixer"] == roles["skip"] == 0
    assert 90 < roles["feedforward"] < 100
    assert torch.equal(
        model.encoder.stages[1].blocks[0].feedforward.fc1.weight[..., 0, 0], state["block2.0.mlp.fc1.weight"]
    )
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_classification_into_segmentation_of_swin(tmp_path: Path) -> None:
    """The first three stages have norms for the decoder alone, which pre-training does not know."""
    source = nota_seg.create_model("swin-t", "classification", num_labels=3)
    source.save_pretrained(tmp_path)
    assert not any("stages.0.norm" in k for k in source.state_dict())
    model = nota_seg.create_model("swin-t")
    report = nota_seg.load_checkpoint(model, tmp_path)
    new = [k for k in report.reinitialised if k.startswith("encoder.")]
    assert sorted({k.split(".")[2] for k in new}) == ["0", "1", "2"] and all(".norm." in k for k in new)
    source.train()(torch.randn(2, 3, 64, 64), labels=torch.tensor([0, 1])).loss.backward()
    assert all(p.grad is not None for p in source.parameters())


# The command


def test_convert(tmp_path: Path) -> None:
    import timm
    from transformers import AutoModelForSemanticSegmentation
    from typer.testing import CliRunner

    from nota_seg.cli import app

    runner = CliRunner()
    reference = timm.create_model("pvt_v2_b0", num_classes=5).eval()
    torch.save(reference.state_dict(), tmp_path / "pvt.pth")
    arguments = ["convert", str(tmp_path / "pvt.pth"), str(tmp_path / "out"), "--model", "pvtv2-b0"]
    done = runner.invoke(app, [*arguments, "--task", "classification"])
    assert done.exit_code == 0 and "timm PVTv2" in done.output
    model = nota_seg.models.modeling.NotaSegForImageClassification.from_pretrained(tmp_path / "out").eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.allclose(model(x).logits, reference(x), atol=1e-4)
    state = nota_seg.create_model("nextvit-s", num_labels=4, norm="batch").state_dict()
    torch.save(state, tmp_path / "normed.pth")
    arguments = ["convert", str(tmp_path / "normed.pth"), str(tmp_path / "normed"), "--model", "nextvit-s"]
    done = runner.invoke(app, arguments)
    assert done.exit_code != 0 and "model.norms=batch" in str(done.exception)
    done = runner.invoke(app, [*arguments, "--set", "model.norms=batch"])
    assert done.exit_code == 0, done.output
    assert len(AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "normed").config.id2label) == 4


def test_convert_keeps_the_names_of_the_classes(tmp_path: Path) -> None:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation
    from typer.testing import CliRunner

    from nota_seg.cli import app
    from nota_seg.models.loading import load_model

    config = SegformerConfig(id2label={0: "wall", 1: "sky", 2: "tree"}, label2id={"wall": 0, "sky": 1, "tree": 2})
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "theirs")
    arguments = ["convert", str(tmp_path / "theirs"), str(tmp_path / "ours"), "--model", "segformer-b0"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0 and "0 reinitialised" in done.output, done.output
    assert load_model(tmp_path / "ours")[1] == ["wall", "sky", "tree"]
    done = CliRunner().invoke(app, [*arguments, "--num-classes", "5", "--overwrite"])
    assert "2 reinitialised (decoder.classifier" in done.output
    assert len(load_model(tmp_path / "ours")[1]) == 5
