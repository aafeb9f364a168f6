"""Weights are matched by structure, reported in full, and never half-loaded."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

import nota_seg
from util.errors import InputError


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def test_the_older_file_and_other_heads(tmp_path: Path) -> None:
    encoder = nota_seg.create_model("segformer-b0", task="classification", num_labels=200)
    torch.save({"model": encoder.state_dict()}, tmp_path / "old.pth")
    model = nota_seg.create_model("segformer-b0", num_labels=11)
    report = nota_seg.load_checkpoint(model, tmp_path / "old.pth")
    for i in range(4):
        assert report.per_stage[f"stage {i + 1}"] == 100
    assert report.per_stage["decoder"] == 0
    assert report.unused == ["classifier.weight", "classifier.bias"]
    assert torch.equal(model.encoder.stages[0].stem.proj.weight, encoder.encoder.stages[0].stem.proj.weight)
    text = str(report)
    assert "matched" in text and "stage 1 100%" in text and "decoder 0%" in text
    # From one class count to another: the classifier alone is new.
    model.save_pretrained(tmp_path / "eleven")
    other = nota_seg.create_model("segformer-b0", num_labels=5)
    report = nota_seg.load_checkpoint(other, tmp_path / "eleven")
    assert report.reinitialised == ["decoder.classifier.weight", "decoder.classifier.bias"]


def test_another_size_stops_and_names_the_right_one(tmp_path: Path) -> None:
    nota_seg.create_model("segformer-b1").save_pretrained(tmp_path)
    model = nota_seg.create_model("segformer-b0")
    before = snapshot(model)
    with pytest.raises(InputError, match=r"another size: use --model segformer-b1"):
        nota_seg.load_checkpoint(model, tmp_path)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_another_depth_stops_unless_told_not_to(tmp_path: Path) -> None:
    nota_seg.create_model("segformer-b0").save_pretrained(tmp_path)
    deeper = nota_seg.create_model("segformer-b0", depths=[2, 2, 3, 2])
    with pytest.raises(InputError, match=r"encoder\.stages\.2\.blocks\.2\..* is not there"):
        nota_seg.load_checkpoint(deeper, tmp_path)
    report = nota_seg.load_checkpoint(deeper, tmp_path, strict=False)
    assert report.per_stage["stage 2"] == 100 and report.per_stage["stage 3"] < 100


def test_a_hybrid_takes_what_fits_by_role(tmp_path: Path) -> None:
    source = nota_seg.create_model("segformer-b0")
    source.save_pretrained(tmp_path)
    hybrid = nota_seg.create_model("segformer-b0", mixers=["pool", "sra", "sra", "pool"])
    report = nota_seg.load_checkpoint(hybrid, tmp_path)
    assert report.reinitialised == []  # pooling has no parameters of its own
    assert all(".mixer." in k for k in report.unused)
    pooled = tmp_path / "pooled"
    nota_seg.create_model("segformer-b0-pool").save_pretrained(pooled)
    report = nota_seg.load_checkpoint(source, pooled)  # the other way: attention starts afresh, the rest is kept
    assert all(".mixer." in k for k in report.reinitialised) and report.reinitialised
    assert 0 < report.per_stage["stage 1"] < 100


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch evil-was-here",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil()))
    model = nota_seg.create_model("segformer-b0")
    for name, words in (("evil.pth", r"refused, it asks for more than tensors: \w+\.system"), ("plain.pth", "alone")):
        with pytest.raises(InputError, match=words) as caught:
            nota_seg.load_checkpoint(model, tmp_path / name)
        assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)
    assert not (tmp_path / "evil-was-here").exists()


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    model = nota_seg.create_model("segformer-b0")
    good = tmp_path / "good.pth"
    torch.save(model.state_dict(), good)
    (tmp_path / "short.pth").write_bytes(good.read_bytes()[:5000])
    (tmp_path / "empty.pth").touch()
    (tmp_path / "short.safetensors").write_bytes(b"\x10\x00\x00")
    torch.save({"a": 1}, tmp_path / "nothing.pth")
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    (tmp_path / "folder").mkdir()
    (tmp_path / "page.bin").write_bytes(b"<html>not found</html>")
    before = snapshot(model)
    for name in ("short.pth", "empty.pth", "short.safetensors", "nothing.pth", "other.pth", "folder", "absent.pth",
                 "page.bin"):  # fmt: skip
        with pytest.raises(InputError, match=name) as caught:
            nota_seg.load_checkpoint(model, tmp_path / name)
        assert "weights_only" not in str(caught.value)  # never advise to switch the protection off
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_data_parallel_prefixes_are_taken_off(tmp_path: Path) -> None:
    model = nota_seg.create_model("segformer-b0")
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "dp.pth")
    assert nota_seg.load_checkpoint(nota_seg.create_model("segformer-b0"), tmp_path / "dp.pth").reinitialised == []


@pytest.mark.parametrize("text", ["{not json", "{}", "[]", '{"stages": null}', '{"stages": [{"depth": 1}]}'])
def test_a_damaged_configuration_beside_the_weights(text: str, tmp_path: Path) -> None:
    model = nota_seg.create_model("segformer-b0")
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json does not say which components"):
        nota_seg.load_checkpoint(model, tmp_path)


def test_shares_are_of_parameters(tmp_path: Path) -> None:
    model = nota_seg.create_model("segformer-b0")
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "no-counters.pth")
    assert set(nota_seg.load_checkpoint(model, tmp_path / "no-counters.pth").per_stage.values()) == {100.0}
