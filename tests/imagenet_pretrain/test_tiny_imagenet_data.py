"""One drawn set in every layout must be the same set; what is wrong with one must be said in one line."""

from __future__ import annotations

import copy
import os
import shutil
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from imagenet_pretrain.augment import EvalTransform, TrainTransform
from imagenet_pretrain.data import EvalImages, ImageSource, TrainImages, open_images, verify_images
from util.errors import InputError
from util.synthetic import draw_tiny_imagenet

CLASSES, TRAIN, VAL = 3, 6, 2
REAL = Path(os.environ.get("NOTA_SEG_DATA", "missing"))


@pytest.fixture(scope="module")
def publishers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn")
    return draw_tiny_imagenet(root, classes=CLASSES, train_per_class=TRAIN, val_per_class=VAL, size=24, seed=1)


@pytest.fixture
def mine(publishers: Path, tmp_path: Path) -> Path:
    """One that a test may damage."""
    return Path(shutil.copytree(publishers, tmp_path / "tiny-imagenet-200"))


def rows(publishers: Path, split: str) -> list[tuple[str, bytes]]:
    """(wnid, encoded picture) in the order in which the publisher's folder is read."""
    if split == "train":
        files = sorted(publishers.glob("train/*/images/*.JPEG"))
        return [(f.parent.parent.name, f.read_bytes()) for f in files]
    lines = [line.split("\t") for line in (publishers / "val/val_annotations.txt").read_text().splitlines()]
    return [(wnid, (publishers / "val/images" / name).read_bytes()) for name, wnid, *_ in lines]


def as_zip(publishers: Path, to: Path) -> Path:
    with zipfile.ZipFile(to / "tiny-imagenet-200.zip", "w") as archive:
        for i, file in enumerate(sorted(publishers.rglob("*"))):
            kind = zipfile.ZIP_DEFLATED if i % 2 else zipfile.ZIP_STORED
            archive.write(file, file.relative_to(publishers.parent), compress_type=kind)
        archive.writestr("__MACOSX/tiny-imagenet-200/train/._x.JPEG", b"")
    return to / "tiny-imagenet-200.zip"


def as_class_folders(publishers: Path, to: Path) -> Path:
    for split in ("train", "val"):
        for i, (wnid, content) in enumerate(rows(publishers, split)):
            file = to / split / wnid / f"{i:03}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    shutil.copy(publishers / "words.txt", to)
    return to


def as_plain_parquet(publishers: Path, to: Path) -> Path:
    for split in ("train", "val"):
        wnids, contents = zip(*rows(publishers, split), strict=True)
        paths = [f"{split}/{i}.JPEG" for i in range(len(wnids))]
        table = pa.table({"path": paths, "wnid": wnids, "bytes": contents})
        pq.write_table(table, to / f"tiny-{split}.parquet", row_group_size=4)
    shutil.copy(publishers / "words.txt", to / "tiny-words.txt")
    return to


def as_hub_parquet(publishers: Path, to: Path) -> Path:
    import datasets

    names = sorted({wnid for wnid, _ in rows(publishers, "train")}, reverse=True)  # labels follow another order
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=[*names, "n_unused"]))
    (to / "data").mkdir()
    for split, stem in (("train", "train"), ("val", "valid")):
        images = [{"bytes": content, "path": "x.JPEG"} for _, content in rows(publishers, split)]
        labels = [names.index(wnid) for wnid, _ in rows(publishers, split)]
        table = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        table.to_parquet(to / "data" / f"{stem}-00000-of-00001.parquet")
    shutil.copy(publishers / "words.txt", to)
    return to


def assert_same_set(source: ImageSource, reference: ImageSource) -> None:
    assert source.classes == reference.classes
    assert source.class_names == reference.class_names
    assert source.splits == reference.splits == {"train": CLASSES * TRAIN, "val": CLASSES * VAL}
    for split in ("train", "val"):
        mine = sorted((source.label(split, i), source.read(split, i)[0].tobytes()) for i in range(source.splits[split]))
        its = sorted((label, image.tobytes()) for image, label in (reference.read(split, i) for i in range(len(mine))))
        assert mine == its


@pytest.mark.parametrize("make", [as_zip, as_class_folders, as_plain_parquet, as_hub_parquet])
def test_every_layout_holds_the_same_set(publishers: Path, tmp_path: Path, make: Callable[[Path, Path], Path]) -> None:
    reference = open_images(publishers)
    source = open_images(make(publishers, tmp_path))
    assert_same_set(source, reference)
    assert verify_images(source) == []
    assert f"{CLASSES} classes" in source.describe()
    assert source.layout in source.describe()


def test_publishers_folder(publishers: Path) -> None:
    source = open_images(publishers)
    assert source.layout == "publisher's folder"
    assert source.classes == sorted((publishers / "wnids.txt").read_text().split())
    assert source.class_names == ["stripes", "checks", "dots"]
    assert open_images(publishers.parent).root == str(publishers)
    assert source.labels("val").tolist() == [source.label("val", i) for i in range(CLASSES * VAL)]


def test_parent_of_the_zip_and_one_parquet_file_will_do(publishers: Path, tmp_path: Path) -> None:
    archive = as_zip(publishers, tmp_path)
    assert open_images(tmp_path).root == str(archive)
    assert open_images(tmp_path).layout == "publisher's zip"
    folder = tmp_path / "parquet"
    folder.mkdir()
    as_plain_parquet(publishers, folder)
    assert_same_set(open_images(folder / "tiny-val.parquet"), open_images(publishers))
    shutil.copy(folder / "tiny-val.parquet", folder / "other-val.parquet")
    assert open_images(folder / "tiny-train.parquet").splits["val"] == CLASSES * VAL
    with pytest.raises(InputError, match="several sets"):
        open_images(folder)


def test_greyscale_files_have_three_channels(publishers: Path) -> None:
    source = open_images(publishers)
    images = [source.read("train", i)[0] for i in range(source.splits["train"])]
    assert {image.shape for image in images} == {(24, 24, 3)}
    assert {image.dtype for image in images} == {np.dtype(np.uint8)}
    assert sum(bool((image[..., :1] == image).all()) for image in images) == CLASSES


def test_limit_keeps_the_first_of_each_class(publishers: Path) -> None:
    source, full = open_images(publishers, limit_per_class=2), open_images(publishers)
    assert source.splits == {"train": 2 * CLASSES, "val": VAL * CLASSES}
    assert np.bincount(source.labels("train")).tolist() == [2] * CLASSES
    assert source.place("train", 2) == full.place("train", TRAIN)
    assert "at most 2 a class" in source.describe()
    with pytest.raises(InputError, match="limit_per_class=0"):
        open_images(publishers, limit_per_class=0)


def _read_all(source: ImageSource) -> list[bytes]:
    return [source.read("train", i)[0].tobytes() for i in range(source.splits["train"])]


@pytest.mark.parametrize("make", [as_zip, as_plain_parquet])
def test_threads_and_workers_read_what_one_process_reads(
    publishers: Path, tmp_path: Path, make: Callable[[Path, Path], Path]
) -> None:
    source = open_images(make(publishers, tmp_path))
    alone = _read_all(source)  # the zip is open before the fork
    with ThreadPoolExecutor(4) as pool:
        assert all(found == alone for found in pool.map(_read_all, [source] * 8))
    data = EvalImages(source, "train", EvalTransform(16))
    batches = [
        DataLoader(data, batch_size=3, num_workers=n, multiprocessing_context="fork" if n else None) for n in (0, 2)
    ]
    for one, two in zip(*batches, strict=True):
        assert one["labels"].tolist() == two["labels"].tolist()
        assert one["pixel_values"].equal(two["pixel_values"])
    assert _read_all(copy.deepcopy(source)) == alone  # goes the way of a spawned worker's copy, without its imports


def test_datasets_give_what_the_loop_wants(publishers: Path) -> None:
    source = open_images(publishers)
    train = TrainImages(source, "train", TrainTransform(32))
    one, same, other = train[(4, 7)], train[(4, 7)], train[(4, 8)]
    assert len(train) == CLASSES * TRAIN
    assert tuple(one["pixels"].shape) == (32, 32, 3)
    assert str(one["labels"].dtype) == "torch.int64"
    assert one["pixels"].equal(same["pixels"])
    assert not one["pixels"].equal(other["pixels"])
    assert int(one["labels"]) == source.label("train", 4)


def test_verify_lists_every_bad_picture(mine: Path) -> None:
    bad = sorted(mine.glob("train/*/images/*.JPEG"))[:2]
    bad[0].write_bytes(b"not a picture")
    bad[1].write_bytes(bad[1].read_bytes()[:200])
    val = mine / "val/images/val_0.JPEG"
    val.write_bytes(b"")
    steps: list[int] = []
    problems = verify_images(open_images(mine), progress=steps.append)
    assert len(problems) == 3
    assert all(str(file) in problem for file, problem in zip([*bad, val], problems, strict=True))
    assert sum(steps) == CLASSES * (TRAIN + VAL)


def test_damaged_zip_is_named(publishers: Path, tmp_path: Path) -> None:
    file = as_zip(publishers, tmp_path)
    with zipfile.ZipFile(file) as archive:
        member = next(m for m in archive.infolist() if m.filename.endswith("n90000001_0.JPEG"))
    content = bytearray(file.read_bytes())
    content[member.header_offset + 120] ^= 0xFF
    file.write_bytes(content)
    problems = verify_images(open_images(file))
    assert len(problems) == 1
    assert "n90000001_0.JPEG" in problems[0] and str(file) in problems[0]
    file.write_bytes(content[:500])
    with pytest.raises(InputError, match="cannot be read as a zip"):
        open_images(file)


def _remove_annotations(root: Path) -> None:
    (root / "val/val_annotations.txt").unlink()


def _remove_val(root: Path) -> None:
    shutil.rmtree(root / "val")


def _empty_train(root: Path) -> None:
    for file in root.glob("train/*/images/*"):
        file.unlink()


def _remove_class(root: Path) -> None:
    shutil.rmtree(root / "train/n90000002")


def _remove_class_and_wnids(root: Path) -> None:
    _remove_class(root)
    (root / "wnids.txt").unlink()


def _remove_val_picture(root: Path) -> None:
    (root / "val/images/val_2.JPEG").unlink()


def _remove_val_line(root: Path) -> None:
    file = root / "val/val_annotations.txt"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))


def _spaces_for_tabs(root: Path) -> None:
    file = root / "val/val_annotations.txt"
    file.write_text(file.read_text().replace("\t", " "))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_remove_annotations, "val/val_annotations.txt is missing"),
        (_remove_val, "no val pictures"),
        (_empty_train, "no train pictures"),
        (_remove_class, "class n90000002 of wnids.txt has no training pictures"),
        (_remove_class_and_wnids, "class n90000002 of the val pictures has no training pictures"),
        (_remove_val_picture, r"val_2.JPEG is listed but not there \(1 such\)"),
        (_remove_val_line, r"val_0.JPEG is there but not listed \(1 such\)"),
        (_spaces_for_tabs, "line 1 is not"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(mine: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(mine)
    with pytest.raises(InputError, match=words) as caught:
        open_images(mine)
    assert str(mine) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_such_set(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match=r"no train pictures; looked for tiny-imagenet-200"):
        open_images(tmp_path)
    for folder in ("images", "masks"):  # a segmentation set
        (tmp_path / "train" / folder).mkdir()
        (tmp_path / "train" / folder / "a.png").touch()
    with pytest.raises(InputError, match="train/images is no class"):
        open_images(tmp_path)
    with pytest.raises(InputError, match=r"not a set of pictures with classes; looked for .*parquet"):
        open_images(tmp_path / "train")
    with pytest.raises(InputError, match="no such file or folder"):
        open_images(tmp_path / "mistyped")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="not a set"):
        open_images(tmp_path / "notes.txt")


def test_two_zips_are_ambiguous(publishers: Path, tmp_path: Path) -> None:
    shutil.copy(as_zip(publishers, tmp_path), tmp_path / "again.zip")
    with pytest.raises(InputError, match="2 zips"):
        open_images(tmp_path)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"bytes": [b"x"]}, "no column of classes"),
        ({"wnid": ["a"]}, "no column of encoded pictures"),
        ({"bytes": [b"x"], "label": [-1]}, "without a class"),
        ({"bytes": [b"x"], "wnid": pa.array([None], pa.string())}, "without a class"),
    ],
)
def test_parquet_columns(tmp_path: Path, columns: dict, words: str) -> None:
    for split in ("train", "val"):
        pq.write_table(pa.table(columns), tmp_path / f"{split}.parquet")
    with pytest.raises(InputError, match=words):
        open_images(tmp_path)


def test_parquet_of_numbers_and_a_row_without_picture(tmp_path: Path) -> None:
    for split in ("train", "val"):
        table = pa.table({"image": [{"bytes": b"x"}, {"bytes": None}, {"bytes": b"y"}], "label": [10, 9, 10]})
        pq.write_table(table, tmp_path / f"{split}.parquet")
    source = open_images(tmp_path)
    assert source.classes == source.class_names == ["9", "10"]
    assert source.labels("train").tolist() == [1, 0, 1]
    with pytest.raises(InputError, match="train, row 1: no picture"):
        source.read("train", 1)
    (tmp_path / "val.parquet").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="cannot be read as parquet"):
        open_images(tmp_path)


def test_hub_id_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"nobody/nothing: no such folder here, .*HF_HUB_OFFLINE is set"):
        open_images("nobody/nothing")


def test_hub_id(publishers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    local = as_hub_parquet(publishers, tmp_path) / "data"
    files = {"train": str(next(local.glob("train*"))), "valid": str(next(local.glob("valid*")))}
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "load_dataset", lambda name: loaded)
    source, reference = open_images("owner/name"), open_images(publishers)
    assert source.layout == "hub data set"
    assert source.classes == reference.classes
    assert source.labels("val").tolist() == reference.labels("val").tolist()
    assert np.array_equal(source.read("val", 1)[0], reference.read("val", 1)[0])


@pytest.mark.skipif(not (REAL / "tiny-imagenet-train.parquet").is_file(), reason="NOTA_SEG_DATA names no Tiny-ImageNet")
def test_the_real_set() -> None:
    source = open_images(REAL)
    assert source.splits == {"train": 100_000, "val": 10_000}
    assert len(source.classes) == 200
    assert np.bincount(source.labels("train")).tolist() == [500] * 200
    assert np.bincount(source.labels("val")).tolist() == [50] * 200
    assert "goldfish" in source.class_names
    for i in range(0, 100_000, 997):
        assert source.read("train", i)[0].shape == (64, 64, 3)
