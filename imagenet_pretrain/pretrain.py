"""Pre-training of the encoder on Tiny-ImageNet: the classification task that the training loop runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from imagenet_pretrain.augment import EvalTransform, TrainTransform, make_erasing, make_mixup
from imagenet_pretrain.data import EvalImages, ImageSource, TrainImages, open_images
from nota_seg.config import PretrainConfig
from nota_seg.models import external
from nota_seg.models.pixels import normalise
from nota_seg.models.zoo import create_model
from nota_seg.training.loop import quiet_worker, to_device
from nota_seg.training.runs import run
from util.errors import InputError
from util.files import write_json
from util.progress import Progress
from util.run_folder import RunFolder


class ClassificationTask:
    """Soft-target cross-entropy under mixup and cutmix; judged by top-1."""

    score = "top1"

    def __init__(self, config: PretrainConfig, folder: Path, accelerator: Accelerator, source: ImageSource) -> None:
        self.config, self.folder = config, folder
        Progress(0, "", enabled=accelerator.is_main_process).say(source.describe())
        for split in ("train", "val"):
            if not source.splits.get(split):
                raise InputError(f"{source.root} has no {split} pictures; splits found: {source.splits}")
        names = [f"{wnid} {name}" for wnid, name in zip(source.classes, source.class_names, strict=True)]
        size = config.data.input_size
        self.model: Any = create_model(
            config.model.name,
            task="classification",
            id2label=dict(enumerate(names)),
            label2id={name: i for i, name in enumerate(names)},
            image_size=(size, size),
            **external.for_crops(config.model.name, (size, size), config.model.overrides()),
        )
        augment, mean, std = config.augment, self.model.config.image_mean, self.model.config.image_std
        transform = TrainTransform(
            size,
            auto_augment=augment.auto_augment,
            color_jitter=augment.color_jitter,
            scale=(augment.min_area, 1.0),
            mean=mean,
        )
        self.mean, self.std = mean, std
        self.erase = make_erasing(augment.random_erasing, accelerator.device)
        self.train_data = TrainImages(source, "train", transform)
        self.val_data = EvalImages(source, "val", EvalTransform(size, mean=mean, std=std))
        self.repeats = config.data.repeats
        self.mixup = make_mixup(augment.mixup, augment.cutmix, augment.label_smoothing, len(source.classes))
        if self.mixup is not None and config.train.batch_size % 2:
            raise InputError(f"mixup pairs pictures: --batch-size must be even, got {config.train.batch_size}")

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        pictures = self.erase(normalise(batch["pixels"].permute(0, 3, 1, 2), self.mean, self.std))
        labels = batch["labels"]
        if self.mixup is not None:
            pictures, labels = self.mixup(pictures, labels)
            return F.cross_entropy(model(pictures).logits, labels)
        smoothing = self.config.augment.label_smoothing
        return F.cross_entropy(model(pictures).logits, labels, label_smoothing=smoothing)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, accelerator: Accelerator, step: int) -> dict[str, Any]:
        rank, world = accelerator.process_index, accelerator.num_processes
        data = Subset(self.val_data, range(rank, len(self.val_data), world))
        batches = DataLoader(
            data,
            batch_size=self.config.train.batch_size,
            num_workers=min(self.config.train.workers, 2),
            worker_init_fn=quiet_worker,
        )
        totals = torch.zeros(4, dtype=torch.float64, device="cpu")  # pictures, top-1, top-5, loss
        model.eval()
        for batch in batches:
            batch = to_device(batch, accelerator.device)
            with accelerator.autocast():
                logits = model(batch["pixel_values"]).logits.float()
            labels = batch["labels"]
            top = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            loss = F.cross_entropy(logits, labels, reduction="sum")
            sums = [len(labels), top[:, 0].sum().item(), top.any(dim=1).sum().item(), loss.item()]
            totals += torch.tensor(sums, dtype=torch.float64)
        model.train()
        counts = accelerator.reduce(totals.float().to(accelerator.device), "sum").double().cpu()
        count, top1, top5, loss_sum = counts.tolist()
        return {"top1": top1 / count, "top5": top5 / count, "loss": loss_sum / count, "images": int(count)}

    def keep(self, result: dict[str, Any]) -> None:
        write_json(self.folder / "eval.json", result)


def pretrain(
    config: PretrainConfig, folder: RunFolder, *, resume: bool = False, overwrite: bool = False, cpu: bool = False
) -> dict[str, Any]:
    """Pre-train as configured; the result is the last evaluation with `best` (top-1) added."""
    source = open_images(config.data.path, limit_per_class=config.data.limit_per_class)

    def make_task(accelerator: Accelerator) -> ClassificationTask:
        return ClassificationTask(config, folder.path, accelerator, source)

    return run(config, folder, make_task, phase="pretrain", resume=resume, overwrite=overwrite, cpu=cpu)
