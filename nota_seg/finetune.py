"""Fine-tuning for semantic segmentation: the task that the training loop runs on ADE20K and its like."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from nota_seg.config import EvalSection, FinetuneConfig
from nota_seg.data.dataset import TrainDataset
from nota_seg.data.objects import Banks
from nota_seg.data.part import Part
from nota_seg.data.resize import fit_factor
from nota_seg.data.sources import SegmentationSource, open_source
from nota_seg.data.transforms import TrainTransform
from nota_seg.evaluate import evaluate, format_table
from nota_seg.inference import Protocol
from nota_seg.models import external
from nota_seg.models.checkpoints import load_checkpoint
from nota_seg.models.configuration import NotaSegConfig
from nota_seg.models.losses import upsampled_cross_entropy
from nota_seg.models.pixels import normalise
from nota_seg.models.zoo import create_model
from nota_seg.picture_counts import PictureCounts, Row, count_picture
from nota_seg.training.loop import Interrupted
from nota_seg.training.losses import WeightedSum
from nota_seg.training.runs import run
from nota_seg.training.seeds import SUMMARY
from util.errors import InputError
from util.files import write_json, write_text
from util.images import write_png
from util.palettes import colourise, grid, palette
from util.progress import Progress
from util.run_folder import RunFolder

REHEARSAL_SHARE, REHEARSAL_STEPS = 0.1, 20  # of the pictures; optimiser steps


class SegmentationTask:
    """Cross-entropy at full size, or the losses of the configuration; judged by mIoU at the labels' original size."""

    repeats = 1
    score = "miou"

    def __init__(
        self, config: FinetuneConfig, folder: Path, accelerator: Accelerator, source: SegmentationSource
    ) -> None:
        self.config, self.folder, self.source = config, folder, source
        is_main = accelerator.is_main_process
        say = Progress(0, "", enabled=is_main).say
        say(source.describe())
        for split in ("train", "val"):
            if not source.splits.get(split):
                raise InputError(f"{source.root} has no {split} pictures; splits found: {source.splits}")
        self.model = build_model(config, source, say)
        data = config.data
        fit = partial(fit_factor, base_size=data.base_size) if data.base_size is not None else None
        banks = Banks(source, data.limit, fit)
        transform = TrainTransform(
            crop_size=data.crop_size,
            base_size=data.base_size,
            scale=data.scale,
            max_class_share=data.max_class_share,
            flip=data.hflip,
            jitter=data.color_jitter,
            short_side=data.short_side,
            extra=data.extra,
            banks=banks,
        )
        processes = max(1, config.train.workers) * accelerator.num_processes
        cache = data.cache_gib * 2**30 / processes
        batch = None
        if data.extra:
            from nota_seg.data.paste import batch_part  # and with it albumentations, see `TrainTransform`

            batch = batch_part(data.extra, source.class_names)
        self.train_data = TrainDataset(source, transform, limit=data.limit, cache_bytes=cache, batch=batch)
        banks.read_through(self.train_data.read)
        self.mean, self.std = self.model.config.image_mean, self.model.config.image_std
        self.class_weights = class_weights(config, self.train_data, source.num_labels)
        self.criterion = WeightedSum(config.loss.parts, source.num_labels, self.class_weights)
        self.protocol = protocol_of(config.eval, data.crop_size, data.base_size)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        out = model(normalise(batch["pixels"].permute(0, 3, 1, 2), self.mean, self.std))
        loss = self.judge(out.logits, batch)
        if getattr(out, "auxiliary_logits", None) is not None:
            loss = loss + self.model.config.auxiliary_weight * self.judge(out.auxiliary_logits, batch)
        return loss

    def judge(self, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """The loss of one head."""
        if not self.criterion.is_plain:
            return self.criterion(logits, batch["labels"])
        weight = None if self.class_weights is None else self.class_weights.to(logits.device, non_blocking=True)
        return upsampled_cross_entropy(logits, batch["labels"], weight=weight)

    def evaluate(self, model: nn.Module, accelerator: Accelerator, step: int) -> dict[str, Any]:
        rows: list[list[np.ndarray]] = []
        counts: list[Row] = []
        shown = self.config.eval.grid if accelerator.is_main_process else 0
        colours = palette(self.source.num_labels)
        position = {name: i for i, name in enumerate(self.source.names("val"))}

        def look(name: str, prediction: np.ndarray, label: np.ndarray) -> None:
            counts.append(count_picture(name, prediction, label, self.source.num_labels))
            if len(rows) < shown:
                image, _ = self.source.read("val", position[name])
                rows.append([image, colourise(label, colours), colourise(prediction, colours)])

        result = evaluate(
            model,
            self.source,
            "val",
            replace(self.protocol, precision=accelerator.mixed_precision),
            device=accelerator.device,
            workers=min(self.config.train.workers, 2),
            limit=self.config.eval.limit,
            boundary=self.config.eval.boundary,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            reduce=lambda t: accelerator.reduce(t, "sum"),
            on_picture=look,
        )
        everywhere = gather_object(counts) if accelerator.num_processes > 1 else counts
        self.rows = sorted(everywhere, key=lambda row: position[row[0]])
        if accelerator.is_main_process:
            if rows:
                write_png(self.folder / "predictions" / f"step-{step}.png", grid(rows))
            write_text(self.folder / "predictions" / f"step-{step}.txt", format_table(result))
        return result

    def keep(self, result: dict[str, Any]) -> None:
        """`eval.json` and `eval.npz`, as `nota-seg eval --json` writes them: what `compare` reads."""
        write_json(self.folder / "eval.json", result)
        PictureCounts.collect(self.rows, self.source.class_names, result["protocol"]).save(self.folder / "eval.npz")


def build_model(config: FinetuneConfig, source: SegmentationSource, say: Any) -> nn.Module:
    """The model for the source's classes, with the weights of `pretrain` where given."""
    overrides = config.model.overrides()
    overrides["id2label"] = dict(enumerate(source.class_names))
    overrides["label2id"] = {name: i for i, name in enumerate(source.class_names)}
    overrides["image_size"] = config.data.base_size
    if config.pretrain is not None:
        overrides.pop("pretrained", None)  # of models of other libraries: weights of the hub would be overwritten
    overrides = external.for_crops(config.model.name, config.data.crop_size, overrides)
    model = create_model(config.model.name, num_labels=source.num_labels, **overrides)
    if config.pretrain is None and not overrides.get("pretrained"):
        say("no --pretrain: the encoder starts from random weights")
    elif config.pretrain is not None:
        say(str(load_checkpoint(model, config.pretrain)))
    return model


def seed_runs(pretrain: str | None) -> dict[int, str]:
    """The best weights of each seed, where `pretrain` is a folder that `--seeds` wrote; else nothing."""
    file = Path(pretrain or "") / SUMMARY
    if pretrain is None or not file.is_file():
        return {}
    rows = json.loads(file.read_text(encoding="utf-8"))["seeds"]
    return {row["seed"]: str(file.parent / row["folder"] / "best") for row in rows if "error" not in row}


def model_options(name: str | None, pretrain: str | None, *, resume: bool) -> dict[str, Any]:
    """Configuration keys of the model: the name that was given, else the architecture that `--pretrain` was saved with.

    A continued run takes neither from `--pretrain`: its own configuration says what it is.
    """
    if name is not None or resume or pretrain is None or not (Path(pretrain) / "config.json").is_file():
        return {"model.name": name}
    saved = json.loads((Path(pretrain) / "config.json").read_text(encoding="utf-8"))
    if settings := external.settings_of(saved):
        return {f"model.{key}": value for key, value in settings.items()}
    if saved.get("model_type") != NotaSegConfig.model_type:
        return {}
    return {"model.name": saved["zoo_name"], "model.stages": saved["stages"], "model.decoder": saved["decoder"]}


def protocol_of(section: EvalSection, crop: tuple[int, int], base: tuple[int, int] | None) -> Protocol:
    """The evaluation protocol of a run's configuration."""
    if section.mode == "whole":
        return Protocol(base_size=base)
    return Protocol(mode="slide", crop_size=section.crop_size or crop, stride=section.stride, base_size=base)


def class_weights(config: FinetuneConfig, data: TrainDataset, num_labels: int) -> Tensor | None:
    """Weights of the classes in the loss, with mean 1.

    `inverse` is one over the frequency in the training masks, `smoothed` 0.3 of that (as shares) and 0.7 of equal
    shares.
    """
    chosen = config.loss.class_weights
    if chosen is None:
        return None
    if isinstance(chosen, str):
        counts = np.zeros(256, dtype=np.int64)
        with Progress(len(data), "counting labels") as progress:
            for i in range(len(data)):
                counts += np.bincount(data.source.read_label(data.split, i).ravel(), minlength=256)
                progress()
        frequency = torch.from_numpy(counts[:num_labels] / max(1, counts[:num_labels].sum())).float()
        weights = torch.where(frequency > 0, 1 / frequency.clamp(min=1e-12), torch.zeros(()))
        if chosen == "smoothed":
            weights = 0.3 * weights / weights.sum() + 0.7 / num_labels
    else:
        if len(chosen) != num_labels:
            raise InputError(f"loss.class_weights lists {len(chosen)} numbers, the data have {num_labels} classes")
        weights = torch.tensor(chosen, dtype=torch.float32)
    return weights / weights[weights > 0].mean()


def finetune(
    config: FinetuneConfig, folder: RunFolder, *, resume: bool = False, overwrite: bool = False, cpu: bool = False
) -> dict[str, Any]:
    """Fine-tune as configured; the result is the last evaluation with `best` (mIoU) added."""
    source = open_source(config.data.path, config.data.layout)
    if config.data.fraction < 1:
        source = Part(source, config.data.fraction, config.train.seed)

    def make_task(accelerator: Accelerator) -> SegmentationTask:
        if config.distill.teacher is not None:
            from nota_seg.distill import DistillTask  # which is built on this module

            return DistillTask(config, folder.path, accelerator, source)
        return SegmentationTask(config, folder.path, accelerator, source)

    return run(config, folder, make_task, phase="finetune", resume=resume, overwrite=overwrite, cpu=cpu)


def rehearse(config: FinetuneConfig, *, cpu: bool = False) -> dict[str, Any]:
    """A run in small, to meet its mistakes early; nothing is kept.

    A tenth of the pictures drawn without replacement, 20 steps at most, one evaluation. Every step's loss and every
    operation's gradient is watched for NaN.

    Returns:
        The evaluation, and `debug`: the share of the pictures, the loss of each step, pictures a second.
    """
    steps = min(config.train.max_steps or REHEARSAL_STEPS, REHEARSAL_STEPS)
    settings = {"max_steps": steps, "eval_every": steps, "checkpoint_every": steps, "log_every": 1}
    train = config.train.model_copy(update={**settings, "tracker": "none", "anomalies": True, "compile": False})
    data = config.data.model_copy(update={"fraction": REHEARSAL_SHARE * config.data.fraction})
    small = config.model_copy(update={"train": train, "data": data})
    with tempfile.TemporaryDirectory(prefix="nota-seg-debug-") as place:
        folder = RunFolder(Path(place) / "run")
        try:
            result = finetune(small, folder, cpu=cpu)
        except Interrupted:  # its advice is for runs that can be continued
            raise KeyboardInterrupt from None
        except RuntimeError as error:
            if "nan values" not in str(error):  # autograd's words
                raise
            raise FloatingPointError(f"{error} Lower --lr, or set train.clip_norm=1.") from error
        lines = [line for line in folder.metrics() if line["split"] == "train"]
    facts = {
        "fraction": data.fraction,
        "losses": [round(line["loss"], 4) for line in lines],
        "pictures_per_second": float(np.median([line["pictures_per_second"] for line in lines])) if lines else None,
    }
    return {**result, "debug": facts}
