"""A saved segmentation model from a folder on this machine: all of it, or an error that says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from nota_seg.models.architecture import NETWORK_KEYS, NetworkConfig
from nota_seg.models.network import InferenceConfig, SegmentationNetwork
from util.errors import InputError

LAYOUT = "a model folder holds config.json and model.safetensors; a run folder holds such folders as best/ and last/"


def model_folder(path: str | Path) -> Path:
    """The `save_pretrained` folder that a path means: itself, or best/ (else last/) of a run folder."""
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"no model at {path}: there is no such folder ({LAYOUT})")
    if not path.is_dir():
        raise InputError(
            f"{path} is a file, not a model folder: `nota-seg convert` makes one of a checkpoint ({LAYOUT})"
        )
    for folder in (path, path / "best", path / "last"):
        if (folder / "config.json").is_file():
            return folder
    raise InputError(f"{path} has no config.json, best/config.json or last/config.json ({LAYOUT})")


@contextmanager
def quiet() -> Iterator[None]:
    """transformers' load reports and progress bars off inside the block: `load_model` reports what matters itself."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_model(path: str | Path, device: torch.device | str = "cpu") -> tuple[nn.Module, list[str]]:
    """Load a segmentation model for evaluation.

    Args:
        path: A `save_pretrained` folder (ours, of any model that transformers segments with, or of
            segmentation-models-pytorch), or a run folder.
            Nothing is ever fetched from the network, and no code from the folder is run.
        device: Where to put the model.

    Returns:
        The model in evaluation mode, and its class names in the order of the classes.

    Raises:
        InputError: No such folder, no segmentation model, or weights that do not fit its configuration exactly.
    """
    folder = model_folder(path)
    settings = _settings(folder)
    if {"_model_class", "encoder_name"} <= settings.keys():  # segmentation-models-pytorch saved it itself
        from nota_seg.models.external.smp import load_saved

        net = load_saved(folder, settings).to(device).eval()
        return net, [f"class {i}" for i in range(net.config.num_labels)]  # it saves no names
    with quiet():
        config_class, model_class = _classes(settings)
        try:
            config = config_class.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"cannot read {folder / 'config.json'}: {error}") from error
        architectures: list[str] = list(getattr(config, "architectures", None) or [])
        if any("ImageClassification" in a for a in architectures):
            raise InputError(
                f"{folder} is a classification model ({architectures[0]}): "
                f"`nota-seg finetune --pretrain {path}` turns it into a segmentation model"
            )
        if architectures and not any("Segmentation" in a for a in architectures):
            raise InputError(f"{folder} is no segmentation model but {architectures[0]}: `nota-seg finetune` makes one")
        try:
            model, report = model_class.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise InputError(f"cannot load the model in {folder}: {error}") from error
    _check(report, folder)
    names = {int(i): str(name) for i, name in config.id2label.items()}
    model = model.to(device).eval()
    return model, [names.get(i, f"class {i}") for i in range(config.num_labels)]


def load_for_inference(path: str | Path, device: torch.device | str = "cpu") -> tuple[nn.Module, list[str]]:
    """As `load_model`, of our own models the network alone: importing transformers takes longer than many pictures do.

    Returns:
        The model in evaluation mode, for `nota_seg.inference` (it takes no labels and is not saved), and its class
        names in the order of the classes.

    Raises:
        InputError: As `load_model`.
    """
    folder = model_folder(path)
    network = _network(folder, _settings(folder))
    if network is None:
        return load_model(path, device)
    names = network.config.id2label
    return network.to(device).eval(), [names[i] for i in range(len(names))]


def _network(folder: Path, settings: dict[str, Any]) -> SegmentationNetwork | None:
    """The network of a folder that we saved, as we save it; None of every other, which is transformers' to load or to
    complain of."""
    saved = (settings.get("model_type"), settings.get("architectures"), settings.get("dtype"))
    if saved != (NetworkConfig.model_type, ["NotaSegForSemanticSegmentation"], "float32"):
        return None
    try:
        id2label = {int(i): str(name) for i, name in settings["id2label"].items()}
        config = InferenceConfig(id2label, **{k: settings[k] for k in NETWORK_KEYS & settings.keys()})
        if sorted(id2label) != list(range(config.num_labels)):
            return None
        weights = load_file(folder / "model.safetensors")
        if any(w.is_floating_point() and w.dtype != torch.float32 for w in weights.values()):
            return None
        with torch.device("meta"):  # initial values would be drawn for nothing
            network = SegmentationNetwork(config)
        if {name for name, _ in network.named_buffers()} - weights.keys():
            return None  # a buffer that no file holds would stay empty
        # Copies: a file's numbers may lie where vector instructions are slow, and vanish with the file.
        network.load_state_dict({name: w.clone() for name, w in weights.items()}, assign=True)
    except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError):
        return None
    return network


def _classes(settings: dict[str, Any]) -> tuple[Any, Any]:
    """What reads the configuration and the weights: our own class, or else one of transformers' Auto classes.

    The Auto classes know ours too, since `import nota_seg`, but bring a second of libraries along that generate text.
    """
    if settings.get("model_type") == NetworkConfig.model_type:
        from nota_seg.models.configuration import NotaSegConfig
        from nota_seg.models.modeling import NotaSegForSemanticSegmentation

        return NotaSegConfig, NotaSegForSemanticSegmentation
    from transformers import AutoConfig, AutoModelForSemanticSegmentation

    return AutoConfig, AutoModelForSemanticSegmentation


def _settings(folder: Path) -> dict[str, Any]:
    """What config.json holds; nothing where it cannot be read, of which transformers says what is wrong with it."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _check(report: dict[str, Any], folder: Path) -> None:
    """A model that is loaded in part would run and be wrong: say so instead."""
    problems = []
    for what in ("missing", "unexpected", "mismatched"):
        keys = sorted(str(k[0]) if isinstance(k, tuple) else str(k) for k in report.get(f"{what}_keys") or ())
        if keys:
            problems.append(f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})")
    if problems:
        raise InputError(f"the weights in {folder} do not fit its config.json: {'; '.join(problems)}: save it again")
