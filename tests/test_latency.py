"""Timings: the interval covers what it promises on simulated load, cards do not mix, the split adds up."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY

import nota_seg
from nota_seg.cli import main
from nota_seg.latency import latency, run_file, save
from util.errors import InputError
from util.latency import Chain, device_card, interval, measure, peak_tensor_bytes, resident_growth

SMALL: dict[str, Any] = {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "heads": [1, 1, 2, 2]}
KEYS = {
    "model", "params", "num_labels", "size", "batch_size", "precision", "runtime", "unit", "p50", "p50_interval", "p90",
    "p99", "mean", "rounds", "runs", "parts", "throughput", "peak_memory", "conditions", "revision",
}  # fmt: skip


@pytest.mark.parametrize("memory", [0.0, 0.6])
def test_a_second_measurement_lies_in_the_interval_of_the_first(memory: float) -> None:
    """95 % nominal; with load that comes and stays (autoregressive) still over 90 %."""
    rng = np.random.default_rng(0)

    def medians() -> list[float]:
        noise, out = 0.0, []
        for _ in range(20):
            noise = memory * noise + rng.normal(0, 0.1)
            out.append(float(np.exp(noise)))
        return out

    inside = 0
    for _ in range(1000):
        first, second = medians(), medians()
        low, high = interval(first)
        inside += low <= np.median(second) / np.median(first) <= high
    assert 900 <= inside <= 1000 and (memory or inside <= 995)


def test_the_interval_narrows_with_more_rounds() -> None:
    rng = np.random.default_rng(1)
    wide, narrow = (np.mean([np.diff(interval(np.exp(rng.normal(0, 0.1, n)))) for _ in range(50)]) for n in (5, 80))
    assert narrow < wide / 3
    low, high = interval([2.0, 2.0, 2.0])
    assert 0.97 < low < 1 < high < 1.03  # never nothing
    low, high = interval([2.0, 2.0, 2.0], other_load=0.5)
    assert low == pytest.approx(0.5, abs=0.01) and high == pytest.approx(2, abs=0.05)  # gone, or twice as much


def test_parts_are_told_apart_and_add_up() -> None:
    def wait(seconds: float) -> Any:
        return lambda x: time.sleep(seconds)

    found, conditions = measure(
        {"a": Chain([("short", wait(0.002)), ("long", wait(0.006))])}, {"a": None}, rounds=5, seconds=0.3
    )
    result = found["a"].summary()
    assert 8 <= result["p50"] < 20 and result["p50"] <= result["p90"] <= result["p99"]
    assert 0.15 < result["parts"]["short"]["share"] < 0.4 < result["parts"]["long"]["share"]
    assert sum(p["share"] for p in result["parts"].values()) == pytest.approx(1, abs=0.05)
    assert result["p50_interval"][0] <= result["p50"] <= result["p50_interval"][1]
    assert isinstance(conditions["throttled"], bool)


def test_memory_is_of_what_lives_at_once() -> None:
    def call() -> torch.Tensor:
        for _ in range(3):
            kept = torch.zeros(1 << 20)
        return kept + 1

    assert 2 * 4 << 20 <= peak_tensor_bytes(call) <= 3 * 4 << 20
    # Where the kernel's own peak comes late, one of several calls shows it; memory kept from before hides nothing.
    kept = [np.ones(1 << 21) for _ in range(8)]
    del kept
    grown = [resident_growth(lambda: np.ones(1 << 23).sum()) for _ in range(5)]
    assert None in grown or max(g for g in grown if g is not None) > 1 << 25


def test_a_card_is_stable_and_depends_on_the_threads() -> None:
    before = torch.get_num_threads()
    first, again = device_card("cpu"), device_card("cpu")
    assert first == again and first["id"].startswith("cpu-")
    try:
        torch.set_num_threads(before + 1)
        assert device_card("cpu")["id"] != first["id"]
    finally:
        torch.set_num_threads(before)


def test_measured_through_the_command_and_kept_in_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = nota_seg.create_model("segformer-b0", num_labels=3, **SMALL)
    model.save_pretrained(tmp_path / "run" / "best")
    (tmp_path / "run" / "run.json").write_text("{}")
    words = ["latency", "--pretrain", str(tmp_path / "run"), "--seconds", "0.2", "--rounds", "3", "--device", "cpu"]
    assert main([*words, "--size", "64"]) == 0
    assert main([*words, "--size", "32x64"]) == 0
    out = capsys.readouterr().out
    (file,) = (tmp_path / "run").glob("latency-*.json")
    result = json.loads(file.read_text())
    assert file.name == f"latency-{result['card']['id']}.json" and result["card"]["id"] in out
    assert [m["size"] for m in result["measurements"]] == [[64, 64], [32, 64]]
    for m in result["measurements"]:
        assert set(m) == KEYS and list(m["parts"]) == ["encoder", "decoder", "upsampling"]
        assert m["peak_memory"]["bytes"] > 0 and m["throughput"] == pytest.approx(1000 / m["p50"], rel=1e-3)
    assert run_file(tmp_path / "run" / "best", result["card"]) == file
    assert run_file(tmp_path, result["card"]) is None


def test_cards_are_not_mixed_and_settings_are_replaced(tmp_path: Path) -> None:
    one = dict(model="m", runtime="eager", size=[8, 8], batch_size=1, precision="no")
    save({"card": {"id": "cpu-1"}, "measurements": [{**one, "p50": 1.0}]}, tmp_path / "x.json")
    save({"card": {"id": "cpu-1"}, "measurements": [{**one, "p50": 2.0}]}, tmp_path / "x.json")
    save({"card": {"id": "cpu-1"}, "measurements": [{**one, "runtime": "onnx", "p50": 3.0}]}, tmp_path / "x.json")
    assert [m["p50"] for m in json.loads((tmp_path / "x.json").read_text())["measurements"]] == [2.0, 3.0]
    with pytest.raises(InputError, match="not mixed"):
        save({"card": {"id": "cpu-2"}, "measurements": [one]}, tmp_path / "x.json")
    (tmp_path / "y.json").write_text("[]")
    with pytest.raises(InputError, match="holds no latencies"):
        save({"card": {"id": "cpu-1"}, "measurements": [one]}, tmp_path / "y.json")


@pytest.mark.slow
def test_compile_and_onnx_beside_eager() -> None:
    pytest.importorskip("onnxruntime")
    model = nota_seg.create_model("segformer-b0", num_labels=3, **SMALL)
    result = latency(model, name="m", size=(64, 64), runtimes=["eager", "compile", "onnx"], rounds=3, seconds=0.3)
    assert [m["runtime"] for m in result["measurements"]] == ["eager", "compile", "onnx"]
    for m in result["measurements"]:
        assert m["p50"] > 0 and list(m["parts"]) == ["encoder", "decoder", "upsampling"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--runtime", "egaer"], "did you mean 'eager'"),
        (["--runtime", "onnx", "--precision", "bf16"], "float32"),
        (["--precision", "int4"], "unknown precision"),
        (["--pretrain", "x"], "one of them"),
    ],
)
def test_mistakes(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = [w for s in TINY[:3] for w in ("--set", s)]
    assert main(["latency", "--model", "segformer-b0", "--size", "32", "--device", "cpu", *tiny, *words]) == 2
    assert message in capsys.readouterr().err
