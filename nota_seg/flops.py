"""What a model costs: parameters and multiply-accumulates, as executed and in the textbook formulation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from nota_seg.models import create_config, create_model
from nota_seg.models.modeling import textbook
from nota_seg.models.zoo import family_of
from util.flops import count


def parts_of(model: nn.Module) -> list[str]:
    """The encoder's stages and what stands on the encoder."""
    parts = []
    for name, child in model.named_children():
        stages = getattr(child, "stages", None)
        parts += [f"{name}.stages.{i}" for i in range(len(stages))] if stages is not None else [name]
    return parts


def cost(model: nn.Module, size: tuple[int, int] = (512, 512)) -> dict[str, Any]:
    """Cost of one picture.

    Args:
        model: Ours, or any that returns logits.
        size: (height, width) in pixels.

    Returns:
        `params`; `macs` as executed and `flops`, twice that; `macs_reference`, where every component computes in the
        order of its paper, and without its attention products (what tools print that see only layers); `by_part` of
        `macs`; `uncounted`, which is empty, as an unknown operator raises; `size` and the `model`'s name.
    """
    shape = (1, getattr(getattr(model, "config", None), "in_channels", 3), *size)
    executed = count(model, shape, parts=parts_of(model))
    with textbook(model):
        reference = count(model, shape)
    return {
        "params": executed.params,
        "macs": executed.macs,
        "flops": 2 * executed.macs,
        "macs_reference": reference.macs,
        "macs_reference_without_attention": reference.macs - reference.attention,
        "by_part": executed.by_part,
        "uncounted": executed.uncounted,
        "size": list(size),
        "model": getattr(getattr(model, "config", None), "zoo_name", None) or type(model).__name__,
    }


def format_cost(result: dict[str, Any]) -> str:
    """For people: totals, then where the multiplications are."""
    lines = [
        f"params               {result['params'] / 1e6:10.3f} M",
        f"MACs as executed     {result['macs'] / 1e9:10.3f} G   ({result['flops'] / 1e9:.3f} GFLOPs)",
        f"MACs in the textbook {result['macs_reference'] / 1e9:10.3f} G   "
        f"({result['macs_reference_without_attention'] / 1e9:.3f} G without attention products)",
        "by part, as executed",
    ]
    total = max(1, result["macs"])
    lines += [f"  {name:20} {macs / 1e9:9.3f} G {100 * macs / total:5.1f}%" for name, macs in result["by_part"].items()]
    return "\n".join(lines)


def model_table(names: Sequence[str], *, progress: Callable[[int], object] | None = None) -> list[dict[str, Any]]:
    """What `nota-seg models` shows of each name: family, components, cost at 512x512 with 150 classes.

    The blocks of a stage cost the same, so a model of one block a stage is counted and its blocks are multiplied: B5
    takes no longer than B0, and models that differ in depth alone are counted once.
    """
    rows, known = [], {}
    for name in names:
        config = create_config(name)
        depths = [s["depth"] for s in config.stages]
        shallow = json.dumps([{**s, "depth": 1} for s in config.stages] + [config.decoder])
        if shallow not in known:
            known[shallow] = _by_block(create_model(name, depths=[1] * len(depths)))
        executed, reference = (whole + sum(b * (d - 1) for b, d in zip(blocks, depths, strict=True))
                               for whole, blocks in known[shallow])  # fmt: skip
        with torch.device("meta"):
            params = sum(p.numel() for p in create_model(name).parameters())
        rows.append(
            {
                "name": name,
                "family": family_of(name),
                "components": config.components(),
                "params": params,
                "gmacs": round(executed / 1e9, 3),
                "gmacs_reference": round(reference / 1e9, 3),
            }
        )
        if progress is not None:
            progress(1)
    return rows


def _by_block(model: Any) -> list[tuple[int, list[int]]]:
    """MACs of the whole model and of the first block of each stage, as executed and in the textbook order."""
    blocks = [f"encoder.stages.{i}.blocks.0" for i in range(len(model.config.stages))]
    result = []
    for context in (nullcontext(), textbook(model)):
        with context:
            counted = count(model, (1, 3, 512, 512), parts=blocks)
        result.append((counted.macs, [counted.by_part[b] for b in blocks]))
    return result
