"""Names to configurations: `segformer-b2-pool-fpn` is a base and a list of changes, parsed, not enumerated.

A change is the name of any registered component. It replaces that kind of component in every stage (or the decoder),
and keeps each stage's dimensions. A registered component is therefore usable in a name at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from nota_seg.models import external
from nota_seg.models.architecture import PER_STAGE, Architecture
from nota_seg.models.configuration import NotaSegConfig
from nota_seg.models.families import FAMILIES
from nota_seg.models.registry import DECODERS, FEEDFORWARDS, MIXERS, SKIPS, STEMS, Registry
from util.errors import InputError, did_you_mean

EXAMPLE = "segformer-b0"  # the one whose single changes are listed

# Which key of a stage a kind of component fills.
STAGE_KINDS: dict[str, Registry] = {"mixer": MIXERS, "feedforward": FEEDFORWARDS, "skip": SKIPS, "stem": STEMS}


def bases() -> dict[str, Architecture]:
    """All base names, of every family."""
    return {name: architecture for family in FAMILIES.values() for name, architecture in family.items()}


def family_of(name: str) -> str:
    """The family of a model name, with or without changes."""
    if library := external.library_of(name):
        return library
    base, _ = parse_name(name)
    return next(family for family, members in FAMILIES.items() if base in members)


def changes() -> dict[str, Callable[[Architecture], None]]:
    """Every change that a name may carry, and what it does to an architecture."""

    def in_every_stage(kind: str, component: str) -> Callable[[Architecture], None]:
        def change(architecture: Architecture) -> None:
            for stage in architecture["stages"]:
                if kind != "stem" and stage.get("blocks"):
                    raise InputError(
                        f"cannot put {kind} {component!r} into blocks of fixed kinds: change the decoder or stem"
                    )
                stage[kind] = _replacing(stage.get(kind), kind, component)
                if kind == "mixer" and hasattr(MIXERS.get(component), "fitting_heads"):
                    stage["heads"] = MIXERS.get(component).fitting_heads(stage["dim"], stage.get("heads", 1))

        return change

    def decoder(component: str) -> Callable[[Architecture], None]:
        def change(architecture: Architecture) -> None:
            architecture["decoder"] = {"name": component}

        return change

    table: dict[str, Callable[[Architecture], None]] = {}
    for kind, registry in STAGE_KINDS.items():
        for component in registry:
            # Two kinds may share a word (the MLP as feed-forward and as decoder): both are then spelled kind:name.
            key = component if component not in table and component not in _shared() else f"{kind}:{component}"
            table[key] = in_every_stage(kind, component)
    for component in DECODERS:
        table[component if component not in _shared() else f"decoder:{component}"] = decoder(component)
    return table


def _replacing(before: Any, kind: str, component: str) -> dict[str, Any]:
    """A component by name, with those options of the one it replaces that it has as well (a ratio of the stage)."""
    options = STAGE_KINDS[kind].options(component)
    kept = {k: v for k, v in before.items() if k in options} if isinstance(before, Mapping) else {}
    return {"name": component, **kept}


def _shared() -> set[str]:
    seen: set[str] = set()
    twice: set[str] = set()
    for registry in (*STAGE_KINDS.values(), DECODERS):
        for name in registry:
            (twice if name in seen else seen).add(name)
    return twice


def parse_name(name: str) -> tuple[str, list[str]]:
    """A model name as its base and its changes; an unknown part suggests the nearest ones."""
    known_bases, known_changes = bases(), changes()
    fitting = [b for b in known_bases if name == b or name.startswith(b + "-")]
    if not fitting:
        forms = " or ".join(f"{library}:..." for library in external.FORMS)
        raise InputError(f"unknown model {name!r}: {did_you_mean(name, list_models())} (or {forms})")
    base = max(fitting, key=len)
    parts = name[len(base) :].split("-")[1:]
    for part in parts:
        if part in _shared():
            kinds = [change for change in known_changes if change.endswith(f":{part}")]
            raise InputError(f"{part!r} in model {name!r} is a component of two kinds: write {' or '.join(kinds)}")
        if part not in known_changes:
            raise InputError(f"unknown change {part!r} in model {name!r}: {did_you_mean(part, known_changes)}")
    return base, parts


def architecture(name: str) -> Architecture:
    """Keyword arguments of `NotaSegConfig` for a model name."""
    base, parts = parse_name(name)
    result = deepcopy(bases()[base])
    table = changes()
    for part in parts:
        table[part](result)
    return result


def apply_overrides(arch: Architecture, overrides: Mapping[str, Any]) -> Architecture:
    """Change an architecture by keyword.

    `depth`, `dim`, `stride`, `heads`, `mlp_ratio`, `stem`, `mixer`, `feedforward`, `skip`, or their plurals
    (`mixers`, `dims`, ...), take one value for all stages or a list with one a stage:
    `mixers=["pool", "pool", "sra", "sra"]`. `decoder` is a component; everything else goes to `NotaSegConfig`.
    """
    result = deepcopy(arch)
    if "stages" in overrides:
        result["stages"] = deepcopy(overrides["stages"])
    for key, value in overrides.items():
        stage_key = PLURALS.get(key, key)
        if stage_key in STAGE_KEYS:
            _set_stages(result["stages"], key, stage_key, value)
        elif key == "decoder":
            result["decoder"] = _merged(result.get("decoder"), value)
        elif key in CONFIG_KEYS:
            result[key] = value if key != "stages" else result["stages"]
        else:
            raise InputError(f"a model has no key {key!r}: {did_you_mean(key, [*STAGE_KEYS, *PLURALS, *CONFIG_KEYS])}")
    return result


def _set_stages(stages: list[dict[str, Any]], key: str, stage_key: str, value: Any) -> None:
    values = value if isinstance(value, list | tuple) else [value] * len(stages)
    if len(values) != len(stages):
        raise InputError(f"{key} must have one value, or one for each of the {len(stages)} stages, got {value!r}")
    for stage, one in zip(stages, values, strict=True):
        stage[stage_key] = _merged(stage.get(stage_key), one)


def _merged(before: Any, after: Any) -> Any:
    """The same component keeps the options that are not named again (`sra` its ratio of the stage)."""
    if isinstance(after, str) and isinstance(before, Mapping) and before.get("name") == after:
        return before
    if (
        isinstance(after, Mapping)
        and isinstance(before, Mapping)
        and after.get("name", before["name"]) == before["name"]
    ):
        return {**before, **after}
    return after


STAGE_KEYS = ("depth", "dim", "stride", "heads", "mlp_ratio", "norm", *PER_STAGE)
PLURALS = {key + "s": key for key in STAGE_KEYS if key != "heads"}
CONFIG_KEYS = (
    "decoder",
    "stages",
    "in_channels",
    "drop_path_rate",
    "layer_norm_eps",
    "initializer_range",
    "semantic_loss_ignore_index",
    "image_mean",
    "image_std",
    "image_size",
    "id2label",
    "label2id",
)


def list_models(family: str | None = None) -> list[str]:
    """Base names, and each single change of SegFormer-B0 as examples.

    Every change of every base builds, and longer lists of changes do too: `create_model` parses names. It also takes
    `smp:<architecture>/<encoder>` and `timm:<encoder>/<decoder>`; the families `smp` and `timm` list examples of them.
    """
    if family in external.CONFIGS:
        return external.examples(family)
    if family is not None and family not in FAMILIES:
        raise InputError(f"unknown family {family!r}: {did_you_mean(family, [*FAMILIES, *external.CONFIGS])}")
    names = [base for one in ([family] if family else FAMILIES) for base in FAMILIES[one]]
    if names[0] == EXAMPLE:
        used = {c for components in create_config(EXAMPLE).components().values() for c in components}
        names[1:1] = [f"{EXAMPLE}-{change}" for change in changes() if change.rpartition(":")[2] not in used]
    return names if family else [*names, *external.examples("beit")]


def create_config(name: str, *, num_labels: int = 150, **overrides: Any) -> Any:
    """The configuration of a model name, `NotaSegConfig` for our own; `overrides` as in `apply_overrides`."""
    overrides = dict(overrides)
    if "id2label" in overrides:
        num_labels = len(overrides["id2label"])
    else:
        overrides["id2label"] = {i: f"class {i}" for i in range(num_labels)}
        overrides["label2id"] = {v: k for k, v in overrides["id2label"].items()}
    if num_labels < 1:
        raise InputError(f"num_labels must be at least 1, got {num_labels}")
    if external.library_of(name):
        return external.create_config(name, num_labels, overrides)
    return NotaSegConfig(zoo_name=name, **apply_overrides(architecture(name), overrides))


def create_model(name: str, task: str = "segmentation", num_labels: int = 150, **overrides: Any) -> Any:
    """A freshly initialised model.

    Args:
        name: A base (`segformer-b0`, `segnext-t`, ...) with changes: `segformer-b0-pool-fpn`. See `list_models`. Or
            `smp:<architecture>/<encoder>` or `timm:<encoder>/<decoder>`.
        task: `segmentation`, `classification` or `backbone`.
        num_labels: Classes.
        overrides: As in `apply_overrides`. Of `smp:` and `timm:` models: `decoder` (timm), arguments of the library's
            constructor, and `pretrained`: ask the hub for the encoder's published weights, else random ones.

    Returns:
        A `transformers.PreTrainedModel`.
    """
    from nota_seg.models import modeling

    tasks = {
        "segmentation": modeling.NotaSegForSemanticSegmentation,
        "classification": modeling.NotaSegForImageClassification,
        "backbone": modeling.NotaSegBackbone,
    }
    if task not in tasks:
        raise InputError(f"unknown task {task!r}: {did_you_mean(task, tasks)}")
    if external.library_of(name):
        pretrained = overrides.pop("pretrained", False)
        return external.create_model(
            create_config(name, num_labels=num_labels, **overrides), name, task, pretrained=pretrained
        )
    return tasks[task](create_config(name, num_labels=num_labels, **overrides))


def create_from_settings(
    name: str, *, num_labels: int, sets: Sequence[str], task: str = "segmentation", **overrides: Any
) -> Any:
    """A model from a name and `--set model.key=value` strings."""
    from nota_seg.config import FinetuneConfig, build

    section = build(FinetuneConfig, options={"model.name": name}, sets=sets).model
    return create_model(section.name, task, num_labels=num_labels, **section.overrides(), **overrides)
