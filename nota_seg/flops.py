"""What a model costs: parameters and multiply-accumulates, as executed and in the textbook formulation."""

from __future__ import annotations

from typing import Any

from torch import nn

from nota_seg.models.network import Encoder, has_textbook, textbook
from util.flops import count


def parts_of(model: nn.Module) -> list[str]:
    """The encoder's stages and what stands on the encoder."""
    parts = []
    for name, child in model.named_children():
        is_ours = isinstance(child, Encoder)
        parts += [f"{name}.stages.{i}" for i in range(len(child.stages))] if is_ours else [name]
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
    config = getattr(model, "config", None)
    shape = (1, getattr(config, "in_channels", 3), *size)
    # Our models take any size, and what they keep of their weights does not depend on it. They are known by their
    # configuration: to ask for their class would import transformers.
    ours = str(getattr(config, "model_type", "")).startswith("nota_seg")
    small = (*shape[:2], 64, 64) if ours else None
    executed = count(model, shape, warm_up=small, parts=parts_of(model))
    reference = executed
    if has_textbook(model):
        with textbook(model):
            reference = count(model, shape, warm_up=small)
    return {
        "params": executed.params,
        "macs": executed.macs,
        "flops": 2 * executed.macs,
        "macs_reference": reference.macs,
        "macs_reference_without_attention": reference.macs - reference.attention,
        "by_part": executed.by_part,
        "uncounted": executed.uncounted,
        "size": list(size),
        "model": getattr(config, "zoo_name", None) or type(model).__name__,
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
