"""Run configuration: typed sections, YAML files, `key=value` overrides. What a run used is written beside its results.

Precedence, weakest first: the defaults here, the published recipe of the model where `recipes/` has one, `--config
FILE`, named options, `--set key=value`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo

from util.errors import InputError, did_you_mean

Size = tuple[PositiveInt, PositiveInt]
RECIPES = Path(__file__).parent / "recipes"  # NAME.yaml: fine-tuning of the model NAME, or for --config NAME


class Section(BaseModel):
    """Unknown keys are errors; values are checked against their types."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    filled_by: ClassVar[str | None] = None  # the key that a bare list or word in place of the section means


class ModelSection(Section):
    """A model name; every other key is an override of `create_model` (`mixers`, `decoder`, `drop_path_rate`, ...)."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    name: str = "segformer-b0"

    def overrides(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class OptimSection(Section):
    name: str = "adamw"  # any of timm's (`timm.optim.list_optimizers()`) or of torch.optim
    args: dict[str, Any] = {}  # of the optimiser: momentum, eps, ...
    lr: PositiveFloat = 6e-5  # peak learning rate of the encoder
    lr_per_pictures: PositiveInt | None = None  # scale lr by (pictures a step) / this; None: lr as it is
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.01  # not on norms and biases
    decoder_lr_scale: PositiveFloat = 10.0
    layer_decay: float | None = Field(None, gt=0, le=1)  # lr of block i of L times this to the power of L - i, i from 0
    schedule: Literal[
        "poly", "cosine", "constant", "cosine_restarts", "step", "multistep", "exponential", "onecycle"
    ] = "poly"
    schedule_args: dict[str, Any] = {}  # of the last five, lengths in optimiser steps; see nota_seg/training/optim.py
    power: PositiveFloat = 1.0  # of the polynomial
    min_lr: NonNegativeFloat = 0.0
    warmup_steps: NonNegativeInt = 1500  # optimiser steps, linear from 0 ...
    warmup_epochs: NonNegativeFloat | None = None  # ... or epochs, which then count instead ...
    warmup_share: float = Field(0.1, ge=0, le=1)  # ... but never more than this share of the run


class TrainSection(Section):
    epochs: PositiveInt | None = None
    max_steps: PositiveInt | None = None  # optimiser steps; counts instead of epochs where given
    batch_size: PositiveInt = 16  # pictures per process and micro-step
    accumulate: PositiveInt = 1  # micro-steps per optimiser step
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"  # auto: bf16 on a GPU that has it, else no
    clip_norm: PositiveFloat | None = None
    ema: float | None = Field(None, gt=0, lt=1)  # decay; the average is then what is evaluated and saved
    eval_every: PositiveInt | None = None  # optimiser steps; None: every epoch
    checkpoint_every: PositiveInt | None = None  # optimiser steps; None: every epoch
    log_every: PositiveInt = 50  # optimiser steps
    workers: NonNegativeInt = 4  # loader processes
    seed: NonNegativeInt = 0
    compile: bool = False  # torch.compile, block by block, in the first step; for GPUs: on a CPU it is slower
    deterministic: bool = False  # torch.use_deterministic_algorithms; on a GPU slower, on a CPU nothing changes
    anomalies: bool = False  # stop at the operation whose gradient is NaN; several times slower
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"

    @model_validator(mode="after")
    def _some_length(self) -> TrainSection:
        if self.epochs is None and self.max_steps is None:
            raise ValueError("give epochs or max_steps")
        return self


class PretrainData(Section):
    path: str = ""
    input_size: int = Field(224, ge=32)  # pixels, square
    repeats: PositiveInt = 3  # repeated augmentation (arXiv 1901.09335): draws of a picture in an epoch
    limit_per_class: PositiveInt | None = None  # training pictures


class PretrainAugment(Section):
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"  # timm's notation
    color_jitter: NonNegativeFloat | None = 0.4
    random_erasing: float = Field(0.25, ge=0, le=1)
    min_area: float = Field(0.08, gt=0, le=1)  # of the random resized crop
    mixup: NonNegativeFloat = 0.8
    cutmix: NonNegativeFloat = 1.0
    label_smoothing: float = Field(0.1, ge=0, lt=1)


class FinetuneData(Section):
    path: str = ""
    layout: str | None = None  # None: found by looking
    crop_size: Size = (512, 512)  # height, width in pixels
    base_size: Size | None = (2048, 512)  # long, short side a picture is fitted to before scaling; None: as it is
    scale: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0)
    short_side: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None  # lowest, highest, step: instead of scale
    max_class_share: float = Field(0.75, gt=0, le=1)  # of a crop
    hflip: float = Field(0.5, ge=0, le=1)
    color_jitter: tuple[float, float, float, float] | None = (0.25, 0.25, 0.25, 0.1)
    extra: list[dict[str, Any]] = []  # further transforms of the crop: {type, args}; see nota_seg/data/extra.py
    limit: PositiveInt | None = None  # training pictures, the first N
    fraction: float = Field(1.0, gt=0, le=1)  # of the pictures of every split, drawn without replacement
    cache_gib: NonNegativeFloat = 2.0  # decoded training pictures to keep in memory, all workers together; 0: none


class LossPart(Section):
    """A word alone is a part without arguments."""

    type: str  # see nota_seg/training/losses.py
    args: dict[str, Any] = {}
    weight: float = 1.0  # in the sum

    @model_validator(mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value


class FinetuneLoss(Section):
    filled_by: ClassVar[str | None] = "parts"  # `loss: [...]` is short for `loss: {parts: [...]}`
    parts: list[LossPart] = [LossPart(type="ce")]  # their weighted sum
    # inverse: one over the frequency in the training masks; smoothed: 0.3 of that (as shares) and 0.7 of equal shares
    class_weights: Literal["inverse", "smoothed"] | list[PositiveFloat] | None = None

    @model_validator(mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and isinstance(value.get("parts"), str | Mapping):
            return {**value, "parts": [value["parts"]]}
        return value


class EvalSection(Section):
    mode: Literal["whole", "slide"] = "whole"
    crop_size: Size | None = None  # slide; None: the training crop
    stride: Size | None = None  # slide; None: two thirds of the crop
    limit: PositiveInt | None = None  # validation pictures during training
    boundary: bool = True
    grid: NonNegativeInt = 4  # pictures in the prediction grid


class DistillSection(Section):
    teacher: str | None = None  # a run, or a folder of ours or of transformers; None: no distillation
    weight: NonNegativeFloat = 1.0  # of the logits' divergence
    temperature: PositiveFloat = 2.0  # that softens both logits
    features: NonNegativeFloat = 0.0  # of the stages' resemblance, by a projection
    labels: NonNegativeFloat = 1.0  # of the ordinary loss


class PretrainConfig(Section):
    """Tiny-ImageNet: DeiT's recipe as the study used it."""

    model: ModelSection = ModelSection()
    data: PretrainData = PretrainData()
    augment: PretrainAugment = PretrainAugment()
    optim: OptimSection = OptimSection(
        lr=5e-4, lr_per_pictures=512, weight_decay=0.05, decoder_lr_scale=1.0, schedule="cosine", min_lr=1e-5,
        warmup_epochs=5,
    )  # fmt: skip
    train: TrainSection = TrainSection(epochs=300, batch_size=128)
    save_pth: bool = False  # also the older {"model": state_dict} file, `best.pth` and `last.pth`


class FinetuneConfig(Section):
    """ADE20K: the study's recipe, 60 epochs of batch 16."""

    model: ModelSection = ModelSection()
    pretrain: str | None = None  # weights to start from
    data: FinetuneData = FinetuneData()
    loss: FinetuneLoss = FinetuneLoss()
    distill: DistillSection = DistillSection()
    optim: OptimSection = OptimSection()
    train: TrainSection = TrainSection(epochs=60)
    eval: EvalSection = EvalSection()


Config = TypeVar("Config", PretrainConfig, FinetuneConfig)

# What may differ between a run and its continuation: nothing that changes a weight.
FREE_ON_RESUME = {
    "train.workers", "train.log_every", "train.checkpoint_every", "train.tracker", "data.path", "eval.grid",
}  # fmt: skip


def build(
    cls: type[Config],
    *,
    base: Mapping[str, Any] | None = None,
    file: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    sets: Iterable[str] = (),
) -> Config:
    """Put a configuration together.

    Args:
        cls: Which one.
        base: Values to start from instead of the defaults (a run that is continued).
        file: A YAML file.
        options: Dotted keys to values; None means "not given".
        sets: `key=value` strings, the value in YAML.
    """
    values: dict[str, Any] = cls().model_dump() if base is None else deepcopy(dict(base))
    sets, chosen = list(sets), load_yaml(file) if file is not None else {}
    recipe = recipe_of(_model_name(chosen, options or {}, sets)) if base is None and cls is FinetuneConfig else None
    if recipe is not None:
        _merge(values, load_yaml(recipe), cls, str(recipe))
    if file is not None:
        _merge(values, chosen, cls, str(file))
    for key, value in (options or {}).items():
        if value is not None:
            put(values, key, value, cls)
    for item in sets:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise InputError(f"--set {item!r}: write key=value, for instance --set train.workers=2")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"--set {item!r}: the value is not YAML: {error}") from None
        put(values, key.strip(), value, cls)
    return validate(cls, values)


def validate(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """Values as a checked configuration; the first wrong one is named with what it should be."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if not str(part).startswith("constrained"))
        reason = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{key or 'configuration'}: {reason}, got {first['input']!r}") from None


def recipe_of(name: str) -> Path | None:
    """The published recipe of a model, also under a name with changes (`beit-b-upernet-fpn`)."""
    found = [f for f in RECIPES.glob("*.yaml") if name == f.stem or name.startswith(f.stem + "-")]
    return max(found, key=lambda f: len(f.stem), default=None)


def _model_name(file: Mapping[str, Any], options: Mapping[str, Any], sets: Iterable[str]) -> str:
    """The model that a configuration will name, before it is put together; the strongest counts."""
    of_sets = [item.partition("=")[2] for item in sets if item.partition("=")[0].strip() == "model.name"]
    section = file.get("model")
    of_file = section.get("name") if isinstance(section, Mapping) else None
    return str((of_sets[-1:] or [options.get("model.name") or of_file or ""])[0])


def load_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file with a mapping at its top, or one of our recipes by its name."""
    path = Path(path)
    shipped = RECIPES / f"{path}.yaml"
    if not path.exists() and path.name == str(path) and shipped.is_file():
        path = shipped
    try:
        value = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        shipped_names = sorted(f.stem for f in RECIPES.glob("*.yaml"))
        raise InputError(
            f"no configuration file {str(path)!r}, and no recipe of ours: {did_you_mean(str(path), shipped_names)}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: a configuration is a mapping of sections, see any run's config.yaml")
    return value


def put(values: dict[str, Any], key: str, value: Any, cls: type[BaseModel]) -> None:
    """Set a dotted key; an unknown one suggests the nearest."""
    parts = key.split(".")
    at, model = values, cls
    for i, part in enumerate(parts[:-1]):
        field = model.model_fields.get(part)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            if model.model_config.get("extra") == "allow":
                return _put_free(at, parts[i:], value)
            raise InputError(f"no configuration key {key!r}: {did_you_mean(key, all_keys(cls))}")
        at, model = at.setdefault(part, {}), field.annotation
    inner = _fills(model.model_fields.get(parts[-1]), value)
    if inner is not None:
        return put(values, f"{key}.{inner}", value, cls)
    if parts[-1] not in model.model_fields and model.model_config.get("extra") != "allow":
        raise InputError(f"no configuration key {key!r}: {did_you_mean(key, all_keys(cls))}")
    if isinstance(value, Mapping) and isinstance(at.get(parts[-1]), dict) and parts[-1] in cls.model_fields:
        raise InputError(f"{key!r} is a section: set its keys, for instance {key}.{next(iter(at[parts[-1]]), '...')}")
    at[parts[-1]] = value


def _fills(field: FieldInfo | None, value: Any) -> str | None:
    """The key of a section that a value given in the section's place is meant for: `loss: [ce, dice]`."""
    annotation = field.annotation if field is not None else None
    if not (isinstance(annotation, type) and issubclass(annotation, Section)) or annotation.filled_by is None:
        return None
    is_part = isinstance(value, Mapping) and "type" in value
    return annotation.filled_by if is_part or isinstance(value, str | list) else None


def _put_free(at: dict[str, Any], parts: list[str], value: Any) -> None:
    for part in parts[:-1]:
        inner = at.setdefault(part, {})
        if not isinstance(inner, dict):
            inner = at[part] = {"name": inner}  # model.decoder was a name, model.decoder.dim=128 is set on it
        at = inner
    at[parts[-1]] = value


def _merge(values: dict[str, Any], new: Mapping[str, Any], cls: type[BaseModel], where: str, prefix: str = "") -> None:
    for key, value in new.items():
        field = cls.model_fields.get(key)
        if field is None and cls.model_config.get("extra") != "allow":
            raise InputError(f"{where}: no configuration key {prefix + key!r}: {did_you_mean(key, cls.model_fields)}")
        annotation = field.annotation if field is not None else None
        if (inner := _fills(field, value)) is not None:
            value = {inner: value}
        if isinstance(annotation, type) and issubclass(annotation, BaseModel) and isinstance(value, Mapping):
            _merge(values.setdefault(key, {}), value, annotation, where, f"{prefix}{key}.")
        else:
            values[key] = value


def all_keys(cls: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key of a configuration."""
    keys = []
    for name, field in cls.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += all_keys(field.annotation, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def dump(config: BaseModel) -> dict[str, Any]:
    """A configuration as plain YAML values."""
    return config.model_dump(mode="json")


def differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with both values."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in {*before, *after}:
        a, b = before.get(key), after.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found |= differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found[prefix + key] = (a, b)
    return found
