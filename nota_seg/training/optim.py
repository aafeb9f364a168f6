"""Parameter groups, optimiser and schedule. The schedule counts optimiser steps, never processes or micro-steps."""

from __future__ import annotations

import torch
from timm.scheduler import CosineLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from nota_seg.config import OptimSection
from nota_seg.models.modeling import NotaSegPreTrainedModel

HEADS = ("decoder.", "neck.", "auxiliary.")
UNDECAYED = ("cls_token", "position_embeddings")  # beside everything one-dimensional


def parameter_groups(model: nn.Module, config: OptimSection, lr: float) -> list[dict]:
    """Four groups: encoder and head, each with and without weight decay; with `layer_decay` two for each layer.

    Norms and biases (all one-dimensional parameters) do not decay. The decoder of a segmentation model learns
    `decoder_lr_scale` times as fast: it starts from nothing where the encoder was pre-trained. `layer_decay` is BEiT's
    (arXiv 2106.08254): of L blocks, the layer numbered n learns at rate^(L + 1 - n), see the model's `layer_of`.
    """
    rate = config.layer_decay if isinstance(model, NotaSegPreTrainedModel) else None
    groups: dict[tuple[int, bool, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_decoder, decays = name.startswith(HEADS), parameter.ndim > 1 and not name.endswith(UNDECAYED)
        layer, scale = 0, config.decoder_lr_scale if is_decoder else 1.0
        if rate is not None:
            layer = model.layer_of(name)
            scale *= rate ** (model.layers + 1 - layer)
        part = "decoder" if is_decoder else "encoder" if rate is None else f"layer {layer}"
        group = groups.setdefault(
            (layer, is_decoder, decays),
            {
                "name": part + ("" if decays else " without decay"),
                "params": [],
                "lr": lr * scale,
                "weight_decay": config.weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def build_optimizer(model: nn.Module, config: OptimSection, lr: float) -> torch.optim.Optimizer:
    """AdamW, fused where all parameters are on a GPU."""
    fused = all(p.is_cuda for p in model.parameters())
    return torch.optim.AdamW(parameter_groups(model, config, lr), lr=lr, betas=config.betas, fused=fused)


def warmup_steps(config: OptimSection, total_steps: int, per_epoch: int) -> int:
    """Warm-up in optimiser steps: what is configured, but at most its share of the run."""
    wanted = config.warmup_steps if config.warmup_epochs is None else round(config.warmup_epochs * per_epoch)
    return min(wanted, int(config.warmup_share * total_steps))


def build_schedule(
    optimizer: torch.optim.Optimizer, config: OptimSection, total_steps: int, per_epoch: int
) -> Scheduler:
    """A timm schedule; `step_update(n)` sets the learning rates of the n-th (0-based) optimiser step."""
    warmup = warmup_steps(config, total_steps, per_epoch)
    common = dict(t_initial=total_steps, warmup_t=warmup, warmup_lr_init=0.0, t_in_epochs=False)
    if config.schedule == "cosine":
        return CosineLRScheduler(optimizer, lr_min=config.min_lr, **common)
    power = config.power if config.schedule == "poly" else 0.0  # (1 - t / T)^0 is constant
    return PolyLRScheduler(optimizer, lr_min=config.min_lr if power else 0.0, power=power, **common)
