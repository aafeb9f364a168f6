"""A training step (forward, loss at the labels' full size, backward) and its peak of memory, against transformers."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import Result, paired
from benchmarks.pairs import pair, pictures

TARGETS = {"b0": (1.7, 2.5), "b2": (2.1, 3.0)}
MEMORY_TARGET = (0.6, 0.4)
TOLERANCE = 1e-5
GRADIENTS = 1e-3  # a ReLU near zero falls to one side or the other by rounding alone

# transformers' name of a parameter, ours: one at each depth, so that a gradient lost anywhere shows.
PARAMETERS = [
    ("decode_head.classifier.weight", "decoder.classifier.weight"),
    ("decode_head.batch_norm.weight", "decoder.norm.weight"),
    ("decode_head.linear_fuse.weight", "decoder.fuse.weight"),
    ("segformer.stages.3.blocks.1.mlp.fc1.weight", "encoder.stages.3.blocks.1.feedforward.fc1.weight"),
    ("segformer.stages.1.blocks.0.attention.q_proj.weight", "encoder.stages.1.blocks.0.mixer.q.weight"),
    ("segformer.stages.0.patch_embeddings.proj.weight", "encoder.stages.0.stem.proj.weight"),
]


def step(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """The loss, with gradients in the parameters."""
    for parameter in model.parameters():
        parameter.grad = None
    loss = model(pixel_values=x, labels=labels).loss
    loss.backward()
    return loss.detach()


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Norm of the difference relative to the norm."""
    return ((ours - theirs).norm() / theirs.norm()).item()


def peak_bytes(model: nn.Module, x: Tensor, labels: Tensor) -> int:
    """Most bytes of tensors alive at once within a step, beyond those alive before it (torch's allocator)."""
    for parameter in model.parameters():
        parameter.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        loss = model(pixel_values=x, labels=labels).loss
        loss.backward()
    now = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def run(quick: bool) -> list[Result]:
    times, memory = [], []
    for size, (at_least, aim) in TARGETS.items():
        ours, theirs = pair(size)
        x = pictures(2, 512, 512)
        generator = torch.Generator().manual_seed(2)
        labels = torch.randint(0, 150, (2, 512, 512), generator=generator)
        labels[:, :40] = 255  # ignored, as in real labels
        for model in (ours, theirs):
            model.train()
            for module in model.modules():  # dropout and stochastic depth draw differently: off in both
                if "Drop" in type(module).__name__:
                    module.eval()
        losses = [step(model, x, labels) for model in (ours, theirs)]
        error = abs(losses[0] - losses[1]).item() / losses[1].item()
        theirs_by_name, ours_by_name = dict(theirs.named_parameters()), dict(ours.named_parameters())
        grads = max(distance(ours_by_name[b].grad, theirs_by_name[a].grad) for a, b in PARAMETERS)
        equal = error <= TOLERANCE and grads <= GRADIENTS
        note = (
            f"loss differs by {error:.1e} (at most {TOLERANCE:g}), {len(PARAMETERS)} gradients by at most {grads:.1e}"
        )
        peaks = [peak_bytes(model, x, labels) for model in (ours, theirs)]
        memory.append(
            Result(
                f"peak memory of that step {size.upper()}", peaks[0] / 2**20, peaks[1] / 2**20, peaks[0] / peaks[1],
                *MEMORY_TARGET, equal, "tensors alive at once beyond weights and input, by torch's allocator", "MiB",
            )
        )  # fmt: skip
        timing = paired(
            partial(step, ours, x, labels), partial(step, theirs, x, labels),
            1 if quick else 5, 0 if quick else 1,
        )  # fmt: skip
        note += f"; quartiles {timing.quartiles[0]:.2f} to {timing.quartiles[1]:.2f}"
        times.append(
            Result(
                f"training step 512, batch 2 {size.upper()}", timing.ours, timing.theirs, timing.ratio, at_least, aim,
                equal, note,
            )
        )  # fmt: skip
    return times + memory
