"""Groups and schedules by the recipe."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from nota_seg import create_model
from nota_seg.config import FinetuneConfig, OptimSection, build
from nota_seg.training.optim import build_optimizer, build_schedule, parameter_groups, rehearse, warmup_steps
from util.errors import InputError


def test_groups() -> None:
    model = create_model("segformer-b0", num_labels=3, depths=[1, 1, 1, 1])
    groups = {g["name"]: g for g in parameter_groups(model, OptimSection(), lr=1e-3)}
    assert set(groups) == {"encoder", "encoder without decay", "decoder", "decoder without decay"}
    assert groups["encoder"]["lr"] == 1e-3 and groups["decoder"]["lr"] == pytest.approx(1e-2)
    assert groups["encoder"]["weight_decay"] == 0.01 and groups["encoder without decay"]["weight_decay"] == 0
    counted = sum(p.numel() for g in groups.values() for p in g["params"])
    assert counted == sum(p.numel() for p in model.parameters())
    undecayed = {id(p) for n in groups if "without" in n for p in groups[n]["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in undecayed) == (name.endswith("bias") or ".norm" in name), name


def rates(config: OptimSection, total: int, per_epoch: int = 10) -> list[float]:
    optimizer = build_optimizer(torch.nn.Linear(2, 2), config, config.lr)
    schedule = build_schedule(optimizer, config, total, per_epoch)
    result = []
    for step in range(total):
        schedule.step_update(step)
        result.append(optimizer.param_groups[0]["lr"])
    return result


def test_poly_is_linear_to_zero_after_the_warm_up() -> None:
    lr = rates(OptimSection(lr=1.0, warmup_steps=10), 100)
    assert lr[:10] == pytest.approx([i / 10 for i in range(10)])
    assert lr[10:] == pytest.approx([1 - i / 100 for i in range(10, 100)])


def test_cosine_ends_at_the_minimum() -> None:
    config = OptimSection(lr=1.0, schedule="cosine", min_lr=0.1, warmup_epochs=1)
    lr = rates(config, 200)
    assert lr[5] == pytest.approx(0.5)
    assert lr[100] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert lr[-1] == pytest.approx(0.1, abs=1e-3)


def test_constant_is_constant() -> None:
    assert rates(OptimSection(lr=0.5, schedule="constant", warmup_steps=0), 5) == [0.5] * 5


def test_warm_up_never_eats_a_short_run() -> None:
    assert warmup_steps(OptimSection(), 200, 10) == 20
    assert warmup_steps(OptimSection(), 160_000, 10) == 1500
    assert warmup_steps(OptimSection(warmup_epochs=5), 3000, 10) == 50


@pytest.mark.parametrize("name", ["adamw", "sgd", "adam", "radam", "nadamw", "lion", "lamb", "adan", "rmsprop", "ASGD"])
def test_optimisers_by_name_keep_the_groups(name: str) -> None:
    model = create_model("segformer-b0", num_labels=3, depths=[1, 1, 1, 1], dims=[8, 8, 8, 8], heads=[1, 1, 1, 1])
    config = OptimSection(name=name, lr=1e-3, weight_decay=0.02)
    groups = {g["name"]: g for g in build_optimizer(model, config, 1e-3).param_groups}
    assert set(groups) == {"encoder", "encoder without decay", "decoder", "decoder without decay"}
    assert groups["decoder"]["lr"] == pytest.approx(1e-2) and groups["encoder without decay"]["weight_decay"] == 0
    assert groups["encoder"]["weight_decay"] == 0.02
    rehearse(config)


def test_arguments_reach_the_optimiser() -> None:
    def first(**section: object) -> dict:
        return build_optimizer(torch.nn.Linear(2, 2), OptimSection(**section), 1.0).param_groups[0]

    assert first(name="sgd", args={"momentum": 0.8})["momentum"] == 0.8
    assert first(name="adamw", args={"eps": 1e-5})["eps"] == 1e-5
    assert first(name="radam", betas=(0.8, 0.9))["betas"] == (0.8, 0.9)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"name": "adamv"}, "did you mean 'adam"),
        ({"name": "sgd", "args": {"momentun": 0.9}}, "momentun"),
        ({"name": "lbfgs"}, "unknown 'lbfgs'"),
        ({"name": "adahessian"}, "unknown 'adahessian'"),
        ({"schedule": "step", "schedule_args": {"step": 5}}, "did you mean 'step_size'"),
        ({"schedule": "step", "schedule_args": {"step_size": "five"}}, "optim.schedule=step"),
        ({"schedule": "step", "schedule_args": {"last_epoch": 5}}, "no argument 'last_epoch'"),
        ({"schedule": "cosine_restarts", "schedule_args": {"T_0": 5, "T_up": 5}}, "T_up must be from 0 to T_0 - 1"),
        ({"schedule": "poly", "schedule_args": {"power": 2}}, "takes no schedule_args"),
    ],
)
def test_mistakes_of_optimiser_and_schedule(section: dict, words: str) -> None:
    with pytest.raises(InputError) as caught:
        rehearse(OptimSection(**section))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_steps_after_the_warm_up() -> None:
    config = OptimSection(
        lr=1.0, schedule="step", schedule_args={"step_size": 40, "gamma": 0.5}, warmup_steps=10, min_lr=0.1
    )
    lr = rates(config, 100)
    assert lr[:10] == pytest.approx([i / 10 for i in range(10)]) and lr[10:40] == [1.0] * 30
    assert lr[40:80] == pytest.approx([0.1 + 0.9 * 0.5] * 40) and lr[80:] == pytest.approx([0.1 + 0.9 * 0.25] * 20)
    lr = rates(
        OptimSection(lr=1.0, schedule="multistep", schedule_args={"milestones": [3], "gamma": 0.1}, warmup_steps=0), 5
    )
    assert lr == pytest.approx([1, 1, 1, 0.1, 0.1])
    assert rates(OptimSection(lr=1.0, schedule="exponential", warmup_steps=0), 100)[-1] == pytest.approx(0.01, rel=0.05)


def test_cosine_restarts_with_lower_peaks_and_rises() -> None:
    args = {"T_0": 10, "T_mult": 2, "gamma": 0.5, "T_up": 2}
    lr = rates(OptimSection(lr=1.0, schedule="cosine_restarts", schedule_args=args, warmup_steps=0), 60)
    for start, length, peak in ((0, 10, 1.0), (10, 20, 0.5), (30, 40, 0.25)):
        assert lr[start : start + 2] == pytest.approx([peak / 3, 2 * peak / 3])
        for i in range(2, min(length, 60 - start)):
            assert lr[start + i] == pytest.approx(peak * 0.5 * (1 + math.cos(math.pi * i / length)))


def test_onecycle_rises_over_the_warm_up_and_falls_to_nothing() -> None:
    lr = rates(OptimSection(lr=0.5, schedule="onecycle", warmup_steps=30, warmup_share=1.0), 100)
    assert lr.index(max(lr)) in (29, 30) and max(lr) == pytest.approx(0.5, rel=0.01) and lr[-1] < 1e-5
    assert all(a <= b for a, b in pairwise(lr[:30]))
    assert all(a >= b for a, b in pairwise(lr[30:]))


@pytest.mark.parametrize("schedule", ["poly", "cosine", "constant", "cosine_restarts", "step", "multistep", "onecycle"])
def test_rates_are_a_function_of_the_step_alone(schedule: str) -> None:
    config = OptimSection(lr=1.0, schedule=schedule, warmup_steps=3)
    whole = rates(config, 50)
    optimizer = build_optimizer(torch.nn.Linear(2, 2), config, config.lr)
    late = build_schedule(optimizer, config, 50, 10)
    for step in (33, 2, 49):
        late.step_update(step)
        assert optimizer.param_groups[0]["lr"] == whole[step]


@pytest.mark.parametrize("name", ["beit-t-upernet", "beit-b-upernet", "beit-l-upernet"])
def test_layer_decay_of_beit(name: str) -> None:
    """scale = rate^(L + 1 - id): 0 embeddings, block i + 1, L + 1 the rest; class token and 1-D without decay."""
    with torch.device("meta"):
        model = create_model(name, absolute_positions=True)
    recipe = build(FinetuneConfig, options={"model.name": name}).optim
    blocks, rate = model.config.depth, {"l": 0.95}.get(name[5], 0.9)
    assert recipe.layer_decay == rate and recipe.weight_decay == 0.05
    groups = parameter_groups(model, recipe, lr=1.0)
    of = {id(p): g for g in groups for p in g["params"]}
    assert len(of) == sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    for key, parameter in model.named_parameters():
        if key.startswith("encoder.embeddings"):
            layer = 0
        elif key.startswith("encoder.layers."):
            layer = int(key.split(".")[2]) + 1
        else:
            layer = blocks + 1
        group = of[id(parameter)]
        assert group["lr"] == pytest.approx(rate ** (blocks + 1 - layer)), key
        undecayed = parameter.ndim == 1 or "cls_token" in key or "position_embeddings" in key
        assert group["weight_decay"] == (0.0 if undecayed else 0.05), key
    assert len({g["name"] for g in groups}) == len(groups)


def test_layer_decay_of_ours() -> None:
    model = create_model("segformer-b0", num_labels=3, depths=[1, 2, 1, 1])
    rates = {
        id(p): g["lr"]
        for g in parameter_groups(model, OptimSection(layer_decay=0.5, decoder_lr_scale=2.0), lr=1.0)
        for p in g["params"]
    }
    encoder = model.encoder.stages
    expected = {
        encoder[0].stem.proj.weight: 0.5**6,
        encoder[0].blocks[0].mixer.q.weight: 0.5**5,
        encoder[1].stem.proj.weight: 0.5**5,
        encoder[1].blocks[1].mixer.q.weight: 0.5**3,
        encoder[1].norm.weight: 0.5**3,
        encoder[3].blocks[0].feedforward.fc1.weight: 0.5,
        model.decoder.classifier.weight: 2.0,
    }
    for parameter, rate in expected.items():
        assert rates[id(parameter)] == pytest.approx(rate)
