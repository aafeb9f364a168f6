"""An ablation from one YAML file: a ladder or a grid of variants, each trained, evaluated and counted, then compared.

Every stage is a verb of the command line in a process of its own: a variant that crashes takes no other with it, and
what it did can be repeated by hand from `ablate.json`, which keeps the words of every command.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import PositiveInt, ValidationError, model_validator

from nota_seg.config import FinetuneConfig, Section, build, load_yaml
from nota_seg.data.sources import open_source
from nota_seg.models.external import library_of
from nota_seg.models.zoo import create_config, create_model
from nota_seg.report import compare as comparing
from nota_seg.report.runs import EVALUATION, TEST, Run, load_run
from nota_seg.report.tables import latex, markdown
from nota_seg.training.seeds import SUMMARY
from util.errors import InputError, did_you_mean
from util.files import sweep_partial, write_json, write_text

STATE = "ablate.json"
# Sections that are run by the verb `eval`, and the name of what each leaves in a run's folder.
EVALUATIONS = {"eval": EVALUATION, "test": TEST}
# What ablate itself says to the verbs.
OURS = {
    "pretrain": {"output_dir", "model", "seeds", "resume", "overwrite", "device", "gpu"},
    "finetune": {"data_dir", "save_path", "output_dir", "model", "seeds", "resume", "overwrite", "device", "gpu"},
    "eval": {"data_dir", "pretrain", "json", "device", "gpu"},
    "flops": {"model", "pretrain", "json", "num_classes", "set"},
    "latency": {"model", "pretrain", "json", "device", "gpu"},
}


class VariantSection(Section):
    """A variant by hand."""

    model: str | None = None  # None: the baseline's
    set: dict[str, Any] = {}  # configuration keys
    pretrain: dict[str, Any] | Literal[False] = {}  # options over those of all variants; false: from scratch
    finetune: dict[str, Any] = {}  # the same


class AblateSpec(Section):
    """The file. Sections named like verbs hold options of these verbs, `set` among them as a mapping."""

    title: str | None = None
    data_dir: str
    baseline: str = "segformer-b0"  # model name
    ladder: list[str] = []  # changes; each rung has those before it too
    grid: dict[str, list[Any]] = {}  # `model`, or configuration keys, to their values: every combination
    variants: dict[str, VariantSection] = {}  # by name; beside the baseline, or after the ladder
    seeds: PositiveInt | None = None
    pretrain: dict[str, Any] | None = None  # None: no pre-training
    pretrain_seeds: bool = False  # each seed is pre-trained too; else all seeds of the fine-tuning share an encoder
    finetune: dict[str, Any] = {}
    eval: dict[str, Any] | None = {}  # None: the validation of the training stands
    test: dict[str, Any] | None = None  # options of `eval` for a split that chooses nothing: the table's last column
    flops: dict[str, Any] = {}
    latency: dict[str, Any] | None = None  # None: not measured

    @model_validator(mode="after")
    def _some_variants(self) -> AblateSpec:
        if not (self.ladder or self.grid or self.variants):
            raise ValueError("give a ladder, a grid or variants")
        if self.grid and (self.ladder or self.variants):
            raise ValueError("a grid stands alone, without ladder and variants")
        if self.test is not None and "split" not in self.test:
            raise ValueError("test: give split, the name of the split that is held back")
        if self.pretrain_seeds and self.seeds is None:
            raise ValueError("pretrain_seeds: give seeds, how many")
        return self


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    label: str
    folder: str
    model: str
    sets: Mapping[str, Any] = field(default_factory=dict)
    pretrain: Mapping[str, Any] | None = None  # options; None: from scratch
    finetune: Mapping[str, Any] = field(default_factory=dict)

    @property
    def first_seed(self) -> int:
        """Of the fine-tuning."""
        return self.finetune.get("seed", self.finetune.get("set", {}).get("train.seed", 0)) or 0

    def words(self, keep: Callable[[str], bool] = lambda key: True) -> list[str]:
        return set_words({k: v for k, v in self.sets.items() if keep(k)})


class StageFailed(Exception):  # noqa: N818
    """A stage of a variant ended with an error; the message is its last line."""


def load_spec(path: str | Path) -> AblateSpec:
    """A specification from a YAML file.

    Raises:
        InputError: No such file, an unknown key, a wrong value.
    """
    values = load_yaml(path)
    for key in values:
        if key not in AblateSpec.model_fields:
            raise InputError(f"{path}: no key {key!r}: {did_you_mean(key, AblateSpec.model_fields)}")
    try:
        return AblateSpec.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}") from None


def variants_of(spec: AblateSpec) -> list[Variant]:
    """The variants in the order of the table, the baseline first; each checked as far as that goes without training."""

    def variant(label: str, folder: str, model: str, section: VariantSection | None = None) -> Variant:
        section = section or VariantSection()
        return Variant(
            label, _slug(folder), model, section.set,
            None if section.pretrain is False else _over(spec.pretrain, section.pretrain),
            _over(spec.finetune, section.finetune) or {},
        )  # fmt: skip

    if spec.grid:
        found = []
        for values in itertools.product(*spec.grid.values()):
            chosen = dict(zip(spec.grid, values, strict=True))
            label = ", ".join(str(v) if k == "model" else f"{k.split('.')[-1]}={v}" for k, v in chosen.items())
            model = str(chosen.pop("model", spec.baseline))
            found.append(variant(label, label, model, VariantSection(set=chosen)))
    else:
        found = [variant(spec.baseline, spec.baseline, spec.baseline)]
        model = spec.baseline
        for change in spec.ladder:
            model = f"{model}-{change}"
            found.append(variant(f"+{change}", model, model))
        for name, section in spec.variants.items():
            found.append(variant(name, name, section.model or spec.baseline, section))
    for what in ("label", "folder"):
        names = [getattr(v, what).lower() for v in found]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"two variants are called {name!r}: give each another name")
    for one in found:
        if one.pretrain is not None and "data_path" not in one.pretrain:
            raise InputError("pretrain: give data_path, the folder of Tiny-ImageNet")
        if (
            spec.pretrain_seeds
            and one.pretrain
            and {"seed", "train.seed"} & {*one.pretrain, *one.pretrain.get("set", {})}
        ):
            raise InputError(
                "pretrain_seeds: pre-training takes the fine-tuning's seeds, leave the seed out of pretrain"
            )
        sets = [f"{k}={json.dumps(v)}" for k, v in {**one.finetune.get("set", {}), **one.sets}.items()]
        try:
            net = build(FinetuneConfig, options={"model.name": one.model}, sets=sets).model
            if library_of(net.name) is None:  # of other libraries only their training knows
                with torch.device("meta"):
                    create_model(net.name, **net.overrides())
        except InputError as error:
            raise InputError(f"variant {one.label!r}: {error}") from None
    return found


def _over(common: Mapping[str, Any] | None, own: Mapping[str, Any]) -> dict[str, Any] | None:
    """Options of a verb, a variant's own over the common ones, key by key in `set`; None where neither is there."""
    if common is None and not own:
        return None
    common = common or {}
    sets = {**common.get("set", {}), **own.get("set", {})}
    return {**common, **own, **({"set": sets} if sets else {})}


def _slug(label: str) -> str:
    return "".join(c if c.isalnum() or c in "-_.+=" else "-" for c in label).strip("-.")


def option_words(options: Mapping[str, Any]) -> list[str]:
    """`{"crop_size": 128, "flip": true, "set": {...}}` as words of a command."""
    words: list[str] = []
    for key, value in options.items():
        name = "--" + key.replace("_", "-")
        if key == "set":
            words += set_words(value)
        elif value is True:
            words.append(name)
        elif value is not None and value is not False:
            joint = "x" if key.endswith("size") or key == "stride" else ","
            words += [name, joint.join(map(str, value)) if isinstance(value, list) else str(value)]
    return words


def set_words(sets: Mapping[str, Any]) -> list[str]:
    return [word for key, value in sets.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def check_options(spec: AblateSpec, known: Mapping[str, Collection[str]]) -> None:
    """Refuse options that a verb does not have, before any work; `known` is of the command line, by verb."""
    for section in {**OURS, **EVALUATIONS}:
        verb = "eval" if section in EVALUATIONS else section
        own = [(f"{name}: ", getattr(v, section, None) or {}) for name, v in spec.variants.items()]
        for where, given in [("", getattr(spec, section)), *own]:
            if given is None or (where and not given):
                continue
            if verb not in known:
                raise InputError(f"{where}this nota-seg has no verb {verb!r}: leave the section {section!r} out")
            names = {name.removeprefix("--").replace("-", "_") for name in known[verb]} - OURS[verb]
            for key in given:
                if key.replace("-", "_") not in names:
                    raise InputError(f"{where}{section}: no option {key!r} here: {did_you_mean(key, sorted(names))}")
            if not isinstance(given.get("set", {}), dict):
                raise InputError(f"{where}{section}: `set` is a mapping of configuration keys to values")


def check_data(spec: AblateSpec) -> None:
    """Refuse data that are not there, or lack the split of an evaluation: it would be noticed after hours."""
    splits = open_source(spec.data_dir, spec.finetune.get("set", {}).get("data.layout")).splits
    for section in EVALUATIONS:
        split = (getattr(spec, section) or {}).get("split", "val")
        if split not in splits:
            raise InputError(f"{section}: {spec.data_dir} has no split {split!r}: {did_you_mean(split, splits)}")


class Ablation:
    """The work on one output folder."""

    def __init__(self, spec: AblateSpec, output: Path, *, devices: Sequence[str | None]) -> None:
        self.spec, self.output, self.devices = spec, output, list(devices)
        self.variants = variants_of(spec)
        self.state: dict[str, Any] = {v.label: {"status": "waiting", "stages": {}} for v in self.variants}
        self.children: set[subprocess.Popen[str]] = set()
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._encoders: dict[str, threading.Lock] = {}

    def prepare(self, *, resume: bool, overwrite: bool) -> None:
        """Make the folder ready, or refuse it before any work."""
        file = self.output / STATE
        if resume and overwrite:
            raise InputError("--resume goes on and --overwrite starts anew: give one of them")
        if resume and not file.exists():
            raise InputError(f"--resume: there is no ablation in {self.output}; start it without --resume")
        if self.output.exists() and any(self.output.iterdir()) and not resume:
            if not file.exists() or not overwrite:
                hint = "--resume goes on, --overwrite starts anew" if file.exists() else "name a new folder"
                raise InputError(f"{self.output} exists and is not empty: {hint}")
            for name in ("runs", "pretrain", "logs", "report"):
                shutil.rmtree(self.output / name, ignore_errors=True)
        if resume:
            before = json.loads(file.read_text(encoding="utf-8"))["variants"]
            for variant in self.variants:
                stages = before.get(variant.label, {}).get("stages", {})
                for name, (words, _) in self._stages(variant).items():
                    if name in stages and stages[name]["words"] != words:
                        raise InputError(
                            f"--resume: the specification of {variant.label!r} has changed since its {name} was done: "
                            "name another folder, or --overwrite"
                        )
                if stages:
                    self.state[variant.label]["stages"] = stages
        for sub in ("runs", "logs"):
            (self.output / sub).mkdir(parents=True, exist_ok=True)
        sweep_partial(self.output)
        write_text(self.output / "spec.yaml", yaml.safe_dump(self.spec.model_dump(mode="json"), sort_keys=False))
        self._save()

    def run(self) -> list[str]:
        """All variants, then latencies one after the other; the labels of those that failed."""
        waiting: queue.SimpleQueue[Variant] = queue.SimpleQueue()
        for variant in self.variants:
            waiting.put(variant)

        def work(device: str | None) -> None:
            while not self.stopped.is_set():
                try:
                    variant = waiting.get_nowait()
                except queue.Empty:
                    return
                self._try(variant, [s for s in self._stages(variant) if s != "latency"], device)

        with self._signals():
            threads = [threading.Thread(target=work, args=(device,)) for device in self.devices]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if self.spec.latency is not None:
                for variant in self.variants:  # never beside another process's work
                    if not self.stopped.is_set() and self.state[variant.label]["status"] == "done":
                        self._try(variant, ["latency"], self.devices[0])
        return [v.label for v in self.variants if self.state[v.label]["status"] == "failed"]

    def finished(self) -> list[Run]:
        """The variants whose training is done, as runs to compare."""
        done = [v for v in self.variants if "finetune" in self.state[v.label]["stages"]]
        runs = []
        for variant in done:
            try:
                runs.append(load_run(self.output / "runs" / variant.folder, variant.label))
            except InputError as error:
                self._say(f"{variant.label}: {error}")
        return runs

    def _encoder(self, variant: Variant) -> str:
        """The folder of the pre-training: variants with equal encoders and options share one."""
        for other in self.variants:
            if self._encoder_key(other) == self._encoder_key(variant):
                return other.folder
        return variant.folder

    def _encoder_key(self, variant: Variant) -> str:
        """What the weights of the pre-training depend on."""
        seed = variant.first_seed if self.spec.pretrain_seeds else None
        options = json.dumps([variant.pretrain, seed], sort_keys=True)
        sets = {
            **(variant.pretrain or {}).get("set", {}),
            **{k: v for k, v in variant.sets.items() if _of_encoder(k)},
        }
        if library_of(variant.model) is not None:
            return options + variant.model + json.dumps(sets, sort_keys=True)
        sets = {k: v for k, v in sets.items() if k.startswith("model.")}
        section = build(
            FinetuneConfig,
            options={"model.name": variant.model},
            sets=[f"{k}={json.dumps(v)}" for k, v in sets.items()],
        ).model
        config = create_config(section.name, **section.overrides())
        return options + json.dumps([config.stages, config.drop_path_rate, config.layer_norm_eps], sort_keys=True)

    def _stages(self, variant: Variant) -> dict[str, tuple[list[str], Path]]:
        """Words of each stage's command, without device and --resume, and the folder or file that it makes."""
        spec, folder = self.spec, self.output / "runs" / variant.folder
        seeds = ["--seeds", str(spec.seeds)] if spec.seeds is not None else []
        first = folder / f"seed-{variant.first_seed}" if seeds else folder
        stages: dict[str, tuple[list[str], Path]] = {}
        weights: list[str] = []
        if variant.pretrain is not None:
            encoder = self.output / "pretrain" / self._encoder(variant)
            words = ["pretrain", "--output-dir", str(encoder), "--model", variant.model]
            words += [*option_words(variant.pretrain), *variant.words(_of_encoder)]
            words += ["--seed", str(variant.first_seed), *seeds] if spec.pretrain_seeds else []
            stages["pretrain"] = (words, encoder)
            weights = ["--pretrain", str(encoder if spec.pretrain_seeds else encoder / "best")]
        words = ["finetune", "--data-dir", spec.data_dir, "--save-path", str(folder), "--model", variant.model]
        words += [*weights, *option_words(variant.finetune), *variant.words(), *seeds]
        stages["finetune"] = (words, folder)
        for name, file in EVALUATIONS.items():
            if (options := getattr(spec, name)) is not None:
                words = ["eval", "--data-dir", spec.data_dir, "--pretrain", str(first), *option_words(options)]
                stages[name] = ([*words, "--json", str(first / f"{file}.json")], first / f"{file}.json")
        words = ["flops", "--pretrain", str(first), *option_words(spec.flops), "--json"]
        stages["flops"] = (words, folder / "flops.json")
        if spec.latency is not None:
            stages["latency"] = (["latency", "--pretrain", str(first), *option_words(spec.latency)], first)
        return stages

    def _try(self, variant: Variant, names: Sequence[str], device: str | None) -> None:
        entry, stages = self.state[variant.label], self._stages(variant)
        entry["status"] = "running"
        entry.pop("error", None)
        self._save()
        where = f" on {device}" if device is not None else ""
        try:
            for name in names:
                if name in entry["stages"]:
                    continue
                self._say(f"{variant.label}: {name}{where}")
                started = time.monotonic()
                words, target = stages[name]
                if name == "pretrain":
                    with self._encoders_lock(target):
                        if not any(self._done_by_other(other, target) for other in self.variants):
                            self._train(variant, words, target, device)
                        entry["stages"][name] = {"words": words, "seconds": round(time.monotonic() - started, 1)}
                elif name == "finetune":
                    self._train(variant, words, target, device)
                elif name in EVALUATIONS:
                    for one in self._seed_folders(target.parent):
                        swap = {str(target.parent): str(one), str(target): str(one / target.name)}
                        self._call(variant, [swap.get(w, w) for w in words], device)
                elif name == "flops":
                    write_text(target, self._call(variant, words, None))
                else:
                    self._call(variant, words, device)
                entry["stages"][name] = {"words": words, "seconds": round(time.monotonic() - started, 1)}
                self._save()
            entry["status"] = "done"
        except StageFailed as error:
            entry["status"] = "waiting" if self.stopped.is_set() else "failed"
            if not self.stopped.is_set():
                entry["error"] = f"{name}: {error}"
                self._say(f"{variant.label} failed in {name} and is passed over: {error} (logs/{variant.folder}.log)")
        except OSError as error:
            entry["status"], entry["error"] = "failed", f"{name}: {error}"
            self._say(f"{variant.label} failed in {name} and is passed over: {error}")
        self._save()

    def _encoders_lock(self, folder: Path) -> threading.Lock:
        with self._lock:
            return self._encoders.setdefault(str(folder), threading.Lock())

    def _done_by_other(self, other: Variant, folder: Path) -> bool:
        stages = self._stages(other)
        return (
            "pretrain" in stages and "pretrain" in self.state[other.label]["stages"] and stages["pretrain"][1] == folder
        )

    def _seed_folders(self, first: Path) -> list[Path]:
        if self.spec.seeds is None:
            return [first]
        rows = json.loads((first.parent / SUMMARY).read_text(encoding="utf-8"))["seeds"]
        return [first.parent / row["folder"] for row in rows if "error" not in row]

    def _train(self, variant: Variant, words: list[str], folder: Path, device: str | None) -> None:
        begun = (folder / "run.json").exists() or any(folder.glob("seed-*/run.json")) or (folder / SUMMARY).exists()
        if not begun and folder.exists():
            shutil.rmtree(folder)  # killed before the first line of its log: nothing in it yet
        self._call(variant, [*words, *(["--resume"] if begun else [])], device)

    def _call(self, variant: Variant, words: list[str], device: str | None) -> str:
        """Run a verb; its stdout. Its stderr goes to the log and, with the variant's name, to ours."""
        if self.stopped.is_set():
            raise StageFailed("stopped")
        command = [sys.executable, "-m", "nota_seg.cli", *words]
        if device is not None and words[0] != "flops":
            command += ["--device", device]
        last = ""
        log = self.output / "logs" / f"{variant.folder}.log"
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ nota-seg {' '.join(command[3:])}\n")
            child = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1,
                env=self._environment(words[0]),
                start_new_session=True, preexec_fn=_die_with_parent,  # Ctrl-C reaches it through us alone
            )  # fmt: skip
            with self._lock:
                self.children.add(child)
            assert child.stdout is not None and child.stderr is not None
            result: list[str] = []
            reader = threading.Thread(target=lambda: result.append(child.stdout.read()))  # type: ignore[union-attr]
            reader.start()
            for line in child.stderr:
                file.write(line)
                file.flush()
                if line.strip():
                    last = line.strip()
                    self._say(f"  {variant.label} | {last}")
            code = child.wait()
            reader.join()
            with self._lock:
                self.children.discard(child)
        if code != 0:
            raise StageFailed(last.removeprefix("error: ") or f"exit code {code}")
        return result[0]

    def _environment(self, verb: str) -> dict[str, str]:
        """Variants side by side on the processor share its threads; a latency is measured alone, with all of them."""
        beside = self.devices.count("cpu")
        if beside < 2 or verb == "latency":
            return dict(os.environ)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return {"OMP_NUM_THREADS": str(max(1, cores // beside)), **os.environ}  # what the user set stands

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM are passed on once to the children, which save their state and stop."""

        def stop(number: int, frame: Any) -> None:
            self.stopped.set()
            for child in list(self.children):
                child.send_signal(signal.SIGTERM)

        before = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def _save(self) -> None:
        with self._lock:
            write_json(self.output / STATE, {"variants": self.state})

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _of_encoder(key: str) -> bool:
    return key.startswith("model.") and not key.startswith("model.decoder")


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    """In the child: if the ablation is killed outright, stop as if asked to, or two would write to one folder later."""
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def ablate(
    spec: AblateSpec,
    output: str | Path,
    *,
    devices: Sequence[str | None] = (None,),
    resume: bool = False,
    overwrite: bool = False,
    options: Mapping[str, Collection[str]] | None = None,
) -> tuple[str, list[str]]:
    """Run an ablation; its table and the labels of the variants that failed.

    Args:
        spec: What to do.
        output: `runs/VARIANT`, `pretrain/ENCODER`, `logs`, `report/index.html`, `table.md`, `table.tex`, `ablate.json`.
        devices: One variant at a time on each, `cpu` as often as it stands there; None is the best device there is.
        resume: Go on: finished stages are not repeated, an unfinished training continues.
        overwrite: Start anew.
        options: Options of each verb, to check the sections by.

    Raises:
        InputError: The specification or the folder is wrong.
        KeyboardInterrupt: It was stopped; what is done is kept.
    """
    output = Path(output)
    if options is not None:
        check_options(spec, options)
    work = Ablation(spec, output, devices=devices)
    check_data(spec)
    work.prepare(resume=resume, overwrite=overwrite)
    failed = work.run()
    if work.stopped.is_set():
        raise KeyboardInterrupt
    runs = work.finished()
    if not runs:
        return "no variant finished", failed
    size = spec.flops.get("size", 512)
    height, width = (size, size) if isinstance(size, int) else _pair(size)
    result = comparing.compare(runs, size=(height, width))
    result.notes += [f"{label} failed: {work.state[label]['error']}" for label in failed]
    comparing.write(result, output / "report", title=spec.title)
    write_text(output / "table.tex", latex(result, caption=spec.title))
    text = markdown(result)
    write_text(output / "table.md", text)
    verdicts = "\n".join(result.sentences())
    return text + (f"\n{verdicts}" if verdicts else ""), failed


def _pair(size: Any) -> tuple[int, int]:
    parts = [int(v) for v in (size if isinstance(size, list) else str(size).lower().split("x"))]
    return parts[0], parts[-1]
