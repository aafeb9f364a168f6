import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import nota_seg
from nota_seg.inference import Protocol
from nota_seg.models.loading import load_for_inference, load_model
from nota_seg.predict import find_pictures, output_names, predict
from util.errors import InputError

NAMES = ["sky", "road", "tree", "ship", "sea"]
TINY: dict[str, Any] = dict(dims=[8, 16, 24, 32], heads=1, depths=1)


def tiny(task: str = "segmentation", classes: int = 5) -> Any:
    torch.manual_seed(0)
    names = dict(enumerate(NAMES)) if classes == 5 else {i: f"class {i}" for i in range(classes)}
    return nota_seg.create_model(
        "segformer-b0", task, id2label=names, label2id={v: k for k, v in names.items()}, **TINY
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "seg"
    tiny().save_pretrained(folder)
    return folder


def draw(path: Path, size: tuple[int, int] = (37, 29)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def run(paths: list[Path], out: Path, classes: int = 5, **kwargs: Any) -> list[Path]:
    names = NAMES if classes == 5 else [f"class {i}" for i in range(classes)]
    return predict(tiny(classes=classes), paths, out, Protocol(), names, "cpu", **kwargs)


def test_writes_labels_and_overlays(tmp_path: Path) -> None:
    picture = draw(tmp_path / "in" / "x.jpg")
    steps: list[int] = []
    written = run([picture], tmp_path / "out", progress=steps.append)
    assert [f.name for f in written] == ["x.png", "x_overlay.png"] and steps == [1]
    with Image.open(written[0]) as label:
        assert label.mode == "P" and label.size == (37, 29)
        assert int(np.asarray(label).max()) < 5
    with Image.open(written[1]) as drawn:
        assert drawn.mode == "RGB" and drawn.size[0] >= 37 and drawn.size[1] >= 29


def test_many_classes_need_16_bits(tmp_path: Path) -> None:
    written = run([draw(tmp_path / "x.png")], tmp_path / "out", classes=300)
    with Image.open(written[0]) as label:
        assert label.mode.startswith("I") and np.asarray(label).max() < 300


def test_folders_are_searched_but_not_for_earlier_results(tmp_path: Path) -> None:
    b, a = draw(tmp_path / "b.png"), draw(tmp_path / "deep" / "a.JPG")
    draw(tmp_path / "out" / "old.png")
    (tmp_path / "notes.txt").write_text("no picture")
    assert find_pictures([tmp_path, b], tmp_path / "out") == [b, a]


def test_names_that_would_collide() -> None:
    paths = [Path(p) for p in ("/a/x.jpg", "/b/x.jpg", "/b/x.png", "/c/X.png", "/d/x_overlay.png", "/b/y.png")]
    names = output_names(paths)
    assert names == ["a_x", "b_x", "b_x_2", "c_X", "x_overlay", "y"]
    assert output_names([Path("/a/x.jpg"), Path("/d/x_overlay.png")]) == ["x", "d_x_overlay"]


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    one, two = draw(tmp_path / "in" / "one.png"), draw(tmp_path / "in" / "two.png")
    out = tmp_path / "out"
    first = run([two], out)
    before = first[0].stat().st_mtime_ns
    with pytest.raises(InputError, match=r"two\.png exists"):
        run([one, two], out)
    assert not (out / "one.png").exists() and first[0].stat().st_mtime_ns == before
    assert len(run([one, two], out, overwrite=True)) == 4


def test_a_picture_is_never_replaced(tmp_path: Path) -> None:
    picture = draw(tmp_path / "x.png")
    with pytest.raises(InputError, match="would replace a picture"):
        run([picture], tmp_path, overwrite=True)


def test_unreadable_pictures_stop_the_work_before_it_starts(tmp_path: Path) -> None:
    good, bad = draw(tmp_path / "in" / "good.png"), tmp_path / "in" / "zbad.png"
    bad.write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"zbad\.png"):
        run([good, bad], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_picture_that_is_cut_off(tmp_path: Path) -> None:
    bad = draw(tmp_path / "cut.png", (200, 200))
    bad.write_bytes(bad.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"cut\.png"):
        run([bad], tmp_path / "out")


def test_nothing_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pictures"):
        run([tmp_path], tmp_path / "out")
    with pytest.raises(InputError, match="missing"):
        run([tmp_path / "missing.png"], tmp_path / "out")


Load = Callable[..., tuple[nn.Module, list[str]]]


@pytest.fixture(params=[load_model, load_for_inference], ids=lambda load: load.__name__)
def load(request: pytest.FixtureRequest) -> Load:
    return request.param


def test_load_model(load: Load, saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, names = load(saved)
    assert names == NAMES and not model.training
    for (key, a), b in zip(tiny().state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_load_model_from_a_run_folder(load: Load, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "last")
    assert load(tmp_path)[1] == NAMES
    tiny(classes=3).save_pretrained(tmp_path / "best")
    assert len(load(tmp_path)[1]) == 3


def test_load_other_models_of_transformers(load: Load, tmp_path: Path) -> None:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8, num_labels=3
    )
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    assert len(load(tmp_path)[1]) == 3


def test_folders_that_are_no_model(load: Load, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load(tmp_path / "nobody" / "nothing")
    with pytest.raises(InputError, match=r"best/ and last/"):
        load(tmp_path)
    with pytest.raises(InputError, match="convert"):
        load(saved / "model.safetensors")
    tiny("classification").save_pretrained(tmp_path / "cls")
    with pytest.raises(InputError, match="finetune"):
        load(tmp_path / "cls")


def test_weights_that_do_not_fit(load: Load, saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(saved, folder)
    weights = load_file(folder / "model.safetensors")
    removed = sorted(weights)[0]
    del weights[removed]
    weights["left.over"] = torch.zeros(1)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 missing.*1 unexpected") as error:
        load(folder)
    assert removed in str(error.value) and "left.over" in str(error.value)
    assert capfd.readouterr().err == ""
    weights = load_file(saved / "model.safetensors")
    weights[removed] = torch.zeros(1, 2, 3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError):
        load(folder)
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="cannot load"):
        load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot load"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json"):
        load(folder)
