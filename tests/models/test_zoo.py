"""Names, overrides, configurations, Auto classes."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nota_seg
from nota_seg.models.zoo import changes, parse_name
from util.errors import InputError


@pytest.mark.parametrize(
    ("name", "millions"),
    [("segformer-b0", 3.753), ("segformer-b1", 13.716), ("segformer-b2", 27.462), ("segformer-b5", 84.7)],
)
def test_published_parameters(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = nota_seg.create_model(name)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(
        millions, abs=0.0006 if millions < 80 else 0.1
    )


@pytest.mark.parametrize("pair", itertools.permutations(changes(), 2), ids="-".join)
def test_every_pair_of_changes_builds(pair: tuple[str, str]) -> None:
    with torch.device("meta"):
        model = nota_seg.create_model("segformer-b0-" + "-".join(pair), num_labels=2)
    assert model.config.zoo_name == "segformer-b0-" + "-".join(pair)


def test_tasks_and_their_outputs() -> None:
    from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutput, SemanticSegmenterOutput

    x = torch.randn(1, 3, 50, 70)
    out = nota_seg.create_model("segformer-b0", num_labels=7)(x, labels=torch.zeros(1, 50, 70).long())
    assert isinstance(out, SemanticSegmenterOutput) and out.logits.shape == (1, 7, 13, 18) and out.loss.ndim == 0
    out = nota_seg.create_model("segformer-b0", task="classification", num_labels=7)(x, labels=torch.tensor([1]))
    assert isinstance(out, ImageClassifierOutput) and out.logits.shape == (1, 7) and out.loss.ndim == 0
    out = nota_seg.create_model("segformer-b0", task="backbone")(x)
    assert isinstance(out, BackboneOutput)
    assert [tuple(f.shape[1:]) for f in out.feature_maps] == [(32, 13, 18), (64, 7, 9), (160, 4, 5), (256, 2, 3)]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nota_seg.create_model("segfomer-b0"), "did you mean 'segformer-b0'"),
        (lambda: nota_seg.create_model("segformer-b0-pol"), "did you mean 'pool'"),
        (lambda: nota_seg.create_model("segformer-b0-mlp"), "write feedforward:mlp or decoder:mlp"),
        (lambda: nota_seg.create_model("segformer-b0", task="segment"), "did you mean 'segmentation'"),
        (lambda: nota_seg.create_model("segformer-b0", num_labels=0), "at least 1"),
        (lambda: nota_seg.create_model("segformer-b0", mixerz="pool"), "did you mean 'mixer"),
        (lambda: nota_seg.create_model("segformer-b0", dims=[1, 2]), "4 stages"),
        (lambda: nota_seg.create_model("segformer-b0", heads=3), "3 heads do not divide 32"),
        (lambda: nota_seg.create_model("segformer-b0", depth=0), "at least 1"),
        (lambda: nota_seg.create_model("segformer-b0", drop_path_rate=1.5), "drop_path_rate"),
        (lambda: nota_seg.create_model("segformer-b0", mixer={"name": "pool", "size": 4}), "odd"),
        (lambda: nota_seg.list_models("segfromer"), "did you mean 'segformer'"),
        (lambda: nota_seg.NotaSegConfig(stages=[]), "at least one stage"),
        (lambda: nota_seg.NotaSegConfig(stages=[{"depth": 1, "dim": 8, "strid": 4}]), "did you mean 'stride'"),
    ],
)
def test_mistakes_name_the_fix(make: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()  # type: ignore[operator]


def test_overrides_keep_what_they_do_not_name() -> None:
    model = nota_seg.create_model("segformer-b0", mixers=["sra", "pool", "sra", "sra"], decoder={"dropout": 0.0})
    assert [s["mixer"] for s in model.config.stages] == [
        {"name": "sra", "ratio": 8}, {"name": "pool"}, {"name": "sra", "ratio": 2}, {"name": "sra", "ratio": 1},
    ]  # fmt: skip
    assert model.config.decoder == {"name": "mlp", "dim": 256, "dropout": 0.0}
    assert parse_name("segformer-b0-pool-fpn") == ("segformer-b0", ["pool", "fpn"])


def test_names_that_are_listed_build() -> None:
    for name in nota_seg.list_models():
        with torch.device("meta"):
            nota_seg.create_model(name, num_labels=2)


def test_drop_path_rises_from_zero() -> None:
    model = nota_seg.create_model("segformer-b0", drop_path_rate=0.7)
    rates = [b.skip1.drop_path.drop_prob for s in model.encoder.stages for b in s.blocks]
    assert rates == pytest.approx([0.1 * i for i in range(8)])


def test_initialisation_is_the_published_one() -> None:
    torch.manual_seed(0)
    model = nota_seg.create_model("segformer-b2")
    stage = model.encoder.stages[2]
    assert stage.blocks[0].mixer.q.weight.std().item() == pytest.approx(0.02, rel=0.1)
    depthwise = stage.blocks[0].feedforward.dwconv
    assert depthwise.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert stage.blocks[0].mixer.q.bias.abs().max() == 0
    assert stage.norm.eps == 1e-6 and stage.stem.norm.eps == 1e-5


@pytest.mark.parametrize(
    "order",
    [
        "import nota_seg, transformers",
        "import transformers, nota_seg",
        # The Auto classes are brought along by a module of transformers that is itself half imported then.
        "import nota_seg; from transformers import SegformerForSemanticSegmentation",
        "import nota_seg; from transformers import BeitModel",
        "import nota_seg.models.external.beit",
        "import nota_seg.models.auto",
    ],
)
def test_auto_classes_know_us_whatever_is_imported_first(order: str, saved: Path) -> None:
    code = f"""
{order}
from transformers import (AutoConfig, AutoImageProcessor, AutoModelForImageClassification,
                          AutoModelForSemanticSegmentation)
for name in {KINDS}:
    folder = {str(saved)!r} + "/" + name.replace(":", "-").replace("/", "-")
    assert AutoConfig.from_pretrained(folder).zoo_name == name
    assert AutoModelForSemanticSegmentation.from_pretrained(folder).config.num_labels == 3
    if not name.startswith("smp"):
        assert AutoModelForImageClassification.from_pretrained(folder + "-classes").config.num_labels == 3
    assert AutoImageProcessor.from_pretrained(folder).size["shortest_edge"] in (512, 128)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=saved)
    assert done.returncode == 0, done.stderr[-2000:]


KINDS = ["segformer-b0-pool", "beit-t-upernet", "smp:unet/resnet18", "timm:resnet18/fpn"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each kind, as `name` and as `name-classes`."""
    folder = tmp_path_factory.mktemp("saved")
    for name in KINDS:
        file = folder / name.replace(":", "-").replace("/", "-")
        nota_seg.create_model(name, num_labels=3).save_pretrained(file)
        if not name.startswith("smp"):
            nota_seg.create_model(name, "classification", 3).save_pretrained(f"{file}-classes")
    return folder


@pytest.mark.parametrize("size", [None, (640, 480)])
def test_the_image_processor_is_transformers_own(size: tuple[int, int] | None, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, SegformerImageProcessor

    mean, std = [0.4, 0.5, 0.6], [0.2, 0.2, 0.3]
    SegformerImageProcessor(
        do_resize=size is not None, image_mean=mean, image_std=std, do_reduce_labels=False,
        size=None if size is None else {"longest_edge": size[0], "shortest_edge": size[1]},
    ).save_pretrained(tmp_path / "theirs")  # fmt: skip
    model = nota_seg.create_model("segformer-b0", image_size=size, image_mean=mean, image_std=std)
    model.save_pretrained(tmp_path / "ours")
    ours, theirs = (AutoImageProcessor.from_pretrained(tmp_path / folder) for folder in ("ours", "theirs"))
    assert type(ours) is type(theirs) is SegformerImageProcessor and ours.to_dict() == theirs.to_dict()
