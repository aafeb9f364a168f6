"""Training throughput on a GPU, bf16: the steps of `pretrain` and `finetune`, against transformers' model.

A step is what a training loop does with a batch that waits in pinned memory: to the GPU, forward under autocast, loss,
backward, AdamW. Ours goes there as bytes and is normalised there, and its AdamW is the trainer's; the peer's comes
normalised, as its image processor gives it, and its AdamW is torch's. Ours is measured as it is and with
`train.compile`. Where there is no GPU there is no row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import MEAN, STD, Result, paired
from benchmarks.pairs import pair
from nota_seg.config import OptimSection
from nota_seg.models.pixels import normalise
from nota_seg.training.compiled import compile_blocks
from nota_seg.training.loop import to_device
from nota_seg.training.optim import build_optimizer

TARGETS = (1.5, 3.0)
TOLERANCE = 1e-4  # of the loss in float32: other kernels than on a CPU
STEPS = 10  # of a run


@dataclass(frozen=True)
class Case:
    """One row: a model's name and task, classes, side of the square pictures in pixels, pictures in a batch."""

    name: str
    size: str
    task: str
    num_labels: int
    side: int
    batch: int


CASES = [
    Case("pretrain B0 224 on a GPU, a batch of 256", "b0", "classification", 200, 224, 256),
    Case("finetune B2 512 on a GPU, a batch of 16", "b2", "segmentation", 150, 512, 16),
]


def batches(case: Case) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(ours, theirs): bytes, and the same pictures normalised."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (case.batch, case.side, case.side, 3), generator=generator, dtype=torch.uint8)
    shape = (case.batch,) if case.task == "classification" else (case.batch, case.side, case.side)
    labels = torch.randint(0, case.num_labels, shape, generator=generator)
    pictures = normalise(pixels.permute(0, 3, 1, 2), MEAN, STD).contiguous()
    return {"pixels": pixels, "labels": labels}, {"pictures": pictures, "labels": labels}


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Of a batch that is on the model's device."""
    pictures = batch.get("pictures")
    if pictures is None:
        pictures = normalise(batch["pixels"].permute(0, 3, 1, 2), MEAN, STD)
    if batch["labels"].ndim == 1:
        return F.cross_entropy(model(pictures).logits, batch["labels"])
    return model(pixel_values=pictures, labels=batch["labels"]).loss


def stepper(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], device: torch.device, steps: int
) -> Callable[[], None]:
    """So many steps of training, waited for."""

    def run() -> None:
        for _ in range(steps):
            with torch.autocast(device.type, torch.bfloat16):
                loss = loss_of(model, to_device(batch, device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        loss.item()

    return run


def measure(case: Case, device: torch.device, steps: int, repeats: int, *, compiled: bool = False) -> Result:
    """Both train, in turns; ours compiled block by block if asked."""
    ours, theirs = (model.to(device) for model in pair(case.size, case.num_labels, case.task))
    own, usual = batches(case)
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        losses = [loss_of(m, to_device(b, device)).item() for m, b in ((ours, own), (theirs, usual))]
    error = abs(losses[0] - losses[1]) / losses[1]
    if device.type == "cuda":
        own, usual = ({k: v.pin_memory() for k, v in batch.items()} for batch in (own, usual))
    if compiled:
        compile_blocks(ours, device)
    timing = paired(
        stepper(ours.train(), build_optimizer(ours, OptimSection(), 6e-5), own, device, steps),
        stepper(theirs.train(), torch.optim.AdamW(theirs.parameters(), lr=6e-5), usual, device, steps),
        repeats, 1,
    )  # fmt: skip
    pictures = steps * case.batch
    note = (
        f"{pictures / timing.ours:.0f} against {pictures / timing.theirs:.0f} pictures per second; before the first "
        f"step the loss in float32 differs by {error:.1e} (at most {TOLERANCE:g}); "
        f"quartiles {timing.quartiles[0]:.2f} to {timing.quartiles[1]:.2f}"
    )
    name = case.name + (", compiled" if compiled else "")
    times = timing.ours / steps, timing.theirs / steps, timing.ratio
    return Result(name, *times, *TARGETS, error <= TOLERANCE, note)


def run(quick: bool) -> list[Result]:
    if not torch.cuda.is_available():
        return []
    repeats, gpu = 3 if quick else 9, torch.device("cuda")
    return [measure(case, gpu, STEPS, repeats, compiled=compiled) for case in CASES for compiled in (False, True)]
