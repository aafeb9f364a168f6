"""What runs left behind, read from their small files alone: no weights, no data."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from nota_seg.config import load_yaml
from nota_seg.picture_counts import PictureCounts
from nota_seg.training.seeds import SUMMARY
from util.errors import InputError
from util.files import whole_folder, write_json, write_text
from util.run_folder import RunFolder

SCORES = {"finetune": "miou", "pretrain": "top1"}
SCORE_NAMES = {"miou": "mIoU", "top1": "top-1"}
EVALUATION, TEST = "eval", "eval-test"  # NAME.json and NAME.npz: of the validation split; of one that chose nothing
# The files of a run that a comparison reads.
METRICS = (
    "config.yaml", "run.json", "metrics.jsonl", "eval*.json", "eval*.npz", "flops.json", "latency-*.json",
    "pretrain.json", SUMMARY,
)  # fmt: skip


@dataclass(frozen=True)
class Latency:
    """The time of one picture batch, milliseconds. Only numbers with the same `setting` may stand beside each other."""

    card: str  # id of the device card
    setting: str  # card, runtime, batch, size: for people, and the key to compare by
    p50: float
    p90: float | None
    about: str  # the card, for people


@dataclass
class SeedRun:
    """One training, of one seed."""

    path: Path
    config: dict[str, Any]
    facts: dict[str, Any]
    lines: list[dict[str, Any]]
    evaluation: dict[str, Any] | None
    counts: PictureCounts | None

    @classmethod
    def load(cls, path: Path, evaluation_name: str = EVALUATION) -> SeedRun:
        if not (path / "run.json").exists() or not (path / "config.yaml").exists():
            raise InputError(f"{path} is no run: a run's folder holds config.yaml, run.json and metrics.jsonl")
        file = path / f"{evaluation_name}.json"
        evaluation, counts = read_json(file), None
        if evaluation is None and evaluation_name != EVALUATION:
            raise InputError(f"no {file}: `nota-seg eval --pretrain {path} --split SPLIT --json {file}` writes it")
        if evaluation is not None and file.with_suffix(".npz").exists():
            counts = PictureCounts.load(file.with_suffix(".npz"))
            if not math.isclose(counts.miou(), evaluation["miou"] or 0, abs_tol=1e-9):
                raise InputError(
                    f"{file.with_suffix('.npz')} and {file.name} are of different evaluations: "
                    f"`nota-seg eval --pretrain {path} --json {file}` writes both"
                )
        return cls(
            path=path,
            config=load_yaml(path / "config.yaml"),
            facts=read_json(path / "run.json") or {},
            lines=RunFolder(path).metrics(),
            evaluation=evaluation,
            counts=counts,
        )

    @property
    def phase(self) -> str:
        return str(self.facts.get("phase", "finetune"))

    @property
    def score(self) -> float | None:
        """Of the evaluation, else the best that was logged; 0..1."""
        key = SCORES[self.phase]
        if self.evaluation is not None and self.evaluation.get(key) is not None:
            return float(self.evaluation[key])
        logged = [value for _, value in self.curve("val", key)]
        return max(logged) if logged else None

    @property
    def test_score(self) -> float | None:
        """mIoU of the test split, 0..1, where it was evaluated there."""
        found = read_json(self.path / f"{TEST}.json")
        return found["miou"] if found is not None else None

    @property
    def encoder_top1(self) -> float | None:
        """Top-1 accuracy of the pre-training that this run began with, 0..1; None where it is not there to be read."""
        known = read_json(self.path / "pretrain.json")
        if known is not None:
            return known["top1"]
        start = self.config.get("pretrain")
        folder = Path(start) if start else None
        found = next((f for f in (folder, folder.parent) if (f / "metrics.jsonl").is_file()), None) if folder else None
        values = [line["top1"] for line in RunFolder(found).metrics() if "top1" in line] if found else []
        return max(values, default=None)

    def curve(self, split: str, key: str) -> list[tuple[int, float]]:
        """(step, value) of what was logged."""
        found = ((line["step"], line.get(key)) for line in self.lines if line.get("split") == split)
        return [(step, float(value)) for step, value in found if value is not None]


@dataclass
class Run:
    """A variant: one training, or several seeds of it."""

    name: str
    path: Path
    seeds: list[SeedRun]
    latencies: dict[str, Latency] = field(default_factory=dict)  # by setting
    evaluation: str = EVALUATION  # which of its evaluations is in `seeds`

    @property
    def first(self) -> SeedRun:
        return self.seeds[0]

    @property
    def scores(self) -> list[float]:
        """One a seed, points (0..100)."""
        return [100 * s.score for s in self.seeds if s.score is not None]

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def std(self) -> float | None:
        """Over the seeds, points."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None

    def number(self, key: str) -> float | None:
        """Mean over the seeds of a number of the evaluation, points."""
        values = [s.evaluation.get(key) for s in self.seeds if s.evaluation is not None]
        known = [100 * float(v) for v in values if v is not None]
        return statistics.fmean(known) if known else None

    @property
    def encoder_top1(self) -> float | None:
        """Of the pre-training, points."""
        known = [s.encoder_top1 for s in self.seeds]
        return None if None in known else 100 * statistics.fmean(v for v in known if v is not None)

    @cached_property
    def test_scores(self) -> list[float]:
        """Of the test split, one a seed, points; empty unless all were evaluated there."""
        known = [s.test_score for s in self.seeds]
        return [] if None in known else [100 * v for v in known if v is not None]

    @property
    def counts(self) -> list[PictureCounts] | None:
        """Of every seed, or None where one has none."""
        found = [s.counts for s in self.seeds if s.counts is not None]
        return found if len(found) == len(self.seeds) else None

    @cached_property
    def per_class(self) -> dict[str, float | None]:
        """IoU of each class, mean over the seeds, points."""
        evaluations = [s.evaluation["per_class"] for s in self.seeds if s.evaluation and "per_class" in s.evaluation]
        result: dict[str, float | None] = {}
        for name in evaluations[0] if evaluations else ():
            known = [100 * e[name]["iou"] for e in evaluations if name in e and e[name]["iou"] is not None]
            result[name] = statistics.fmean(known) if known else None
        return result


def read_json(path: Path) -> Any:
    """A JSON file, or None where there is none."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not JSON: {error}") from None


def load_run(path: Path, name: str, evaluation: str = EVALUATION) -> Run:
    """A run's folder, or a folder of seeds.

    Args:
        path: The folder.
        name: What to call it.
        evaluation: Which of its evaluations counts, NAME of NAME.json.

    Raises:
        InputError: It is neither, no seed in it has finished, or one lacks that evaluation.
    """
    if not path.is_dir():
        raise InputError(f"no run {path}: give the folder that `nota-seg finetune` or `pretrain` wrote")
    if (path / "run.json").exists():
        folders = [path]
    else:
        summary = read_json(path / SUMMARY)
        if summary is None:
            raise InputError(f"{path} is no run: it has neither run.json nor {SUMMARY}")
        folders = [path / row["folder"] for row in summary["seeds"] if "error" not in row]
        if not folders:
            raise InputError(f"no seed in {path} has finished")
    seeds = [SeedRun.load(folder, evaluation) for folder in folders]
    latencies = {found.setting: found for folder in {path, folders[0]} for found in read_latencies(folder)}
    return Run(name, path, seeds, latencies, evaluation)


def load_runs(words: Sequence[str | Path], evaluation: str = EVALUATION) -> list[Run]:
    """Runs from `PATH` or `NAME=PATH`; without a name the folder's, with as many parents as tell them apart.

    Args:
        words: Of the command line.
        evaluation: As in `load_run`.

    Raises:
        InputError: A path is no run, a name is given twice, or the runs are of different phases.
    """
    named: list[tuple[str | None, Path]] = []
    for word in map(str, words):
        name, equals, rest = word.partition("=")
        named.append((name, Path(rest)) if equals and not Path(word).exists() else (None, Path(word)))
    short = iter(_short_names([path for given, path in named if given is None]))
    names = [given or next(short) for given, _ in named]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two runs are called {name!r}: give each once, or name them as NAME=PATH")
    runs = [load_run(path, name, evaluation) for name, (_, path) in zip(names, named, strict=True)]
    phases = {run.name: run.first.phase for run in runs}
    if len(set(phases.values())) > 1:
        raise InputError(f"runs of one phase can be compared, these are of several: {phases}")
    return runs


def _short_names(paths: Sequence[Path]) -> list[str]:
    parts = [p.resolve().parts for p in paths]
    most = max(map(len, parts), default=1)
    for depth in range(1, most + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return ["/".join(p[-1:]) for p in parts]


def read_latencies(folder: Path) -> Iterator[Latency]:
    """What `nota-seg latency` wrote in a run's folder.

    Raises:
        InputError: A file without a device card: its numbers can stand beside no others.
    """
    for file in sorted(folder.glob("latency-*.json")):
        value = read_json(file)
        card = value.get("card") if isinstance(value, dict) else None
        if not isinstance(card, dict) or "id" not in card:
            raise InputError(f"{file} has no device card: write it with `nota-seg latency`")
        about = ", ".join(str(card[k]) for k in ("gpu", "processor") if card.get(k))
        about += f", {card['threads']} thread{'s' * (card['threads'] > 1)}" if card.get("threads") else ""
        for one in value.get("measurements", []):
            words = [card["id"], one.get("runtime"), f"batch {one.get('batch_size', 1)}"]
            words += ["x".join(map(str, one["size"]))] if one.get("size") else []
            words += [one["precision"]] if one.get("precision") not in (None, "no") else []
            setting = ", ".join(str(word) for word in words if word)
            yield Latency(str(card["id"]), setting, one["p50"], one.get("p90"), about)


def export_metrics(runs: Iterable[Run], destination: Path, *, overwrite: bool = False) -> list[Path]:
    """Copy the small files of runs, one folder each: what `compare` needs, to keep beside a paper or in a repository.

    Of absolute paths in commands and configurations the last part alone is kept, and nothing of the machine's system:
    where things lay is nobody's business.

    Raises:
        InputError: One of the folders exists, and `overwrite` is not given.
    """
    targets = {run.name: destination / run.name.replace("/", "-") for run in runs}
    for run in runs:
        if targets[run.name].exists() and not overwrite:
            raise InputError(f"{targets[run.name]} exists: export somewhere else, or --overwrite")
    for run in runs:
        with whole_folder(targets[run.name]) as temporary:
            for folder in {run.path, *(seed.path for seed in run.seeds)}:
                target = temporary / folder.relative_to(run.path)
                target.mkdir(parents=True, exist_ok=True)
                for pattern in METRICS:
                    for file in folder.glob(pattern):
                        shutil.copyfile(file, target / file.name)
                if (folder / "run.json").exists():
                    facts = {
                        k: v for k, v in read_json(folder / "run.json").items() if k not in ("sessions", "platform")
                    }
                    facts["command"] = ["nota-seg", *facts.get("command", [])[1:]]
                    write_json(target / "run.json", _placeless(facts))
                    config = _placeless(load_yaml(folder / "config.yaml"))
                    write_text(target / "config.yaml", yaml.safe_dump(config, sort_keys=False))
            for seed in run.seeds:
                if seed.encoder_top1 is not None:
                    write_json(
                        temporary / seed.path.relative_to(run.path) / "pretrain.json", {"top1": seed.encoder_top1}
                    )
    return list(targets.values())


def _placeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _placeless(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_placeless(v) for v in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
