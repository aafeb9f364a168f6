"""Submission files and their votes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from util.errors import InputError
from util.submissions import Submission, hard_vote, vote, write_submission


def label(seed: int, side: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 11, (side, side)).astype(np.uint8)


def test_the_format(tmp_path: Path) -> None:
    """512 x 512 by nearest neighbour to 256 x 256, row by row, spaces between the ids."""
    full = label(0, 512)
    write_submission(tmp_path / "a.csv", [("batch_01/0002.jpg", full)])
    head, row, end = (tmp_path / "a.csv").read_text().split("\n")
    assert head == "image_id,PredictionString" and end == ""
    name, text = row.split(",")
    assert name == "batch_01/0002.jpg" and len(text.split(" ")) == 65536
    assert text.split(" ")[:3] == [str(full[0, 0]), str(full[0, 2]), str(full[0, 4])]
    assert np.array_equal(Submission(tmp_path / "a.csv").label(name), full[::2, ::2])


def test_rows_come_back_by_name(tmp_path: Path) -> None:
    rows = {f'b/{i}, "odd".jpg': label(i) for i in range(5)}
    write_submission(tmp_path / "a.csv", rows.items(), side=16)
    file = Submission(tmp_path / "a.csv")
    assert file.image_ids == list(rows)
    for name in reversed(list(rows)):
        assert np.array_equal(file.label(name), rows[name])


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def failing() -> Iterator[tuple[str, np.ndarray]]:
        yield "a", label(0)
        raise InputError("a picture is damaged")

    with pytest.raises(InputError, match="damaged"):
        write_submission(tmp_path / "a.csv", failing())
    assert not list(tmp_path.iterdir())
    write_submission(tmp_path / "a.csv", [("a", label(0))])
    with pytest.raises(InputError, match="exists"):
        write_submission(tmp_path / "a.csv", [("a", label(1))])


def test_ties_go_to_the_first_listed() -> None:
    def column(*ids: int) -> list[np.ndarray]:
        return [np.array([[i]], dtype=np.uint8) for i in ids]

    assert vote(column(7, 3)) == 7
    assert vote(column(3, 7)) == 3
    assert vote(column(9, 2, 2)) == 2
    assert vote(column(9, 5, 4, 4, 5)) == 5  # of the tied, 5 is listed before 4; 9 is not among them
    assert vote(column(0, 1, 2)) == 0


def test_votes_are_matched_by_image_id(tmp_path: Path) -> None:
    rows = {str(i): label(i) for i in range(4)}
    for name, order in (("a", "0123"), ("b", "3210"), ("c", "1032")):
        write_submission(tmp_path / f"{name}.csv", [(i, rows[i]) for i in order], side=None)
    voted = list(hard_vote([tmp_path / f"{n}.csv" for n in "abc"], order=["2", "0"]))
    assert [name for name, _ in voted] == ["2", "0"]
    assert all(np.array_equal(one, rows[name]) for name, one in voted)
    assert [name for name, _ in hard_vote([tmp_path / "b.csv", tmp_path / "a.csv"])] == list("3210")


def test_memory_does_not_grow_with_the_pictures(tmp_path: Path) -> None:
    peaks = []
    for count in (4, 40):
        for name in "ab":
            rows = ((str(i), label(i, 128)) for i in range(count))
            write_submission(tmp_path / f"{name}{count}.csv", rows, side=None)
        tracemalloc.start()
        files = [tmp_path / f"{name}{count}.csv" for name in "ab"]
        write_submission(tmp_path / f"voted{count}.csv", hard_vote(files), side=None)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line"),
        ("id,rle\n", "first line"),
        ("image_id,PredictionString\n", "no rows"),
        ("image_id,PredictionString\na,1 2 3 4\na,1 2 3 4\n", "two rows"),
        ("image_id,PredictionString\na,1 2 3\n", "not a square"),
        ("image_id,PredictionString\na,1 2 3 x\n", "not a number"),
        ("image_id,PredictionString\na,1 2 3 256\n", "0..255"),
        ("image_id,PredictionString\na,1,2\n", "3 cells"),
    ],
)
def test_damage_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        Submission(tmp_path / "a.csv").label("a")


def test_files_that_do_not_fit_together(tmp_path: Path) -> None:
    write_submission(tmp_path / "a.csv", [("x", label(0)), ("y", label(1))], side=None)
    write_submission(tmp_path / "b.csv", [("x", label(0))], side=None)
    write_submission(tmp_path / "c.csv", [("x", label(0)), ("y", label(1))], side=8)
    for others, message in ((["b"], "no row of 'y'"), (["c"], "'x' is"), ([], "two submissions")):
        with pytest.raises(InputError, match=message):
            list(hard_vote([tmp_path / "a.csv", *(tmp_path / f"{n}.csv" for n in others)]))
    with pytest.raises(InputError, match="has 2 rows"):
        hard_vote([tmp_path / "b.csv", tmp_path / "a.csv"])
