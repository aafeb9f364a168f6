"""Objects pasted into crops: masks that agree with pixels, probabilities, determinism, mistakes."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import finetune_words, run_cli
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from nota_seg.cli import main
from nota_seg.data.dataset import TrainDataset
from nota_seg.data.extra import build_extra
from nota_seg.data.objects import Banks, ObjectBank, Thing, objects, pasted
from nota_seg.data.paste import BalancedObjectPaste, BatchCopyPaste, PseudoObjectPaste, batch_part
from nota_seg.data.sources import open_source
from nota_seg.data.transforms import TrainTransform
from nota_seg.training.sampling import StepSampler
from util.errors import InputError

COLOURS = np.array([[0, 0, 0], [250, 20, 20], [20, 250, 20], [20, 20, 250]], np.uint8)  # background is black
NAMES = ["background", "paper", "metal", "battery"]


def drawn(boxes: list[tuple[int, int, int, int, int]], size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (class, top, left, height, width) in the colour of their class."""
    label = np.zeros((size, size), np.uint8)
    for c, top, left, height, width in boxes:
        label[top : top + height, left : left + width] = c
    return COLOURS[label], label


def write(root: Path, pictures: list[list[tuple[int, int, int, int, int]]], split: str = "train") -> Path:
    """images|masks folders with id2label.json: labels as they are."""
    for i, boxes in enumerate(pictures):
        image, label = drawn(boxes)
        for folder, array in (("images", image[..., ::-1]), ("masks", label)):
            (root / folder / split).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / folder / split / f"{i:02}.png"), array)
    (root / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plenty of paper, a little metal, one battery."""
    papers = [[(1, 4 + i, 4, 30, 30)] for i in range(8)]
    root = write(
        tmp_path_factory.mktemp("data"), [*papers, [(2, 40, 40, 12, 16)], [(3, 10, 44, 8, 8), (1, 30, 2, 20, 20)]]
    )
    return write(root, papers[:2], "val")


def bank(root: Path) -> ObjectBank:
    return ObjectBank(open_source(str(root)), NAMES)


def agreement(image: np.ndarray, label: np.ndarray) -> float:
    """Share of the pixels whose colour is that of their label; resizing blends colours at borders alone."""
    near = np.abs(image[:, :, None].astype(int) - COLOURS).sum(-1).argmin(-1)
    return float((near == label)[label != 255].mean())


def apply(transform: Any, image: np.ndarray, label: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    import random

    transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
    result = transform(image=image, mask=label)
    return result["image"], result["mask"]


def test_a_mask_decides_not_the_value_of_a_pixel() -> None:
    """Black pixels inside an object are pasted, its surroundings are not, and the inputs stay as they are."""
    image, label = np.full((6, 6, 3), 200, np.uint8), np.full((6, 6), 255, np.uint8)
    image.flags.writeable = label.flags.writeable = False
    pixels = np.full((2, 3, 3), 90, np.uint8)
    pixels[0, 0] = 0
    mask = np.array([[True, True, False], [True, False, False]])
    out, after = pasted(image, label, [Thing(pixels, mask, 2, (1, 2))])
    assert (after == 2).sum() == 3 and out[1, 2].tolist() == [0, 0, 0] and out[2, 3].tolist() == [200] * 3
    assert ((out != image).any(-1) == (after != label)).all()


def test_objects_are_connected_parts_of_enough_pixels() -> None:
    _, label = drawn([(1, 0, 0, 10, 10), (1, 20, 20, 10, 10), (2, 40, 40, 3, 3)])
    found = objects(label, [1, 2], 50)
    assert [c for c, _ in found] == [1, 1] and [int(m.sum()) for _, m in found] == [100, 100]
    assert len(objects(label, [1, 2], 5)) == 3


def test_pseudo_objects_agree_with_their_pixels_and_come_from_every_picture(data: Path) -> None:
    # One colour a picture: which one was drawn can be read off.
    paste = PseudoObjectPaste(bank(data), p=1.0, classes=["paper", "metal", "battery"])
    image, label = drawn([])
    seen: Counter[int] = Counter()
    last = 0
    for seed in range(150):
        out, after = apply(paste, image, label, seed)
        assert agreement(out, after) > 0.97, seed
        seen.update(np.unique(after).tolist())
        last += bool((after == 3).any())  # the battery is in the last picture alone
    assert seen[1] > seen[2] > 0 and last > 3


@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_a_probability_is_one(p: float, data: Path) -> None:
    image, label = drawn([])
    paste = PseudoObjectPaste(bank(data), p=p, shift=0.0, rotate=0.0)
    share = np.mean([apply(paste, image, label, seed)[1].any() for seed in range(200)])
    assert share == pytest.approx(p, abs=0.08)
    batch = BatchCopyPaste(NAMES, p=p, shift=0.0, max_share=1.0)
    crops = [drawn([(1, 5, 5, 20, 20)]), drawn([])]
    share = np.mean([batch(crops, [0, seed])[1][1].any() for seed in range(200)])
    assert share == pytest.approx(p, abs=0.08)


def test_no_more_objects_than_asked_for(tmp_path: Path) -> None:
    root = write(tmp_path, [[(1, 2 + 20 * i, 2 + 20 * j, 8, 8) for i in range(3) for j in range(3)]])
    image, label = drawn([])
    still = dict(p=1.0, min_area=16, shift=0, rotate=0, scale=(0, 0), hflip=0, vflip=0)
    for most, there in ((1, 1), (2, 2), (20, 9)):
        paste = PseudoObjectPaste(bank(root), max_objects=most, **still)
        counts = {len(objects(apply(paste, image, label, seed)[1], [1], 1)) for seed in range(20)}
        assert counts == {there}


def test_rare_classes_are_drawn_more_often(data: Path) -> None:
    image, label = drawn([])
    found: dict[float, Counter[int]] = {}
    for power in (0.0, 1.0):
        paste = BalancedObjectPaste(bank(data), max_objects=1, power=power, min_area=40, p=1.0)
        found[power] = Counter()
        for seed in range(300):
            out, after = apply(paste, image, label, seed)
            assert agreement(out, after) > 0.95
            found[power].update(set(np.unique(after).tolist()) - {0})
    assert all(found[0.0][c] == pytest.approx(100, abs=30) for c in (1, 2, 3))  # all alike
    areas = bank(data).areas.sum(0)[1:]
    expected = 300 * (1 / areas) / (1 / areas).sum()
    assert [found[1.0][c] for c in (1, 2, 3)] == pytest.approx(expected.tolist(), abs=25)


def test_a_balanced_object_is_whole_and_of_its_own_size(data: Path) -> None:
    paste = BalancedObjectPaste(bank(data), max_objects=1, classes=["metal"], min_area=40, scale=(1, 1), p=1.0)
    image, label = drawn([])
    corners = set()
    for seed in range(20):
        _, after = apply(paste, image, label, seed)
        rows, columns = np.nonzero(after == 2)
        assert np.ptp(rows) == 11 and np.ptp(columns) == 15 and len(rows) == 12 * 16
        corners.add((rows[0], columns[0]))
    assert len(corners) > 15


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    root = write(tmp_path, [[(1, 2, 2, 20, 20), (2, 40, 40, 20, 20)]])
    other = ObjectBank(open_source(str(root)), ["sky", "metal", "void"])  # paper is no class there
    image, label = drawn([])
    paste = PseudoObjectPaste(other, p=1.0, rotate=0, shift=0)
    out, after = apply(paste, image, label, 0)
    assert set(np.unique(after)) == {0, 1} and agreement(out, 2 * after) > 0.97  # metal's colour is 2 here
    with pytest.raises(InputError, match="no class of the training data"):
        ObjectBank(open_source(str(root)), ["sky", "background"])


def test_copy_paste_in_the_batch_takes_what_was_there_before() -> None:
    """The second crop gets objects of the first alone, never what was just pasted into it, and no scenery."""
    crops = [drawn([(1, 5, 5, 10, 10)]), drawn([(2, 30, 30, 10, 10)])]
    batch = BatchCopyPaste(NAMES, p=1.0, shift=0.1, scale=(0, 0), hflip=0.0)
    for seed in range(30):
        (a, la), (b, lb) = batch(crops, [seed, seed + 1])
        assert agreement(a, la) > 0.98 and agreement(b, lb) > 0.98
        assert (la == 2).any() and (lb == 1).any() and (lb == 2).any()
        assert len(objects(la, [2], 1)) == 1
    assert not (crops[0][1] == 2).any(), "the inputs stay as they are"
    wide = [drawn([(1, 0, 0, 60, 60)]), drawn([])]
    assert not batch(wide, [1, 2])[1][1].any()
    assert batch(wide[:1], [1])[0][1] is wide[0][1]  # alone in its batch


EXTRA = [
    {"type": "BalancedObjectPaste", "args": {"p": 0.7, "min_area": 40}},
    {
        "type": "OneOf",
        "args": {"p": 0.5, "transforms": [{"type": "GridDropout", "args": {"ratio": 0.3}}, {"type": "ToGray"}]},
    },
    {"type": "RandomGridShuffle", "args": {"p": 0.3}},
    {"type": "BatchCopyPaste", "args": {"p": 0.7, "min_area": 16}},
]


def dataset(data: Path, extra: list[dict[str, Any]], cache: float = 0) -> TrainDataset:
    source = open_source(str(data))
    banks = Banks(source, None, None)
    transform = TrainTransform((32, 32), extra=extra, banks=banks)
    result = TrainDataset(source, transform, cache_bytes=cache, batch=batch_part(extra, source.class_names))
    banks.read_through(result.read)
    return result


def batches(data: TrainDataset, workers: int, start: int = 0) -> list[torch.Tensor]:
    sampler = StepSampler(len(data), 4, start=start, stop=5, seed=3)
    return [
        torch.cat([b["pixels"], b["labels"][..., None]], 3)
        for b in DataLoader(data, batch_sampler=sampler, num_workers=workers)
    ]


def test_neither_workers_nor_resuming_nor_the_cache_change_a_pixel(data: Path) -> None:
    whole = batches(dataset(data, EXTRA), workers=0)
    np.random.seed(1)
    assert all(torch.equal(a, b) for a, b in zip(whole, batches(dataset(data, EXTRA), workers=2), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], batches(dataset(data, EXTRA), 1, start=3), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole, batches(dataset(data, EXTRA, cache=1e9), 0), strict=True))
    plain = batches(dataset(data, []), workers=0)
    assert not all(torch.equal(a, b) for a, b in zip(whole, plain, strict=True))


def test_without_extras_a_batch_is_its_pictures(data: Path) -> None:
    plain = dataset(data, [])
    keys = [(0, 5), (3, 6)]
    for one, key in zip(plain.__getitems__(keys), keys, strict=True):
        assert all(torch.equal(one[k], plain[key][k]) for k in one)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"type": "PseudoObjectPaste"}, "give args.data"),
        ({"type": "PseudoObjectPaste", "args": {"data": "nowhere"}}, "nowhere"),
        ({"type": "BalancedObjectPast"}, "did you mean 'BalancedObjectPaste'"),
        ({"type": "BalancedObjectPaste", "args": {"max_obj": 3}}, "did you mean 'max_objects'"),
        ({"type": "BalancedObjectPaste", "args": {"max_objects": 0}}, "at least 1"),
        ({"type": "BalancedObjectPaste", "args": {"classes": ["batery"]}}, "did you mean 'battery'"),
        ({"type": "BalancedObjectPaste", "args": {"min_area": 10**6}}, "no object of 1000000 pixels"),
        ({"type": "BalancedObjectPaste", "args": {"p": 3}}, "BalancedObjectPaste"),
        ({"type": "OneOf", "args": {"p": 1}}, "list its members in args.transforms"),
        ({"type": "OneOf", "args": {"transforms": [{"type": "GridDropuot"}]}}, "did you mean 'GridDropout'"),
        ({"type": "GridDropout", "args": [1]}, "names and values"),
    ],
)
def test_mistakes_name_the_fix(item: dict[str, Any], words: str, data: Path) -> None:
    with pytest.raises(InputError) as caught:
        build_extra(item, Banks(open_source(str(data)), None, None))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_mistakes_in_the_batch(data: Path) -> None:
    for args, words in (({"pp": 1}, "takes no argument 'pp'"), ({"p": 2}, "p is in"), ({"shift": "x"}, "refuses")):
        with pytest.raises(InputError, match=words):
            batch_part([{"type": "BatchCopyPaste", "args": args}], NAMES)
    with pytest.raises(InputError, match="2 times"):
        batch_part([{"type": "BatchCopyPaste"}] * 2, NAMES)


def test_every_transform_of_the_competitions_list_runs() -> None:
    image, label = drawn([(1, 10, 10, 30, 30), (2, 45, 45, 15, 15)])
    names = (
        "HorizontalFlip VerticalFlip RandomRotate90 GridDropout RandomBrightnessContrast RandomGamma RandomShadow "
        "ToGray Perspective Affine ShiftScaleRotate RandomGridShuffle ElasticTransform"
    )
    for name in names.split():
        out, mask = TrainTransform((64, 64), extra=[{"type": name, "args": {"p": 1.0}}], jitter=None)(image, label, 1)
        assert out.shape == (64, 64, 3) and set(np.unique(mask)) <= {0, 1, 2, 255}, name


@pytest.mark.slow
def test_a_run_with_pasting_resumes_exactly(scenes: Path, tmp_path: Path) -> None:
    root = scenes if (scenes / "images").exists() else next(scenes.iterdir())
    pseudo = f"{{type: PseudoObjectPaste, args: {{data: {root}}}}}"
    extra = f"[{pseudo}, {{type: BalancedObjectPaste}}, {{type: BatchCopyPaste}}]"
    runs = [tmp_path / "whole", tmp_path / "cut"]
    for run in runs:
        done = run_cli(*finetune_words(scenes, run, steps=4, set_=(f"data.extra={extra}",)))
        assert done.returncode == 0, done.stderr
    shutil.rmtree(runs[1] / "checkpoint-4")
    words = finetune_words(scenes, runs[1], "--resume", steps=4, set_=(f"data.extra={extra}", "train.workers=1"))
    assert run_cli(*words).returncode == 0
    one, other = (load_file(run / "last" / "model.safetensors") for run in runs)
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_a_mistake_leaves_nothing(scenes: Path, tmp_path: Path, capsys: Any) -> None:
    extra = "[{type: BalancedObjectPaste, args: {max_obj: 3}}]"
    assert main(finetune_words(scenes, tmp_path / "run", set_=(f"data.extra={extra}",))) == 2
    assert "did you mean 'max_objects'" in capsys.readouterr().err and not (tmp_path / "run").exists()
