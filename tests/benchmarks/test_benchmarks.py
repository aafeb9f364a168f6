from __future__ import annotations

import dataclasses
import importlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import pipeline_finetune, scaling, training_gpu, validation
from benchmarks.common import Result, paired
from benchmarks.training_step import peak_bytes
from nota_seg.data.sources import open_source
from nota_seg.models.registry import DECODERS, MIXERS
from util.images import read_image, write_png


def result(ratio: float, at_least: float, aim: float, equal: bool = True) -> Result:
    return Result("x", 1.0, ratio, ratio, at_least, aim, equal)


def test_pairs_alternate_and_give_the_ratio() -> None:
    order: list[str] = []

    def work(name: str, seconds: float) -> None:
        order.append(name)
        time.sleep(seconds)

    timing = paired(lambda: work("ours", 0.01), lambda: work("theirs", 0.04), repeats=4, warmup=1)
    assert order[:4] == ["ours", "theirs", "theirs", "ours"] and len(order) == 10
    assert 2 < timing.ratio < 5 and timing.quartiles[0] <= timing.ratio <= timing.quartiles[1]


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (result(3.0, 2, 3), "aim"),
        (result(2.9, 2, 3), "reached"),
        (result(1.9, 2, 3), "missed"),
        (result(9.0, 2, 3, equal=False), "NOT EQUAL"),
        (result(0.4, 0.6, 0.4), "aim"),  # memory: smaller is better
        (result(0.5, 0.6, 0.4), "reached"),
        (result(0.7, 0.6, 0.4), "missed"),
    ],
)
def test_verdict(row: Result, verdict: str) -> None:
    assert row.verdict == verdict and verdict in command.table([row])


def test_every_listed_benchmark_can_run() -> None:
    for name in command.BENCHMARKS:
        assert callable(importlib.import_module(f"benchmarks.{name}").run)


@pytest.fixture
def threads() -> Iterator[None]:
    """The command sets their number."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_command_writes_json_and_fails_where_results_differ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("benchmarks.start.run", lambda quick: [result(3, 2, 3, equal=False)])
    assert command.main(["start", "--json", str(tmp_path / "b.json")]) == 1
    written = json.loads((tmp_path / "b.json").read_text())
    assert written["results"][0]["verdict"] == "NOT EQUAL" and written["machine"]["threads"] == 1


@pytest.mark.usefixtures("threads")
def test_command_says_what_this_machine_cannot_measure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("benchmarks.start.run", lambda quick: [result(3, 2, 3)])
    assert command.main(["start", "training_gpu"]) == 0
    assert "training_gpu: not measured, there is no GPU here" in capsys.readouterr().out


@pytest.mark.parametrize("case", training_gpu.CASES, ids=lambda case: case.task)
def test_training_of_both_starts_from_the_same_loss(case: training_gpu.Case) -> None:
    small = dataclasses.replace(case, size="b0", num_labels=7, side=64, batch=2)
    row = training_gpu.measure(small, torch.device("cpu"), steps=1, repeats=1)
    assert row.equal and row.ratio > 0 and row.name == case.name and "pictures per second" in row.note


def test_peak_of_memory() -> None:
    class Model(torch.nn.Module):
        def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> object:
            class Output:
                loss = (torch.zeros(1 << 20) + torch.zeros(1 << 20).requires_grad_()).sum()  # 3 x 4 MiB at once

            return Output()

    assert 12 << 20 <= peak_bytes(Model(), torch.zeros(1), torch.zeros(1)) < 17 << 20


def test_validation_without_real_pictures_reads_the_same_on_both_sides(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from benchmarks.validation_peer import Pictures

    monkeypatch.delenv("NOTA_SEG_DATA", raising=False)
    root, what = validation.data(tmp_path, 2)
    ours, theirs = open_source(str(root)), Pictures(root)
    assert what == "2 drawn scenes" and ours.splits["val"] == len(theirs) == 2
    for i in range(2):
        assert np.array_equal(ours.read("val", i)[1], theirs[i][1].numpy())


def test_fine_tuning_takes_real_pictures_of_its_size_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = tmp_path / "ADEChallengeData2016"
    for i, size in enumerate((pipeline_finetune.SIZE, (64, 64), pipeline_finetune.SIZE)):
        for kind, array in (("images", np.zeros((*size, 3), np.uint8)), ("annotations", np.full(size, i, np.uint8))):
            write_png(root / kind / "training" / f"{i}.png", array)
        (root / "images" / "training" / f"{i}.png").rename(root / "images" / "training" / f"{i}.jpg")
    monkeypatch.setenv("NOTA_SEG_DATA", str(tmp_path))
    found = pipeline_finetune.real()
    assert [int(mask.max()) for _, mask in found] == [0, 2]
    assert all(read_image(file).shape[:2] == mask.shape == pipeline_finetune.SIZE for file, mask in found)
    monkeypatch.setenv("NOTA_SEG_DATA", str(tmp_path / "elsewhere"))
    assert pipeline_finetune.real() == []


def test_scaling_knows_every_component(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(scaling, "SIZES", [(64, 64), (64, 128)])
    rows = scaling.measure(repeats=1)
    assert [r["name"] for r in rows["mixers"]] == MIXERS.names()
    assert [r["name"] for r in rows["decoders"]] == DECODERS.names()
    by_name = {r["name"]: r for r in rows["mixers"] + rows["decoders"]}
    assert by_name["mlp"]["macs_exponent"] == pytest.approx(1, abs=0.01)
    assert by_name["sra"]["macs_exponent"] > 1
    scaling.plot(rows, tmp_path / "s.png")
    assert (tmp_path / "s.png").stat().st_size > 1000
