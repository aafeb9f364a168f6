"""Comparisons from the files of runs alone: what is read, what is refused, what the page and the tables say."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import finetune_words

from nota_seg.cli import main
from nota_seg.picture_counts import PictureCounts
from nota_seg.report.compare import compare, csv_text
from nota_seg.report.runs import export_metrics, load_runs
from nota_seg.report.style import DARK, LIGHT, pareto_front
from nota_seg.report.tables import latex, markdown, paper_table
from util.errors import InputError

CLASSES = ["sky", "road", "tree & <b>bush</b>"]


def make_run(folder: Path, quality: float, *, seed: int = 0, pictures: int = 30, model: str = "segformer-b0") -> Path:
    """The small files of a run whose predictions are right on a share `quality` of the pixels; no weights."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(99).integers(100, 1000, (pictures, 3))
    hit = np.rint(truth * np.clip(quality + rng.normal(0, 0.05, (pictures, 3)), 0, 1)).astype(np.int64)
    wrong = (truth - hit).sum(axis=1, keepdims=True)
    predicted = hit + np.rint(wrong / 3).astype(np.int64)
    protocol = {"split": "val", "mode": "whole", "scales": [1.0]}
    counts = PictureCounts([f"{i}.png" for i in range(pictures)], CLASSES, protocol, hit, truth, predicted)
    counts.save(folder / "eval.npz")
    iou = hit.sum(axis=0) / counts.union.sum(axis=0)
    result = {
        "miou": counts.miou(), "macc": 0.5, "aacc": 0.6, "boundary_iou": None, "images": pictures, "protocol": protocol,
        "per_class": {name: {"iou": float(v), "acc": 0.5} for name, v in zip(CLASSES, iou, strict=True)},
    }  # fmt: skip
    (folder / "eval.json").write_text(json.dumps(result))
    tiny = dict(name=model, dims=[8, 16, 24, 32], heads=[1, 1, 2, 2], depths=[1, 1, 1, 1])
    config = {"model": tiny, "pretrain": None, "data": {"path": "/data/scenes"}, "optim": {"lr": 1e-3 * (1 + seed)},
              "train": {"max_steps": 20, "epochs": None, "batch_size": 4, "accumulate": 1, "seed": seed}}  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    facts = {"phase": "finetune", "seed": seed, "command": ["/x/nota-seg", "finetune", "--data-dir", "/home/me/scenes"],
             "device": "cpu", "processes": 1, "precision": "no", "git": "0123456789abcdef",
             "versions": {"torch": "2"}}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(facts))
    lines = [{"step": s, "split": "train", "loss": 2 / s} for s in (10, 20)]
    lines += [{"step": s, "split": "val", "miou": counts.miou() * s / 20} for s in (10, 20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def add_latency(folder: Path, card: str, p50: float) -> None:
    one = {"runtime": "eager", "size": [512, 512], "batch_size": 1, "precision": "no", "p50": p50, "p90": p50 * 1.1,
           "parts": {"encoder": {"p50": 1.0, "share": 0.5}}}  # fmt: skip
    result = {"card": {"id": card, "processor": "some"}, "measurements": [one]}
    (folder / f"latency-{card}.json").write_text(json.dumps(result))


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        make_run(tmp_path / name, q, seed=i) for i, (name, q) in enumerate([("base", 0.6), ("new", 0.7), ("same", 0.6)])
    ]


class Page(HTMLParser):
    """Addresses that a page would fetch, its elements that never close, and its data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "link", "img", "br", "input", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag


def test_the_page_stands_alone_and_holds_the_numbers(runs: list[Path], tmp_path: Path, capsys) -> None:
    for run, ms in zip(runs, (10.0, 12.0, 14.0), strict=True):
        add_latency(run, "cpu-1", ms)
    out = tmp_path / "out"
    assert main(["compare", *map(str, runs), "--output-dir", str(out), "--size", "64"]) == 0
    printed = capsys.readouterr().out
    assert "new is better than base by" in printed and "same and base cannot be told apart" in printed
    text = (out / "index.html").read_text()
    page = Page(text)
    assert page.open == []
    assert all(a.startswith(("#", "data:")) for a in page.addresses), page.addresses
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)
    assert "<b>bush</b>" not in text  # names are text, not markup
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    assert [run["name"] for run in data["runs"]] == ["base", "new", "same"]
    assert data["runs"][1]["difference"][1] > 0 and data["runs"][0]["latency"] == [10.0]
    assert data["classes"][2] == CLASSES[2] and sum(data["shares"]) == pytest.approx(1, abs=1e-3)
    for name in ("compare.csv", "per_class.csv", "compare.json"):
        assert (out / name).exists()
    lines = list(csv.DictReader((out / "compare.csv").open()))
    expected = 100 * json.loads((runs[1] / "eval.json").read_text())["miou"]
    assert float(lines[1]["miou"]) == pytest.approx(expected, abs=1e-4)
    assert int(lines[0]["params"]) > 0 and float(lines[1]["p"]) < 0.01
    for name in ("pareto-params", "pareto-macs", "pareto-latency-0", "differences", "learning-curves", "per-class-iou"):
        assert (out / "plots" / f"{name}.png").stat().st_size > 2000 and (out / "plots" / f"{name}.svg").exists()


def test_nothing_is_overwritten(runs: list[Path], tmp_path: Path) -> None:
    words = ["compare", *map(str, runs), "--size", "64", "--output-dir"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    assert main([*words, str(tmp_path / "mine"), "--overwrite"]) == 2
    assert main([*words, str(tmp_path / "out")]) == 0
    assert main([*words, str(tmp_path / "out")]) == 2
    assert main([*words, str(tmp_path / "out"), "--overwrite"]) == 0


def test_cards_are_never_mixed(runs: list[Path]) -> None:
    add_latency(runs[0], "cpu-1", 10.0)
    add_latency(runs[1], "cpu-2", 1.0)
    add_latency(runs[2], "cpu-2", 2.0)
    result = compare(load_runs(runs), size=(64, 64))
    assert result.settings == ["cpu-1, eager, batch 1, 512x512", "cpu-2, eager, batch 1, 512x512"]
    assert [bool(result.latency(run, result.settings[1])) for run in result.runs] == [False, True, True]
    from nota_seg.report.plots import cost_axes

    times = [axis for axis in cost_axes(result) if axis[0].startswith("pareto-latency")]
    assert [axis[2] for axis in times] == [[None, 1.0, 2.0]]
    (runs[0] / "latency-x.json").write_text('{"measurements": [{"p50": 3}]}')
    with pytest.raises(InputError, match="no device card"):
        load_runs(runs)


def test_seeds_are_one_row_with_their_spread(tmp_path: Path) -> None:
    for i in range(3):
        make_run(tmp_path / "many" / f"seed-{i}", 0.6 + 0.01 * i, seed=i)
    rows = [{"seed": i, "folder": f"seed-{i}"} for i in range(3)] + [{"seed": 3, "folder": "seed-3", "error": "nan"}]
    (tmp_path / "many" / "seeds.json").write_text(json.dumps({"seeds": rows}))
    (run,) = load_runs([tmp_path / "many"])
    assert len(run.scores) == 3 and run.std == pytest.approx(np.std(run.scores, ddof=1))
    result = compare([run], size=(64, 64))
    assert f"{run.mean:.2f} ± {run.std:.2f}" in markdown(result) and "over 3 seeds" in markdown(result)
    assert csv_text(result).splitlines()[1].startswith("many,") and "p (seeds)" not in markdown(result)
    for i in range(3):
        make_run(tmp_path / "more" / f"seed-{i}", 0.8 + 0.01 * i, seed=i)
    (tmp_path / "more" / "seeds.json").write_text(json.dumps({"seeds": rows}))
    both = compare(load_runs([tmp_path / "many", tmp_path / "more"]), size=(64, 64))
    head, cells = paper_table(both)
    verdict = both.verdict(both.runs[1])
    assert head[-1] == "p (seeds)" and cells[0][-1] == "" and verdict is not None and verdict.p_seeds is not None
    assert cells[1][-1] == ("< 0.001" if verdict.p_seeds < 0.001 else f"{verdict.p_seeds:.2g}")


def test_unlike_runs_are_in_the_table_but_in_no_test(runs: list[Path], tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", 0.7, pictures=29)
    (runs[2] / "eval.npz").unlink()
    result = compare(load_runs([runs[0], other, runs[2]]), size=(64, 64))
    assert result.verdicts == {}
    assert any("30 and 29 pictures" in note for note in result.notes)
    assert any("no per-picture counts" in note and "nota-seg eval" in note for note in result.notes)


def test_counts_of_another_evaluation_are_refused(runs: list[Path]) -> None:
    shutil.copyfile(runs[1] / "eval.npz", runs[0] / "eval.npz")
    with pytest.raises(InputError, match="different evaluations"):
        load_runs(runs[:1])


def test_a_test_split_is_a_column_and_can_be_compared(runs: list[Path], tmp_path: Path, capsys) -> None:
    for run, quality in zip(runs[:2], (0.5, 0.4), strict=True):
        other = make_run(tmp_path / "elsewhere" / run.name, quality, pictures=20)
        for name in ("eval.json", "eval.npz"):
            shutil.copyfile(other / name, run / name.replace("eval", "eval-test"))
    scores = [100 * json.loads((run / "eval-test.json").read_text())["miou"] for run in runs[:2]]
    result = compare(load_runs(runs), size=(64, 64))
    head, rows = paper_table(result)
    assert head[-1] == "test" and [row[-1] for row in rows] == [*(f"{score:.2f}" for score in scores), "–"]
    assert "chose nothing" in markdown(result)
    assert next(iter(result.verdicts.values())).pictures == 30  # the column changes no verdict

    words = ["compare", *map(str, runs[:2]), "--size", "64", "--evaluation", "eval-test"]
    assert main([*words, "--export-metrics", str(tmp_path / "small")]) == 0
    assert f"{scores[1]:.2f}" in capsys.readouterr().out
    small = compare(load_runs([tmp_path / "small" / run.name for run in runs[:2]], "eval-test"), size=(64, 64))
    assert [run.mean for run in small.runs] == pytest.approx(scores) and "test" not in paper_table(small)[0]
    assert next(iter(small.verdicts.values())).pictures == 20
    assert main([*words, str(runs[2])]) == 2 and "--split SPLIT --json" in capsys.readouterr().err


def test_names(runs: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "deeper" / "base"
    shutil.copytree(runs[0], copy)
    assert [run.name for run in load_runs([runs[0], copy])] == [f"{tmp_path.name}/base", "deeper/base"]
    assert [run.name for run in load_runs([f"A={runs[0]}", copy])] == ["A", "base"]
    for bad in (["A=" + str(runs[0]), "A=" + str(copy)], [tmp_path / "nowhere"], [tmp_path]):
        with pytest.raises(InputError):
            load_runs(bad)


def test_configurations_are_shown_where_they_differ(runs: list[Path]) -> None:
    rows = dict(compare(load_runs(runs), size=(64, 64)).config_rows())
    assert rows == {"optim.lr": ["0.001", "0.002", "0.003"]}  # the seed is no difference


def test_exported_metrics_give_the_same_comparison(runs: list[Path], tmp_path: Path) -> None:
    (runs[0] / "best").mkdir()
    (runs[0] / "best" / "model.safetensors").write_bytes(b"x" * 10_000)
    words = ["compare", *map(str, runs), "--size", "64"]
    assert main([*words, "--export-metrics", str(tmp_path / "small")]) == 0
    assert not list((tmp_path / "small").rglob("*.safetensors"))
    again = [tmp_path / "small" / run.name for run in runs]
    one, other = (compare(load_runs(paths), size=(64, 64)) for paths in (runs, again))
    assert one.verdicts == other.verdicts and one.sentences() == other.sentences()
    assert main([*words, "--export-metrics", str(tmp_path / "small")]) == 2
    texts = "".join(f.read_text() for f in (tmp_path / "small").rglob("*.[jy]*"))
    assert "/data/" not in texts and "/home/" not in texts and str(tmp_path) not in texts


def test_tables_for_a_paper(runs: list[Path]) -> None:
    result = compare(load_runs([f"50%_base={runs[0]}", runs[1]]), size=(64, 64))
    text = markdown(result)
    assert text.splitlines()[1].startswith("| --- | ---: |") and "**" in text.splitlines()[3]
    tex = latex(result, caption="A_B")
    assert r"50\%\_base" in tex and r"A\_B" in tex and r"$\pm$" in tex and r"\textbf{" in tex
    widths = {line.count("&") for line in tex.splitlines() if line.endswith(r"\\")}
    assert len(widths) == 1
    assert "textbook" in text and "top-1" not in text and "boundary IoU" not in text


def test_the_encoder_s_accuracy_is_in_the_table_and_travels_with_the_run(runs: list[Path], tmp_path: Path) -> None:
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    values = [{"step": 10, "split": "val", "top1": 0.125}, {"step": 20, "split": "val", "top1": 0.5}]
    (encoder / "metrics.jsonl").write_text("".join(json.dumps(v) + "\n" for v in values))
    config = yaml.safe_load((runs[0] / "config.yaml").read_text())
    (runs[0] / "config.yaml").write_text(yaml.safe_dump(config | {"pretrain": str(encoder / "best")}))
    evaluation = json.loads((runs[0] / "eval.json").read_text())
    (runs[0] / "eval.json").write_text(json.dumps(evaluation | {"boundary_iou": 0.25}))
    export_metrics(load_runs(runs), tmp_path / "small")
    shutil.rmtree(encoder)
    for paths, accuracy in ((runs, "–"), ([tmp_path / "small" / run.name for run in runs], "50.00")):
        head, rows = paper_table(compare(load_runs(paths), size=(64, 64)))
        assert rows[0][head.index("boundary IoU")] == "25.00" and rows[1][head.index("boundary IoU")] == "–"
        assert "top-1" not in head if accuracy == "–" else rows[0][head.index("top-1")] == accuracy


def test_the_front() -> None:
    points = [(1.0, 10.0), (2.0, 9.0), (2.0, 12.0), (3.0, 12.0), (4.0, 15.0)]
    assert pareto_front(points) == [(1.0, 10.0), (2.0, 12.0), (4.0, 15.0)]


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return math.fsum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize(("colours", "paper"), [(LIGHT, "#ffffff"), (DARK, "#11161b")], ids=["light", "dark"])
def test_marks_can_be_seen(colours: list[str], paper: str) -> None:
    """WCAG 1.4.11: graphics have a contrast of 3 to 1 with what they stand on."""
    for colour in colours:
        low, high = sorted((luminance(colour), luminance(paper)))
        assert (high + 0.05) / (low + 0.05) >= 3, colour


def test_real_runs_with_pictures(scenes: Path, tmp_path: Path) -> None:
    for name, steps in (("a", 2), ("b", 6)):
        assert main(finetune_words(scenes, tmp_path / name, steps=steps)) == 0
    out = tmp_path / "out"
    words = ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--size", "64", "--output-dir", str(out)]
    assert main([*words, "--data-dir", str(scenes), "--pictures", "2", "--device", "cpu"]) == 0
    text = (out / "index.html").read_text()
    assert text.count("data:image/jpeg;base64,") == 10 and Page(text).open == []
    shares = [float(v) for v in re.findall(r"([\d.]+) % of its pixels differ", text)]
    assert len(shares) == 2 and shares == sorted(shares, reverse=True)
    assert main([*words, "--overwrite", "--data-dir", str(scenes), "--pair", "a,c"]) == 2


def test_disagreement_says_who_is_right() -> None:
    from nota_seg.report.overlays import _describe
    from util.palettes import palette

    truth = np.zeros((10, 10), dtype=np.uint8)
    truth[0] = 255
    a, b = truth.copy(), truth.copy()
    b[1:4] = 1  # 30 pixels that A alone has right
    a[4] = 1  # 10 that B alone has right
    a[5], b[5] = 1, 2  # 10 that both have wrong
    image: Any = np.full((10, 10, 3), 128, dtype=np.uint8)
    found = _describe("x", 50 / 90, image, truth, a, b, palette(3))
    assert (found.a_right, found.b_right) == pytest.approx((30 / 90, 10 / 90))
