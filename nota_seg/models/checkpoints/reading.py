"""Tensors out of files: no code in them is run, and the wrappers that training scripts put around them come off."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from nota_seg.models.checkpoints.format import State
from util.errors import InputError

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# Averaged weights are taken where they are all there is: a name should not change its meaning with its neighbours.
WRAPPERS = (
    "state_dict", "model_state_dict", "model", "module", "net", "student",
    "state_dict_ema", "model_ema", "ema", "teacher",
)  # fmt: skip
PREFIXES = ("module", "_orig_mod")  # of DataParallel and of torch.compile, around the model or a part of it


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
            value = load_file(path)
        else:
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
    tensors: State = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            name = plain_name(str(key))
            if name in tensors:
                raise InputError(f"{path} holds {name} twice, with and without a prefix; save one state dict alone")
            tensors[name] = value
    if not tensors:
        raise InputError(f"{path} holds no tensors; its keys: {', '.join(map(str, list(state)[:5]))}")
    return tensors


def unwrap(value: Any) -> Any:
    """The state dict inside the usual wrappers."""
    while isinstance(value, dict):
        inner = next((value[k] for k in WRAPPERS if isinstance(value.get(k), dict)), None)
        if inner is None:
            break
        value = inner
    return value


def plain_name(key: str) -> str:
    """A key without the prefixes of wrapped modules."""
    return ".".join(word for word in key.split(".") if word not in PREFIXES)
