"""Whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from util.errors import InputError, did_you_mean
from util.files import sweep_partial, whole_file, whole_folder, write_json
from util.run_folder import RunFolder


def test_file_appears_only_when_the_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file"
    with whole_file(target) as part:
        part.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    with pytest.raises(RuntimeError), whole_file(target) as part:
        part.write_text("half")
        raise RuntimeError
    assert target.read_text() == "new"
    assert [f.name for f in target.parent.iterdir()] == ["file"]


def test_folder_replaces_files_and_never_goes_missing(tmp_path: Path) -> None:
    target = tmp_path / "last"
    for text in ("one", "two"):
        with whole_folder(target) as part:
            (part / "weights").write_text(text)
        assert (target / "weights").read_text() == text
    with pytest.raises(RuntimeError), whole_folder(target) as part:
        (part / "weights").write_text("three")
        raise RuntimeError
    assert (target / "weights").read_text() == "two"
    assert [f.name for f in tmp_path.iterdir()] == ["last"]


def test_errors_of_other_languages_become_oserror(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"), whole_file(tmp_path / "x") as part:
        part.touch()
        raise ValueError("I/O error: No space left on device (os error 28)")


def test_sweep_removes_what_a_kill_left(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint-4.partial-1234").mkdir()
    (tmp_path / ".best.pth.partial-1").touch()
    (tmp_path / "checkpoint-2").mkdir()
    sweep_partial(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["checkpoint-2"]


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", float("nan"))
    assert not (tmp_path / "x.json").exists()


def test_metrics_are_rewound_and_torn_lines_dropped(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for step in (1, 2, 3):
        run.log(step=step, loss=step / 2)
    with run.metrics_file.open("a") as file:
        file.write('{"step": 4, "lo')
    run.rewind_metrics(2)
    assert [line["step"] for line in run.metrics()] == [1, 2]


def test_a_run_is_never_overwritten_by_accident(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    RunFolder(folder).check(resume=False, overwrite=False)
    with pytest.raises(InputError, match="no run in"):
        RunFolder(folder).check(resume=True, overwrite=False)
    folder.mkdir()
    (folder / "thesis.tex").touch()
    with pytest.raises(InputError, match="not empty"):
        RunFolder(folder).check(resume=False, overwrite=False)
    with pytest.raises(InputError, match="not a run"):
        RunFolder(folder).check(resume=False, overwrite=True)
    (folder / "run.json").touch()
    with pytest.raises(InputError, match="--resume continues"):
        RunFolder(folder).check(resume=False, overwrite=False)
    with pytest.raises(InputError, match="give one of them"):
        RunFolder(folder).check(resume=True, overwrite=True)
    (folder / "checkpoint-2").mkdir()
    RunFolder(folder).start(resume=False, overwrite=True)
    assert [f.name for f in folder.iterdir()] == ["thesis.tex"]


def test_did_you_mean() -> None:
    assert did_you_mean("pol", ["pool", "sra"]) == "did you mean 'pool'?"
    assert did_you_mean("zzz", ["pool", "sra"]) == "known: pool, sra"
