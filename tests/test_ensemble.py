"""Soft voting, and submissions from models and from masks."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import nota_seg
from nota_seg.cli import main
from nota_seg.data.exchange import submission_rows
from nota_seg.data.sources import open_source
from nota_seg.ensemble import Cleaning, Member, from_masks, load_members, predicted, probabilities, soft_vote
from nota_seg.inference import Protocol, predict_labels, to_pixels
from nota_seg.predict import predict
from nota_seg.pseudo_label import Thresholds, pseudo_label
from util.cleanup import mode_filter
from util.coco import CocoFile
from util.coco_sets import merge
from util.errors import InputError
from util.pasting import CopyPaste, write_new
from util.submissions import Submission

NAMES = ["background", "red", "black", "blue"]
TINY: dict[str, Any] = dict(dims=[8, 16, 24, 32], heads=1, depths=1)


class Fixed(torch.nn.Module):
    """The same probabilities everywhere; remembers how often it was asked."""

    def __init__(self, *p: float) -> None:
        super().__init__()
        self.logits, self.calls = torch.tensor(p).log(), 0

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        self.calls += 1
        B, _, H, W = pixel_values.shape
        return SimpleNamespace(logits=self.logits.view(1, -1, 1, 1).expand(B, -1, H // 4, W // 4))


def member(*p: float, weight: float = 1.0) -> Member:
    return Member(Fixed(*p), NAMES, Protocol(), weight)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        torch.manual_seed(seed)
        names = dict(enumerate(NAMES))
        model = nota_seg.create_model("segformer-b0", id2label=names, label2id={v: k for k, v in names.items()}, **TINY)
        model.config.image_size = (80, 40)  # a run's: pictures are fitted to it
        model.save_pretrained(folder / str(seed))
    return [folder / "0", folder / "1"]


def test_each_member_looks_through_its_own_windows(runs: list[Path], tmp_path: Path) -> None:
    names = dict(enumerate(NAMES))
    small = dict(dim=24, depth=4, decoder={"dim": 8}, auxiliary_dim=8, image_size=None)
    beit = nota_seg.create_model(
        "beit-t-upernet", id2label=names, label2id={v: k for k, v in names.items()}, crop_size=[32, 48], **small
    )
    beit.save_pretrained(tmp_path)
    ours, theirs = (m.protocol for m in load_members([runs[0], tmp_path], [], {"scales": (1.0, 2.0)}, "cpu"))
    assert (ours.mode, ours.crop_size, ours.base_size) == ("whole", None, (80, 40))
    assert (theirs.mode, theirs.crop_size, theirs.stride, theirs.base_size) == ("slide", (32, 48), (21, 32), None)
    assert ours.scales == theirs.scales == (1.0, 2.0)
    (chosen,) = (m.protocol for m in load_members([tmp_path], [], {"mode": None, "stride": (8, 16)}, "cpu"))
    assert (chosen.mode, chosen.crop_size, chosen.stride) == ("slide", (32, 48), (8, 16))
    (whole,) = (m.protocol for m in load_members([tmp_path], [], {"mode": "whole"}, "cpu"))
    assert whole.mode == "whole"
    with pytest.raises(InputError, match="stride"):  # of both: one of them has no windows
        load_members([tmp_path, runs[0]], [], {"stride": (8, 16)}, "cpu")


def test_votes_are_weighted_probabilities() -> None:
    image = np.zeros((12, 20, 3), dtype=np.uint8)
    members = [member(0.6, 0.2, 0.1, 0.1), member(0.1, 0.7, 0.1, 0.1, weight=3.0)]
    p_KHW = soft_vote(members, image, "cpu")
    assert p_KHW.shape == (4, 12, 20)
    assert np.allclose(p_KHW[:, 3, 4], [0.225, 0.575, 0.1, 0.1], atol=1e-6)


def test_one_picture_at_a_time(waste: Path) -> None:
    """Probabilities of a whole test set do not fit into memory: nothing runs ahead of what is asked for."""
    members = [member(0.4, 0.3, 0.2, 0.1), member(0.3, 0.4, 0.2, 0.1)]
    rows = probabilities(members, CocoFile.read(waste), "cpu")
    for asked in range(1, 4):
        next(rows)
        assert [m.model.calls for m in members] == [asked, asked]


def test_members_must_fit(runs: list[Path], tmp_path: Path, waste: Path) -> None:
    nota_seg.create_model("segformer-b0", num_labels=4, **TINY).save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="other classes"):
        load_members([runs[0], tmp_path / "other"], [], {}, "cpu")
    for weights in ([1.0], [1.0, 0.0], [1.0, -2.0]):
        with pytest.raises(InputError, match="weights"):
            load_members(runs, weights, {}, "cpu")
    with pytest.raises(InputError, match="categories"):
        list(predicted([Member(Fixed(0.5, 0.5), ["a", "b"], Protocol())], CocoFile.read(waste), "cpu"))


def test_submission_in_the_order_of_the_list(runs: list[Path], waste: Path, tmp_path: Path) -> None:
    """The list is in no order of names or ids; rows follow it and hold their own picture."""
    content = json.loads(waste.read_text())
    content = {"images": [content["images"][i] for i in (5, 0, 9, 2)], "categories": content["categories"]}
    (tmp_path / "test.json").write_text(json.dumps(content))
    words = ["submit", "--test-json", tmp_path / "test.json", "--images", waste.parent, "--size", "32"]
    assert main([*map(str, words), "--pretrain", str(runs[0]), "--output", str(tmp_path / "a.csv")]) == 0
    file = Submission(tmp_path / "a.csv")
    assert file.image_ids == [image["file_name"] for image in content["images"]]
    one = load_members(runs[:1], [], {}, "cpu")[0]
    assert one.protocol.base_size == (80, 40)
    coco = CocoFile.read(tmp_path / "test.json", annotated=False)
    for image in coco.images:
        pixels = to_pixels(coco.read_picture(image, waste.parent), (80, 40))[None]
        alone = predict_labels(one.model, pixels, (image["height"], image["width"]), one.protocol)
        rows = np.arange(32) * image["height"] // 32
        columns = np.arange(32) * image["width"] // 32
        assert np.array_equal(file.label(image["file_name"]), alone[0].numpy()[rows][:, columns])

    predict(one.model, [waste.parent], tmp_path / "labels", one.protocol, NAMES, "cpu")
    words += ["--labels", tmp_path / "labels", "--output", tmp_path / "b.csv"]
    assert main([str(w) for w in words]) == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert main([str(w) for w in words]) == 2  # nothing is overwritten


def test_ensembles(runs: list[Path], waste: Path, tmp_path: Path) -> None:
    common = ["--test-json", str(waste), "--size", "24", "--output"]
    pair = ["--pretrain", str(runs[0]), "--pretrain", str(runs[1])]
    views = ["--tta", "hflip", "--tta", "vflip", "--tta", "rot90", "--scales", "0.5,1"]
    assert main(["submit", "--pretrain", str(runs[0]), *common, str(tmp_path / "a.csv")]) == 0
    assert main(["submit", "--pretrain", str(runs[1]), *common, str(tmp_path / "b.csv"), "--clean", "mode3"]) == 0
    assert main(["ensemble", *pair, "--weight", "1e9", "--weight", "1", *common, str(tmp_path / "c.csv")]) == 0
    assert main(["ensemble", *pair, *views, *common, str(tmp_path / "d.csv")]) == 0
    a, b, c, d = (Submission(tmp_path / f"{n}.csv") for n in "abcd")
    assert all(np.array_equal(a.label(i), c.label(i)) for i in a.image_ids)  # all the weight on the first
    assert d.image_ids == a.image_ids
    hard = ["ensemble", "--csv", str(a.path), str(b.path), "--output"]
    assert main([*hard, str(tmp_path / "e.csv")]) == 0
    assert (tmp_path / "e.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()  # two voters: all ties
    assert main([*hard, str(tmp_path / "f.csv"), "--clean", "mode3"]) == 0
    f = Submission(tmp_path / "f.csv")
    assert all(np.array_equal(f.label(i), mode_filter(a.label(i))) for i in a.image_ids)


def test_masks_by_name(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"batch_{i}/0001.jpg", "height": 4, "width": 4} for i in (1, 2)]
    coco = CocoFile(tmp_path / "x.json", images, {1: [], 2: []}, [])
    for i, name in ((1, "batch_1_0001.png"), (2, "batch_2/0001.png")):
        (tmp_path / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), i, dtype=np.uint8)).save(tmp_path / "m" / name)
    found = {name: int(mask[0, 0]) for name, mask in from_masks(coco, tmp_path / "m")}
    assert found == {image["file_name"]: image["id"] for image in images}
    (tmp_path / "m" / "batch_1_0001.png").rename(tmp_path / "m" / "0001.png")  # of which batch?
    with pytest.raises(InputError, match="no mask of batch_1/0001"):
        from_masks(coco, tmp_path / "m")


def test_cleaning() -> None:
    p_KHW = np.full((2, 9, 9), 0.4, dtype=np.float32)
    p_KHW[0] = 0.6
    p_KHW[:, 4, 4] = (0.1, 0.9)
    image = np.zeros((9, 9, 3), dtype=np.uint8)
    assert Cleaning().of_probabilities(p_KHW, image)[4, 4] == 1
    assert not Cleaning(mode3=True).of_probabilities(p_KHW, image).any()
    assert not Cleaning(crf=True).of_probabilities(p_KHW, image).any()
    assert not Cleaning(crf=True).of_labels(p_KHW.argmax(axis=0).astype(np.uint8), image, 2).any()


def test_thresholds() -> None:
    p_KHW = np.zeros((3, 2, 4), dtype=np.float32)
    p_KHW[:, :, :2] = np.array([0.1, 0.8, 0.1])[:, None, None]
    p_KHW[:, :, 2] = np.array([0.5, 0.3, 0.2])[:, None]
    p_KHW[:, :, 3] = np.array([0.2, 0.2, 0.6])[:, None]
    label, mean, by_class = Thresholds().apply(p_KHW)
    assert label is not None and label.tolist() == [[1, 1, 0, 2]] * 2
    assert mean == pytest.approx(0.675) and by_class == pytest.approx({0: 0.5, 1: 0.8, 2: 0.6})
    assert Thresholds(pixel=0.55).apply(p_KHW)[0].tolist() == [[1, 1, 255, 2]] * 2  # type: ignore[union-attr]
    assert Thresholds(classes={2: 0.7}).apply(p_KHW)[0].tolist() == [[1, 1, 0, 255]] * 2  # type: ignore[union-attr]
    assert Thresholds(image=0.7).apply(p_KHW)[0] is None
    with pytest.raises(InputError, match="0 to 1"):
        Thresholds(pixel=70)


def test_pseudo_labels_are_annotations(waste: Path, tmp_path: Path) -> None:
    coco = CocoFile.read(waste)
    members = [member(0.1, 0.1, 0.1, 0.7)]
    result = pseudo_label(members, coco, tmp_path / "p", Thresholds(pixel=0.6), device="cpu", masks=True)
    assert result["kept"] == result["annotations"] == 12 and result["confidence"] == pytest.approx(0.7)
    new = CocoFile.read(tmp_path / "p" / "pseudo.json")
    assert new.images == coco.images and {a["category_id"] for a in new.annotations} == {90}
    assert new.read_picture(new.images[0]).ndim == 3
    assert all((new.paint(i, background=0, first_label=1) == 3).all() for i in new.images)
    with Image.open(tmp_path / "p" / "masks" / new.images[0]["file_name"]) as mask:
        assert (np.asarray(mask) == 3).all()
    assert len((tmp_path / "p" / "manifest.jsonl").read_text().splitlines()) == 12
    for thresholds in (Thresholds(image=0.9), Thresholds(pixel=0.9)):
        with pytest.raises(InputError, match="lower them"):
            pseudo_label(members, coco, tmp_path / "q", thresholds, device="cpu")
        assert not (tmp_path / "q").exists()


class Half(Fixed):
    """Sure of class 3 on the left half, of nothing on the right."""

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        logits = super().forward(pixel_values).logits.clone()
        logits[..., logits.shape[3] // 2 :] = 0
        return SimpleNamespace(logits=logits)


def test_what_nothing_is_sure_of_neither_trains_nor_counts(waste: Path, tmp_path: Path) -> None:
    """It is no background: ignored from the file to the training data, through merging and pasting, and in CSVs only
    is it background, which have no word for it."""
    coco = CocoFile.read(waste)
    members = [Member(Half(0.1, 0.1, 0.1, 0.7), NAMES, Protocol())]
    pseudo_label(members, coco, tmp_path / "p", Thresholds(pixel=0.6), device="cpu", masks=True)
    new = CocoFile.read(tmp_path / "p" / "pseudo.json")
    labels = {i["file_name"]: new.paint(i, background=0, first_label=1) for i in new.images}
    for name, label in labels.items():
        with Image.open((tmp_path / "p" / "masks" / name).with_suffix(".png")) as mask:
            assert np.array_equal(np.asarray(mask), label)
        assert (label[:, :20] == 3).all() and (label[:, -20:] == 255).all() and set(np.unique(label)) == {3, 255}
    source = open_source(tmp_path / "p" / "pseudo.json")
    assert np.array_equal(source.read("train", 0)[1], labels[f"{source.names('train')[0]}.png"])

    both, root = merge([coco.with_images(coco.images[:3]), new.with_images(new.images[3:])])
    assert root == waste.parent and ["ignored" in image for image in both.images] == [False] * 3 + [True] * 9
    file = write_new(new, CopyPaste(patch=[90], jitter=(0.3, 0.3), flip=0.0), tmp_path / "pasted", count=4)
    pasted, targets = CocoFile.read(file), (tmp_path / "pasted" / "manifest.jsonl").read_text().splitlines()
    for image, line in zip(pasted.images, targets, strict=True):
        label, before = (
            pasted.paint(image, background=0, first_label=1),
            labels[json.loads(line)["target"]["file_name"]],
        )
        assert (label[before == 3] == 3).all() and set(np.unique(label[before == 255])) <= {3, 255}
        assert 255 in label and {a["category_id"] for a in pasted.annotations_by_image[image["id"]]} == {90}
    assert all(set(np.unique(label)) == {0, 3} for _, label in submission_rows(new))
