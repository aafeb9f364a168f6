"""Exported files against their models: every registered component, sizes that the example did not have, real files."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nota_seg
from nota_seg.cli import main
from nota_seg.data.sources import open_source
from nota_seg.export import _pool, export, export_program, onnx_bytes
from nota_seg.inference import Protocol
from nota_seg.models.registry import DECODERS, FEEDFORWARDS, MIXERS, SKIPS, STEMS
from nota_seg.predict import predict
from util import onnx_session
from util.errors import InputError
from util.images import read_image, write_png

pytest.importorskip("onnxruntime")
TINY: dict[str, Any] = {"dims": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "heads": [1, 2, 4, 4]}
# Widths, not structure, but for Lawin's three branches of one code: the one with the widest context stands for all.
NARROW: dict[str, dict[str, Any]] = {
    "fpn": {"dim": 32, "branch_dim": 16}, "hamburger": {"dim": 64, "rank": 16},
    "lawin": {"dim": 128, "embed_dim": 32, "low_level_dim": 16, "ratios": [8]}, "mlp": {"dim": 32}, "uper": {"dim": 32},
}  # fmt: skip
DOCUMENT = Path(__file__).parents[1] / "docs" / "export.md"


def tiny(num_labels: int = 5, **overrides: Any) -> Any:
    torch.manual_seed(0)
    model = nota_seg.create_model("segformer-b0", num_labels=num_labels, **TINY, **overrides)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def composed() -> list[dict[str, Any]]:
    """As few models as hold every registered component: another one in every stage, each once, then cheap ones.

    What is slow grows with the nodes of the graph, so the decoders with the most of them come last.
    """
    kinds = {"mixers": (MIXERS, "pool"), "feedforwards": (FEEDFORWARDS, "mlp"), "skips": (SKIPS, "add"),
             "stems": (STEMS, "overlap")}  # fmt: skip
    rows = {key: chain(registry.names(), repeat(cheap)) for key, (registry, cheap) in kinds.items()}
    return [
        {"decoder": {"name": d, **NARROW.get(d, {})}, **{key: list(islice(names, 4)) for key, names in rows.items()}}
        for d in sorted(DECODERS, key=lambda name: name in ("uper", "lawin"))
    ]


def test_the_composed_models_hold_every_component() -> None:
    found = {n for one in composed() for v in one.values() for n in ([v["name"]] if isinstance(v, dict) else v)}
    assert found == {n for registry in (MIXERS, FEEDFORWARDS, SKIPS, STEMS, DECODERS) for n in registry}


@pytest.mark.slow
@pytest.mark.parametrize("overrides", composed(), ids=lambda o: o["decoder"]["name"])
def test_every_component_runs_at_any_size_in_onnx_runtime(overrides: dict[str, Any], tmp_path: Path) -> None:
    model = tiny(**overrides)
    result = export(model, list("abcde"), tmp_path / "out", formats=["onnx", "pt2"])
    for entry in result["formats"].values():
        assert entry["dynamic"] and entry["logits"] <= 1e-4 and entry["labels"] >= 0.9999, entry
    session = onnx_session.session(tmp_path / "out" / "model.onnx")
    for batch, height, width in ((3, 65, 97), (1, 130, 70), (2, 33, 40)):
        x = torch.randn(batch, 3, height, width)
        with torch.no_grad():
            ours = model(x).logits
        (theirs,) = onnx_session.run(session, [x])
        assert theirs.shape == ours.shape
        assert (theirs - ours).abs().max() <= 1e-4 * ours.abs().max()


@pytest.mark.parametrize("size", [(7, 7), (14, 30), (5, 3), (20, 9)])
@pytest.mark.parametrize("cells", [7, (3, 4), 1])
def test_pooling_by_products_is_adaptive_pooling(size: tuple[int, int], cells: Any) -> None:
    x = torch.randn(2, 3, *size)
    assert torch.allclose(_pool(x, cells), torch.nn.functional.adaptive_avg_pool2d(x, cells), atol=1e-6)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Path:
    source = open_source(scenes)
    folder = tmp_path_factory.mktemp("saved") / "model"
    labels = dict(enumerate(source.class_names))
    tiny(id2label=labels, label2id={v: k for k, v in labels.items()}, image_size=(64, 48)).save_pretrained(folder)
    return folder


def test_files_are_checked_by_miou_and_int8_is_calibrated(
    saved: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "--pretrain", str(saved), "--output-dir", str(tmp_path / "out"), "--data-dir", str(scenes)]
    assert main([*words, "--format", "onnx,pt2,int8", "--calibration", "4", "--limit", "3"]) == 0
    assert "equal labels, mIoU" in capsys.readouterr().out
    import json

    result = json.loads((tmp_path / "out" / "export.json").read_text())
    exact, pt2, int8 = (result["formats"][key] for key in ("onnx", "pt2", "int8"))
    for one in (exact, pt2):
        assert one["miou"] == pytest.approx(one["miou_torch"], abs=1e-3) and one["labels"] >= 0.999
    assert 0 < int8["logits"] < 0.5 and int8["labels"] > 0.5
    assert int8["bytes"] < exact["bytes"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "export.json", "model-int8.onnx", "model.onnx", "model.pt2",
    ]  # fmt: skip
    import onnx

    kinds = {node.op_type for node in onnx.load(tmp_path / "out" / "model-int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    picture, labels = label_by_the_document(tmp_path / "out" / "model-int8.onnx", scenes, tmp_path)
    assert labels.shape == read_image(picture).shape[:2]
    assert main([*words, "--format", "onnx"]) == 2  # never over an earlier one


def label_by_the_document(file: Path, scenes: Path, folder: Path) -> tuple[Path, np.ndarray]:
    """The document's script on a validation picture: the picture, and its labels."""
    from PIL import Image

    code = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.S)
    assert len(code) == 1
    statements = [x for x in code[0].splitlines() if x and not x.startswith(('"""', "import"))]
    assert len(statements) <= 20
    (folder / "label.py").write_text(code[0], encoding="utf-8")
    picture = folder / "picture.png"
    write_png(picture, read_image(next((scenes / "images" / "validation").glob("*.jpg"))))
    words = [sys.executable, "label.py", str(file), str(picture), "labels.png"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return picture, np.asarray(Image.open(folder / "labels.png"))


def test_the_script_of_the_document_labels_like_predict(saved: Path, scenes: Path, tmp_path: Path) -> None:
    from PIL import Image

    from nota_seg.models.loading import load_model

    model, names = load_model(saved)
    export(model, names, tmp_path / "out")
    picture, theirs = label_by_the_document(tmp_path / "out" / "model.onnx", scenes, tmp_path)
    predict(model, [picture], tmp_path / "ours", Protocol(base_size=(64, 48)), names, "cpu")
    ours = np.asarray(Image.open(tmp_path / "ours" / "picture.png"))
    assert ours.shape == theirs.shape and (ours == theirs).mean() > 0.999


def test_a_file_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nota_seg import export as module

    real = export_program

    def wrong(wrapped: nn.Module, example: Any, **kwargs: Any) -> Any:
        broken = module.Logits(tiny(decoder={"name": "mlp", "dim": 16}))
        return real(broken, example, **kwargs)

    monkeypatch.setattr(module, "export_program", wrong)
    with pytest.raises(InputError, match="differs from the model"):
        export(tiny(), list("abcde"), tmp_path / "out", formats=["pt2"])
    assert not list(tmp_path.iterdir())


def test_what_is_not_dynamic_says_so_and_has_one_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nota_seg import export as module

    real = export_program

    def no_dynamic(wrapped: nn.Module, example: Any, *, dynamic: bool = False) -> Any:
        if dynamic:
            raise RuntimeError("sizes are baked in")
        return real(wrapped, example)

    monkeypatch.setattr(module, "export_program", no_dynamic)
    said: list[str] = []
    result = export(tiny(), list("abcde"), tmp_path / "out", formats=["pt2"], size=(64, 96), say=said.append)
    assert result["formats"]["pt2"]["size"] == [64, 96] and not result["formats"]["pt2"]["dynamic"]
    assert any("sizes are baked in" in line and "64x96" in line for line in said)


@pytest.mark.parametrize(
    ("formats", "message"), [(["onxn"], "did you mean 'onnx'"), (["int8"], "calibrated on real pictures")]
)
def test_mistakes(formats: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        export(tiny(), list("abcde"), tmp_path / "out", formats=formats)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thing").touch()
    with pytest.raises(InputError, match="name a new folder"):
        export(tiny(), list("abcde"), tmp_path / "mine", overwrite=True)


def test_a_static_graph_is_smaller_and_equal() -> None:
    x = torch.randn(1, 3, 64, 64)
    model = tiny()
    graph = onnx_bytes(export_program(nn.Sequential(model.encoder), x))
    found = onnx_session.run(onnx_session.session(graph), [x])
    with torch.no_grad():
        for ours, theirs in zip(model.encoder(x), found, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4)
