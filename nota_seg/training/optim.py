"""Parameter groups, optimiser and schedule. The schedule counts optimiser steps, never processes or micro-steps."""

from __future__ import annotations

import torch
from timm.scheduler import CosineLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from nota_seg.config import OptimSection


def parameter_groups(model: nn.Module, config: OptimSection, lr: float) -> list[dict]:
    """Four groups: encoder and head, each with and without weight decay.

    Norms and biases (all one-dimensional parameters) do not decay. The decoder of a segmentation model learns
    `decoder_lr_scale` times as fast: it starts from nothing where the encoder was pre-trained.
    """
    groups: dict[tuple[bool, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_decoder, decays = name.startswith("decoder."), parameter.ndim > 1
        group = groups.setdefault(
            (is_decoder, decays),
            {
                "name": ("decoder" if is_decoder else "encoder") + ("" if decays else " without decay"),
                "params": [],
                "lr": lr * (config.decoder_lr_scale if is_decoder else 1.0),
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
