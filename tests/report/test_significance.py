"""The bootstrap against simulated models whose true difference is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

from nota_seg.picture_counts import PictureCounts, count_picture
from nota_seg.report.significance import Verdict, check_alike, judge, resampled_miou
from util.errors import InputError

K = 5
SHARES = np.array([0.4, 0.3, 0.15, 0.1, 0.05])


def simulate(rng: np.random.Generator, pictures: int, skill: tuple[float, float]) -> list[PictureCounts]:
    """Two models on the same pictures: some classes are absent, hard pictures are hard for both."""
    truth = rng.dirichlet(6 * SHARES, size=pictures) * (rng.random((pictures, K)) < 0.8)
    truth = np.rint(10_000 * truth).astype(np.int64)
    hardness = rng.normal(0, 0.6, (pictures, 1))
    runs = []
    for one in skill:
        right = 1 / (1 + np.exp(-(one + hardness + rng.normal(0, 0.4, (pictures, K)))))
        hit = np.rint(truth * right).astype(np.int64)
        wrong = (truth - hit).sum(axis=1, keepdims=True)
        predicted = hit + np.rint(wrong * SHARES).astype(np.int64)
        names, classes = [f"{i}.png" for i in range(pictures)], list("abcde")
        runs.append(PictureCounts(names, classes, {"mode": "whole"}, hit, truth, predicted))
    return runs


def test_counts_of_a_picture_add_up_to_the_confusion_matrix() -> None:
    import torch

    from nota_seg.metrics import ConfusionMatrix, scores

    rng, matrix, rows = np.random.default_rng(0), ConfusionMatrix(K), []
    for i in range(6):
        truth = rng.integers(0, K - 1, (9, 7)).astype(np.uint8)
        prediction = np.where(rng.random((9, 7)) < 0.6, truth, rng.integers(0, 3, (9, 7)))
        truth[0] = 255
        matrix.update(torch.from_numpy(prediction), torch.from_numpy(truth))
        rows.append(count_picture(f"{i}", prediction, truth, K))
    counts = PictureCounts.collect(rows, list("abcde"), {})
    assert counts.miou() == pytest.approx(scores(matrix.matrix)["miou"], abs=1e-12)
    assert counts.truth.sum() == 6 * 8 * 7
    assert np.array_equal(counts.hit.sum(axis=0), matrix.matrix.diagonal().numpy())


def test_counts_survive_the_file(tmp_path) -> None:
    before = simulate(np.random.default_rng(0), 30, (1.0, 1.0))[0]
    before.save(tmp_path / "eval.npz")
    after = PictureCounts.load(tmp_path / "eval.npz")
    assert (after.names, after.class_names, after.protocol) == (before.names, before.class_names, before.protocol)
    for key in ("hit", "truth", "predicted"):
        assert np.array_equal(getattr(after, key), getattr(before, key))
    (tmp_path / "bad.npz").write_bytes(b"no")
    for name in ("bad.npz", "nowhere.npz"):
        with pytest.raises(InputError, match="nota-seg eval --json"):
            PictureCounts.load(tmp_path / name)


def test_resampling_is_what_it_says() -> None:
    run = simulate(np.random.default_rng(1), 12, (1.0, 1.0))[0]
    rng = np.random.default_rng(7)
    for value in resampled_miou(run, samples=100, seed=7)[:5]:
        times = rng.multinomial(12, np.full(12, 1 / 12))
        drawn = np.repeat(np.arange(12), times)
        part = dataclasses.replace(run, hit=run.hit[drawn], truth=run.truth[drawn], predicted=run.predicted[drawn])
        assert value == pytest.approx(100 * part.miou())


def test_a_clear_difference_and_none() -> None:
    a, b = simulate(np.random.default_rng(2), 200, (1.0, 1.5))
    found = judge([a], [b])
    assert found.low < found.difference < found.high and found.low > 0 and found.p < 0.001
    assert found.sentence("A", "B").startswith("B is better than A by ")
    back = judge([b], [a])
    assert (back.difference, back.low, back.p) == pytest.approx((-found.difference, -found.high, found.p))
    assert "worse" in back.sentence("B", "A")
    same = judge([a], [a])
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)
    assert "cannot be told apart" in same.sentence("A", "B")
    assert judge([a], [b]) == found  # by the seed


def test_seeds_are_averaged_and_tested() -> None:
    rng = np.random.default_rng(3)
    a, b = simulate(rng, 80, (1.0, 1.3))
    worse = dataclasses.replace(a, hit=(a.hit * 0.98).astype(np.int64))
    better = dataclasses.replace(b, hit=(b.hit * 0.99).astype(np.int64))
    found = judge([a, worse], [b, better])
    expected = 50 * (b.miou() + better.miou() - a.miou() - worse.miou())
    assert found.difference == pytest.approx(expected)
    assert found.p_seeds is not None and 0 < found.p_seeds < 1 and "over seeds" in found.sentence("A", "B")
    noisy = dataclasses.replace(found, difference=2.0, low=1.5, high=2.5, p=1e-4, p_seeds=0.4)
    assert not noisy.significant and "within the spread of the seeds (p = 0.4 over seeds)" in noisy.sentence("A", "B")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(class_names=list("abcdx")), "classes"),
        (dict(names=[f"{i}.jpg" for i in range(20)]), "pictures"),
        (dict(protocol={"mode": "slide"}), "mode whole and slide"),
        (dict(truth=np.ones((20, K), dtype=np.int64)), "labels"),
    ],
)
def test_unlike_runs_are_refused(change: dict, message: str) -> None:
    a, b = simulate(np.random.default_rng(4), 20, (1.0, 1.0))
    with pytest.raises(InputError, match=f"base and new were not evaluated alike.*{message}"):
        check_alike([a, dataclasses.replace(b, **change)], ["base", "new"])


@pytest.mark.slow
@pytest.mark.parametrize("pictures", [25, 100])
def test_the_interval_covers_the_truth_as_often_as_it_says(pictures: int) -> None:
    """600 simulated validation sets: 95 % nominal, 92.5 to 97.5 % found (the own error of the simulation: 0.9 %)."""
    skill = (1.0, 1.15)
    a, b = simulate(np.random.default_rng(0), 400_000, skill)
    truth = 100 * (b.miou() - a.miou())
    inside, verdicts = 0, []
    for seed in range(600):
        a, b = simulate(np.random.default_rng(1000 + seed), pictures, skill)
        found = judge([a], [b], samples=1000, seed=seed)
        inside += found.low <= truth <= found.high
        verdicts.append(found)
    assert 0.925 <= inside / 600 <= 0.975, inside / 600
    agreement = np.mean([v.significant == (v.low > 0 or v.high < 0) for v in verdicts])
    assert agreement > 0.99  # p and the interval say the same


@pytest.mark.slow
def test_p_is_uniform_where_there_is_no_difference() -> None:
    ps = []
    for seed in range(500):
        a, b = simulate(np.random.default_rng(5000 + seed), 60, (1.0, 1.0))
        ps.append(judge([a], [b], samples=1000, seed=seed).p)
    assert stats.kstest(ps, "uniform").pvalue > 1e-3
    assert 0.03 <= np.mean(np.array(ps) < 0.05) <= 0.075  # 0.05 nominal, its own error 0.01


def test_sentence_is_the_one_promised() -> None:
    found = Verdict(difference=0.83, low=0.3, high=1.3, p=0.0101, p_seeds=None, pictures=100, samples=5000)
    assert found.sentence("A", "B") == "B is better than A by 0.8 ± 0.5 mIoU, p = 0.01"
