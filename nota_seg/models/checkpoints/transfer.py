"""Weights into a model: matched by structure, reported in full, never silently partial."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nota_seg.models.architecture import PER_STAGE
from nota_seg.models.checkpoints.format import Format, State
from nota_seg.models.checkpoints.hints import fitting_names, same_family, same_numbers
from nota_seg.models.checkpoints.reading import read_state_dict
from nota_seg.models.checkpoints.report import TransferReport
from util.errors import InputError

Provided = list[dict[str, frozenset[str]]]  # by stage and kind, component names


def load_checkpoint(
    model: nn.Module, path: str | Path, *, formats: list[Format], strict: bool = True
) -> TransferReport:
    """Fill a model from published weights. The model is changed only when everything that must fit does.

    Args:
        model: One of ours.
        path: See `read_state_dict`.
        formats: Those to recognise.
        strict: Stop where an encoder parameter that should have been filled was not (one that belongs to a component
            which the file has weights for), and where the file has encoder weights that the model should have had a
            place for (more blocks, more stages). False only reports it.

    Raises:
        InputError: Unknown format, nothing of the encoder fits, or (strict) only a part of what should.
    """
    source = read_state_dict(path)
    published, state = _recognise(source, formats)
    if published is None:
        known = ", ".join(f.name for f in formats)
        raise InputError(f"{path}: unknown kind of weights (first keys {sorted(source)[:3]}); known: {known}")
    renamed = published.rename(dict(state))
    origin = {id(v): k for k, v in source.items()}
    target = dict(model.state_dict())
    report = TransferReport(str(path), published.name)
    fitting: State = {}
    misfits: dict[str, tuple[int, ...]] = {}  # of the encoder
    for key, value in renamed.items():
        if key not in target:
            report.unused.append(origin.get(id(value), key))
        elif target[key].shape == value.shape:
            fitting[key] = value
            theirs = origin.get(id(value), "several keys")
            if theirs == key:
                report.matched.append(key)
            else:
                report.renamed[key] = theirs
        elif same_numbers(target[key].shape, value.shape):
            fitting[key] = value.reshape(target[key].shape)
            report.reshaped.append(key)
        else:
            report.unused.append(origin.get(id(value), key))
        if key.startswith("encoder.stages.") and key not in fitting:
            misfits[key] = tuple(value.shape)
    counters = {k for k in target if k.endswith("num_batches_tracked")}  # transformers and others may leave these out
    report.reinitialised = [k for k in target if k not in fitting and k not in counters]
    report.per_stage, report.per_role = _shares(dict(model.named_parameters()), fitting)

    problem = _problem(model, report, renamed, misfits, target, _provided(published, path, renamed), strict)
    if problem:
        raise InputError(f"{path} ({report.format}): {problem}")
    with torch.no_grad():
        for key, value in fitting.items():
            target[key].copy_(value)
    return report


def class_names(path: str | Path, task: str, *, formats: list[Format]) -> list[str] | None:
    """Names of the classes that a file's classifier tells apart, from the config.json beside it where that has as many;
    None where it has no classifier for the task."""
    published, state = _recognise(read_state_dict(path), formats)
    key = "classifier.weight" if task == "classification" else "decoder.classifier.weight"
    weight = published.rename(dict(state)).get(key) if published is not None else None
    if weight is None:
        return None
    file = config_beside(path)
    try:
        named = json.loads(file.read_text(encoding="utf-8"))["id2label"] if file else {}
        if {int(i) for i in named} == set(range(len(weight))):
            return [str(name) for _, name in sorted(named.items(), key=lambda item: int(item[0]))]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # the names are lost, their number is not
    return [f"class {i}" for i in range(len(weight))]


def format_name(path: str | Path, *, formats: list[Format]) -> str | None:
    """Name of the published format that a file is in, or None for one that is not known.

    Raises:
        InputError: There is no such file, or it cannot be read.
    """
    published, _ = _recognise(read_state_dict(path), formats)
    return None if published is None else published.name


def _recognise(source: State, formats: list[Format]) -> tuple[Format | None, State]:
    """The format, and the state without what a larger model around it (`model.`, `student.`) put before its keys."""
    for prefix in ("", *dict.fromkeys(key.split(".")[0] + "." for key in source)):
        state = {key.removeprefix(prefix): value for key, value in source.items() if key.startswith(prefix)}
        published = next((f for f in formats if f.matches(state)), None)
        if published is not None:
            others = {key: value for key, value in source.items() if not key.startswith(prefix)}
            return published, others | state
    return None, source


def _part(key: str) -> tuple[str, str]:
    """Part of the model and role in it: `stage 2`, `mixer`; `decoder`, ``."""
    words = key.split(".")
    if not key.startswith("encoder.stages."):
        return words[0], ""
    role = words[3]
    if role == "blocks":
        inner = "".join(words[5:6]).rstrip("12")  # skip1, skip2
        role = inner if inner in PER_STAGE else role
    return f"stage {int(words[2]) + 1}", role


def _shares(
    target: Mapping[str, Tensor], fitting: Mapping[str, Tensor]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Per cent of the parameters (not of the buffers) that are filled, by part of the model; by stage and role."""
    total: dict[tuple[str, str], int] = {}
    filled: dict[tuple[str, str], int] = {}
    for key, value in target.items():
        part, role = _part(key)
        for place in {(part, ""), (part, role)}:
            total[place] = total.get(place, 0) + value.numel()
            filled[place] = filled.get(place, 0) + (value.numel() if key in fitting else 0)
    per_stage = {part: 100 * filled[part, role] / n for (part, role), n in total.items() if not role}
    per_role: dict[str, dict[str, float]] = {}
    for (part, role), n in total.items():
        if role:
            per_role.setdefault(part, {})[role] = 100 * filled[part, role] / n
    return per_stage, per_role


def _provided(published: Format, path: str | Path, renamed: State) -> Provided:
    """By stage and kind, the component names that the file has weights for."""
    stages = 1 + max((int(k.split(".")[2]) for k in renamed if k.startswith("encoder.stages.")), default=-1)
    if published.provides:
        return [dict(published.provides)] * stages
    # Ours: the folder says what its components are; a bare file does not, and then every role must fit.
    file = config_beside(path)
    if file is None:
        return [{}] * stages
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))["stages"]
        return [{kind: frozenset({stage[kind]["name"]}) for kind in PER_STAGE} for stage in saved]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} does not say which components the weights beside it belong to ({type(error).__name__}: "
            f"{error}); restore it, or move the weights file to a folder of its own"
        ) from None


def config_beside(path: str | Path) -> Path | None:
    """The config.json of the folder that a path names or lies in."""
    folders = (Path(path), Path(path).parent, Path(path) / "best", Path(path) / "last")
    return next((f / "config.json" for f in folders if (f / "config.json").is_file()), None)


def _problem(
    model: nn.Module,
    report: TransferReport,
    renamed: State,
    misfits: Mapping[str, tuple[int, ...]],
    target: Mapping[str, Tensor],
    provided: Provided,
    strict: bool,
) -> str | None:
    """Why these weights must not be loaded, and what to do."""
    config: Any = model.config

    def remedy() -> str:
        names = fitting_names(renamed, config.zoo_name) or _saved_name(report.source)
        if config.zoo_name in names or not names:
            return "use the model that these weights were made for"
        what = "size" if same_family(names[0], config.zoo_name) else "model"
        return f"these are weights of another {what}: use --model {' or '.join(names)}"

    if not any(k.startswith("encoder.") for k in report.filled):
        return f"not one encoder weight fits the model; {remedy()}"
    if not strict:
        return None
    absent = [k for k in report.reinitialised if k.startswith("encoder.stages.") and _should_fit(k, config, provided)]
    if absent:
        first = absent[0]
        have = f"is {misfits[first]} there" if first in misfits else "is not there"
        return (
            f"{len(absent)} encoder weights that should fit do not; the first, {first}, is "
            f"{tuple(target[first].shape)} in the model and {have}; {remedy()}"
        )
    extra = [k for k in misfits if k not in target]
    norms = [k for k in extra if _part(k)[1] == "norm" and int(k.split(".")[2]) < len(config.stages)]
    if any(config.stages[int(k.split(".")[2])]["norm"] == "none" for k in norms):
        kind = "batch" if any(k.endswith("running_mean") for k in norms) else "layer"
        return f"the weights have a norm after every stage and the model has not: build it with model.norms={kind}"
    homeless = [k for k in extra if _should_have_a_place(k, config, provided)]
    if homeless:
        return (
            f"{len(homeless)} encoder weights of the file have no place in the model, which would be another network "
            f"with the rest; the first is {homeless[0]}; {remedy()}"
        )
    return None


def _names(key: str, provided: Provided) -> frozenset[str] | None:
    """Components that the file has weights for in the role of a parameter inside a stage; None: not known."""
    kind = _part(key)[1]
    return provided[int(key.split(".")[2])].get(kind) if kind in PER_STAGE else None


def _saved_name(path: str | Path) -> list[str]:
    """The model name in the config.json beside a weights file of ours."""
    file = config_beside(path)
    try:
        name = json.loads(file.read_text(encoding="utf-8")).get("zoo_name") if file else None
    except (OSError, ValueError, AttributeError):
        return []
    return [name] if isinstance(name, str) else []


def _should_fit(key: str, config: Any, provided: Provided) -> bool:
    """Whether the file has weights for the component that a parameter of the encoder belongs to."""
    stage, kind = int(key.split(".")[2]), _part(key)[1]
    if stage >= len(provided):
        return True  # a whole stage is missing in the file
    if kind == "norm":  # every encoder has it, but for those that norm for the decoder alone
        return config.stages[stage].get("norm_next", True) or stage == len(config.stages) - 1
    names = _names(key, provided)
    return names is None or config.stages[stage][kind]["name"] in names


def _should_have_a_place(key: str, config: Any, provided: Provided) -> bool:
    """Whether a parameter of the file belongs to a stage, a block or a component that the model has or should have."""
    words = key.split(".")
    if len(words) < 5:
        return False
    stage, kind = int(words[2]), _part(key)[1]
    if stage >= len(config.stages) or (words[3] == "blocks" and int(words[4]) >= config.stages[stage]["depth"]):
        return True
    if kind == "norm":
        return config.stages[stage].get("norm_next", True)
    if kind not in PER_STAGE:
        return kind == "blocks" and bool(config.stages[stage]["blocks"])
    names = _names(key, provided)
    return names is not None and not config.stages[stage]["blocks"] and config.stages[stage][kind]["name"] in names
