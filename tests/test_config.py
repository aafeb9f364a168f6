"""Typed, strict configuration with errors that name the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from nota_seg.config import RECIPES, FinetuneConfig, PretrainConfig, build, differences, dump, load_yaml
from util.errors import InputError


def test_defaults_are_the_recipes() -> None:
    pretrain, finetune = PretrainConfig(), FinetuneConfig()
    assert (pretrain.train.epochs, pretrain.train.batch_size, pretrain.data.input_size) == (300, 128, 224)
    assert (pretrain.optim.lr, pretrain.optim.lr_per_pictures, pretrain.optim.weight_decay) == (5e-4, 512, 0.05)
    assert (pretrain.augment.mixup, pretrain.augment.cutmix, pretrain.augment.label_smoothing) == (0.8, 1.0, 0.1)
    assert (pretrain.data.repeats, pretrain.optim.schedule, pretrain.optim.min_lr) == (3, "cosine", 1e-5)
    assert (finetune.train.epochs, finetune.train.batch_size, finetune.optim.lr) == (60, 16, 6e-5)
    assert (finetune.optim.decoder_lr_scale, finetune.optim.warmup_steps, finetune.optim.schedule) == (10, 1500, "poly")
    assert (finetune.data.crop_size, finetune.data.base_size, finetune.data.scale) == (
        (512, 512),
        (2048, 512),
        (0.5, 2.0),
    )


def test_precedence(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("train: {batch_size: 2, workers: 1, seed: 7}\n")
    config = build(
        FinetuneConfig, file=file, options={"train.batch_size": 3, "train.seed": None}, sets=["train.workers=0"]
    )
    assert (config.train.seed, config.train.batch_size, config.train.workers) == (7, 3, 0)


def test_model_overrides_are_free() -> None:
    config = build(FinetuneConfig, sets=["model.mixers=[pool,pool,sra,sra]", "model.decoder.dim=64"])
    assert config.model.overrides() == {"mixers": ["pool", "pool", "sra", "sra"], "decoder": {"dim": 64}}
    config = build(FinetuneConfig, sets=["model.decoder=fpn", "model.decoder.dim=64"])
    assert config.model.overrides() == {"decoder": {"name": "fpn", "dim": 64}}


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("train.worker=2", "did you mean 'train.workers'"),
        ("train.workers", "key=value"),
        ("train.workers=-1", "train.workers"),
        ("train.batch_size=0", "train.batch_size"),
        ("train.batch_size=many", "train.batch_size"),
        ("train=3", "train"),
        ("optim.schedule=linear", "optim.schedule"),
        ("train.epochs=[", "not YAML"),
        ("data.crop_size=[512]", "data.crop_size"),
        ("data.crop_size=[0,512]", "data.crop_size"),
    ],
)
def test_mistakes_name_the_key(item: str, words: str) -> None:
    with pytest.raises(InputError, match=words.replace("[", r"\[")) as caught:
        build(FinetuneConfig, sets=[item])
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no configuration file"):
        build(FinetuneConfig, file=tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(InputError, match="mapping"):
        load_yaml(tmp_path / "list.yaml")
    (tmp_path / "typo.yaml").write_text("trian: {epochs: 1}\n")
    with pytest.raises(InputError, match="did you mean 'train'"):
        build(FinetuneConfig, file=tmp_path / "typo.yaml")


def test_dump_builds_the_same_again() -> None:
    config = build(FinetuneConfig, sets=["model.mixer=pool", "data.base_size=null", "train.ema=0.99"])
    again = build(FinetuneConfig, base=dump(config))
    assert again == config and not differences(dump(config), dump(again))
    assert differences({"a": {"b": 1}}, {"a": {"b": 2}}) == {"a.b": (1, 2)}


def test_a_model_brings_its_recipe() -> None:
    for options, sets, scale in (
        ({"model.name": "beit-l-upernet"}, [], 1.0),
        ({"model.name": "segformer-b0"}, ["model.name=beit-l-upernet-fpn"], 1.0),
        ({"model.name": "beit-l-upernet"}, ["optim.decoder_lr_scale=3"], 3.0),
    ):
        config = build(FinetuneConfig, options={**options, "data.crop_size": None}, sets=sets)
        assert config.optim.lr == 2e-5 and config.optim.layer_decay == 0.95 and config.optim.warmup_steps == 3000
        assert config.data.crop_size == (640, 640) and config.eval.mode == "slide"
        assert config.optim.decoder_lr_scale == scale
    assert build(FinetuneConfig, options={"model.name": "segformer-b0"}) == FinetuneConfig()
    saved = dump(build(FinetuneConfig, options={"model.name": "beit-l-upernet", "optim.lr": 1e-3}))
    assert build(FinetuneConfig, base=saved).optim.lr == 1e-3  # a run that is continued


def test_the_waste_teams_variant_by_name_and_by_set() -> None:
    named = build(FinetuneConfig, file="beit-b-upernet-waste")
    assert named.data.short_side == (512, 1024, 32) and named.optim.warmup_steps == 327 and named.train.epochs == 40
    by_set = build(
        FinetuneConfig,
        options={"model.name": "beit-b-upernet", "data.crop_size": (512, 512), "train.epochs": 40},
        sets=[
            "data.short_side=[512,1024,32]", "data.base_size=null", "optim.schedule=cosine", "optim.warmup_steps=327",
            "train.batch_size=8", "eval.crop_size=[512,512]", "eval.stride=[128,128]",
        ],
    )  # fmt: skip
    assert by_set == named
    with pytest.raises(InputError, match="did you mean 'beit-b-upernet-waste'"):
        build(FinetuneConfig, file="beit-b-upernet-wast")


def test_every_recipe_is_valid_and_names_its_model() -> None:
    from nota_seg.models.zoo import create_config

    for file in RECIPES.glob("*.yaml"):
        config = build(FinetuneConfig, file=file)
        assert file.stem.startswith(config.model.name)
        create_config(config.model.name, crop_size=list(config.data.crop_size))
