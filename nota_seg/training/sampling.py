"""Which picture is drawn when, as a function of the seed alone.

Resuming at step N reads the same pictures with the same augmentation as a run that was never interrupted, for any
number of loader workers, and without replaying the data before N.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from util.seed import derive

Key = tuple[int, int]  # picture, seed of its augmentation


class StepSampler(Sampler[list[Key]]):
    """Micro-batches of one process, from step `start` to step `stop`, across epochs.

    Args:
        pictures: Size of the training set.
        batch_size: Pictures per process and micro-step.
        accumulate: Micro-steps per optimiser step.
        start: First optimiser step.
        stop: One past the last.
        seed: Of the run.
        rank: This process.
        world: Processes. Their batches are disjoint; 2 x 8 pictures are the same set as 1 x 16.
        repeats: Draws of a picture within an epoch (repeated augmentation); the epoch keeps its length.
    """

    def __init__(
        self,
        pictures: int,
        batch_size: int,
        *,
        accumulate: int = 1,
        start: int = 0,
        stop: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        repeats: int = 1,
    ) -> None:
        self.pictures, self.batch_size, self.accumulate = pictures, batch_size, accumulate
        self.start, self.stop, self.seed = start, stop, seed
        self.rank, self.world, self.repeats = rank, world, repeats
        self.per_step = batch_size * accumulate * world
        self.steps_per_epoch = steps_per_epoch(pictures, self.per_step)

    def __len__(self) -> int:
        return (self.stop - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        order, order_epoch = np.empty(0, dtype=np.int64), -1
        for step in range(self.start, self.stop):
            epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order, order_epoch = self._order(epoch), epoch
            for micro in range(self.accumulate):
                first = step_in_epoch * self.per_step + micro * self.batch_size * self.world + self.rank
                positions = range(first, first + self.batch_size * self.world, self.world)
                # A set smaller than one step is gone round more than once.
                yield [(int(order[p % len(order)]), derive(self.seed, "picture", epoch, p)) for p in positions]

    def _order(self, epoch: int) -> np.ndarray:
        order = np.random.default_rng(derive(self.seed, "order", epoch)).permutation(self.pictures)
        return np.repeat(order, self.repeats)[: self.pictures]


def steps_per_epoch(pictures: int, per_step: int) -> int:
    """Optimiser steps in an epoch: whole ones; at least one."""
    return max(1, pictures // per_step)
