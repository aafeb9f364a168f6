"""Weights into a model: matched by structure, reported in full, never silently partial."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from nota_seg.models.checkpoints.format import Format, State, unwrap
from nota_seg.models.checkpoints.report import TransferReport
from nota_seg.models.configuration import PER_STAGE
from util.errors import InputError

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def read_state_dict(path: str | Path) -> State:
    """Tensors of a weights file or a `save_pretrained` folder; no code in it is ever run.

    Raises:
        InputError: Nothing there, not readable, or a pickle that asks for more than tensors.
    """
    try:
        path = Path(path).expanduser()
    except RuntimeError:  # ~name of a user that this machine does not have
        path = Path(path)
    if not path.exists():
        raise InputError(f"no weights at {path}: name a weights file, a save_pretrained folder, or a run's best/")
    if path.is_dir():
        folders = [path, path / "best", path / "last"]
        found = [f / name for f in folders for name in WEIGHT_FILES if (f / name).is_file()]
        if not found:
            raise InputError(f"{path} holds none of {', '.join(WEIGHT_FILES)}; name a folder that does, or a file")
        path = found[0]
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Of torch's text only what is wrong: the rest advises to switch the protection off.
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None:
            raise InputError(f"{path} is not a readable weights file (no pickle of tensors alone)") from None
        raise InputError(
            f"{path} is refused, it asks for more than tensors: {wanted[1]}; save its state_dict alone"
        ) from None
    except Exception as error:  # damaged bytes end in whatever the parsers stumble over
        text = " ".join(str(error).split("In PyTorch 2.6")[0].split())[:120]
        raise InputError(f"{path} is not a readable weights file ({type(error).__name__}: {text})") from None
    state = unwrap(value)
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}, not a state dict")
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)}
    if not tensors:
        raise InputError(f"{path} holds no tensors; its keys: {', '.join(map(str, list(state)[:5]))}")
    return tensors


def load_checkpoint(
    model: nn.Module, path: str | Path, *, formats: list[Format], strict: bool = True
) -> TransferReport:
    """Fill a model from published weights. The model is changed only when everything that must fit does.

    Args:
        model: One of ours.
        path: See `read_state_dict`.
        formats: Those to recognise.
        strict: Stop where an encoder parameter that should have been filled was not: one that belongs to a component
            which the file has weights for. False only reports it.

    Raises:
        InputError: Unknown format, nothing of the encoder fits, or (strict) only a part of what should.
    """
    state = read_state_dict(path)
    published = next((f for f in formats if f.matches(set(state))), None)
    if published is None:
        known = ", ".join(f.name for f in formats)
        raise InputError(f"{path}: unknown kind of weights (first keys {sorted(state)[:3]}); known: {known}")
    renamed = published.rename(dict(state))
    origin = {id(v): k for k, v in state.items()}
    target = dict(model.state_dict())
    report = TransferReport(str(path), published.name)
    fitting: State = {}
    wrong_shape: dict[str, tuple[int, ...]] = {}
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
        elif _same_numbers(target[key].shape, value.shape):
            fitting[key] = value.reshape(target[key].shape)
            report.reshaped.append(key)
        else:
            wrong_shape[key] = tuple(value.shape)
            report.unused.append(origin.get(id(value), key))
    counters = {k for k in target if k.endswith("num_batches_tracked")}  # transformers and others may leave these out
    report.reinitialised = [k for k in target if k not in fitting and k not in counters]
    report.per_stage = _shares(dict(model.named_parameters()), fitting)

    _check(model, path, report, wrong_shape, target, _provided(published, path, renamed), strict)
    with torch.no_grad():
        for key, value in fitting.items():
            target[key].copy_(value)
    return report


def _same_numbers(ours: torch.Size, theirs: torch.Size) -> bool:
    """A 1x1 convolution (O, I, 1, 1) and a Linear (O, I)."""
    strip = [tuple(s[:2]) if len(s) == 4 and tuple(s[2:]) == (1, 1) else tuple(s) for s in (ours, theirs)]
    return strip[0] == strip[1]


def _shares(target: Mapping[str, Tensor], fitting: Mapping[str, Tensor]) -> dict[str, float]:
    """Per cent of the parameters (not of the buffers) that are filled, by part of the model."""
    total: dict[str, int] = {}
    filled: dict[str, int] = {}
    for key, value in target.items():
        words = key.split(".")
        part = f"stage {int(words[2]) + 1}" if key.startswith("encoder.stages.") else words[0]
        total[part] = total.get(part, 0) + value.numel()
        filled[part] = filled.get(part, 0) + (value.numel() if key in fitting else 0)
    return {part: 100 * filled[part] / n for part, n in total.items()}


def _provided(published: Format, path: str | Path, renamed: State) -> list[dict[str, frozenset[str]]]:
    """By stage and kind, the component names that the file has weights for."""
    stages = 1 + max((int(k.split(".")[2]) for k in renamed if k.startswith("encoder.stages.")), default=-1)
    if published.provides:
        return [dict(published.provides)] * stages
    # Ours: the folder says what its components are; a bare file does not, and then every role must fit.
    for folder in (Path(path), Path(path).parent, Path(path) / "best", Path(path) / "last"):
        file = folder / "config.json"
        if file.is_file():
            try:
                saved = json.loads(file.read_text(encoding="utf-8"))["stages"]
                return [{kind: frozenset({stage[kind]["name"]}) for kind in PER_STAGE} for stage in saved]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{file} does not say which components the weights beside it belong to ({type(error).__name__}: "
                    f"{error}); restore it, or move the weights file to a folder of its own"
                ) from None
    return [{}] * stages


def _check(
    model: nn.Module,
    path: str | Path,
    report: TransferReport,
    wrong_shape: Mapping[str, tuple[int, ...]],
    target: Mapping[str, Tensor],
    provided: list[dict[str, frozenset[str]]],
    strict: bool,
) -> None:
    filled = set(report.filled)
    if not any(k.startswith("encoder.") for k in filled):
        raise InputError(f"{path} ({report.format}): not one encoder weight fits the model; {_size_hint(wrong_shape)}")
    if not strict:
        return
    config: Any = model.config
    absent = [
        key for key in report.reinitialised if key.startswith("encoder.stages.") and _should_fit(key, config, provided)
    ]
    if absent:
        first = absent[0]
        have = f"is {wrong_shape[first]} there" if first in wrong_shape else "is not there"
        raise InputError(
            f"{path} ({report.format}): {len(absent)} encoder weights that should fit do not; the first, {first}, is "
            f"{tuple(target[first].shape)} in the model and {have}; {_size_hint(wrong_shape)}"
        )


def _should_fit(key: str, config: Any, provided: list[dict[str, frozenset[str]]]) -> bool:
    """Whether the file has weights for the component that a parameter of the encoder belongs to."""
    words = key.split(".")
    stage = int(words[2])
    if stage >= len(provided):
        return True  # a whole stage is missing in the file
    role = words[5] if words[3] == "blocks" else words[3]
    kind = {"skip1": "skip", "skip2": "skip"}.get(role, role)
    if kind not in PER_STAGE:
        return True  # the stage's own norm: every encoder has it
    names = provided[stage].get(kind)
    return names is None or config.stages[stage][kind]["name"] in names


def _size_hint(wrong_shape: Mapping[str, tuple[int, ...]]) -> str:
    from nota_seg.models.zoo import bases

    dims = {}
    for key, shape in wrong_shape.items():
        if key.startswith("encoder.stages.") and key.endswith("stem.proj.weight"):
            dims[int(key.split(".")[2])] = shape[0]
    if dims:
        fitting = [
            name
            for name, arch in bases().items()
            if all(i < len(arch["stages"]) and arch["stages"][i]["dim"] == d for i, d in dims.items())
        ]
        if fitting:
            return f"these are weights of another size: use --model {' or '.join(fitting)}"
    return "use the model that these weights were made for"
