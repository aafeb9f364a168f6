"""Parameter groups, optimiser and schedule. The schedule counts optimiser steps, never processes or micro-steps."""

from __future__ import annotations

import inspect
import math
import warnings
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler import CosineLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import lr_scheduler

from nota_seg.config import OptimSection
from nota_seg.models.modeling import NotaSegPreTrainedModel
from util.errors import InputError, did_you_mean

HEADS = ("decoder.", "neck.", "auxiliary.")
UNDECAYED = ("cls_token", "position_embeddings")  # beside everything one-dimensional
# Those whose step needs more than gradients: second derivatives, or the loss as a function.
_OTHER_STEPS = {"adahessian", "lbfgs", "sparseadam"}
# What an optimiser answers to arguments, parameters or a machine that it does not take.
_REFUSALS = (TypeError, ValueError, AssertionError, ImportError, RuntimeError, IndexError)


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
    """AdamW, fused where all parameters are on a GPU; or another by name, timm's before torch's.

    Raises:
        InputError: Unknown name, or arguments that it does not take.
    """
    groups = parameter_groups(model, config, lr)
    if config.name == "adamw" and not config.args:
        fused = all(p.is_cuda for p in model.parameters())
        return torch.optim.AdamW(groups, lr=lr, betas=config.betas, fused=fused)
    name = config.name.lower()
    of_timm = [n for n in list_optimizers() if n not in _OTHER_STEPS]
    classes: dict[str, Any] = {n.lower(): cls for n, cls in vars(torch.optim).items() if inspect.isclass(cls)}
    of_torch = {n: cls for n, cls in classes.items() if n not in {"optimizer", *_OTHER_STEPS}}
    try:
        if name in of_timm:
            betas = {"betas": config.betas} if get_optimizer_info(name).num_betas == 2 else {}
            return create_optimizer_v2(groups, opt=name, lr=lr, weight_decay=0.0, **{**betas, **config.args})
        if name in of_torch:
            return of_torch[name](groups, lr=lr, **config.args)
    except _REFUSALS as error:
        raise InputError(f"optim.name={config.name} with optim.args={config.args}: {error}") from error
    raise InputError(f"optim.name: unknown {config.name!r}: {did_you_mean(name, [*of_timm, *of_torch])}")


def warmup_steps(config: OptimSection, total_steps: int, per_epoch: int) -> int:
    """Warm-up in optimiser steps: what is configured, but at most its share of the run."""
    wanted = config.warmup_steps if config.warmup_epochs is None else round(config.warmup_epochs * per_epoch)
    return min(wanted, int(config.warmup_share * total_steps))


def build_schedule(
    optimizer: torch.optim.Optimizer, config: OptimSection, total_steps: int, per_epoch: int
) -> Scheduler:
    """A timm schedule; `step_update(n)` sets the learning rates of the n-th (0-based) optimiser step.

    The rates are a function of n alone, so that a run goes on from any step without replaying those before.
    """
    warmup = warmup_steps(config, total_steps, per_epoch)
    if config.schedule in _TABLES:
        return _Table(optimizer, table(config, total_steps, warmup), warmup, config.min_lr)
    if config.schedule_args:
        raise InputError(f"optim.schedule={config.schedule} takes no schedule_args: power, min_lr and warm-up are keys")
    common = dict(t_initial=total_steps, warmup_t=warmup, warmup_lr_init=0.0, t_in_epochs=False)
    if config.schedule == "cosine":
        return CosineLRScheduler(optimizer, lr_min=config.min_lr, **common)
    power = config.power if config.schedule == "poly" else 0.0  # (1 - t / T)^0 is constant
    return PolyLRScheduler(optimizer, lr_min=config.min_lr if power else 0.0, power=power, **common)


_TABLES: dict[str, type[lr_scheduler.LRScheduler]] = {
    "cosine_restarts": lr_scheduler.CosineAnnealingWarmRestarts,
    "step": lr_scheduler.StepLR,
    "multistep": lr_scheduler.MultiStepLR,
    "exponential": lr_scheduler.ExponentialLR,
    "onecycle": lr_scheduler.OneCycleLR,
}


class _Table(Scheduler):
    """A linear warm-up, then min_lr + (peak - min_lr) * factors[step]."""

    def __init__(self, optimizer: torch.optim.Optimizer, factors: list[float], warmup: int, min_lr: float) -> None:
        super().__init__(optimizer, param_group_field="lr", t_in_epochs=False)
        self.factors, self.warmup, self.min_lr = factors, warmup, min_lr

    def _get_lr(self, t: int) -> list[float]:
        if t < self.warmup:
            return [peak * t / self.warmup for peak in self.base_values]
        factor = self.factors[min(t, len(self.factors) - 1)]
        return [self.min_lr + (peak - self.min_lr) * factor for peak in self.base_values]


def table(config: OptimSection, total_steps: int, warmup: int) -> list[float]:
    """What torch's schedule multiplies a learning rate of 1 with, step by step.

    Arguments are torch's, with defaults that follow from the run's length. `cosine_restarts` also takes `gamma`, the
    peak of each cycle relative to the one before, and `T_up`, steps of linear rise at the start of each cycle.
    `onecycle` rises over the warm-up by itself.
    """
    kind, given = _TABLES[config.schedule], dict(config.schedule_args)
    third = max(1, math.ceil(total_steps / 3))
    defaults: dict[str, dict[str, Any]] = {
        "cosine_restarts": {"T_0": third, "gamma": 1.0, "T_up": 0},
        "step": {"step_size": third},
        "multistep": {"milestones": [int(total_steps * 0.6), int(total_steps * 0.9)]},  # of 160k: 96k, 144k
        "exponential": {"gamma": 0.01 ** (1 / total_steps)},  # ends at a hundredth
        "onecycle": {"pct_start": max(2, warmup) / max(4, total_steps), "cycle_momentum": False},
    }
    taken = [*inspect.signature(kind.__init__).parameters, *defaults[config.schedule]]
    known = [k for k in dict.fromkeys(taken) if k not in ("self", "optimizer", "last_epoch", "max_lr", "total_steps")]
    for key in given:
        if key not in known:
            raise InputError(f"optim.schedule={config.schedule} has no argument {key!r}: {did_you_mean(key, known)}")
    options = {**defaults[config.schedule], **given}
    gamma, rise = 1.0, 0
    if config.schedule == "cosine_restarts":
        gamma, rise = options.pop("gamma"), options.pop("T_up")
    if config.schedule == "onecycle":
        options |= {"max_lr": 1.0, "total_steps": max(4, total_steps)}
    toy = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # this optimiser never steps
            schedule = kind(toy, **options)
            factors = []
            for _ in range(total_steps):
                factors.append(float(toy.param_groups[0]["lr"]))
                if len(factors) < total_steps:
                    schedule.step()
        if config.schedule == "cosine_restarts":
            factors = _cycles(factors, int(options["T_0"]), int(options.get("T_mult", 1)), float(gamma), int(rise))
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"optim.schedule={config.schedule} with {given}: {error}") from error
    return factors


def _cycles(factors: list[float], length: int, growth: int, gamma: float, rise: int) -> list[float]:
    """Cosine cycles with lower and lower peaks and a linear rise before each."""
    if not 0 <= rise < length:
        raise ValueError(f"T_up must be from 0 to T_0 - 1 = {length - 1}, got {rise}")
    result, start, peak = list(factors), 0, 1.0
    while start < len(result):
        for i in range(start, min(start + length, len(result))):
            result[i] = peak * (i - start + 1) / (rise + 1) if i - start < rise else peak * factors[i]
        start, length, peak = start + length, length * growth, peak * gamma
    return result


def rehearse(config: OptimSection) -> None:
    """Step a toy once, so that a wrong name or argument is told before anything is written."""
    toy = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = build_optimizer(toy, config, config.lr)
    build_schedule(optimizer, config, 1000, 100).step_update(0)
    toy(torch.ones(2, 4)).sum().backward()
    try:
        optimizer.step()
    except _REFUSALS as error:
        raise InputError(f"optim.name={config.name} with optim.args={config.args}: {error}") from error
