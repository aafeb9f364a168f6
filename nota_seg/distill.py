"""Knowledge distillation while fine-tuning (arXiv 1503.02531): a larger model's logits and maps as further targets.

The teacher is any saved segmentation model. It is held beside the task, never inside the student: checkpoints hold the
student, the optimiser and the projections, a saved folder holds the student alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from nota_seg.config import FinetuneConfig
from nota_seg.data.sources import SegmentationSource
from nota_seg.finetune import SegmentationTask
from nota_seg.inference import statistics_of
from nota_seg.models.loading import load_model, model_folder
from nota_seg.models.modeling import NotaSegPreTrainedModel
from nota_seg.models.network import Encoder
from nota_seg.models.pixels import normalise
from util.errors import InputError
from util.progress import Progress

IGNORE = 255


class DistillTask(SegmentationTask):
    """The segmentation task with a teacher."""

    def __init__(
        self, config: FinetuneConfig, folder: Path, accelerator: Accelerator, source: SegmentationSource
    ) -> None:
        super().__init__(config, folder, accelerator, source)
        self.accelerator, self.settings = accelerator, config.distill
        say = Progress(0, "", enabled=accelerator.is_main_process).say
        assert self.settings.teacher is not None
        self.teacher = Teacher(self.settings.teacher, source.class_names)
        say(self.teacher.describe())
        if self.settings.features:
            attach_projections(self.model, self.teacher, config.data.crop_size)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        settings = self.settings
        student: Any = self.model
        with watching(student, maps=settings.features > 0) as seen:
            total = settings.labels * super().loss(model, batch)
        self.teacher.to(self.accelerator.device)
        with self.accelerator.autocast():
            logits, maps = self.teacher(batch["pixels"].permute(0, 3, 1, 2), maps=settings.features > 0)
        if settings.weight:
            total = total + settings.weight * divergence(seen["logits"], logits, batch["labels"], settings.temperature)
        if settings.features:
            total = total + settings.features * resemblance(student.decoder.distillation, seen["maps"], maps)
        return total


class Teacher(nn.Module):
    """A saved segmentation model whose classes are put in the order of the student's.

    Args:
        path: A run's folder or a `save_pretrained` folder, of ours, of transformers or of segmentation-models-pytorch.
        class_names: Of the student.

    Raises:
        InputError: No model there, or one that does not have the student's classes.
    """

    def __init__(self, path: str, class_names: Sequence[str]) -> None:
        super().__init__()
        self.path = path
        self.model, names = load_model(path)
        self.model.requires_grad_(False)
        self.order = class_order(names, class_names, path)
        self.mean, self.std = statistics_of(self.model)
        processor = model_folder(path) / "preprocessor_config.json"
        if processor.is_file():
            saved = json.loads(processor.read_text(encoding="utf-8"))
            self.mean, self.std = saved.get("image_mean") or self.mean, saved.get("image_std") or self.std

    def describe(self) -> str:
        params = sum(p.numel() for p in self.model.parameters())
        how = "its classes in their order" if self.order is None else "its classes matched by name"
        return f"teacher {self.path}: {type(self.model).__name__}, {params / 1e6:.3f} M parameters, {how}"

    def train(self, mode: bool = True) -> Teacher:
        """Always in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor, *, maps: bool = False) -> tuple[Tensor, list[Tensor]]:
        """
        Args:
            pixels: (B, 3, H, W) uint8.
            maps: Also those of its stages.

        Returns:
            Logits (B, K, h, w) of the student's classes, and maps (B, C, h, w), finest first.
        """
        self.eval()
        x = normalise(pixels, self.mean, self.std)
        with watching(self.model, maps=maps) as seen:
            inside = maps and not isinstance(self.model, NotaSegPreTrainedModel)
            out = self.model(pixel_values=x, **({"output_hidden_states": True} if inside else {}))
        if "padded" in seen and getattr(self.model.encoder, "input_size", None) is None:
            # The picture's share of what was padded at the right and the bottom.
            shares = [min(1.0, a / b) for a, b in zip(x.shape[2:], seen["padded"], strict=True)]
            seen["maps"] = [m[..., : _share(m, 2, shares), : _share(m, 3, shares)] for m in seen["maps"]]
        if maps and not seen.get("maps"):
            hidden = [h for h in getattr(out, "hidden_states", None) or () if h.ndim == 4]
            # The last map of each size: what a stage ends with.
            seen["maps"] = list({tuple(h.shape[2:]): h for h in hidden}.values())
            if not hidden:
                raise InputError(
                    f"{type(self.model).__name__} shows no maps of its stages: distil its logits alone, "
                    "--set distill.features=0"
                )
        logits = out.logits if self.order is None else out.logits[:, self.order.to(out.logits.device)]
        return logits, seen.get("maps", [])


def _share(map_BCHW: Tensor, dim: int, shares: Sequence[float]) -> int:
    return math.ceil(map_BCHW.shape[dim] * shares[dim - 2])


def class_order(theirs: Sequence[str], ours: Sequence[str], path: str) -> Tensor | None:
    """Index of each of our classes among the teacher's; None where they are as they are."""
    if list(theirs) == list(ours):
        return None
    place = {name.strip().lower(): i for i, name in enumerate(theirs)}
    wanted = [name.strip().lower() for name in ours]
    missing = [name for name in wanted if name not in place]
    if not missing and len(set(wanted)) == len(wanted):
        return torch.tensor([place[name] for name in wanted])
    if len(theirs) == len(ours) and all(name in (f"class {i}", f"label_{i}") for name, i in place.items()):
        return None  # nameless: as many, and nothing speaks against their order
    raise InputError(
        f"teacher {path} has {len(theirs)} classes, the data have {len(ours)}; it lacks "
        f"{', '.join(missing[:3]) or 'distinct names'}{', ...' if len(missing) > 3 else ''}: "
        "take a teacher that was trained on these classes"
    )


@contextmanager
def watching(model: Any, *, maps: bool) -> Iterator[dict[str, Any]]:
    """Inside the block the model's forward pass also leaves its `logits` and, if asked, its encoder's `maps` here."""
    seen: dict[str, Any] = {}

    def keep_logits(module: nn.Module, inputs: Any, output: Any) -> None:
        seen["logits"] = output.logits

    encoder = getattr(model, "neck", getattr(model, "encoder", None))  # BEiT's maps are of one size before its neck

    def keep_maps(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, Encoder):
            seen["maps"] = [x_BHWC.permute(0, 3, 1, 2) for x_BHWC in output]
            return
        found = output[0] if isinstance(output, tuple) else output  # smp's DPT: maps and tokens
        # The input itself, and a level that an encoder has not, are no maps.
        seen["maps"] = [x for x in found if x.ndim == 4 and x.shape[1] and x is not inputs[0]]
        if isinstance(inputs[0], Tensor):
            seen["padded"] = inputs[0].shape[2:]

    with ExitStack() as stack:
        stack.callback(model.register_forward_hook(keep_logits).remove)
        if maps and isinstance(encoder, nn.Module) and isinstance(model, NotaSegPreTrainedModel):
            stack.callback(encoder.register_forward_hook(keep_maps).remove)
        yield seen


def attach_projections(student: Any, teacher: Teacher, size: Sequence[int] = (64, 64)) -> None:
    """A 1x1 convolution a stage, from the student's channels to the teacher's, trained with the decoder.

    They belong to the student's state while it trains, so that a continued run has them; no saved folder does.

    Args:
        size: (height, width) that will be trained on: where a teacher resizes pictures it decides which maps match.
    """
    if not isinstance(getattr(student, "encoder", None), Encoder):
        raise InputError(
            f"distill.features needs a student whose stages are ours, {type(student).__name__} is another library's: "
            "set it to 0"
        )
    with torch.no_grad():
        _, maps = teacher(torch.zeros(1, 3, *size, dtype=torch.uint8), maps=True)
        sizes = [[-(-side // s) for side in size] for s in student.config.strides]
    channels = [maps[nearest(size, maps)].shape[1] for size in sizes]
    student.decoder.distillation = nn.ModuleList(
        nn.Conv2d(own, theirs, kernel_size=1) for own, theirs in zip(student.config.channels, channels, strict=True)
    )
    prefix = "decoder.distillation."
    own = {key for key in student.state_dict() if key.startswith(prefix)}
    student._keys_to_ignore_on_save = {*(student._keys_to_ignore_on_save or ()), *own}


def nearest(size: Sequence[int], maps: Sequence[Tensor]) -> int:
    """The map whose height is nearest in ratio; of equals the later one."""
    ratios = [max(m.shape[2], size[0]) / min(m.shape[2], size[0]) for m in maps]
    return max(i for i, r in enumerate(ratios) if r == min(ratios))


def divergence(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Mean over pixels of KL(teacher || student) of the softened probabilities, times the temperature squared.

    At the student's resolution; a position counts by the share of its pixels that are labelled, so that padding and
    what annotators left out teach nothing. The square keeps the gradient's size at any temperature.

    Args:
        student: Logits (B, K, h, w).
        teacher: Logits (B, K, h', w').
        labels: (B, H, W), 255 = ignored.
        temperature: Above 0.
    """
    with torch.autocast(student.device.type, enabled=False):
        size = student.shape[2:]
        target = teacher.float()
        if target.shape[2:] != size:
            target = F.interpolate(target, size=size, mode="bilinear", align_corners=False)
        log_p = F.log_softmax(student.float() / temperature, dim=1)
        log_q = F.log_softmax(target / temperature, dim=1)
        kl_Bhw = (log_q.exp() * (log_q - log_p)).sum(dim=1)
        share_Bhw = F.adaptive_avg_pool2d((labels != IGNORE).float()[:, None], size)[:, 0]
        return temperature**2 * (kl_Bhw * share_Bhw).sum() / share_Bhw.sum().clamp(min=1e-6)


def resemblance(projections: nn.ModuleList, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean over stages and positions of 1 - cosine of projected and the teacher's channels, at the student's size."""
    total = student[0].new_zeros((), dtype=torch.float32)
    for projection, own_BCHW in zip(projections, student, strict=True):
        target = teacher[nearest(own_BCHW.shape[2:], teacher)].float()
        with torch.autocast(own_BCHW.device.type, enabled=False):
            if target.shape[2:] != own_BCHW.shape[2:]:
                target = F.interpolate(target, size=own_BCHW.shape[2:], mode="bilinear", align_corners=False)
            total = total + (1 - F.cosine_similarity(projection(own_BCHW.float()), target, dim=1)).mean()
    return total / len(projections)
