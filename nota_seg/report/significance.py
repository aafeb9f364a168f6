"""Is a difference in mIoU real? A paired bootstrap over the pictures of the validation set.

mIoU is one ratio of sums over all pictures, so there is no per-picture score to test: the pictures are drawn anew with
replacement, the same draw for both models, and the whole confusion is summed again (Efron & Tibshirani 1993, ch. 16).
The percentile interval is widened for small sets as in Hesterberg, arXiv 1411.5279, section 5.3, and the p-value is the
level at which that interval just touches zero, so the two never contradict each other.

The interval covers the choice of pictures. It does not cover the seed: train several and look at their spread too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from nota_seg.picture_counts import PictureCounts
from util.errors import InputError

SAMPLES = 5000
LEVEL = 0.95
_CHUNK = 2**22  # draws held at once


@dataclass(frozen=True)
class Verdict:
    """How much better b is than a; mIoU in points (0..100).

    Attributes:
        difference: mIoU of b minus that of a; of means over their seeds, where there are several.
        low: Lower end of the interval of `level`.
        high: Upper end.
        p: Two-sided, over the pictures.
        p_seeds: Two-sided Welch test over the seeds; None unless both have at least two.
        pictures: In the validation set.
        samples: Of the bootstrap.
        level: Of the interval.
    """

    difference: float
    low: float
    high: float
    p: float
    p_seeds: float | None
    pictures: int
    samples: int
    level: float = LEVEL

    @property
    def margin(self) -> float:
        return (self.high - self.low) / 2

    @property
    def significant(self) -> bool:
        """Over the pictures, and over the seeds where these were tested."""
        return self.p < 1 - self.level and (self.p_seeds is None or self.p_seeds < 1 - self.level)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def sentence(self, a: str, b: str) -> str:
        """`B is better than A by 0.8 ± 0.5 mIoU, p = 0.01`."""
        size = f"{abs(self.difference):.1f} ± {self.margin:.1f} mIoU, {format_p(self.p)}"
        over_seeds = f"{format_p(self.p_seeds)} over seeds" if self.p_seeds is not None else ""
        if self.significant:
            how = "better" if self.difference > 0 else "worse"
            return f"{b} is {how} than {a} by {size}" + (f", {over_seeds}" if over_seeds else "")
        if self.p < 1 - self.level:
            how = "above" if self.difference > 0 else "below"
            return f"{b} is {how} {a} by {size} with these weights, but within the spread of the seeds ({over_seeds})"
        text = f"{b} and {a} cannot be told apart: {self.difference:+.1f} ± {self.margin:.1f} mIoU, {format_p(self.p)}"
        return text + (f", {over_seeds}" if over_seeds else "")


def format_p(p: float | None) -> str:
    """`p = 0.01`."""
    return "" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def check_alike(runs: Sequence[PictureCounts], names: Sequence[str]) -> None:
    """Refuse runs that were not judged alike: pictures, classes and protocol must be the same.

    Raises:
        InputError: They differ; it says which runs and in what.
    """
    first, who = runs[0], names[0]
    for run, name in zip(runs[1:], names[1:], strict=True):
        if run.class_names != first.class_names:
            what = f"{len(first.class_names)} and {len(run.class_names)} classes, or other names of them"
        elif run.names != first.names:
            what = f"{len(first.names)} and {len(run.names)} pictures, or other ones"
        elif not np.array_equal(run.truth, first.truth):
            what = "other labels on the same pictures"
        elif run.protocol != first.protocol:
            keys = sorted(k for k in {*run.protocol, *first.protocol} if run.protocol.get(k) != first.protocol.get(k))
            what = ", ".join(f"{k} {first.protocol.get(k)} and {run.protocol.get(k)}" for k in keys)
        else:
            continue
        raise InputError(
            f"{who} and {name} were not evaluated alike ({what}): run `nota-seg eval --json` alike on both"
        )


def resampled_miou(run: PictureCounts, *, samples: int = SAMPLES, seed: int = 0) -> np.ndarray:
    """mIoU of `samples` draws of as many pictures with replacement: (samples,), points.

    The draws depend on the number of pictures, `samples` and `seed` alone: arrays of two runs on the same pictures are
    paired, element by element.
    """
    pictures = len(run.names)
    if pictures < 2 or samples < 100:
        raise InputError(f"a bootstrap needs at least 2 pictures and 100 samples, got {pictures} and {samples}")
    hit, union = run.hit.astype(np.float64), run.union.astype(np.float64)  # exact below 2**53 pixels
    rng = np.random.default_rng(seed)
    result = np.empty(samples)
    step = max(1, _CHUNK // pictures)
    for start in range(0, samples, step):
        size = min(step, samples - start)
        times = rng.multinomial(pictures, np.full(pictures, 1 / pictures), size=size).astype(np.float64)
        hits, unions = times @ hit, times @ union
        seen = unions > 0
        iou = np.divide(hits, unions, out=np.zeros_like(hits), where=seen)
        result[start : start + size] = 100 * iou.sum(axis=1) / np.maximum(seen.sum(axis=1), 1)
    return result


def judge(
    a: Sequence[PictureCounts],
    b: Sequence[PictureCounts],
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    names: tuple[str, str] = ("A", "B"),
) -> Verdict:
    """Compare two models, each given by the counts of one seed or several.

    Raises:
        InputError: They were not evaluated alike.
    """
    check_alike([*a, *b], [names[0]] * len(a) + [names[1]] * len(b))
    draws_a, draws_b = (
        np.mean([resampled_miou(r, samples=samples, seed=seed) for r in runs], axis=0) for runs in (a, b)
    )
    scores = [[100 * run.miou() for run in runs] for runs in (a, b)]
    return verdict(draws_a, draws_b, scores[0], scores[1], pictures=len(a[0].names))


def verdict(
    draws_a: np.ndarray,
    draws_b: np.ndarray,
    scores_a: Sequence[float],
    scores_b: Sequence[float],
    *,
    pictures: int,
    level: float = LEVEL,
) -> Verdict:
    """The verdict from paired draws (means over seeds) and the scores of each seed, points all."""
    draws = draws_b - draws_a
    # An interval of normal quantiles of the draws would be too narrow by t against z and by n - 1 against n.
    widen = math.sqrt(pictures / (pictures - 1))
    tail = stats.norm.cdf(widen * stats.t.ppf((1 - level) / 2, pictures - 1))
    low, high = np.quantile(draws, [tail, 1 - tail])
    # Draws that are exactly zero (equal models) speak for both sides alike.
    ties = (draws == 0).sum() / 2
    side = (min((draws < 0).sum(), (draws > 0).sum()) + ties + 0.5) / (len(draws) + 1)
    p = 2 * stats.t.cdf(stats.norm.ppf(min(side, 0.5)) / widen, pictures - 1)
    p_seeds = None
    if min(len(scores_a), len(scores_b)) > 1 and np.ptp(scores_a) + np.ptp(scores_b) > 0:
        p_seeds = float(stats.ttest_ind(scores_b, scores_a, equal_var=False).pvalue)
    return Verdict(
        difference=float(np.mean(scores_b) - np.mean(scores_a)),
        low=float(low),
        high=float(high),
        p=float(min(1.0, p)),
        p_seeds=p_seeds,
        pictures=pictures,
        samples=len(draws),
        level=level,
    )
