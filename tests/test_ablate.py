"""Ablations: what a specification becomes, what is done again after a kill, what a failure costs; once for real."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY, command

from nota_seg.ablate import Ablation, StageFailed, Variant, ablate, load_spec, option_words, variants_of
from nota_seg.cli import main
from util.errors import InputError


def spec_file(folder: Path, **values: Any) -> Path:
    file = folder / "spec.yaml"
    file.write_text(yaml.safe_dump({"data_dir": "scenes", **values}))
    return file


UNBUILDABLE = {"depth": 1, "dim": 64, "stride": 2, "stem": "next", "blocks": [{"name": "ntb", "dim": 64, "ratio": 1}]}


def test_a_ladder_adds_up(tmp_path: Path) -> None:
    spec = load_spec(
        spec_file(tmp_path, ladder=["lsra", "dest"], variants={"wide": {"set": {"model.decoder.dim": 64}}})
    )
    found = variants_of(spec)
    assert [(v.label, v.model) for v in found] == [
        ("segformer-b0", "segformer-b0"),
        ("+lsra", "segformer-b0-lsra"),
        ("+dest", "segformer-b0-lsra-dest"),
        ("wide", "segformer-b0"),
    ]
    assert found[3].words() == ["--set", "model.decoder.dim=64"]


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    grid = {"model": ["segformer-b0", "segformer-b0-pool"], "optim.lr": [0.001, 0.01]}
    found = variants_of(load_spec(spec_file(tmp_path, grid=grid)))
    assert [v.label for v in found] == [f"{m}, lr={lr}" for m in grid["model"] for lr in grid["optim.lr"]]
    assert found[3] == Variant(
        "segformer-b0-pool, lr=0.01", "segformer-b0-pool--lr=0.01", "segformer-b0-pool", {"optim.lr": 0.01}
    )


def test_options_become_words() -> None:
    options = {"crop_size": [128, 256], "scales": [0.5, 1], "flip": True, "limit": None, "set": {"data.scale": [1, 2]}}
    assert option_words(options) == [
        "--crop-size",
        "128x256",
        "--scales",
        "0.5,1",
        "--flip",
        "--set",
        "data.scale=[1, 2]",
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(), "give a ladder"),
        (dict(laddr=["lsra"]), "did you mean 'ladder'"),
        (dict(ladder=["lsar"]), "variant '[+]lsar'.*did you mean"),
        (dict(ladder=["lsra"], grid={"optim.lr": [1]}), "stands alone"),
        (dict(variants={"a": {"set": {"optim.rl": 1}}}), "variant 'a'.*did you mean 'optim.lr'"),
        (
            dict(variants={"a": {"model": "nextvit-s", "set": {"model.stages": [UNBUILDABLE] * 4}}}),
            "'a'.*none to convolve",
        ),
        (dict(ladder=["lsra"], finetune={"bach_size": 2}), "did you mean 'batch_size'"),
        (dict(ladder=["lsra"], finetune={"save_path": "x"}), "no option 'save_path'"),
        (dict(ladder=["lsra"], pretrain={"epochs": 1}), "data_path"),
        (dict(variants={"a": {"pretrain": {"epochs": 1}}}), "data_path"),
        (dict(variants={"a": {"finetune": {"bach_size": 2}}}), "a: finetune.*did you mean 'batch_size'"),
        (dict(variants={"a": {"pretrain": True}}), "variants.a.pretrain"),
        (dict(ladder=["lsra"], variants={"+LSRA": {}}), "two variants"),
        (dict(ladder=["lsra"], test={"workers": 0}), "test: give split"),
        (dict(ladder=["lsra"], test={"split": "test", "worker": 0}), "test: no option 'worker'.*did you mean"),
        (dict(ladder=["lsra"], pretrain={"data_path": "x"}, pretrain_seeds=True), "give seeds"),
        (dict(ladder=["lsra"], pretrain={"data_path": "x", "seed": 1}, seeds=2, pretrain_seeds=True), "leave the seed"),
        (
            dict(
                variants={"a": {"pretrain": {"data_path": "x", "set": {"train.seed": 1}}}}, seeds=2, pretrain_seeds=True
            ),
            "leave the seed",
        ),
    ],
)
def test_mistakes_cost_nothing(
    values: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = spec_file(tmp_path, **values)
    assert main(["ablate", str(file), "--output-dir", str(tmp_path / "out")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_data_that_are_not_there_cost_nothing(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    for data, more, message in (
        (str(tmp_path / "nowhere"), {}, "no such file or folder"),
        (str(scenes), {"test": {"split": "vall"}}, "test: .* has no split 'vall': did you mean 'val'"),
    ):
        file = spec_file(tmp_path, ladder=["lsra"], **{"data_dir": data, **more})
        assert main(["ablate", str(file), "--output-dir", out]) == 2
        assert re.search(message, capsys.readouterr().err) and not Path(out).exists()


class Fake(Ablation):
    """Verbs that only leave the mark of having been run; `broken` fails, `killed` stops everything."""

    calls: list[list[str]]
    broken: str | None = None

    def _call(self, variant: Variant, words: list[str], device: str | None) -> str:
        self.calls.append(words)
        if self.broken and self.broken in words:
            raise StageFailed("the loss is nan")
        for option in ("--save-path", "--output-dir"):
            if option in words:
                folder = Path(words[words.index(option) + 1])
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "run.json").write_text("{}")
        return "{}"


def work(spec: Any, output: Path, *, resume: bool = False, broken: str | None = None, devices: Any = (None,)) -> Fake:
    found = Fake(spec, output, devices=devices)
    found.calls, found.broken = [], broken
    found.prepare(resume=resume, overwrite=False)
    found.failed = found.run()  # type: ignore[attr-defined]
    return found


def verbs(found: Fake) -> list[tuple[str, str]]:
    def who(words: list[str]) -> str:
        return words[words.index("--model") + 1] if "--model" in words else ""

    return [(words[0], who(words)) for words in found.calls]


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    spec = load_spec(spec_file(tmp_path, ladder=["lsra", "dest"], finetune={"max_steps": 2}))
    first = work(spec, tmp_path / "out", broken="segformer-b0-lsra")
    assert first.failed == ["+lsra"]  # type: ignore[attr-defined]
    assert first.state["+lsra"]["error"] == "finetune: the loss is nan" and first.state["+dest"]["status"] == "done"
    assert [v for v in verbs(first) if v[0] == "finetune"] == [
        ("finetune", "segformer-b0"), ("finetune", "segformer-b0-lsra"), ("finetune", "segformer-b0-lsra-dest"),
    ]  # fmt: skip
    again = work(spec, tmp_path / "out", resume=True)
    assert again.failed == []  # type: ignore[attr-defined]
    assert verbs(again) == [("finetune", "segformer-b0-lsra"), ("eval", ""), ("flops", "")]
    assert work(spec, tmp_path / "out", resume=True).calls == []
    longer = load_spec(spec_file(tmp_path, ladder=["lsra", "dest", "rskip"], finetune={"max_steps": 2}))
    assert [v for v in verbs(work(longer, tmp_path / "out", resume=True)) if v[1]] == [
        ("finetune", "segformer-b0-lsra-dest-rskip")
    ]
    with pytest.raises(InputError, match="has changed since its finetune was done"):
        other = load_spec(spec_file(tmp_path, ladder=["lsra"], finetune={"max_steps": 3}))
        work(other, tmp_path / "out", resume=True)
    with pytest.raises(InputError, match="--resume goes on"):
        work(spec, tmp_path / "out")


def test_an_unfinished_training_goes_on(tmp_path: Path) -> None:
    spec = load_spec(spec_file(tmp_path, ladder=["lsra"]))
    work(spec, tmp_path / "out", broken="finetune")
    (tmp_path / "out" / "runs" / "segformer-b0").mkdir()
    (tmp_path / "out" / "runs" / "segformer-b0" / "run.json").write_text("{}")
    (tmp_path / "out" / "runs" / "segformer-b0-lsra").mkdir()  # killed before it wrote anything
    again = work(spec, tmp_path / "out", resume=True)
    trained = [words for words in again.calls if words[0] == "finetune"]
    assert ["--resume" in words for words in trained] == [True, False]


def test_equal_encoders_are_pre_trained_once(tmp_path: Path) -> None:
    spec = load_spec(
        spec_file(
            tmp_path, ladder=["lsra", "hamburger"], pretrain={"data_path": "tiny", "set": {"model.drop_path_rate": 0}}
        )
    )
    for devices in ((None,), ("0", "1", "2")):
        found = work(spec, tmp_path / f"out{len(devices)}", devices=devices)
        trained = sorted(v for v in verbs(found) if v[0] == "pretrain")
        assert len(trained) == 2 and trained[0] == ("pretrain", "segformer-b0")
        weights = [words[words.index("--pretrain") + 1] for words in found.calls if words[0] == "finetune"]
        assert len(set(weights)) == 2
        assert all("--set" in words for words in found.calls if words[0] == "pretrain")


def test_each_seed_pre_trained(tmp_path: Path) -> None:
    other = {"other": {"finetune": {"seed": 7}}}
    spec = load_spec(
        spec_file(tmp_path, variants=other, pretrain={"data_path": "tiny"}, seeds=2, pretrain_seeds=True, eval=None)
    )
    found = work(spec, tmp_path / "out")
    pretrained = [words for words in found.calls if words[0] == "pretrain"]
    assert [words[words.index("--seed") :][:4] for words in pretrained] == [
        ["--seed", "0", "--seeds", "2"],
        ["--seed", "7", "--seeds", "2"],  # the same encoder, but of other seeds
    ]
    weights = [words[words.index("--pretrain") + 1] for words in found.calls if words[0] == "finetune"]
    assert weights == [words[words.index("--output-dir") + 1] for words in pretrained]


def test_options_of_one_variant(tmp_path: Path) -> None:
    spec = load_spec(
        spec_file(
            tmp_path,
            seeds=2,
            eval=None,
            pretrain={"data_path": "tiny", "lr": 0.001, "set": {"optim.beta2": 0.9}},
            finetune={"max_steps": 10, "set": {"train.seed": 1}},
            variants={
                "scratch": {"pretrain": False},
                "gentle": {"pretrain": {"lr": 0.0001, "set": {"optim.weight_decay": 0}}},
                "long": {"finetune": {"max_steps": 20, "seed": 5}},
            },
        )
    )
    found = work(spec, tmp_path / "out")
    assert not found.failed  # type: ignore[attr-defined]
    pretrained = [words for words in found.calls if words[0] == "pretrain"]
    assert len(pretrained) == 2  # `long` shares the baseline's
    assert "0.0001" in pretrained[1] and "optim.beta2=0.9" in pretrained[1] and "optim.weight_decay=0" in pretrained[1]
    words = {Path(w[w.index("--save-path") + 1]).name: w for w in found.calls if w[0] == "finetune"}
    assert "--pretrain" not in words["scratch"] and "train.seed=1" in words["scratch"]
    assert words["long"][words["long"].index("--max-steps") + 1] == "20"
    assert next(w for w in found.calls if w[0] == "flops" and "long" in w[2])[2].endswith("seed-5")
    assert not work(spec, tmp_path / "out", resume=True).calls


def test_devices_share_the_variants(tmp_path: Path) -> None:
    used: list[str | None] = []

    class Slow(Fake):
        def _call(self, variant: Variant, words: list[str], device: str | None) -> str:
            if words[0] == "finetune":
                used.append(device)
                time.sleep(0.2)
            return super()._call(variant, words, device)

    spec = load_spec(spec_file(tmp_path, ladder=["lsra", "dest", "rskip"]))
    found = Slow(spec, tmp_path / "out", devices=["0", "1"])
    found.calls = []
    found.prepare(resume=False, overwrite=False)
    started = time.monotonic()
    assert found.run() == []
    assert sorted(used) == ["0", "0", "1", "1"]  # type: ignore[type-var]
    assert time.monotonic() - started < 0.2 * 4


def test_variants_beside_each_other_on_the_processor_share_its_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load_spec(spec_file(tmp_path, ladder=["lsra"]))
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    beside = Ablation(spec, tmp_path / "out", devices=["cpu", "cpu"])
    assert beside._environment("finetune")["OMP_NUM_THREADS"] == "4"
    assert "OMP_NUM_THREADS" not in beside._environment("latency")  # measured alone
    assert "OMP_NUM_THREADS" not in Ablation(spec, tmp_path / "out", devices=["cpu"])._environment("finetune")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert beside._environment("finetune")["OMP_NUM_THREADS"] == "3"


def test_words_for_devices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = spec_file(tmp_path, ladder=["lsra"])
    for device in ("cpu,gpu", "cpu,", "cuda:a"):
        assert main(["ablate", str(file), "--output-dir", str(tmp_path / "out"), "--device", device]) == 2
        assert "give cpu, cpu,cpu" in capsys.readouterr().err


def test_every_seed_is_evaluated(tmp_path: Path) -> None:
    class Seeds(Fake):
        def _call(self, variant: Variant, words: list[str], device: str | None) -> str:
            text = super()._call(variant, words, device)
            if words[0] == "finetune":
                rows = [{"folder": "seed-0"}, {"folder": "seed-1", "error": "the loss is nan"}, {"folder": "seed-2"}]
                folder = Path(words[words.index("--save-path") + 1])
                (folder / "seeds.json").write_text(json.dumps({"seeds": rows}))
            return text

    spec = load_spec(spec_file(tmp_path, ladder=["lsra"], seeds=3, test={"split": "late"}))
    found = Seeds(spec, tmp_path / "out", devices=[None])
    found.calls = []
    found.prepare(resume=False, overwrite=False)
    assert found.run() == []
    judged = [words for words in found.calls if words[0] == "eval" and "--split" not in words]
    runs = [words[words.index("--pretrain") + 1] for words in judged]
    folder = str(tmp_path / "out" / "runs")
    assert runs == [f"{folder}/segformer-b0{rest}/seed-{n}" for rest in ("", "-lsra") for n in (0, 2)]
    assert [words[words.index("--json") + 1] for words in judged] == [f"{run}/eval.json" for run in runs]
    held_back = [words for words in found.calls if "--split" in words]
    assert all(words[words.index("--split") + 1] == "late" for words in held_back)
    assert [words[words.index("--json") + 1] for words in held_back] == [f"{run}/eval-test.json" for run in runs]


def tiny_spec(scenes: Path, folder: Path, *, steps: int = 6, **values: Any) -> Path:
    sets = dict(item.split("=", 1) for item in TINY)
    settings = {key: yaml.safe_load(value) for key, value in sets.items()}
    settings |= {"data.base_size": [64, 48], "train.eval_every": max(3, steps // 2), "train.checkpoint_every": 2}
    finetune = {"crop_size": 32, "batch_size": 2, "max_steps": steps, "set": settings}
    common = dict(data_dir=str(scenes), finetune=finetune, eval={"workers": 0}, flops={"size": 64})
    return spec_file(folder, **{**common, **values})


@pytest.mark.slow
def test_a_failed_variant_is_passed_over_and_the_rest_compared(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = {"broken": {"set": {"optim.lr": 1e30}}}
    more = dict(variants=broken, seeds=2, title="A small ladder", eval=None)
    file = tiny_spec(scenes, tmp_path, ladder=["lsra"], **more)
    out = tmp_path / "out"
    assert main(["ablate", str(file), "--output-dir", str(out), "--device", "cpu,cpu"]) == 1
    seen = capsys.readouterr()
    assert "| +lsra |" in seen.out and "over 2 seeds" in seen.out and "1 failed: broken" in seen.err
    state = json.loads((out / "ablate.json").read_text())["variants"]
    assert [v["status"] for v in state.values()] == ["done", "done", "failed"]
    page = (out / "report" / "index.html").read_text()
    assert "A small ladder" in page and "broken failed" in page
    assert r"\toprule" in (out / "table.tex").read_text() and (out / "table.md").read_text() in seen.out
    for seed in (0, 1):
        assert (out / "runs" / "segformer-b0-lsra" / f"seed-{seed}" / "eval.npz").exists()


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_and_resumed(scenes: Path, tmp_path: Path) -> None:
    """Asked to stop, then killed outright: either way its training stops too, and goes on where it was."""
    file = tiny_spec(scenes, tmp_path, steps=50, grid={"model": ["segformer-b0"]}, eval=None)
    killed = tmp_path / "killed"
    words = ["ablate", str(file), "--output-dir", str(killed), "--device", "cpu"]
    folder = killed / "runs" / "segformer-b0"
    log = folder / "metrics.jsonl"
    for number, more in ((signal.SIGTERM, []), (signal.SIGKILL, ["--resume"])):
        before = log.read_text() if log.exists() else ""
        with (tmp_path / "err").open("w") as errors:
            process = subprocess.Popen(command(*words, *more), stdout=subprocess.DEVNULL, stderr=errors)
            wait_until(lambda: log.exists() and len(log.read_text()) > len(before), 240)  # noqa: B023
            process.send_signal(number)
            assert process.wait(120) != 0
        if number == signal.SIGTERM:
            assert "--resume" in (tmp_path / "err").read_text()
        session = json.loads((folder / "run.json").read_text())["sessions"][-1]
        wait_until(lambda: not running(session["pid"]), 60)  # noqa: B023
    table, failed = ablate(load_spec(file), killed, devices=["cpu"], resume=True)
    assert failed == [] and "| segformer-b0 |" in table
    assert len(json.loads((folder / "run.json").read_text())["sessions"]) == 3
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == 50
