"""The search: exhaustive against itself, honest about budgets, the same by the seed; its results build as they say."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from nota_seg import search as module
from nota_seg.cli import main
from nota_seg.config import FinetuneConfig, PretrainConfig, build
from nota_seg.flops import cost
from nota_seg.models.zoo import create_config, create_model
from nota_seg.search import Space, front, search
from util.errors import InputError

SMALL: dict[str, Any] = dict(
    mixers=["sra", "pool"], feedforwards=["mix"], skips=["add", "rskip"], decoders=["mlp", "hamburger"],
    dims=[[16, 32, 64, 96], [32, 64, 160, 256]], depths=[[1, 1, 1, 1], [1, 2, 2, 1]],
)  # fmt: skip
AT: dict[str, Any] = dict(size=(64, 96), num_labels=7)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return search(Space(**SMALL), max_params=2.0, **AT)


def test_the_front_is_what_no_other_beats(found: dict[str, Any]) -> None:
    space = Space(**SMALL)
    assert found["counted"] == found["space"] == len(space) == 2**4 * 2 * 2 * 2 * 2
    counter, every = module.PieceCounter(), []
    for choice in space.choices(10**6, 0):
        model = create_config("segformer-b0", num_labels=7, **space.overrides(choice))
        every.append(counter.cost(model, (64, 96)))
    fitting = [(p, m) for p, m in every if p <= 2e6]
    assert len(fitting) == found["fitting"] < len(every)
    best = {(p, m) for p, m in fitting if not any(q >= p and n <= m and (q, n) != (p, m) for q, n in fitting)}
    got = [(row["params"], row["gmacs"]) for row in found["front"]]
    assert got == [(p, round(m / 1e9, 3)) for p, m in sorted(best, reverse=True)][: len(got)]
    assert len(got) == min(20, len(best))


def test_rows_build_and_cost_what_they_say(found: dict[str, Any], tmp_path: Path) -> None:
    module.write(found, tmp_path / "out")
    for row in found["front"][:3]:
        file = tmp_path / "out" / f"front-{row['rank']}.yaml"
        for cls in (FinetuneConfig, PretrainConfig):
            section = build(cls, file=file).model
            assert section.name == "segformer-b0"
        model = create_model(section.name, num_labels=7, **section.overrides())
        whole = cost(model, (64, 96))
        assert whole["params"] == row["params"] and round(whole["macs"] / 1e9, 3) == row["gmacs"]
    rows = list(csv.DictReader((tmp_path / "out" / "front.csv").open()))
    assert [int(r["params"]) for r in rows] == [r["params"] for r in found["front"]]
    assert yaml.safe_load(file.read_text())["model"]["decoder"]


def test_a_name_where_a_name_says_it_all() -> None:
    one = search(Space(mixers=["lsra"], feedforwards=["dest"], skips=["add"], decoders=["hamburger"]), **AT)
    (row,) = one["front"]
    assert row["name"] == "segformer-b0-lsra-dest-hamburger"
    whole = cost(create_model(row["name"], num_labels=7), (64, 96))
    assert (whole["params"], round(whole["macs"] / 1e9, 3)) == (row["params"], row["gmacs"])
    wide = Space(mixers=["sra"], feedforwards=["mix"], skips=["add"], decoders=["mlp"], dims=[[16, 32, 64, 96]])
    assert search(wide, **AT)["front"][0]["name"] is None


def test_the_same_by_the_seed_and_another_by_another() -> None:
    def drawn(seed: int) -> list[Any]:
        return list(Space(**SMALL).choices(30, seed))

    assert drawn(0) == drawn(0) != drawn(1)
    assert len(set(map(str, drawn(0)))) == 30


def test_rules() -> None:
    rows = [dict(params=p, macs=m) for p, m in ((5, 5), (9, 6), (4, 4), (3, 9), (9, 7))]
    assert [r["params"] for r in front(rows, "capacity")] == [9, 5, 4]
    assert [(r["params"], r["macs"]) for r in front(rows, "small")] == [(4, 4), (3, 9)]
    assert [r["macs"] for r in front(rows, "macs")] == [4, 5, 6, 7, 9]


def test_latency_is_measured_on_the_front_and_the_slow_ones_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def milliseconds(space: Space, row: dict[str, Any], *rest: Any) -> float:
        asked.append(row)
        return row["macs"] / 1e6 + (3.0 if "pool" in row["choice"] else 0.0)  # which MACs do not know of

    monkeypatch.setattr(module, "_milliseconds", milliseconds)
    free = search(Space(**SMALL), top=50, **AT)
    limit = 1000 * free["front"][len(free["front"]) // 2]["gmacs"] + 1.5
    result = search(Space(**SMALL), max_latency=limit, top=4, **AT)
    assert result["latency_measured"] == len(asked) <= 3 + 4 * 4 and len({id(r) for r in asked}) == len(asked)
    assert 1 <= len(result["front"]) <= 4 and all(row["latency"] <= limit for row in result["front"])
    assert max(row["latency"] for row in asked) > limit
    with pytest.raises(InputError, match=r"runs in 0\.001 ms"):
        search(Space(**SMALL), max_latency=0.001, top=2, **AT)


def test_a_component_that_does_not_add_up_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.PieceCounter.cost
    monkeypatch.setattr(module.PieceCounter, "cost", lambda self, *a: (real(self, *a)[0], real(self, *a)[1] + 1))
    with pytest.raises(RuntimeError, match="looks into another"):
        search(Space(mixers=["sra"], feedforwards=["mix"], skips=["add"], decoders=["mlp"]), **AT)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "search", "--mixers", "sra,pool", "--feedforwards", "mix", "--skips", "add", "--decoders", "mlp",
        "--size", "64",
        "--dims", "16,32,64,96/32,64,160,256", "--max-gmacs", "1", "--device", "cpu", "--num_classes", "5",
    ]  # fmt: skip
    assert main([*words, "--json", "--output-dir", str(tmp_path / "out")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "out" / "front.json").read_text()) and result["counted"] == 32
    assert main(words) == 0
    assert "32 of 32 compositions counted" in capsys.readouterr().out
    assert main([*words, "--output-dir", str(tmp_path / "out")]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mixers", "sar"], "did you mean 'sra'"),
        (["--dims", "1,2"], "4 stages"),
        (["--depths", "a"], "rows of numbers"),
        (["--rank", "best"], "unknown rule"),
        (["--base", "nextvit-s"], "fixed kinds"),
        (["--max-params", "0.001", "--mixers", "sra", "--decoders", "mlp", "--samples", "3"], "within the budget"),
    ],
)
def test_mistakes(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--size", "32", "--device", "cpu", *words]) == 2
    assert message in capsys.readouterr().err
