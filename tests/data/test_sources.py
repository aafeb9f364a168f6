"""Every layout is found by looking, read right, and its mistakes are named."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nota_seg.data.dataset import TrainDataset
from nota_seg.data.sources import LAYOUTS, open_source
from nota_seg.data.sources.base import hold_out, unique_names
from nota_seg.data.transforms import TrainTransform
from util.errors import InputError
from util.images import write_png

RNG = np.random.default_rng(0)


def picture(path: Path, height: int = 6, width: int = 8, orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif} if orientation != 1 else {}
    Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path, **options)
    return path


def mask(path: Path, value: Any = 1, height: int = 6, width: int = 8, dtype: type = np.uint8) -> Path:
    write_png(path, np.broadcast_to(np.asarray(value, dtype=dtype), (height, width)).copy())
    return path


def folders(root: Path, pictures: str, masks: str, splits: tuple[str, str], names: Any = None, count: int = 2) -> Path:
    for split in splits:
        for i in range(count):
            picture(root / pictures / split / f"p{i}.jpg")
            mask(root / masks / split / f"p{i}.png", i)
    if names is not None:
        (root / "id2label.json").write_text(json.dumps(names))
    return root


def images_masks(root: Path, **options: Any) -> Path:
    return folders(root, "images", "masks", ("train", "val"), {"0": "sky", "1": "road", "2": "tree"}, **options)


def refused(path: Any, *parts: str, **options: Any) -> None:
    with pytest.raises(InputError) as caught:
        open_source(path, **options)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


# ---- layouts ----


def test_ade20k(tmp_path: Path) -> None:
    root = folders(tmp_path, "images", "annotations", ("training", "validation"))
    mask(root / "annotations/training/p1.png", [[0, 1, 2, 150, 255, 0, 0, 0]])
    source = open_source(root)
    assert type(source).key == "ade20k" and source.splits == {"train": 2, "val": 2} and source.num_labels == 150
    assert source.class_names[0] == "class 1"
    assert source.read("training", 1)[1][0].tolist() == [255, 0, 1, 149, 255, 255, 255, 255]
    assert source.names("val") == ["p0", "p1"]
    assert "150 classes" in source.describe() and "train 2, val 2" in source.describe()

    (root / "id2label.json").write_text(json.dumps({"0": "other", "1": "wall", "2": "sky"}))
    assert open_source(root).class_names == ["wall", "sky"]
    (root / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t1\t1\twall\n2\t0.1\t1\t1\tbed , cot\n"
    )
    source = open_source(root)
    assert source.class_names == ["wall", "bed"]
    with pytest.raises(InputError, match=r"p1\.png: value 150 at row 0, column 3; valid are 0 = other, 1\.\.2 and 255"):
        source.read("train", 1)
    (root / "objectInfo150.txt").write_text("Name Idx\n")
    refused(root, "objectInfo150.txt", "separated by tabs")


@pytest.mark.parametrize(
    "names",
    [
        {"0": "other", "1": "sky", "2": "road"},
        {"0": "Background", "1": "sky", "2": "road"},
        {"1": "sky", "2": "road"},
        {"0": "sky", "1": "road"},
        ["sky", "road"],
    ],
)
def test_image_mask_with_any_id2label(names: Any, tmp_path: Path) -> None:
    source = open_source(folders(tmp_path, "image", "mask", ("train", "val"), names, count=3))
    assert type(source).key == "image-mask" and source.class_names == ["sky", "road"]
    assert [int(source.read_label("train", i)[0, 0]) for i in range(3)] == [255, 0, 1]


def test_images_masks(tmp_path: Path) -> None:
    root = images_masks(tmp_path, count=3)
    mask(root / "masks/train/p2.png", 255)
    source = open_source(root)
    assert type(source).key == "images-masks" and source.class_names == ["sky", "road", "tree"]
    assert [int(source.read_label("train", i)[0, 0]) for i in range(3)] == [0, 1, 255]
    image, label = source.read("validation", 0)
    assert image.shape == (6, 8, 3) and image.dtype == label.dtype == np.uint8 and label.shape == (6, 8)


def test_nested_folders_any_case_of_suffix_and_order(tmp_path: Path) -> None:
    root = images_masks(tmp_path)
    picture(root / "images/train/city/b.PNG")
    mask(root / "masks/train/city/b.png")
    (root / "images/train/._p0.jpg").write_bytes(b"junk of an archiver")
    (root / "images/train/notes.txt").write_text("no picture")
    assert open_source(root).names("train") == ["city/b", "p0", "p1"]


def coco_json(path: Path, count: int = 2, prefix: str = "", first_id: int = 7, **changes: Any) -> Path:
    value = {
        "images": [{"id": i, "file_name": f"{prefix}c{i}.jpg", "height": 6, "width": 8} for i in range(count)],
        "categories": [{"id": first_id + 2, "name": "dog"}, {"id": first_id, "name": "cat"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": first_id + 2, "segmentation": [[0, 0, 4, 0, 4, 6, 0, 6]]}
            for i in range(count)
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value | changes))
    return path


@pytest.mark.parametrize("place", ["", "images", "images/{split}", "{split}"])
def test_coco_with_splits(place: str, tmp_path: Path) -> None:
    for split in ("train", "val"):
        coco_json(tmp_path / f"{split}.json")
        for i in range(2):
            picture(tmp_path / place.format(split=split) / f"c{i}.jpg")
    source = open_source(tmp_path)
    assert source.class_names == ["background", "cat", "dog"] and source.splits == {"train": 2, "val": 2}
    label = source.read("train", 0)[1]
    assert (label[:, :4] == 2).all() and (label[:, 4:] == 0).all()


def test_coco_as_published(tmp_path: Path) -> None:
    for split in ("train2017", "val2017"):
        coco_json(tmp_path / f"annotations/instances_{split}.json")
        coco_json(tmp_path / f"annotations/captions_{split}.json")
        for i in range(2):
            picture(tmp_path / split / f"c{i}.jpg")
    source = open_source(tmp_path)
    assert source.splits == {"train": 2, "val": 2} and "train2017" in source.places("train", 0)[0]


@pytest.mark.parametrize("given", ["folder", "file"])
def test_coco_lone_file_is_held_out_stably(given: str, tmp_path: Path) -> None:
    path = coco_json(tmp_path / "instances.json", count=40, prefix="images/")
    for i in range(40):
        picture(tmp_path / f"images/c{i}.jpg", 2, 2)
    source = open_source(path if given == "file" else tmp_path)
    assert "held out" in source.describe() and sum(source.splits.values()) == 40
    train, val = source.names("train"), source.names("val")
    assert 2 <= len(val) <= 16 and not set(train) & set(val) and val == sorted(val)
    names = [f"images/c{i}.jpg" for i in range(40)]
    assert {names[i][:-4] for i in hold_out(names)["val"]} == set(val)
    fewer = {names[:30][i] for i in hold_out(names[:30])["val"]}
    assert fewer == {names[i] for i in hold_out(names)["val"] if i < 30}


def test_hold_out_of_a_handful() -> None:
    assert [len(v) for v in hold_out(["a"]).values()] == [1, 0]
    assert all(hold_out(["a", "b"]).values())


def test_coco_mistakes(tmp_path: Path) -> None:
    coco_json(tmp_path / "train.json")
    picture(tmp_path / "c0.jpg")
    refused(tmp_path, "c1.jpg is missing")
    picture(tmp_path / "c1.jpg")
    coco_json(tmp_path / "val.json", first_id=8)
    refused(tmp_path, "val.json: its categories differ")
    twice = [{"id": i, "file_name": "c0.jpg", "height": 6, "width": 8} for i in range(2)]
    coco_json(tmp_path / "val.json", images=twice)
    refused(tmp_path, "two images have the stem 'c0'")
    (tmp_path / "val.json").write_text('{"images": [], "annotations": [')
    refused(tmp_path, "val.json: not JSON")


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def parquet(path: Path, columns: dict[str, list[Any]], features: Any = None) -> Path:
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` prepares files in a cache; keep it inside the test."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("typed", [True, False])
def test_parquet(typed: bool, tmp_path: Path, cache: None) -> None:
    import datasets

    root = tmp_path / "data set"
    image = RNG.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()}) if typed else None
    for name in ("train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"):
        cells = [{"bytes": png(image), "path": None}] * 3
        masks = [{"bytes": png(np.full((4, 5), v, np.uint8)), "path": None} for v in (0, 1, 255)]
        parquet(root / name, {"image": cells, "mask": masks}, features)
    refused(root, "no class names; add id2label.json")
    (root / "id2label.json").write_text(json.dumps({"0": "background", "1": "cell"}))
    source = open_source(root)
    assert source.splits == {"train": 3, "val": 3} and source.class_names == ["background", "cell"]
    assert [int(source.read("val", i)[1][0, 0]) for i in range(3)] == [0, 1, 255]
    assert np.array_equal(source.read_image("train", 0), image)


def test_parquet_of_150_classes_reduces_and_holds_out(tmp_path: Path, cache: None) -> None:
    root = tmp_path / "set"
    masks = [png(np.full((4, 5), v, np.uint8)) for v in (0, 1, 150, 151)]
    images = [png(np.zeros((4, 5, 3), np.uint8))] * 4
    path = parquet(root / "rows.parquet", {"image": images, "annotation": masks, "scene": ["a"] * 4})
    (root / "id2label.json").write_text(json.dumps({str(i): f"c{i}" for i in range(150)}))
    source = open_source(path)
    assert "held out" in source.layout and sum(source.splits.values()) == 4
    values = {}
    for split in source.splits:
        for i, name in enumerate(source.names(split)):
            try:
                values[name] = int(source.read(split, i)[1][0, 0])
            except InputError as error:
                values[name] = str(error)
    assert [values[k] for k in sorted(values)][:3] == [255, 0, 149]
    assert "value 151" in values[max(values)] and "column annotation" in values[max(values)]


def test_parquet_mistakes(tmp_path: Path, cache: None) -> None:
    parquet(tmp_path / "a" / "train.parquet", {"image": [png(np.zeros((2, 2), np.uint8))], "label": [3]})
    refused(tmp_path / "a", "no mask column", "found image, label")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 broken")
    refused(tmp_path / "b.parquet", "b.parquet: the parquet files cannot be read")


def test_hub_id_is_loaded_through_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def no_network(name: str) -> None:
        raise ConnectionError(f"cannot reach {name}\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", no_network)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    refused("someone/scenes", "someone/scenes: no such folder", "cannot reach someone/scenes)")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused("someone/scenes", "HF_HUB_OFFLINE is set")

    cells = {"image": [png(np.zeros((2, 2, 3), np.uint8))], "annotation": [png(np.ones((2, 2), np.uint8))]}
    table = datasets.Dataset.from_dict(cells)
    both = datasets.DatasetDict(train=table, validation=table)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: both)
    monkeypatch.setattr("nota_seg.data.sources.hub._hub_names", lambda name: None)
    source = open_source("zhou/scene_parse_150")
    assert source.num_labels == 150 and source.read("val", 0)[1].max() == 0


# ---- what goes wrong ----


def test_unknown_layouts(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no such file or folder")
    (tmp_path / "stuff").mkdir()
    refused(tmp_path, "Found: stuff/", *[kind.wants for kind in LAYOUTS])
    images_masks(tmp_path / "inner")
    refused(tmp_path, f"did you mean {tmp_path / 'inner'}?")
    picture(tmp_path / "images/train/a.jpg")
    refused(tmp_path, "images/ is there but masks/ is missing", "annotations/ is missing")
    (tmp_path / "masks").mkdir()
    refused(tmp_path, "images/ and masks/ have no split in common")
    refused(tmp_path, "unknown layout 'ade20'", "did you mean 'ade20k'", layout="ade20")


def test_a_mistyped_folder_asks_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    refused("data/camvidd", "no such file or folder")


def test_splits(tmp_path: Path) -> None:
    root = images_masks(tmp_path)
    for folder in ("images", "masks"):
        (root / folder / "test").mkdir()
    source = open_source(root)
    for name, state in (("test", "is empty"), ("testing", "is empty"), ("minival", "is not there")):
        with pytest.raises(InputError, match=rf"'{name}' {state}; splits: train \(2 pictures\), val \(2 pictures\)"):
            source.names(name)
    (root / "images/empty/images/train").mkdir(parents=True)
    (root / "images/empty/masks/train").mkdir(parents=True)
    (root / "images/empty/id2label.json").write_text('{"0": "a"}')
    refused(root / "images/empty", "has no pictures")


def test_a_test_split_without_masks_is_left_but_a_train_split_is_not(tmp_path: Path) -> None:
    root = images_masks(tmp_path)
    picture(root / "images/test/a.jpg")
    assert set(open_source(root).splits) == {"train", "val"}
    (root / "masks/val").rename(root / "masks/old")
    refused(root, "images/val has no counterpart", "masks/val")


def test_missing_mask_and_picture(tmp_path: Path) -> None:
    root = images_masks(tmp_path)
    (root / "masks/train/p1.png").unlink()
    refused(root, "images/train/p1.jpg has no mask", "masks/train/p1.png")
    (root / "images/val/p0.jpg").unlink()
    refused(root, "1 more")
    source = open_source(root, strict=False)
    assert source.splits == {"train": 1, "val": 1} and len(source.problems("train")) == 1
    assert "p0.png has no picture" in source.all_problems()[1]


def test_duplicate_stems(tmp_path: Path) -> None:
    root = images_masks(tmp_path)
    picture(root / "images/train/p0.png")
    refused(root, "p0.png and p0.jpg have one stem")


def test_sizes_that_differ(tmp_path: Path) -> None:
    root = images_masks(tmp_path)
    mask(root / "masks/train/p0.png", height=5)
    with pytest.raises(InputError, match=r"p0\.jpg is 6x8 and .*p0\.png is 5x8"):
        open_source(root).read("train", 0)


@pytest.mark.parametrize(("shape", "turned"), [((8, 6), True), ((6, 8), False)])
def test_exif_rotation_and_the_mask_decides(shape: tuple[int, int], turned: bool, tmp_path: Path) -> None:
    root = images_masks(tmp_path)
    stored = picture(root / "images/train/p0.jpg", orientation=6)
    mask(root / "masks/train/p0.png", 1, *shape)
    image, label = open_source(root).read("train", 0)
    with Image.open(stored) as opened:
        array = np.asarray(opened)
    assert image.shape[:2] == label.shape == shape
    assert np.array_equal(image, np.rot90(array, -1) if turned else array)
    mask(root / "masks/train/p0.png", 1, 7, 7)
    with pytest.raises(InputError, match="one size"):
        open_source(root).read("train", 0)


@pytest.mark.parametrize(("value", "dtype"), [(3, np.uint8), (254, np.uint8), (300, np.uint16)])
def test_labels_out_of_range(value: int, dtype: type, tmp_path: Path) -> None:
    root = images_masks(tmp_path)
    array = np.zeros((6, 8), dtype=dtype)
    array[2, 5] = value
    write_png(root / "masks/train/p0.png", array)
    with pytest.raises(InputError, match=rf"p0\.png: value {value} at row 2, column 5; valid are 0\.\.2 and 255"):
        open_source(root).read("train", 0)


def test_sixteen_bit_and_equal_channel_masks(tmp_path: Path) -> None:
    root = images_masks(tmp_path)
    mask(root / "masks/train/p0.png", 2, dtype=np.uint16)
    Image.fromarray(np.full((6, 8, 3), 1, dtype=np.uint8)).save(root / "masks/train/p1.png")
    source = open_source(root)
    assert source.read("train", 0)[1].max() == 2 and source.read("train", 1)[1].max() == 1
    Image.fromarray(RNG.integers(0, 2, (6, 8, 3), dtype=np.uint8)).save(root / "masks/train/p1.png")
    with pytest.raises(InputError, match=r"p1\.png: colour mask"):
        source.read("train", 1)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"0": "a", "2": "b"}, "without a gap; look at 1"),
        ({"1": "a"}, "give the name of id 0"),
        ({"a": "b"}, "not a number"),
        ({}, "not an object"),
        ({str(i): str(i) for i in range(256)}, "256 classes"),
    ],
)
def test_bad_id2label(names: Any, message: str, tmp_path: Path) -> None:
    refused(folders(tmp_path, "images", "masks", ("train", "val"), names), message)


def test_missing_id2label(tmp_path: Path) -> None:
    for pictures, masks in (("images", "masks"), ("image", "mask")):
        refused(folders(tmp_path / masks, pictures, masks, ("train", "val")), "id2label.json: missing; add one")


def test_names_are_unique() -> None:
    assert unique_names(["a", "b", "a", "a (2)", "a"]) == ["a", "b", "a (2)", "a (2) (2)", "a (3)"]


# ---- as a torch data set ----


def test_training_data(tmp_path: Path) -> None:
    source = open_source(images_masks(tmp_path))
    train = TrainDataset(source, TrainTransform((16, 24)))
    item = train[(1, 99)]
    assert item["pixels"].shape == (16, 24, 3) and str(item["pixels"].dtype) == "torch.uint8"
    assert item["labels"].shape == (16, 24) and str(item["labels"].dtype) == "torch.uint8" and len(train) == 2


def test_decoded_pictures_are_kept_within_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(images_masks(tmp_path))
    size = sum(array.nbytes for array in source.read("train", 0))
    plain = TrainDataset(source, TrainTransform((16, 24)))
    cached = TrainDataset(source, TrainTransform((16, 24)), cache_bytes=1.5 * size)  # one of the two fits
    expected = [plain[(i, seed)] for i in (0, 1) for seed in (5, 6)]
    decoded: list[int] = []
    read = source.read
    monkeypatch.setattr(source, "read", lambda split, index: decoded.append(index) or read(split, index))
    for want, item in zip(expected, [cached[(i, seed)] for i in (0, 1) for seed in (5, 6)], strict=True):
        assert want["pixels"].equal(item["pixels"]) and want["labels"].equal(item["labels"])
    assert decoded == [0, 1, 1]


# ---- real data, where there is any ----

DATA = os.environ.get("NOTA_SEG_DATA")


@pytest.mark.skipif(not DATA, reason="NOTA_SEG_DATA names no folder with data")
@pytest.mark.parametrize(
    ("folder", "key", "classes"),
    [("ADEChallengeData2016", "ade20k", 150), ("camvid", "images-masks", 11), ("coco-mini", "coco", 11)],
)
def test_real_data(folder: str, key: str, classes: int) -> None:
    path = Path(str(DATA)) / folder
    if not path.is_dir():
        pytest.skip(f"no {folder}")
    source = open_source(path)
    assert type(source).key == key and source.num_labels == classes and set(source.splits) >= {"train", "val"}
    for split in ("train", "val"):
        image, label = source.read(split, 0)
        assert image.shape[:2] == label.shape and len(np.unique(label)) > 1
    if key == "ade20k":
        assert source.class_names[:3] == ["wall", "building", "sky"] and source.class_names[-1] == "flag"
