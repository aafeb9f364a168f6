"""Which picture is drawn when is a function of the seed, whatever the processes, workers and interruptions."""

from __future__ import annotations

import pytest

from nota_seg.training.sampling import StepSampler, steps_per_epoch


def sampler(**kwargs: int) -> StepSampler:
    return StepSampler(**{"pictures": 20, "batch_size": 4, "stop": 12, "seed": 1, **kwargs})  # type: ignore[arg-type]


def test_every_picture_once_an_epoch_in_a_new_order() -> None:
    batches = list(sampler())
    epochs = [[i for batch in batches[e * 5 : e * 5 + 5] for i, _ in batch] for e in range(2)]
    assert [sorted(e) for e in epochs] == [list(range(20))] * 2
    assert epochs[0] != epochs[1] and epochs[0] != list(range(20))
    seeds = [s for batch in batches for _, s in batch]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("start", [1, 5, 7, 11])
def test_continuing_skips_without_replaying(start: int) -> None:
    assert list(sampler(start=start)) == list(sampler())[start:]


def test_processes_share_a_step() -> None:
    alone = list(sampler(batch_size=4))
    first, second = (list(sampler(batch_size=2, rank=r, world=2)) for r in (0, 1))
    for whole, a, b in zip(alone, first, second, strict=True):
        assert sorted(whole) == sorted(a + b)


def test_accumulated_micro_steps_are_the_same_pictures() -> None:
    alone, accumulated = list(sampler(batch_size=4)), list(sampler(batch_size=2, accumulate=2))
    assert [x for b in alone for x in b] == [x for b in accumulated for x in b]


def test_repeats_draw_a_picture_again_with_another_seed() -> None:
    batch = next(iter(sampler(batch_size=6, repeats=3)))
    pictures = [i for i, _ in batch]
    assert len(set(pictures)) == 2 and pictures.count(pictures[0]) == 3
    assert len({s for _, s in batch}) == 6


def test_a_set_smaller_than_a_step_is_gone_round() -> None:
    batch = next(iter(sampler(pictures=3, batch_size=8)))
    assert {i for i, _ in batch} == {0, 1, 2} and len(batch) == 8
    assert steps_per_epoch(3, 8) == 1 and steps_per_epoch(20, 8) == 2
